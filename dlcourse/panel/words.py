"""The table of words: each key with its Korean and its English, in that order.

To add words, put `"key": ("한국어", "English")` into the dict of its area, in alphabetical order;
`t("area.key")` finds them. Fields in braces must be the same in both languages. Korean particles
that depend on the sound before them (을/를, 이/가) do not follow a field: rephrase.
Terms: one Korean word for one English word in the whole course.
The words of lessons, exercises and claims are in `words_course.py`.
"""

from __future__ import annotations

from dlcourse.panel.words_course import COURSE_WORDS

_Area = dict[str, tuple[str, str]]

_CATEGORY: _Area = {
    "activations": ("활성화값", "activations"),
    "communication": ("통신 버퍼", "communication buffers"),
    "gradients": ("그래디언트", "gradients"),
    "optimizer_state": ("옵티마이저 상태", "optimizer state"),
    "other": ("기타", "other"),
    "parameters": ("파라미터", "parameters"),
}

_FIGURE: _Area = {}

_PANEL: _Area = {
    "alert.absent": (
        "{waiting}번 랭크는 {op}에서 {time}째 기다립니다. {absent}번 랭크는 아직 오지 않았습니다.",
        "Ranks {waiting} have waited {time} in {op}; not there yet: {absent}.",
    ),
    "alert.all_wait": (
        "모든 랭크가 {time}째 기다립니다: {ops}.",
        "Every rank has waited {time}: {ops}.",
    ),
    "alert.dead": (
        "{ranks}번 랭크가 종료되었습니다.",
        "Dead: rank {ranks}.",
    ),
    "alert.lost": (
        "{ranks}번 랭크가 응답하지 않습니다.",
        "No answer from rank {ranks}.",
    ),
    "bytes": ("통신량", "bytes moved"),
    "bytes.help": (
        "이 셀에서 랭크가 집합 통신에 넘긴 버퍼 크기의 합",
        "buffers that this rank gave to collectives in this cell",
    ),
    "close": ("띠 닫기", "close the strip"),
    "collapse": ("접기/펼치기", "collapse or expand"),
    "comm": ("집합 통신 (랭크당 최대)", "collectives (most of any rank)"),
    "comm.none": ("이 셀에서는 아직 없음", "none yet in this cell"),
    "label": ("랭크 {size}개의 상태", "state of {size} ranks"),
    "loss": ("손실", "loss"),
    "memory": ("메모리", "memory"),
    "memory.help": (
        "지금 살아 있는 텐서, 종류별. 세로선은 이 셀의 최대값",
        "live tensors by category; the line marks this cell's peak",
    ),
    "more": (
        "랭크 {count}개는 보이지 않습니다.",
        "{count} more ranks are not shown.",
    ),
    "peak": ("최대 {bytes}", "peak {bytes}"),
    "process": ("프로세스 {bytes}", "process {bytes}"),
    "rank": ("랭크 {rank}", "rank {rank}"),
    "rate": ("토큰/s", "tokens/s"),
    "state.dead": ("종료됨", "dead"),
    "state.idle": ("쉬는 중", "idle"),
    "state.lost": ("응답 없음", "lost"),
    "state.running": ("실행 중", "running"),
    "state.waiting": ("대기 중", "waiting"),
    "status.busy": ("실행 중 {time}", "running {time}"),
    "status.done": ("끝남 {time}", "done in {time}"),
    "status.idle": ("준비됨", "ready"),
    "steps": ("스텝", "steps"),
    "timeline": ("타임라인", "timeline"),
    "timeline.help": (
        "이 셀에서 각 랭크의 상태, 초당 10번",
        "state of each rank in this cell, ten times a second",
    ),
    "title": ("랭크 {size}개", "{size} ranks"),
    "waiting": ("{op} 대기 {time}", "in {op} {time}"),
}

_RANKS: _Area = {}

_TABLE: _Area = {
    "bytes": ("바이트", "bytes"),
    "rank": ("랭크", "rank"),
    "ranks": ("랭크", "ranks"),
    "value": ("값", "value"),
}

AREAS: dict[str, _Area] = {
    "category": _CATEGORY,
    "figure": _FIGURE,
    "panel": _PANEL,
    "ranks": _RANKS,
    "table": _TABLE,
}
WORDS = COURSE_WORDS | {
    f"{area}.{key}": words for area, table in AREAS.items() for key, words in table.items()
}
WORDS |= COURSE_WORDS  # lesson titles, predictions, claims, exercises
