def mended():
    return {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
    }
