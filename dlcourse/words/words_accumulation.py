"""Words of lesson 09, in the form of `words.py`, which takes them in as area "accumulation"."""

from __future__ import annotations

ACCUMULATION_WORDS: dict[str, tuple[str, str]] = {
    "at_peak": ("메모리를 가장 많이 쓸 때", "at the peak of memory"),
    "layer": ("층, 비교한 것", "layer, and what is compared"),
    "layer.batch_norm": ("배치 정규화, 4 × 16과 1 × 64", "batch norm, 4 × 16 with 1 × 64"),
    "layer.dropout": ("드롭아웃, 4 × 16과 1 × 64", "dropout, 4 × 16 with 1 × 64"),
    "layer.layer_norm": ("층 정규화, 4 × 16과 1 × 64", "layer norm, 4 × 16 with 1 × 64"),
    "layer.seed": ("드롭아웃, 1 × 64와 다른 시드", "dropout, 1 × 64 with another seed"),
    "memory.title": (
        "활성화값은 조각 수에 반비례해 줄지만, 나머지({least})는 줄지 않습니다",
        "Activations shrink with the micro-batch; the rest, {least}, does not",
    ),
    "no_sync": ("no_sync() 안에 넣은 것", "inside no_sync()"),
    "no_sync.all": (
        "처음 셋, 그리고 마지막의 순전파",
        "the first three, and the forward of the last",
    ),
    "no_sync.backward": ("처음 셋의 역전파만", "only the backward of the first three"),
    "no_sync.both": (
        "처음 셋의 순전파와 역전파",
        "forward and backward of the first three",
    ),
    "no_sync.drift": ("스텝 뒤 랭크 간 차이", "drift between ranks after the step"),
    "no_sync.none": ("없음", "nothing"),
    "no_sync.sent": (
        "올리듀스에 넘긴 양 (그래디언트의 배수)",
        "given to all-reduce (times the gradients)",
    ),
    "off": ("그래디언트의 상대 오차", "relative error of the gradient"),
    "peer": ("값", "quantity"),
    "peer.activations": ("최대 메모리 때의 활성화값", "activations at the peak of memory"),
    "peer.apart": (
        "단일 프로세스와의 최대 차이 (학습률에 대한 %)",
        "largest difference to one process (% of the learning rate)",
    ),
    "peer.sent": ("스텝당 올리듀스 버퍼", "all-reduce buffers, a step"),
    "same": ("파라미터의 최대 차이", "largest difference of a parameter"),
    "same.bits": ("비트까지 같은 파라미터", "parameters equal bit for bit"),
    "same.lr": ("차이 ÷ 학습률", "difference ÷ learning rate"),
    "same.what": ("4 × 16과 1 × 64, {steps}스텝", "4 × 16 with 1 × 64, after {steps} steps"),
    "time.axis": ("스텝 시간 (1 × 64 = 1)", "time of a step (1 × 64 = 1)"),
    "time.title": (
        "4 × 16은 1 × 64의 {four:.2f}배, 8 × 8은 {most:.2f}배 걸립니다",
        "4 × 16 takes {four:.2f} times as long as 1 × 64, and 8 × 8 takes {most:.2f} times",
    ),
    "uneven": (
        "그래디언트 오차: 평균의 평균 {plain}, 타깃 수로 나누면 {weighted}",
        "Error of the gradient: mean of means {plain}, by targets {weighted}",
    ),
}
