"""Words of lesson 05, in the form of `words.py`, which takes them in as area "pipeline"."""

from __future__ import annotations

PIPELINE_WORDS: dict[str, tuple[str, str]] = {
    "activations": (
        "랭크 0의 활성화값: GPipe는 1F1B의 {ratio}배를 들고 있습니다",
        "Activations in rank 0: GPipe holds {ratio} times those of 1F1B",
    ),
    "activations.axis": ("최대 활성화값", "largest activations"),
    "apart": (
        "단일 프로세스와의 차이는 최대 {apart}, 허용값은 {allowed}입니다",
        "Largest difference to one process: {apart}; allowed: {allowed}",
    ),
    "apart.why": (
        "허용하는 이유: 마이크로배치의 그래디언트를 차례로 더하므로 더하는 순서가 "
        "다르고, float32의 마지막 자리가 달라집니다. Adam은 그래디언트를 자기 크기로 "
        "나누므로, 0에 가까운 그래디언트에서는 그 오차가 한 걸음({lr})의 일부만큼 커질 수 "
        "있습니다. 그래서 한 걸음의 5%까지 허용합니다.",
        "Why it is allowed: gradients of micro-batches are added one after the other, in another "
        "order than one process has, so the last digits of float32 differ. Adam divides a gradient "
        "by its own size, so near zero this error may grow to a part of one step ({lr}). Hence 5% "
        "of a step.",
    ),
    "axis.micro_batches": ("마이크로배치 수", "micro-batches"),
    "axis.units": ("시간 (F 하나 = 1)", "time (one F = 1)"),
    "gantt.both": (
        "{name}: 전체 시간의 {measured}가 유휴 시간입니다 (예측 {predicted})",
        "{name}: idle for {measured} of the time (predicted: {predicted})",
    ),
    "gantt.cores": (
        "실제 GPT, 코어 {cores}개에 랭크 {ranks}개: 막대가 코어를 기다리는 시간까지 담습니다",
        "The real GPT, {ranks} ranks on {cores} cores: bars also hold waiting for a core",
    ),
    "gantt.one": (
        "{name}: 전체 시간의 {idle}가 유휴 시간입니다",
        "{name}: idle for {idle} of the time",
    ),
    "kind.B": ("B: 입력의 그래디언트", "B: gradient of the input"),
    "kind.BW": ("BW: 역전파 전체", "BW: whole backward"),
    "kind.F": ("F: 순전파", "F: forward"),
    "kind.W": ("W: 가중치의 그래디언트", "W: gradients of the weights"),
    "kind.thin": ("가는 막대: 둘째 청크", "thin bars: second chunk"),
    "measured": ("측정값", "measured"),
    "predicted": ("예측값", "predicted"),
    "scaled": ("AdamW: 그래디언트 노름", "AdamW: norm of the gradient"),
    "scaled.adam": ("AdamW: 여섯째 스텝의 손실", "AdamW: loss of step 6"),
    "scaled.once": ("한 번", "once"),
    "scaled.sgd": ("SGD: 여섯째 스텝의 손실", "SGD: loss of step 6"),
    "scaled.twice": ("두 번", "twice"),
    "scaled.who": ("m으로 나눈 횟수", "divided by m"),
    "table.flight": ("랭크별 활성화값, 예측", "activations by rank, predicted"),
    "table.formula": ("유휴 / 전체, 공식", "idle / total, formula"),
    "table.ideal": ("유휴 / 이상적 시간", "idle / ideal"),
    "table.inside": ("자기 구간 안의 유휴", "idle inside own span"),
    "table.ledger": ("랭크별 활성화값, 장부", "activations by rank, by ledger"),
    "table.measured": ("유휴 / 전체, 측정", "idle / total, measured"),
    "table.predicted": ("유휴 / 전체, 예측", "idle / total, predicted"),
    "table.schedule": ("스케줄", "schedule"),
    "table.total": ("유휴 / 전체 시간", "idle / total"),
}
