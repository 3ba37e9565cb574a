"""The live panel: who sees it, what it tells, what it costs, and how a browser draws it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dlcourse
from dlcourse.figures import colors
from dlcourse.measure.categories import CATEGORIES
from dlcourse.panel import widget
from dlcourse.panel.message import SHOWN_RANKS
from dlcourse.panel.message import message as draw
from dlcourse.panel.pool_panel import PoolPanel
from dlcourse.panel.summary import Summary, last_state
from dlcourse.panel.widget import Panel
from dlcourse.ranks.notebook import observer
from dlcourse.ranks.notebook.front_end import front_end_present

IN_LAB = {"cellId": "5f0c", "deletedCells": [], "recordTiming": False}
MIB = 2**20


def rank_state(rank: int, state: str = "running", where=None, **sample) -> dict:
    memory = dict.fromkeys(CATEGORIES, 0) | sample.pop("memory", {})
    return {"rank": rank, "state": state, "collective": where, "memory": memory, **sample}


def state(ranks: list[dict], *, cell: int = 1, busy: bool = True, elapsed: float = 1.0) -> dict:
    return {"cell": cell, "busy": busy, "elapsed_s": elapsed, "ranks": ranks}


def message(*states: dict, lang: str = "en") -> dict:
    summary = Summary()
    for one in states:
        summary.note(one)
        drawn = draw(summary, lang)
    return drawn


# ------------------------------------------------------------------ what it tells


def test_every_category_has_its_colour_in_the_order_of_the_numbers():
    assert [name for name, *_ in widget._LOOK["categories"]] == list(CATEGORIES)
    assert list(colors.CATEGORIES) == list(CATEGORIES)


def test_a_rank_row_tells_state_memory_peak_and_bytes():
    busy = rank_state(
        0,
        "waiting",
        "all_reduce #3",
        memory={"parameters": 3 * MIB, "activations": 5 * MIB},
        comm_bytes={"all_reduce": 2 * MIB, "broadcast": MIB},
        comm_calls={"all_reduce": 2, "broadcast": 1},
        pss_bytes=90 * MIB,
    )
    later = rank_state(0, "idle", memory={"parameters": 3 * MIB})
    drawn = message(state([busy]), state([later], busy=False, elapsed=2.5))
    row = drawn["ranks"][0]
    assert (row["s"], row["text"]) == ("idle", "idle")
    assert row["m"] == [3 * MIB, 0, 0, 0, 0, 0]
    assert (row["peak"], row["pss"]) == (8 * MIB, 90 * MIB)
    assert row["b"] == 3 * MIB, "what a state leaves out stays"
    assert drawn["comm"] == [["all_reduce", 2 * MIB, 2], ["broadcast", MIB, 1]]
    assert drawn["status"] == "done in 2.50 s"


def test_a_new_cell_starts_at_zero():
    first = rank_state(0, memory={"other": 9 * MIB}, comm_bytes={"send": 5}, tokens=10)
    drawn = message(state([first]), state([{"rank": 0, "state": "running"}], cell=2, elapsed=0.1))
    assert drawn["ranks"][0]["peak"] == 0
    assert drawn["comm"] == [] and drawn["facts"] == []


def test_how_long_a_rank_waits_is_told_from_its_clock_or_from_the_first_sight(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    summary = Summary()
    inside = {"op": "all_reduce", "seq": 3, "since_ns": 99_500_000_000}
    ranks = [rank_state(0, "waiting", inside), rank_state(1, "waiting", "broadcast #1")]
    summary.note(state(ranks))
    texts = [row["text"] for row in draw(summary, "en")["ranks"]]
    assert texts == ["in all_reduce #3 500 ms", "in broadcast #1"]
    clock[0] = 101.0
    summary.note(state(ranks))
    texts = [row["text"] for row in draw(summary, "en")["ranks"]]
    assert texts == ["in all_reduce #3 1.5 s", "in broadcast #1 1.0 s"]


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_a_hang_a_death_and_a_loss_are_one_sentence(lang, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    waiting = [rank_state(r, "waiting", "all_reduce #3") for r in (0, 2, 3)]
    summary = Summary()
    summary.note(state([*waiting, rank_state(1)]))
    assert draw(summary, lang)["alert"] == ""
    clock[0] = 105.0
    alert = draw(summary, lang)["alert"]
    assert "0, 2-3" in alert and "all_reduce #3" in alert and "5.0 s" in alert
    summary.note(state([rank_state(1, "waiting", "broadcast #1")]))
    draw(summary, lang)
    clock[0] = 110.0
    assert "broadcast #1" in draw(summary, lang)["alert"]
    summary.note(state([rank_state(2, "dead")]))
    assert "2" in draw(summary, lang)["alert"] and "5.0" not in draw(summary, lang)["alert"]
    words = {"ko": "응답", "en": "No answer"}
    spoken = {clock_time: _spoken_after(clock_time, clock, lang) for clock_time in (3.0, 9.0)}
    assert spoken[3.0] == spoken[9.0] != "", "a screen reader says a wait once"
    lost = message(state([rank_state(0, "lost"), rank_state(1, "lost")]), lang=lang)
    assert "0-1" in lost["alert"] and words[lang] in lost["alert"]


def _spoken_after(seconds: float, clock: list[float], lang: str) -> str:
    """What is read aloud when three of four ranks have waited so long, at two collectives."""
    summary = Summary()
    waits = [rank_state(r, "waiting", f"all_reduce #{seconds:.0f}") for r in (0, 2, 3)]
    summary.note(state([*waits, rank_state(1)]))
    draw(summary, lang)
    clock[0] += seconds
    return draw(summary, lang)["say"]


def ended(cell: int, outcome: str = "done", *, calls: int = 0, held: int = 0, now=None) -> dict:
    """The end of a cell in two ranks."""
    counts = {"comm_calls": {"all_reduce": calls}, "comm_bytes": {"all_reduce": 8 * calls}}
    memory = {"memory": {"parameters": held}}
    ranks = [rank_state(r, now or "idle", **memory, **(counts if calls else {})) for r in range(2)]
    return state(ranks, cell=cell, busy=False, elapsed=0.1 * cell) | {"outcome": outcome}


def test_after_a_cell_that_measured_nothing_the_last_one_that_did_is_shown():
    summary = Summary()
    for number, one in enumerate([ended(1, held=MIB), ended(2, calls=3, held=MIB)], 4):
        summary.note(one, label=number)
    after = [ended(3, held=MIB), {"cell": 4, "busy": True, "ranks": []}, ended(4, held=MIB)]
    for one in after:
        summary.note(one, label=9)
        drawn = draw(summary, "en")
        if one["busy"]:
            assert (drawn["cell"], drawn["kept"], drawn["comm"]) == (4, 2, []), "it runs: shown"
    assert (drawn["cell"], drawn["where"], drawn["status"]) == (2, "cell [5]", "done in 200 ms")
    assert drawn["comm"] == [["all_reduce", 24, 3]] and drawn["ranks"][0]["m"][0] == MIB
    # What allocates has measured something; what failed is shown, but does not come back.
    summary.note(ended(5, held=9 * MIB), label=10)
    assert draw(summary, "en")["where"] == "cell [10]"
    summary.note(ended(6, "failed", calls=1, held=9 * MIB), label=11)
    assert draw(summary, "en")["status"] == "failed after 600 ms"
    summary.note(ended(7, held=9 * MIB), label=12)
    assert draw(summary, "en")["where"] == "cell [10]"
    # New ranks have measured nothing yet.
    summary.note({"cell": 0, "busy": False, "ranks": [{"rank": 0, "state": "idle"}]})
    assert (draw(summary, "en")["status"], draw(summary, "en")["comm"]) == ("ready", [])
    summary.note(ended(8), label=13)
    assert draw(summary, "en")["cell"] == 8


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_a_cell_that_failed_or_was_stopped_says_so(lang):
    words = {"failed": ("실패", "failed"), "interrupted": ("중단", "interrupted")}
    for outcome, (korean, english) in words.items():
        drawn = message(ended(1, outcome, calls=1), lang=lang)
        word = korean if lang == "ko" else english
        assert word in drawn["status"] and word in drawn["say"]
    assert message(ended(1, calls=1), lang=lang)["say"] == ""
    # A death: the rank by its number, the others ended with it; the cell's numbers stay.
    gone = {
        "busy": False,
        "ranks": [{"rank": r, "state": s} for r, s in ((0, "stopped"), (1, "dead"))],
    }
    drawn = message(ended(3, "failed", calls=2), gone, lang=lang)
    assert [row["s"] for row in drawn["ranks"]] == ["stopped", "dead"]
    assert "1" in drawn["alert"] and drawn["say"] == drawn["alert"]
    assert ("실패" if lang == "ko" else "failed") in drawn["status"] and drawn["comm"]


def test_throughput_is_of_the_last_seconds_and_at_the_end_of_the_whole_cell():
    def at(elapsed, tokens, busy=True):
        ranks = [rank_state(r, tokens=tokens // 2, steps=3, loss=2.0 + r) for r in range(2)]
        return state(ranks, elapsed=elapsed, busy=busy)

    # 1,000 tokens a second for ten seconds, then 5,000 a second.
    states = [at(s, 1_000 * s) for s in range(1, 11)]
    states += [at(s, 10_000 + 5_000 * (s - 10)) for s in range(11, 21)]
    facts = {field: text for field, _, text in message(*states)["facts"]}
    assert facts == {"rate": "5,000", "steps": "3", "loss": "2.5"}
    end = message(*states, at(20, 60_000, busy=False))
    assert end["facts"][0] == ["rate", "tokens/s", "3,000"]


def test_the_records_of_a_short_cell_make_its_last_state():
    call = {"op": "all_reduce", "bytes": 4096}
    record = {
        "rank": 1,
        "comm": [call, call],
        "memory": {"end": {"parameters": MIB}, "peak_bytes": 3 * MIB},
        "steps": [{"tokens": 8, "loss": 1.5}, {"tokens": 8, "loss": 1.25}],
        "pss_bytes": None,
    }
    drawn = message(last_state(7, 0.004, [record]))
    row = drawn["ranks"][0]
    assert (row["m"][0], row["peak"], row["b"]) == (MIB, 3 * MIB, 8192)
    assert drawn["comm"] == [["all_reduce", 8192, 2]]
    assert [text for _, _, text in drawn["facts"]] == ["4,000", "2", "1.25"]
    assert (drawn["cell"], drawn["busy"], drawn["status"]) == (7, False, "done in 4 ms")


@pytest.mark.parametrize("size", [4, 16, 300])
def test_a_message_stays_below_4_kb_and_shows_who_stands_out(size):
    ops = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single")
    ranks = [
        rank_state(
            r,
            "waiting",
            f"all_gather_into_tensor #{123456 + r}",
            memory=dict.fromkeys(CATEGORIES, 7_654_321_987 + r),
            comm_bytes=dict.fromkeys(ops, 987_654_321_123),
            comm_calls=dict.fromkeys(ops, 123_456),
            pss_bytes=98_765_432,
            tokens=10**9,
            steps=12_345,
            loss=1.23456789,
        )
        for r in range(size)
    ]
    ranks[-1]["state"] = "dead"
    drawn = message(state(ranks), lang="ko")
    assert len(json.dumps(drawn, ensure_ascii=False).encode()) < 4096
    assert drawn["ranks"][-1]["r"] == size - 1
    assert bool(drawn["more"]) == (size > SHOWN_RANKS)


def test_bad_sizes_and_languages_are_refused_at_once():
    with pytest.raises(ValueError, match="size=0"):
        Panel(0)
    with pytest.raises(ValueError, match="lang='fr'"):
        Panel(4, "fr")


# ------------------------------------------------------------------ who sees it


def test_the_variable_decides_where_it_is_set(monkeypatch):
    for value, present in (("on", True), ("OFF", False), ("", False)):
        monkeypatch.setenv("DLCOURSE_PANEL", value)
        assert front_end_present() is present
    monkeypatch.setenv("DLCOURSE_PANEL", "maybe")
    with pytest.raises(ValueError, match="DLCOURSE_PANEL='maybe'"):
        front_end_present()


HEADLESS = """
import sys
from dlcourse.panel.widget import Panel
from dlcourse.ranks.notebook.front_end import front_end_present
assert not front_end_present()
panel = Panel(4)
panel.display()
panel.update({"cell": 1, "busy": True, "elapsed_s": 1.0, "ranks": [{"rank": 0}]})
panel.flush(); panel.close()
assert not panel.shown
assert not panel._summary.known, "nobody sees it: nothing is kept"
loaded = [m for m in ("anywidget", "ipywidgets", "torch") if m in sys.modules]
assert not loaded, loaded
"""


def environment(**more: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "DLCOURSE_PANEL"}
    return env | more


def test_whoever_takes_ranks_from_the_course_has_a_panel(monkeypatch):
    monkeypatch.setattr(observer, "_make", None)
    assert dlcourse.Ranks
    assert observer._make is PoolPanel


def test_plain_python_is_silent():
    out = subprocess.run(
        [sys.executable, "-c", HEADLESS], env=environment(), capture_output=True, text=True
    )
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


def test_a_headless_notebook_is_silent_and_stores_nothing(monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.delenv("DLCOURSE_PANEL")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(HEADLESS)])
    done = nbclient.NotebookClient(notebook, timeout=60).execute()
    assert done.cells[0].outputs == []
    assert "widgets" not in done.metadata


class Kernel:
    """A real kernel, asked the way a front end asks."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(env=environment(DLCOURSE_LANG="en"))

    def run(self, code: str, **metadata) -> tuple[str, list[dict]]:
        """Printed text, and every message of the cell."""
        session, channel = self.client.session, self.client.shell_channel
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        request = session.msg("execute_request", content, metadata=metadata)
        channel.send(request)
        heard: list[dict] = []
        while True:
            answer = self.client.get_iopub_msg(timeout=60)
            if answer["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                heard.append(answer)  # from a thread: it belongs to no cell
                continue
            heard.append(answer)
            if answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
                break
        errors = [m["content"]["traceback"] for m in heard if m["msg_type"] == "error"]
        assert not errors, "\n".join(errors[0])
        return "".join(m["content"]["text"] for m in heard if m["msg_type"] == "stream"), heard


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_a_kernel_knows_whether_a_person_ran_the_cell(kernel):
    code = "from dlcourse.ranks.notebook import front_end as f; print(f.front_end_present())"
    assert kernel.run(code, **IN_LAB)[0] == "True\n"
    assert kernel.run(code)[0] == "False\n"
    # A thread belongs to the cell that runs now, too.
    thread = "import threading; w = threading.Thread(target=lambda: print(f.front_end_present()))"
    assert kernel.run(f"{thread}; w.start(); w.join()", **IN_LAB)[0] == "True\n"


SHOW = """
import time
from dlcourse.figures.colors import CATEGORIES
from dlcourse.panel.widget import Panel
panel = Panel(4)
panel.display()
def state(n, busy=True):
    memory = {name: n * 1000 + i for i, name in enumerate(CATEGORIES)}
    ranks = [dict(rank=r, state="running", collective=None, memory=memory, tokens=n,
                  comm_bytes={"all_reduce": n}, comm_calls={"all_reduce": n}) for r in range(4)]
    return dict(cell=1, busy=busy, elapsed_s=n / 300, ranks=ranks)
"""


def test_ten_messages_a_second_and_the_last_state_always(kernel):
    _, shown = kernel.run(SHOW, **IN_LAB)
    assert [m["msg_type"] for m in shown].count("comm_open") >= 1
    views = [m for m in shown if m["msg_type"] == "display_data"]
    assert "application/vnd.jupyter.widget-view+json" in views[0]["content"]["data"]
    loop = """
for n in range(1, 301):
    panel.update(state(n)); time.sleep(1 / 300)
panel.update(state(301, busy=False))
"""
    began = time.monotonic()
    _, heard = kernel.run(loop, **IN_LAB)
    took = time.monotonic() - began
    states = [
        m["content"]["data"]["state"]["now"]
        for m in heard
        if m["msg_type"] == "comm_msg" and "now" in m["content"]["data"].get("state", {})
    ]
    assert 5 < len(states) <= 10 * took + 2, (len(states), took)
    assert max(len(json.dumps(s, ensure_ascii=False).encode()) for s in states) < 4096
    assert states[-1]["ranks"][0]["b"] == 301 and states[-1]["busy"] is False
    # Two quick states and then silence: the second one comes by itself.
    quiet = "panel.update(state(400)); panel.update(state(401)); time.sleep(0.3)\n"
    said, _ = kernel.run(quiet + "print(panel._widget.now['ranks'][0]['b'])", **IN_LAB)
    assert said == "401\n"


def test_an_update_costs_next_to_nothing(kernel):
    code = """
def cpu(calls, action):
    start = time.process_time()
    for n in range(calls): action(n)
    return (time.process_time() - start) / calls
panel.update(state(1))
held = cpu(2000, lambda n: panel.update(state(2)))
drawn = cpu(100, lambda n: panel.update(state(n, busy=False)))
print(held, drawn)
"""
    held, drawn = map(float, kernel.run(code, **IN_LAB)[0].split())
    # Ten drawn a second: 3% of one core would be 3 ms for each.
    assert held < 0.0005 and drawn < 0.003, (held, drawn)


def test_a_panel_can_be_closed_and_shown_again(kernel):
    said, heard = kernel.run("panel.close(); print(panel.shown); panel.update(state(1))", **IN_LAB)
    assert said == "False\n"
    assert "comm_close" in [m["msg_type"] for m in heard]
    _, heard = kernel.run("panel.display()", **IN_LAB)
    assert "comm_open" in [m["msg_type"] for m in heard]


# ------------------------------------------------------------------ in the browser


def test_the_page_needs_no_network_and_little_code():
    here = Path(widget.__file__).parent
    script, style = ((here / f"panel.{kind}").read_text("utf-8") for kind in ("js", "css"))
    assert len(script) < 14_500 and len(style) < 6_000
    for text in (script, style):
        assert "http" not in text and "import" not in text.replace("!important", "")
    assert not [char for char in script if 0xAC00 <= ord(char) < 0xD7A4], "words come from Python"
