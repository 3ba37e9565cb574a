"""Words of lesson 10, in the form of `words.py`, which takes them in as area "mixed"."""

from __future__ import annotations

MIXED_WORDS: dict[str, tuple[str, str]] = {
    "apart": (
        "{way}: 손실이 float32 단일 프로세스와 상대적으로 최대 {apart} 다르고, 허용값은 "
        "{allowed}입니다",
        "{way}: losses differ from one process in float32 by at most {apart}; allowed: {allowed}",
    ),
    "apart.why": (
        "허용하는 이유: bfloat16은 유효 숫자가 8비트라 곱마다 0.4%까지, float16은 11비트라 "
        "0.05%까지 "
        "어긋납니다. 처음 몇 스텝의 손실은 그보다 덜 어긋납니다.",
        "Why it is allowed: bfloat16 has 8 significant bits, so a product is off by up to 0.4%; "
        "float16 has 11, that is 0.05%. The losses of the first steps differ by less.",
    ),
    "axis.batch": ("배치 (길이 1024인 시퀀스 수)", "batch (sequences of 1,024 tokens)"),
    "axis.gradients": ("0이 아니어야 할 그래디언트 중 비율", "share of the nonzero gradients"),
    "axis.power": ("스케일 (2의 거듭제곱)", "scale (power of 2)"),
    "axis.scale": ("손실 스케일 (2의 거듭제곱)", "loss scale (power of 2)"),
    "axis.share": ("float32 대비 최대 메모리", "peak memory, of that in float32"),
    "bits": ("비트", "bits"),
    "copies": (
        "토큰 하나, 블록 하나에서 남는 바이트 (C는 모델의 폭). 여기에 가중치 복사본이 더해져, "
        "autocast "
        "활성화값의 {share:.0%}를 차지합니다",
        "Bytes kept for a token in a block (C: the model's width). The copies of weights come on "
        "top: {share:.0%} of autocast's activations here",
    ),
    "digits": ("1 다음 수", "next after 1"),
    "gradient": ("파라미터의 .grad: {dtype}", ".grad of a parameter: {dtype}"),
    "group": ("process_group을 주면", "with process_group"),
    "infinite": ("무한대 또는 NaN이 됨", "infinite or NaN"),
    "kept": ("역전파까지 남는 것", "kept for backward"),
    "kept.attention": ("어텐션의 출력", "output of attention"),
    "kept.hidden": ("MLP 은닉층, GELU 앞뒤", "the MLP's hidden layer, before and after GELU"),
    "kept.mlp_in": ("MLP의 입력", "input of the MLP"),
    "kept.qkv": ("q, k, v", "q, k, v"),
    "kept.qkv_in": ("q, k, v의 입력", "input of q, k and v"),
    "kept.stream": ("블록 사이의 흐름, 두 번", "the stream between blocks, twice"),
    "kept.together": ("합계", "together"),
    "large": (
        "GPT-2 Large: 시퀀스 64개에서도 autocast는 {autocast}, 마스터 가중치는 {master}입니다",
        "GPT-2 Large: even with 64 sequences, autocast gets to {autocast}, masters to {master}",
    ),
    "largest": ("가장 큰 수", "largest"),
    "master": (
        "마스터 가중치에서 옮겨 적은 bfloat16 가중치: {left}",
        "the bfloat16 copy of the master weight: {left}",
    ),
    "no_group": ("랭크마다 따로", "each rank for itself"),
    "operator": ("연산자", "operator"),
    "peak": (
        "float32 대비 최대 메모리: autocast {autocast}, 마스터 가중치 {master}, "
        "순수 bfloat16만 {bfloat16}",
        "Peak, of float32's: autocast {autocast}, masters {master}, only pure bfloat16 {bfloat16}",
    ),
    "per_parameter": ("바이트/파라미터", "bytes a parameter"),
    "recovered": (
        "{of}스텝 중 {skipped}스텝을 건너뛰고 학습을 이어 갑니다. torch의 스케일과 매번 같습니다",
        "{skipped} of {of} steps are skipped, and training goes on; scales are torch's each time",
    ),
    "scaled": ("오차, 텐서마다 스케일", "error, a scale for each tensor"),
    "skipped": ("건너뜀", "skipped"),
    "smallest": ("가장 작은 양수", "smallest above 0"),
    "stepped": ("갱신함", "stepped"),
    "time": ("시간 ÷ float32의 시간", "time ÷ time in float32"),
    "type": ("자료형", "type"),
    "units": ("하드웨어", "hardware"),
    "units.no": ("에뮬레이션", "emulated"),
    "units.yes": ("전용 유닛 있음", "has units for it"),
    "unscaled": ("오차, 그대로 변환", "error, cast as it is"),
    "way": ("방법", "way"),
    "way.autocast": ("autocast", "autocast"),
    "way.bfloat16": ("순수 bfloat16", "pure bfloat16"),
    "way.float16": ("autocast float16 + 스케일러", "autocast float16 + scaler"),
    "way.float32": ("float32", "float32"),
    "way.master": ("bfloat16 + 마스터 가중치", "bfloat16 + master weights"),
    "window": (
        "float16: 스케일이 작으면 {zero}%가 0이 되고, 크면 {infinite}%가 무한대가 됩니다",
        "float16: {zero}% become 0 where the scale is small, {infinite}% infinite where it is "
        "large",
    ),
    "zero": ("0이 됨", "becomes 0"),
}
