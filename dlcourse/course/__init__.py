"""Course tools: build the notebooks, run them headless, exercises, claims.

Nothing in this package imports torch, so the notebook's kernel stays small; the ranks import it.
"""
