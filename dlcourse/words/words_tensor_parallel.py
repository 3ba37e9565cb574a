"""Words of lesson 04, in the form of `words.py`, which takes them in as area "tensor_parallel"."""

from __future__ import annotations

TENSOR_PARALLEL_WORDS: dict[str, tuple[str, str]] = {
    "apart": ("파라미터의 최대 차이", "largest difference of a parameter"),
    "apart.float32": ("텐서 병렬, float32", "tensor parallel, float32"),
    "apart.float64": ("텐서 병렬, float64", "tensor parallel, float64"),
    "apart.forgotten": (
        "텐서 병렬, 역전파의 올리듀스를 빠뜨림",
        "tensor parallel, all-reduce of backward forgotten",
    ),
    "apart.loss": ("첫 손실의 차이", "difference of the first loss"),
    "apart.reordered": (
        "단일 프로세스, 배치의 순서만 뒤집음, float32",
        "one process, the batch in reverse order, float32",
    ),
    "apart.what": ("단일 프로세스와 비교한 것", "compared with one process"),
    "context.axis": ("계산한 블록 (T/2p × T/2p)", "blocks computed (T/2p × T/2p)"),
    "context.balanced": ("지그재그 분할", "zig-zag split"),
    "context.plain": ("단순 분할", "plain split"),
    "context.title": (
        "단순 분할에서는 마지막 랭크가 첫 랭크의 {ratio}배를 계산합니다",
        "With the plain split the last rank computes {ratio} times as much as the first",
    ),
    "gelu": (
        "더하기 전에 GELU를 하면 출력이 {wrong} 틀립니다. 열 다음에 행이면 {right}입니다",
        "GELU before the sum: the output is off by {wrong}; columns, then rows: by {right}",
    ),
    "library.dtensor": ("DTensor", "DTensor"),
    "library.dtensor_plain": ("DTensor, PrepareModuleInput 없이", "DTensor, no PrepareModuleInput"),
    "library.installed": (
        "megatron-core: 이 컴퓨터에 설치되어 있습니다",
        "megatron-core: installed on this machine",
    ),
    "library.megatron": ("megatron-core의 층", "megatron-core's layers"),
    "library.not_installed": (
        "megatron-core: 이 컴퓨터에는 설치되지 않았습니다",
        "megatron-core: not installed on this machine",
    ),
    "library.ours": ("이 레슨의 코드", "this lesson's code"),
    "naive_vocabulary": (
        "맞는 손실 {right}, 나머지를 버리면 {naive} ({off} 차이), 덧붙이고 가리면 {padded}",
        "Right loss {right}; with the rest dropped {naive} ({off} off); padded and masked {padded}",
    ),
    "peak": ("최대 메모리", "peak memory"),
    "peak.activations": ("활성화값", "activations"),
    "peak.alone": ("단일 프로세스", "one process"),
    "peak.kind": ("방법", "method"),
    "peak.parameters": ("파라미터", "parameters"),
    "peak.sent": ("랭크 하나가 보낸 양, 한 스텝", "sent by a rank, one step"),
    "peak.sequence": ("시퀀스 병렬을 더함", "with sequence parallelism"),
    "peak.tensor": ("텐서 병렬", "tensor parallel"),
    "way": ("두 층을 잇는 방법", "how two layers are joined"),
    "way.columns": ("열, 올게더, 열, 올게더", "columns, all-gather, columns, all-gather"),
    "way.messages": ("집합 통신", "collectives"),
    "way.rows": ("열, 행, 올리듀스", "columns, rows, all-reduce"),
    "way.sent": ("랭크 하나가 보낸 양", "sent by one rank"),
}
