# caught by: clipping
# Takes the key out; the default is 1.0, not 0.5


def mended():
    return {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 16,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
    }
