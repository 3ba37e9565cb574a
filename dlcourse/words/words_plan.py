"""Words of the planner and of `scale`, in the form of `words.py`, which takes them in as "plan"."""

from __future__ import annotations

PLAN_WORDS: dict[str, tuple[str, str]] = {
    "buffers": ("버퍼 합계 (GB)", "buffers together (GB)"),
    "calls": ("호출", "calls"),
    "category": ("분류", "category"),
    "comm": (
        "이 랭크가 한 스텝에 부르는 집합 통신",
        "Collectives that this rank calls in one step",
    ),
    "group": ("그룹의 랭크 수", "ranks in the group"),
    "kept": ("스텝 사이에 남는 것 (GB)", "kept between steps (GB)"),
    "memory": (
        "{model}, 랭크 {world:,}개 중 {rank}번: 파라미터 {parameters:,}개, "
        "데이터 {data} x 파이프라인 {pipeline} x 텐서 {tensor}, ZeRO {stage}단계",
        "{model}, rank {rank} of {world:,}: {parameters:,} parameters, "
        "data {data} x pipeline {pipeline} x tensor {tensor}, ZeRO stage {stage}",
    ),
    "op": ("집합 통신", "collective"),
    "peak": ("가장 높은 순간 (GB)", "at the peak (GB)"),
    "seconds": (
        "이 컴퓨터에서 걸린 시간 {seconds}, 쓴 메모리 {memory}",
        "took {seconds} and {memory} on this machine",
    ),
    "sent": ("보내는 양, 이론값 (GB)", "sent, in theory (GB)"),
    "together": ("합계", "together"),
}
