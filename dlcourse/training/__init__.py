"""Techniques that make a model fit into memory: one module or folder a lesson."""
