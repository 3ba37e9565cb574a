# caught by: batch
# 64 = 16 x 4, as on one rank; with two it is 128, and DeepSpeed refuses


def mended():
    return {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
    }
