"""Words of lesson 12, in the form of `words.py`, which takes them in as area "offload"."""

from __future__ import annotations

OFFLOAD_WORDS: dict[str, tuple[str, str]] = {
    "alone": ("우리 GPT, 나누지 않음", "our GPT, not divided"),
    "apart": ("여러 파일, 자기 층만", "in shards, own layers only"),
    "back": ("돌아온 바이트", "bytes back"),
    "beside": (
        "호스트가 갱신하는 시간의 {share}가 장치의 역전파와 겹칩니다",
        "{share} of the host's updates run beside the device's backward",
    ),
    "device": ("장치 {device}", "device {device}"),
    "device.layers": ("장치 {device}, 층 {layers}개", "device {device}, {layers} layers"),
    "device.plain": ("오프로드 없음", "no offload"),
    "equal": ("손실", "loss"),
    "full": (
        "장치마다 파라미터는 2 GB({each:.2f} GiB)지만, 학습에는 모두 {low:.1f}~{high:.1f} GiB",
        "2 GB of parameters on each ({each:.2f} GiB), but {low:.1f} to {high:.1f} GiB for training",
    ),
    "gantt": (
        "한 번에 하나만 일합니다. 랭크는 시간의 {idle}를 기다립니다",
        "One works at a time: ranks wait {idle} of the time",
    ),
    "gantt.many": ("마이크로배치 {m}개", "{m} micro-batches"),
    "gantt.one": ("마이크로배치 1개, 측정", "1 micro-batch, measured"),
    "gradients": ("그래디언트의 최대 메모리 (바이트)", "peak of gradients (bytes)"),
    "host": ("호스트: {name}", "host: {name}"),
    "ledger": (
        "파라미터는 장치 메모리의 {share:.0f}%뿐입니다",
        "Parameters are {share:.0f}% of what a device needs",
    ),
    "libraries": ("구현", "implementation"),
    "limit": ("한도", "limit"),
    "load": (
        "통째로 읽으면 랭크마다 자기 층만 읽을 때의 {ratio:.1f}배가 필요합니다",
        "Loading whole needs {ratio:.1f} times what a rank needs for its own layers",
    ),
    "measured": ("측정된 최대값", "measured peak"),
    "needed": ("예측", "predicted"),
    "optimizer": ("옵티마이저 오프로드", "optimizer offload"),
    "out": ("나간 바이트", "bytes out"),
    "overlap.no": ("옵티마이저 오프로드, 중첩 없음", "optimizer offload, no overlap"),
    "overlap.yes": ("옵티마이저 오프로드, 중첩", "optimizer offload, overlap"),
    "parameters": ("파라미터까지 오프로드", "parameters as well"),
    "parameters.no": ("파라미터까지 오프로드, 중첩 없음", "parameters as well, no overlap"),
    "seconds": ("초당 {rate} GB: 스텝마다 {time}", "at {rate} GB/s: {time} a step"),
    "share": (
        "장치에 남는 것: {plain}에서 {optimizer}로, 다시 {parameters}로 줄어듭니다",
        "What the device needs: {plain}, then {optimizer}, then {parameters}",
    ),
    "time.no": ("한 스텝, 중첩 없음", "a step, no overlap"),
    "time.ratio": ("비율", "ratio"),
    "time.yes": ("한 스텝, 중첩", "a step, overlap"),
    "unified": (
        "메모리가 하나뿐이면 오프로드는 {ratio:.2f}배를 씁니다",
        "With one memory only, offload needs {ratio:.2f} times as much",
    ),
    "unified.no": ("오프로드 없음", "no offload"),
    "unified.yes": ("같은 메모리로 오프로드", "offload into the same memory"),
    "way": ("방법", "method"),
    "whole": ("파일 하나, 모델 전체", "one file, the whole model"),
}
