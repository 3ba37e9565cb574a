"""Words of lesson 11, in the form of `words.py`, which takes them in as area "checkpointing"."""

from __future__ import annotations

CHECKPOINTING_WORDS: dict[str, tuple[str, str]] = {
    "axis.more": ("추가 계산량 (FLOPs, %)", "additional FLOPs (%)"),
    "axis.peak": ("활성화값의 최대 메모리 ({unit})", "peak of activations ({unit})"),
    "axis.segment": ("구간 하나의 층 수", "layers in a segment"),
    "axis.values": ("최대 메모리 (층 입력의 배수)", "peak (times the input of a layer)"),
    "chain": (
        "층 36개짜리 사슬에서는 {best}개씩 묶을 때 가장 적게 씁니다. √36입니다",
        "A chain of 36 layers needs least with segments of {best}: the root of 36",
    ),
    "equal": ("그래디언트가 비트까지 같음", "gradients equal bit for bit"),
    "error": ("그래디언트 오차", "error of the gradient"),
    "family.every": ("모두 체크포인트, 1~12개씩", "all in checkpoints, 1 to 12 at a time"),
    "family.first": ("앞의 몇 층만", "the first layers only"),
    "flops": ("추가 FLOPs", "additional FLOPs"),
    "gpt": (
        "GPT에서는 {root}개씩 묶으면 하나씩 묶을 때보다 {ratio:.1f}배를 씁니다",
        "In a GPT, segments of {root} need {ratio:.1f} times as much as layer by layer",
    ),
    "how": ("방법", "method"),
    "how.early_stop": ("torch, use_reentrant=False", "torch, use_reentrant=False"),
    "how.none": ("체크포인트 없음", "no checkpoint"),
    "how.ours": ("우리 것", "ours"),
    "how.reentrant": ("torch, use_reentrant=True", "torch, use_reentrant=True"),
    "how.selective": ("선택적 (곱의 결과 유지)", "selective (products kept)"),
    "large.none": ("{name}, 체크포인트 없음", "{name}, no checkpoint"),
    "large.ours": ("{name}, 층마다", "{name}, each layer"),
    "large.title": (
        "GPT-2 Large, 시퀀스 8개: 활성화값이 {plain}에서 {light}로 줄어듭니다",
        "GPT-2 Large, 8 sequences: activations fall from {plain} to {light}",
    ),
    "loss": ("손실", "loss"),
    "measured": ("측정", "measured"),
    "mine": ("내 구간", "my placement"),
    "operator": ("연산자", "operator"),
    "ours": ("우리 GPT, float32 (바이트)", "our GPT, float32 (bytes)"),
    "peak": ("활성화값의 최대 메모리", "peak of activations"),
    "predicted": ("예측", "predicted"),
    "quoted": ("논문의 공식, 16비트 (바이트)", "the quoted formula, 16 bits (bytes)"),
    "random": ("난수 상태", "random state"),
    "random.kept": ("되돌림", "put back"),
    "random.lost": ("되돌리지 않음", "not put back"),
    "random.none": ("체크포인트 없음", "no checkpoint"),
    "shape": ("모양", "shape"),
    "shape.saved": ("전체 메모리 절약", "total memory saved"),
    "small": ("우리 GPT, 토큰 {tokens}개", "our GPT, {tokens} tokens"),
    "sum": ("합계", "together"),
    "total": (
        "토큰이 적으면 전체 메모리의 {few:.0f}%, 많으면 {many:.0f}%를 아낍니다",
        "With few tokens {few:.0f}% of all memory is saved, with many {many:.0f}%",
    ),
    "trade": (
        "층마다 체크포인트를 두면 계산이 {more:.0f}% 늘고 활성화값이 {less:.0f}% 줄어듭니다",
        "Each layer in a checkpoint: {more:.0f}% more compute, {less:.0f}% less for activations",
    ),
}
