"""Words of lesson 09, in the form of `words.py`, which takes them in as area "accumulation"."""

from __future__ import annotations

ACCUMULATION_WORDS: dict[str, tuple[str, str]] = {
    "at_peak": ("메모리를 가장 많이 쓸 때", "at the peak of memory"),
    "calls.bytes": ("랭크 0이 넘긴 양", "given by rank 0"),
    "calls.number": ("올리듀스", "all-reduce"),
    "explore.axis": ("최대 메모리 (1 × 64를 100으로 본 %)", "peak memory (% of 1 × 64)"),
    "explore.large": ("GPT-2 large", "GPT-2 large"),
    "explore.ours": ("이 레슨의 GPT", "this lesson's GPT"),
    "explore.title": (
        "{parts}: 활성화값만 줄고, 이 GPT는 {ours}, GPT-2 large는 {large}가 바닥으로 남습니다",
        "{parts}: only activations shrink; a floor of {ours} here, {large} in GPT-2 large, stays",
    ),
    "explore.whole": (
        "{parts}: 나누지 않으면 거의 모두 활성화값입니다",
        "{parts}: undivided, nearly all of it is activations",
    ),
    "held.by_tokens": (
        "타깃 수로 나누면 배치 하나의 그래디언트와 같음",
        "divided by targets: equal to the gradient of one batch",
    ),
    "held.by_tokens.because": (
        "float32의 반올림만 다르기 때문입니다",
        "only float32 rounding differs",
    ),
    "held.copy": (
        "1 × 16보다 그래디언트 한 벌이 더 많음",
        "one copy of the gradients more than 1 × 16",
    ),
    "held.copy.because": (
        "최대가 되는 순간에 작은 텐서 하나쯤 차이가 날 수 있기 때문입니다",
        "the peak may come a small tensor earlier or later",
    ),
    "held.layer_norm": (
        "층 정규화: 4 × 16과 1 × 64의 그래디언트가 같음",
        "layer norm: the gradients of 4 × 16 and 1 × 64 are equal",
    ),
    "held.layer_norm.because": (
        "float32의 반올림만 다르기 때문입니다",
        "only float32 rounding differs",
    ),
    "held.one_process": ("단일 프로세스와 같음", "equal to one process"),
    "held.one_process.because": (
        "Adam이 반올림 오차를 학습률의 5%까지 키울 수 있기 때문입니다",
        "Adam may enlarge rounding up to 5% of the learning rate",
    ),
    "held.quarter": ("활성화값은 1 × 64의 4분의 1", "activations are a quarter of those of 1 × 64"),
    "held.quarter.because": (
        "크기가 배치에 비례하지 않는 값도 조금 있기 때문입니다",
        "a few of them do not grow with the batch",
    ),
    "held.same_adam": ("AdamW, float32: 1 × 64와 같음", "AdamW, float32: equal to 1 × 64"),
    "held.same_adam.because": (
        "Adam이 반올림 오차를 학습률의 5%까지 키울 수 있기 때문입니다",
        "Adam may enlarge rounding up to 5% of the learning rate",
    ),
    "held.same_parameters": ("파라미터는 그대로", "the parameters stay as they are"),
    "held.same_parameters.because": ("나누는 것은 배치뿐이기 때문입니다", "only the batch is cut"),
    "held.same_sgd": ("SGD, float32: 1 × 64와 같음", "SGD, float32: equal to 1 × 64"),
    "held.same_sgd.because": (
        "float32 덧셈의 순서만 다르기 때문입니다",
        "only the order of float32 additions differs",
    ),
    "held.same_wide": ("AdamW, float64: 1 × 64와 같음", "AdamW, float64: equal to 1 × 64"),
    "held.same_wide.because": (
        "float64는 float32보다 아홉 자리쯤 더 정확하기 때문입니다",
        "float64 carries about nine digits more than float32",
    ),
    "held.shrink": ("활성화값은 조각 수에 반비례", "activations shrink with the number of pieces"),
    "held.shrink.because": (
        "크기가 배치에 비례하지 않는 값도 조금 있기 때문입니다",
        "a few of them do not grow with the batch",
    ),
    "held.work": ("계산량이 같음", "the same number of operations"),
    "held.work.because": (
        "모든 행이 같은 행렬을 지나기 때문입니다",
        "every row passes the same matrices",
    ),
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
    "no_sync.both": ("처음 셋의 순전파와 역전파", "forward and backward of the first three"),
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
    "reason.means": (
        "평균의 평균이라 혼자 있던 타깃의 비중이 다른 타깃의 세 배입니다. "
        "모든 타깃의 평균은 2.5입니다.",
        "It is a mean of means: the lonely target counts three times as much as each of the "
        "others. The mean over all targets is 2.5.",
    ),
    "reason.no_sync": (
        "DDP는 역전파를 할 때마다 버킷을 모두 채우고, 채워진 버킷을 모두 보냅니다. "
        "네 번 가운데 세 번은 합이 끝나기도 전에 보낸 것입니다.",
        "Each of the four backwards fills every bucket, and DDP sends every full bucket; "
        "three of the four times before the sum is finished.",
    ),
    "reason.peak": (
        "활성화값은 약속대로 4분의 1이지만, {difference}가 더 있습니다. "
        "지금까지의 그래디언트 합이 다음 순전파를 하는 동안 메모리에 남아 있기 때문입니다.",
        "Activations are a quarter, as promised; {difference} more is "
        "there, because the sum of the gradients so far stays in memory during the next forward.",
    ),
    "same": ("파라미터의 최대 차이", "largest difference of a parameter"),
    "same.bits": ("비트까지 같은 파라미터", "parameters equal bit for bit"),
    "same.lr": ("차이 ÷ 학습률", "difference ÷ learning rate"),
    "same.what": ("4 × 16과 1 × 64, {steps}스텝", "4 × 16 with 1 × 64, after {steps} steps"),
    "time.axis": ("스텝 시간 (1 × 64 = 1)", "time of a step (1 × 64 = 1)"),
    "time.title": (
        "4 × 16은 1 × 64의 {four:.2f}배, {last}은 {most:.2f}배 걸립니다",
        "4 × 16 takes {four:.2f} times as long as 1 × 64, and {last} takes {most:.2f} times",
    ),
    "uneven": (
        "평균의 평균은 그래디언트가 {plain} 틀립니다.",
        "The gradient of a mean of means is off by {plain}.",
    ),
}
