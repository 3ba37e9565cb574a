"""Words of lesson 03, in the form of `words.py`, which takes them in as area "data_parallel"."""

from __future__ import annotations

DATA_PARALLEL_WORDS: dict[str, tuple[str, str]] = {
    "apart": (
        "단일 프로세스와의 차이는 최대 {apart}, 허용값은 {allowed}입니다",
        "Largest difference to one process: {apart}; allowed: {allowed}",
    ),
    "apart.why": (
        "허용하는 이유: 같은 수를 다른 순서로 더하면 float32의 마지막 자리가 달라집니다. Adam은 "
        "그래디언트를 자기 크기로 나누므로, 0에 가까운 그래디언트에서는 그 오차가 한 스텝의 이동 "
        "폭인 학습률({lr})의 몇 %까지 커질 수 있습니다. 그래서 학습률의 5%까지 허용합니다.",
        "Why it is allowed: the same numbers are added in another order, so the last digits of "
        "float32 differ. Adam divides a gradient by its own size, so near zero this error may grow "
        "to some percent of the learning rate ({lr}), the length of a step. Hence 5% of it.",
    ),
    "axis.bucket": ("버킷 크기", "bucket size"),
    "axis.step": ("스텝 시간", "time of a step"),
    "early": ("역전파가 끝나기 전에 출발", "sent before backward ended"),
    "hidden": ("계산 뒤에 숨은 통신 시간", "communication time hidden"),
    "implementation": ("구현", "implementation"),
    "messages": ("스텝당 올리듀스", "all-reduces a step"),
    "no_sync": ("no_sync() 안에 넣은 것", "inside no_sync()"),
    "no_sync.backward_only": ("첫 마이크로배치의 역전파만", "only the backward of micro-batch 1"),
    "no_sync.both": (
        "첫 마이크로배치의 순전파와 역전파",
        "forward and backward of micro-batch 1",
    ),
    "no_sync.drift": ("스텝 뒤 랭크 간 차이", "drift between ranks after the step"),
    "no_sync.last_forward": (
        "첫 마이크로배치 전부와 둘째의 순전파",
        "all of micro-batch 1, and the forward of 2",
    ),
    "no_sync.sent": ("보낸 양 (그래디언트의 배수)", "sent (times the gradients)"),
    "peer.activations": ("   활성화값", "   activations"),
    "peer.buckets": ("   그래디언트와 버킷", "   gradients and buckets"),
    "peer.bytes": ("스텝당 올리듀스 버퍼", "all-reduce buffers, a step"),
    "peer.loss": ("마지막 스텝의 손실", "loss of the last step"),
    "peer.optimizer_state": ("   옵티마이저 상태", "   optimizer state"),
    "peer.parameters": ("   파라미터", "   parameters"),
    "peer.peak": ("랭크 하나의 최대 메모리", "peak memory of a rank"),
    "peer.quantity": ("값", "quantity"),
    "peer.time": ("스텝 시간 (DDP = 1)", "time of a step (DDP = 1)"),
    "timeline": (
        "{name}: 통신 시간의 {hidden}가 계산 뒤에 숨습니다",
        "{name}: {hidden} of communication time is hidden behind computation",
    ),
    "uneven": (
        "그래디언트 오차: 평균의 평균 {plain}, 토큰 수로 가중하면 {weighted}",
        "Error of the gradient: mean of means {plain}, weighted by tokens {weighted}",
    ),
}
