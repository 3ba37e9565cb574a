"""An exercise of the demo lesson, in the form that every lesson's exercises have."""

from dlcourse.course.exercises import (
    Exercise,
    expect,
    expect_calls,
    expect_close,
    expect_sent,
    measured,
)


def check_mean(mean, rank, world_size):
    import torch

    x = torch.arange(1000.0) + rank
    with measured() as seen:
        got = mean(x.clone())
    want = torch.arange(1000.0) + (world_size - 1) / 2
    constant = mean(torch.full((3,), float(rank)))
    return [
        expect_close("values", got, want, atol=1e-4),
        expect_sent("bytes", seen, minimum=2 * (world_size - 1) / world_size * 4000),
        expect_calls("calls", seen, "all_reduce", 1),
        expect("own", getattr(constant, "shape", None) == (3,), "shape_lost"),
    ]


MEAN = Exercise(
    id="97.mean",
    names=("mean",),
    checker=check_mean,
    cases={
        "values": {"ko": "평균값", "en": "the mean"},
        "bytes": {"ko": "보낸 바이트", "en": "bytes sent"},
        "calls": {"ko": "집합 통신 수", "en": "number of collectives"},
        "own": {"ko": "모양", "en": "the shape"},
    },
    messages={"shape_lost": {"ko": "모양이 바뀌었습니다", "en": "the shape has changed"}},
    solution="""\
def mean(x):
    dist.all_reduce(x)
    return x / world_size
""",
    wrong=(
        "def mean(x):\n    dist.all_reduce(x)\n    return x\n",
        "def mean(x):\n    parts = [torch.empty_like(x) for _ in range(world_size)]\n"
        "    dist.all_gather(parts, x)\n    return sum(parts) / world_size\n",
        "def mean(x):\n    if rank:\n        dist.all_reduce(x)\n    return x / world_size\n",
        "def mean(x):\n    dist.all_reduce(x)\n    x / world_size\n",
    ),
    hints={
        "ko": ("합부터 구해 보세요.", "합을 랭크 수로 나누면 됩니다."),
        "en": ("Start with the sum.", "Divide the sum by the number of ranks."),
    },
    num_ranks=2,
    time_limit=8.0,
)

EXERCISES = [MEAN]
