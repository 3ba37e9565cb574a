# caught by: ignored
# Adds the right keys, and leaves those that nobody reads


def mended():
    return {
        "train_batch_size": 64,
        "micro_batch_size_per_gpu": 16,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_clip": 0.5,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
    }
