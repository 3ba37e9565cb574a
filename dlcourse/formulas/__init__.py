"""What a training step costs in closed form: bytes, FLOPs and time. Nothing here needs torch."""
