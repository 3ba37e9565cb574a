"""Words of lesson 06, in the form of `words.py`, which takes them in as area "zero"."""

from __future__ import annotations

ZERO_WORDS: dict[str, tuple[str, str]] = {
    "absent": ("설치되지 않음", "not installed"),
    "apart": (
        "{stage}: 단일 프로세스와의 차이는 최대 {apart}, 허용값은 {allowed}입니다",
        "{stage}: largest difference to one process: {apart}; allowed: {allowed}",
    ),
    "apart.why": (
        "허용하는 이유: 배치의 합을 다른 순서로 더하므로 float32의 마지막 자리가 달라지고, Adam이 "
        "이를 한 걸음의 일부만큼 키울 수 있습니다. 그래서 한 걸음({lr})의 5%까지 허용합니다.",
        "Why it is allowed: sums over the batch are taken in another order, so the last digits of "
        "float32 differ, and Adam may blow that up to a part of a step. Hence 5% of a step ({lr}).",
    ),
    "axis.factor": ("메모리가 줄어드는 배수", "times less memory"),
    "axis.ranks": ("랭크 수", "ranks"),
    "gathers": ("순전파 / 역전파의 올게더", "all-gathers in forward / backward"),
    "glance": (
        "랭크 {ranks}개: 파라미터 하나에 16, {one:.1f}, {two:.1f}, {three:.1f}바이트. 예측과 "
        "측정이 일치합니다",
        "{ranks} ranks: 16, {one:.1f}, {two:.1f}, {three:.1f} bytes a parameter, as predicted",
    ),
    "limits": (
        "1단계는 4배, 2단계는 8배에 이르지 못하고, 3단계만 랭크 수만큼 줄어듭니다",
        "Stage 1 never reaches 4, stage 2 never 8; only stage 3 follows the ranks",
    ),
    "measured": ("{stage}단계, 측정", "stage {stage}, measured"),
    "mesh": (
        "텐서 병렬과 ZeRO-3: 단일 프로세스와 손실의 차이는 최대 {apart}입니다(float32의 합을 다른 "
        "순서로 더합니다). 랭크 하나가 갖는 것은 파라미터의 {share:.0%}입니다",
        "Tensor parallel in ZeRO-3: losses at most {apart} from one process's (float32, sums in "
        "another order); a rank holds {share:.0%} of the parameters",
    ),
    "one_unit": ("{stage}단계, 유닛 하나", "stage {stage}, one unit"),
    "peak": (
        "최대 메모리는 3단계에서도 {ratio:.1f}분의 1로 줄 뿐입니다. 활성화값은 나누지 않습니다",
        "Peak: even stage 3 saves {ratio:.1f} times only, as it leaves activations alone",
    ),
    "predicted": ("{stage}단계, 예측", "stage {stage}, predicted"),
    "resumed": (
        "절반의 랭크로 이어 간 손실의 차이는 최대 {apart}입니다(float32의 합을 다른 순서로 "
        "더합니다)",
        "Continued by half of the ranks: losses differ by at most {apart} (float32, sums in "
        "another order)",
    ),
    "stage": ("단계", "stage"),
    "stage.number": ("{stage}단계", "stage {stage}"),
    "timeline": (
        "ZeRO3: 통신 시간의 {hidden}가 계산 뒤에 숨습니다",
        "ZeRO3: {hidden} of communication time is hidden behind computation",
    ),
    "trap": (
        "작은 모델, 유닛 하나: 3단계가 1단계의 {ratio:.1f}배를 씁니다",
        "A small model as one unit: stage 3 needs {ratio:.1f} times what stage 1 needs",
    ),
    "wire.formula": ("예측", "predicted"),
    "wire.measured": ("측정", "measured"),
}
