# caught by: precision
# The block is there, and off


def mended():
    return {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_clipping": 0.5,
        "bf16": {},
        "zero_optimization": {"stage": 2},
    }
