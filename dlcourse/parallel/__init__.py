"""Parallel training: data, tensor, sequence, context, pipeline, ZeRO, and the mesh of them."""
