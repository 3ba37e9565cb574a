"""Words of the pictures and exercises of collectives: key → (Korean, English), as in `words.py`."""

from __future__ import annotations

COLLECTIVES_WORDS: dict[str, tuple[str, str]] = {
    "after": ("{op} 뒤", "after {op}"),
    "after_again": ("{op} 한 번 더", "after one more {op}"),
    "alpha": ("α: 메시지 하나를 시작하는 시간", "α: time to start a message"),
    "assumption": ("가정", "assumption"),
    "axis.busbw": ("버스 대역폭", "bus bandwidth"),
    "axis.ratio": ("걸린 시간 ÷ Gloo 올리듀스", "time ÷ Gloo's all-reduce"),
    "axis.sent": ("보낸 바이트", "bytes sent"),
    "bandwidth": ("1/β: 대역폭 (초당)", "1/β: bandwidth (per second)"),
    "before": ("처음", "before"),
    "best_busbw": (
        "{size}에서 버스 대역폭이 가장 높은 것: {name}, {rate} MB/s",
        "Highest bus bandwidth at {size}: {name}, {rate} MB/s",
    ),
    "changed": ("바뀐 칸", "changed"),
    "crossover": (
        "{size}부터 링이 트리를 앞섭니다 (모델의 예측: {predicted})",
        "From {size} the ring beats the tree (the model said {predicted})",
    ),
    "crossover.none": (
        "잰 크기에서는 트리가 끝까지 앞섭니다 (모델의 예측: {predicted})",
        "The tree stays ahead at every size measured (the model said {predicted})",
    ),
    "fit_error": ("모델의 평균 오차", "mean error of the model"),
    "no_counters": (
        "이 운영체제에는 연결별 바이트 카운터가 없어서 이론값만 볼 수 있습니다.",
        "This system does not count bytes by connection, so only theory can be shown.",
    ),
    "one_machine": (
        "모든 메시지가 같은 코어 앞에 줄을 선다",
        "all messages queue for the same cores",
    ),
    "own_wires": ("랭크마다 링크가 따로 있다", "each rank has a wire of its own"),
    "pieces.halves": (
        "리듀스스캐터는 랭크마다 합을 한 칸씩 남기고, 올게더가 그 칸을 모두에게 나눕니다",
        "Reduce-scatter leaves one finished sum on each rank; all-gather hands them round",
    ),
    "pieces.one_to_all": (
        "브로드캐스트는 랭크 0의 줄을 복사하고, 올리듀스는 모든 줄을 더합니다",
        "Broadcast copies rank 0's row to everyone; all-reduce adds up all rows",
    ),
    "pieces.ring": (
        "{half}단계까지는 합이 자라고, 그 뒤로는 완성된 합이 퍼집니다",
        "Up to step {half} the sums grow; after that the finished ones go round",
    ),
    "pieces.transpose": (
        "올투올은 행과 열을 맞바꿉니다. 한 번 더 하면 제자리로 돌아옵니다",
        "All-to-all swaps rows and columns; a second one swaps them back",
    ),
    "published.alpha": ("라운드당", "per round"),
    "published.gpus": ("GPU 수", "number of GPUs"),
    "published.rounds": ("링의 라운드 수", "rounds of a ring"),
    "published.time": ("걸린 시간", "time"),
    "quantity": ("항목", "quantity"),
    "same_numbers": (
        "같은 합을 가장 빨리 낸 방법: {name}, Gloo가 걸린 시간의 {ratio}배",
        "Fastest at the same sum: {name}, in {ratio} times Gloo's time",
    ),
    "sent": (
        "naive에서는 랭크 0이 {naive}, 링에서는 모두 {ring}씩 보냅니다",
        "Naive: rank 0 sends {naive}. Ring: every rank sends {ring}",
    ),
    "start": ("처음", "start"),
    "step": ("{n}단계", "step {n}"),
    "strategy": (
        "DDP는 올리듀스만 부르고, FSDP2는 올리듀스를 한 번도 부르지 않습니다",
        "DDP calls nothing but all-reduce; FSDP2 does not call it at all",
    ),
}
