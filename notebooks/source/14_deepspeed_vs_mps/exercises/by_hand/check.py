"""The loop that is a DeepSpeed JSON: accumulation, a mean over ranks, and clipping by default."""

from dlcourse.course.exercises import as_number, expect, expect_sent, gathered, largest, measured

NAMES = ("train_step",)
CASES = ("replicas", "same", "loss", "bytes", "memory")
NUM_RANKS = 3
TIME_LIMIT = 60.0

_LR, _STEPS, _EACH, _ACCUMULATE = 0.05, 3, 4, 2
TOLERANCE = 1e-5  # float32; the usual mistakes are off by 1e-3 and more


def check(train_step, rank, world_size):
    import torch

    from dlcourse.corpus import Corpus

    corpus = Corpus()
    batches = [
        [
            corpus.batch(s, rank=r, world_size=world_size, micro_batch=_EACH, block=16)
            for r in range(world_size)
        ]
        for s in range(_STEPS)
    ]
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
    for step in batches[:-1]:
        train_step(model, optimizer, *step[rank])
    before = _loss_of(model, batches[-1][rank])
    with measured() as seen:
        returned = train_step(model, optimizer, *batches[-1][rank])
    state, want = _flat(model), _alone(batches)
    first = torch.tensor(gathered(state.tolist())[0])
    drift, apart = largest((state - first).abs().max()), largest((state - want).abs().max())
    if drift > 0:
        return [expect("replicas", False, "drift", off=f"{drift:.2g}")]
    key = "right" if apart < TOLERANCE else _mistake(state, batches)
    got = as_number(returned)
    off = largest(float("inf") if got is None else abs(got - before))
    minimum = 2 * (world_size - 1) / world_size * 4 * model.num_parameters()
    return [
        expect("replicas", True),
        expect("same", key == "right", key, off=f"{apart:.2g}"),
        expect("loss", off < 1e-4, "loss_off", off=f"{off:.2g}"),
        expect_sent("bytes", seen, minimum=minimum, at_least=0.95, key="often"),
        _memory(seen, batches[-1][rank]),
    ]


def _memory(seen, batch):
    with measured() as allowed:
        model = _model()
        for half in zip(*(x.chunk(_ACCUMULATE) for x in batch), strict=True):
            (model(*half) / _ACCUMULATE).backward()
    got, want = (m.record["memory"]["peaks"]["activations"] for m in (seen, allowed))
    return expect("memory", got <= 1.4 * want, "too_large", ratio=f"{got / want:.2g}")


def _model():
    from dlcourse.models.gpt import GPT, GPTConfig

    return GPT(GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32))


def _mistake(state, batches):
    """Which of the usual mistakes gives these very parameters."""
    for mistake in ("not_clipped", "summed", "parts_summed", "clipped_first", "as_given"):
        if (state - _alone(batches, mistake)).abs().max() < TOLERANCE:
            return mistake
    return "far"


def _alone(batches, mistake=""):
    """Parameters after the same steps in one process, as DeepSpeed takes them."""
    import torch
    from torch import nn

    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
    for step in batches:
        rows = []
        for batch in step:
            optimizer.zero_grad()
            for half in zip(*(x.chunk(_ACCUMULATE) for x in batch), strict=True):
                (model(*half) / (1 if mistake == "parts_summed" else _ACCUMULATE)).backward()
            if mistake == "clipped_first":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            rows.append([p.grad.clone() for p in model.parameters()])
        for p, *grads in zip(model.parameters(), *rows, strict=True):
            p.grad = sum(grads) / (1 if mistake in ("summed", "as_given") else len(grads))
        if mistake not in ("not_clipped", "clipped_first", "as_given"):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return _flat(model)


def _loss_of(model, batch):
    import torch

    with torch.no_grad():
        return model(*batch).item()


def _flat(model):
    import torch

    return torch.cat([p.detach().flatten() for p in model.parameters()])
