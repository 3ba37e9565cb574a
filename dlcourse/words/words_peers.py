"""Words of the tables that put implementations side by side, taken in as area "peers"."""

from __future__ import annotations

PEERS_WORDS: dict[str, tuple[str, str]] = {
    "absent": ("{name} (설치되어 있지 않음)", "{name} (not installed)"),
    "calls": ("통신 호출", "calls"),
    "caption": (
        "단위 MiB. 두 번째 스텝의 값이며, 메모리와 보낸 양은 가장 많이 쓴 랭크의 것입니다. "
        "파라미터부터 기타까지는 최대인 순간의 구성입니다. 시간은 기준과 번갈아 재므로, 기준의 "
        "줄이 1에서 벗어난 만큼이 이 컴퓨터의 오차입니다.",
        "In MiB, of the second step; memory and bytes are those of the rank that needs most. "
        "From parameters to other: what the peak consists of at that moment. Times are taken in "
        "turns with the reference: what its own row differs from 1 is this machine's noise.",
    ),
    "library": ("구현", "implementation"),
    "loss": ("손실", "loss"),
    "ours": ("우리", "ours"),
    "peak": ("최대 메모리", "peak memory"),
    "recorded": ("{name} (기록, {date})", "{name} (recorded, {date})"),
    "sent": ("보낸 양", "sent"),
    "time": ("시간 ({reference} = 1)", "time ({reference} = 1)"),
}
