"""A selective policy: which results are saved."""

from dlcourse.course.exercises import expect, measured

NAMES = ("policy",)
CASES = ("answers", "same", "flops", "memory")
NUM_RANKS = 1
TIME_LIMIT = 60.0

MORE_FLOPS, LESS_MEMORY = 12, 50  # percent


def check(policy, rank, world_size):
    import gc
    from functools import partial

    import torch
    from torch.utils.checkpoint import (
        CheckpointPolicy,
        checkpoint,
        create_selective_checkpoint_contexts,
    )

    from dlcourse.models.gpt import GPT, GPTConfig
    from dlcourse.training.checkpointing.segments import checkpoint_blocks

    config = GPTConfig(n_layer=8, n_embd=64, block_size=64)
    tokens = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(3))
    answers = set()

    def asked(ctx, op, *args, **kwargs):
        answer = policy(ctx, op, *args, **kwargs)
        answers.add(type(answer))
        return answer

    def step(segments):
        contexts = partial(create_selective_checkpoint_contexts, asked)
        how = partial(checkpoint, use_reentrant=False, context_fn=contexts)
        gpt = checkpoint_blocks(GPT(config), segments, how)
        gc.collect()
        with measured() as seen:
            gpt(tokens, tokens).backward()
        grads = [p.grad for p in gpt.parameters()]
        return seen.record["flops"], seen.record["memory"]["peaks"]["activations"], grads

    plain_flops, plain_peak, want = step([])
    flops, peak, got = step([1] * config.n_layer)
    kind = bool(answers) and answers <= {CheckpointPolicy}
    more, less = 100 * (flops / plain_flops - 1), 100 * peak / plain_peak
    same = None not in got and all(map(torch.equal, got, want))
    return [
        expect("answers", kind, "no_policy", got=", ".join(sorted(a.__name__ for a in answers))),
        expect("same", same, "differs"),
        expect("flops", more <= MORE_FLOPS, "flops_high", got=f"{more:.1f}", want=MORE_FLOPS),
        expect("memory", less <= LESS_MEMORY, "memory_high", got=f"{less:.0f}", want=LESS_MEMORY),
    ]
