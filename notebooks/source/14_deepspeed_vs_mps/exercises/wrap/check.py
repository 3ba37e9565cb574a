"""Each block in a checkpoint: activations fall, losses and gradients stay."""

import logging

from dlcourse.course.exercises import expect, largest, measured

NAMES = ("wrap_blocks",)
CASES = ("loss", "gradients", "each", "memory")
NUM_RANKS = 2
TIME_LIMIT = 60.0

_LAYERS = 6


def check(wrap_blocks, rank, world_size):
    import torch

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT, GPTConfig

    config = GPTConfig(block_size=32, n_layer=_LAYERS, n_head=2, n_embd=32)
    batch = Corpus().batch(0, rank=rank, world_size=world_size, micro_batch=8, block=32)
    checkpoint, calls = counted(_checkpoint())
    plain, wrapped = GPT(config), GPT(config)
    returned = wrap_blocks(wrapped, checkpoint)
    if isinstance(returned, torch.nn.Module):  # a new model is as good
        wrapped = returned
    losses, gradients, peaks = [], [], []
    for model in (plain, wrapped):
        with measured() as seen:
            loss = model(*batch)
            loss.backward()
        losses.append(loss.item())
        grads = [p.grad for p in model.parameters()]
        full = [g for g in grads if g is not None]
        gradients.append((len(full), torch.cat([g.flatten() for g in full]) if full else None))
        peaks.append(seen.record["memory"]["peaks"]["activations"])
    apart = largest(abs(losses[0] - losses[1]))
    (want_count, want), (count, got) = gradients
    same = count == want_count and got is not None and got.shape == want.shape
    off = largest((got - want).abs().max()) if same else float("inf")
    share = largest(peaks[1] / peaks[0])
    key = "missing" if count != want_count else "off"
    values = {"count": count, "all": want_count, "off": f"{off:.2g}"}
    # A wrap of one checkpoint for all is one call; each block's is a call in forward
    return [
        expect("loss", apart <= 1e-6, "loss_off", off=f"{apart:.2g}"),
        expect("gradients", off <= 1e-6, key, **values),
        expect("each", len(calls) == _LAYERS, "calls", got=len(calls), want=_LAYERS),
        expect("memory", share <= 0.6, "too_large", share=f"{share:.0%}"),
    ]


def _checkpoint():
    from dlcourse.peers import deepspeed_engine

    if deepspeed_engine.is_installed():
        deepspeed = deepspeed_engine.start("cpu")
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # it tells its settings
        deepspeed.checkpointing.configure(None)
        return deepspeed.checkpointing.checkpoint
    from dlcourse.training.checkpointing.segments import reentrant

    return reentrant


def counted(checkpoint):
    calls = []

    def counting(function, *inputs):
        calls.append(function)
        return checkpoint(function, *inputs)

    return counting, calls
