"""Lesson 12: a model over several devices, and state on the host."""
