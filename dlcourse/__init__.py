"""Distributed training in notebooks: every concept runs in real processes."""
