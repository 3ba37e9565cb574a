"""The table of words: each key with its Korean and its English, in that order.

To add words, put `"key": ("한국어", "English")` into the dict of its area, in alphabetical order;
`t("area.key")` finds them. Fields in braces must be the same in both languages. Korean particles
that depend on the sound before them (을/를, 이/가) do not follow a field, but for one that always
ends in "%" (퍼센트): rephrase.
Terms: one Korean word for one English word in the whole course.
The words of lessons, exercises and claims are in `words_course.py`.
"""

from __future__ import annotations

from dlcourse.words.words_accumulation import ACCUMULATION_WORDS
from dlcourse.words.words_anatomy import ANATOMY_WORDS
from dlcourse.words.words_checkpointing import CHECKPOINTING_WORDS
from dlcourse.words.words_collectives import COLLECTIVES_WORDS
from dlcourse.words.words_course import COURSE_WORDS
from dlcourse.words.words_data_parallel import DATA_PARALLEL_WORDS
from dlcourse.words.words_mixed import MIXED_WORDS
from dlcourse.words.words_offload import OFFLOAD_WORDS
from dlcourse.words.words_peers import PEERS_WORDS
from dlcourse.words.words_pipeline import PIPELINE_WORDS
from dlcourse.words.words_plan import PLAN_WORDS
from dlcourse.words.words_start import START_WORDS
from dlcourse.words.words_tensor_parallel import TENSOR_PARALLEL_WORDS
from dlcourse.words.words_zero import ZERO_WORDS

_Area = dict[str, tuple[str, str]]

_CATEGORY: _Area = {
    "activations": ("활성화값", "activations"),
    "communication": ("통신 버퍼", "communication buffers"),
    "gradients": ("그래디언트", "gradients"),
    "optimizer_state": ("옵티마이저 상태", "optimizer state"),
    "other": ("기타", "other"),
    "parameters": ("파라미터", "parameters"),
}

_FIGURE: _Area = {
    "axis.buffer": ("버퍼 크기", "buffer size"),
    "axis.memory": ("메모리 ({unit})", "memory ({unit})"),
    "axis.peak_memory": ("최대 메모리 ({unit})", "peak memory ({unit})"),
    "axis.ratio": (
        "측정값 ÷ 예측값 (1이면 예측이 맞음)",
        "measured ÷ predicted (1: the prediction is right)",
    ),
    "axis.sent": (
        "랭크 하나가 보내는 양, 이론값 ({unit})",
        "sent by one rank, in theory ({unit})",
    ),
    "axis.step": ("스텝", "step"),
    "axis.step_time": ("스텝 시간 ({unit})", "time of a step ({unit})"),
    "axis.time": ("시간 ({unit})", "time ({unit})"),
    "axis.time_plain": ("시간", "time"),
    "bars": ("{high}: {low}의 {ratio}배", "{high}: {ratio} times {low}"),
    "best": ("가장 좋은 값", "best"),
    "calls": ("호출 {calls}×, 버퍼 {bytes}", "{calls}×, buffers {bytes}"),
    "comm.empty": (
        "집합 통신을 {calls}번 호출했지만 보낸 바이트는 없습니다",
        "{calls} collective calls that send no bytes",
    ),
    "comm.even": (
        "랭크마다 {bytes}씩 보냅니다. 그중 {op}: {share}",
        "Every rank sends {bytes}; {op} is {share} of it",
    ),
    "comm.none": ("집합 통신이 없습니다", "No collective was called"),
    "comm.uneven": (
        "가장 많이 보내는 {top}번 랭크: {high}, {bottom}번 랭크: {low} (주로 {op})",
        "Rank {top} sends most, {high}; rank {bottom} sends {low} (mostly {op})",
    ),
    "comm.wire": (
        "시스템 카운터로 측정한 값: 랭크당 {bytes}",
        "measured by the system's counters: {bytes} a rank",
    ),
    "cost.fitted_name": ("{name}: 모델", "{name}: model"),
    "every_rank": ("모든 랭크 ({ranks})", "every rank ({ranks})"),
    "memory.even": (
        "랭크마다 최대 {bytes}. 가장 큰 몫은 {category}: {share}",
        "Every rank peaks at {bytes}; the largest part, {category}, is {share}",
    ),
    "memory.none": ("살아 있는 텐서가 없습니다", "No live tensors"),
    "memory.uneven": (
        "{top}번 랭크 최대 {high}, {bottom}번 랭크 {low}. 가장 큰 몫은 {category}: {share}",
        "Rank {top} peaks at {high}, rank {bottom} at {low}; "
        "the largest part, {category}, is {share}",
    ),
    "memory_over_time": (
        "{rank}번 랭크: {time}에 최대 {bytes}. 가장 큰 몫은 {category}: {share}",
        "Rank {rank} peaks at {bytes} after {time}; the largest part, {category}, is {share}",
    ),
    "predicted.close": (
        "예측이 맞았습니다. 차이는 {gap} 이내",
        "The predictions hold: the largest gap is {gap}",
    ),
    "predicted.far": (
        "예측이 가장 크게 빗나간 것: {label}, 예측의 {ratio}배",
        "Furthest from its prediction: {label}, {ratio} times as much",
    ),
    "predicted.text": (
        "측정 {measured} · 예측 {predicted}",
        "measured {measured} · predicted {predicted}",
    ),
    "rank": ("랭크 {rank}", "rank {rank}"),
    "slowest_rank": ("가장 느린 랭크", "slowest rank"),
    "span.backward": ("역전파", "backward"),
    "span.communication": ("통신", "communication"),
    "span.compute": ("그 밖의 계산", "other compute"),
    "span.forward": ("순전파", "forward"),
    "span.optimizer": ("옵티마이저", "optimizer"),
    "span.waiting": ("다른 랭크를 기다림", "waiting for other ranks"),
    "sweep.many": ("가장 좋은 값: {name}, {x}에서 {y}", "Best: {name} at {x}, {y}"),
    "sweep.one": ("{x}에서 가장 좋습니다: {y}", "Best at {x}: {y}"),
    "throughput": (
        "초당 {rate} 토큰: 스텝 하나에 {time} (스텝 {steps}개의 중앙값)",
        "{rate} tokens a second: a step takes {time} (median of {steps})",
    ),
    "throughput.none": ("기록된 스텝이 없습니다", "No steps were marked"),
    "throughput.time": (
        "스텝 하나에 {time} (스텝 {steps}개의 중앙값)",
        "A step takes {time} (median of {steps})",
    ),
    "timeline.alone": (
        "통신 없음: 랭크는 시간의 {share} 동안 계산합니다",
        "No communication: ranks compute {share} of the time",
    ),
    "timeline.hidden": (
        "통신의 {hidden}가 계산 뒤에 숨습니다 (랭크당 통신 시간 {time})",
        "{hidden} of communication is hidden behind computation ({time} on each rank)",
    ),
    "timeline.waiting": (
        "랭크는 시간의 {share}를 기다리는 데 씁니다. 가장 늦는 것은 {rank}번 랭크",
        "Ranks wait {share} of the time, mostly for rank {rank}",
    ),
    "window": (" · 스텝 {steps} / {count}", " · step {steps} of {count}"),
}

_KERNEL: _Area = {
    "defined_in": (
        "`{name}` 정의가 있는 셀을 먼저 실행하세요: {cell}",
        "Run the cell that defines `{name}` first: {cell}",
    ),
    "first_cells": (
        "이 레슨의 처음 두 셀을 먼저 실행하세요. 필요한 이름과 랭크가 거기서 준비됩니다.",
        "Run the first two cells of this lesson first: they bring the names and the ranks.",
    ),
    "only_notebook": (
        "`{name}` 변수는 노트북에만 있고 랭크에는 없습니다. %%ranks 셀에서 다시 정의하거나 "
        "ranks.run(함수, {name})처럼 인자로 넘기세요.",
        "`{name}` is in the notebook, not in the ranks: define it in a %%ranks cell, or pass it "
        "on, as in ranks.run(function, {name}).",
    ),
    "only_ranks": (
        '`{name}` 변수는 랭크에 있습니다. %%ranks 셀에서 쓰거나 ranks["{name}"]으로 가져오세요.',
        '`{name}` is in the ranks: use it in a %%ranks cell, or fetch it with ranks["{name}"].',
    ),
}

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
        "{ranks}번 랭크가 종료되었습니다. 다음 셀을 실행하면 랭크가 새로 시작합니다.",
        "Dead: rank {ranks}. The next cell starts the ranks afresh.",
    ),
    "alert.lost": (
        "{ranks}번 랭크가 응답하지 않습니다.",
        "No answer from rank {ranks}.",
    ),
    "bytes": ("통신량", "moved"),
    "bytes.help": (
        "이 셀에서 랭크가 집합 통신에 넘긴 버퍼 크기의 합",
        "buffers that this rank gave to collectives in this cell",
    ),
    "cell": ("셀 [{number}]", "cell [{number}]"),
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
    "plain": (
        "랭크 {size}개의 실시간 패널입니다. 보이지 않으면 ranks.show()를 실행하세요.",
        "The live panel of {size} ranks. Where it is not drawn, run ranks.show().",
    ),
    "process": ("프로세스 {bytes}", "process {bytes}"),
    "rank": ("랭크 {rank}", "rank {rank}"),
    "rate": ("토큰/s", "tokens/s"),
    "say.absent": (
        "다른 랭크가 기다리고 있습니다. 아직 오지 않은 랭크: {ranks}.",
        "Ranks are waiting; not there yet: {ranks}.",
    ),
    "say.all_wait": ("모든 랭크가 기다리고 있습니다.", "Every rank is waiting."),
    "say.failed": ("셀이 실패했습니다.", "The cell failed."),
    "say.interrupted": ("셀을 중단했습니다.", "The cell was interrupted."),
    "state.dead": ("종료됨", "dead"),
    "state.idle": ("쉬는 중", "idle"),
    "state.lost": ("응답 없음", "lost"),
    "state.running": ("실행 중", "running"),
    "state.stopped": ("정지됨", "stopped"),
    "state.waiting": ("대기 중", "waiting"),
    "status.busy": ("실행 중 {time}", "running {time}"),
    "status.done": ("끝남 {time}", "done in {time}"),
    "status.failed": ("실패 {time}", "failed after {time}"),
    "status.idle": ("준비됨", "ready"),
    "status.interrupted": ("중단됨 {time}", "interrupted after {time}"),
    "status.stopped": ("정지됨", "stopped"),
    "steps": ("스텝", "steps"),
    "timeline": ("타임라인", "timeline"),
    "timeline.help": (
        "이 셀에서 각 랭크의 상태, 초당 10번",
        "state of each rank in this cell, ten times a second",
    ),
    "title": ("랭크 {size}개", "{size} ranks"),
    "waiting": ("{op} 대기 {time}", "in {op} {time}"),
}

_RANKS: _Area = {
    "defined_before": (
        "`{name}` 정의가 있는 셀: {cell}\n그 뒤에 랭크가 새로 시작했으니 이 셀을 다시 실행하세요. "
        "다시 실행할 셀은 `ranks`를 실행하면 모두 보입니다.",
        "The cell that defines `{name}`: {cell}\nThe ranks were started afresh since: run that "
        "cell again. `ranks`, run as a cell, lists all cells to run again.",
    ),
    "defined_elsewhere": (
        "`{name}` 정의가 있는 셀: {cell}\n이 셀은 랭크 {ranks}에서만 실행했습니다.",
        "The cell that defines `{name}`: {cell}\nIt ran in rank {ranks} only.",
    ),
    "run_again": (
        "랭크가 새로 시작해 변수가 사라졌습니다. 다시 실행할 셀을 순서대로 적습니다.",
        "The ranks were started afresh, without these cells' variables. To run again, in order:",
    ),
    "which_again": (
        "다시 실행할 셀은 `ranks`를 실행하면 보입니다.",
        "`ranks`, run as a cell, lists the cells to run again.",
    ),
}

AREAS: dict[str, _Area] = {
    "accumulation": ACCUMULATION_WORDS,
    "anatomy": ANATOMY_WORDS,
    "category": _CATEGORY,
    "checkpointing": CHECKPOINTING_WORDS,
    "collectives": COLLECTIVES_WORDS,
    "data_parallel": DATA_PARALLEL_WORDS,
    "figure": _FIGURE,
    "kernel": _KERNEL,
    "mixed": MIXED_WORDS,
    "offload": OFFLOAD_WORDS,
    "panel": _PANEL,
    "peers": PEERS_WORDS,
    "pipeline": PIPELINE_WORDS,
    "plan": PLAN_WORDS,
    "ranks": _RANKS,
    "start": START_WORDS,
    "tensor_parallel": TENSOR_PARALLEL_WORDS,
    "zero": ZERO_WORDS,
}
WORDS = COURSE_WORDS | {
    f"{area}.{key}": words for area, table in AREAS.items() for key, words in table.items()
}
