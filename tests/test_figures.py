"""Figures: what their titles find, their units, their size, and how a notebook stores them."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from dlcourse.figures import charts, colors
from dlcourse.figures import run as figures
from dlcourse.figures.gantt import gantt_figure
from dlcourse.figures.tables import Table
from dlcourse.measure.categories import CATEGORIES
from dlcourse.measure.run import Run
from dlcourse.words.units import apart_text

MS = 1_000_000
MIB = 2**20


def records(ranks=4, steps=5, calls=6, *, late=None, series=40, big=None):
    """What recorders of `ranks` ranks hand over; rank `late` computes three times as long.

    Each step: 10 ms forward, `calls` times 4 ms backward with an all-reduce of 1 MiB that starts
    with the next piece and takes 4 ms from when the last rank is there, then 2 ms optimizer.
    Rank `big` holds twice the activations.
    """
    origin = 10**12
    plans = []
    for rank in range(ranks):
        slow = 3 if rank == late else 1
        now, spans, started, marks = origin, [], [], []
        for _ in range(steps):
            begin = now
            spans.append([now, now + 10 * MS * slow, "forward", ""])
            now += 10 * MS * slow
            for _ in range(calls):
                spans.append([now, now + 4 * MS * slow, "backward", ""])
                now += 4 * MS * slow
                started.append(now)
            spans.append([now, now + 2 * MS, "optimizer", ""])
            now += 2 * MS
            marks.append({"start_ns": begin, "end_ns": now, "tokens": 512, "loss": 2.0})
        plans.append((spans, started, marks))
    out = []
    for rank, (spans, started, marks) in enumerate(plans):
        comm = [
            {
                "op": "all_reduce",
                "seq": i + 1,
                "group": "0",
                "group_size": ranks,
                "bytes": MIB,
                "dtype": "float32",
                "async": True,
                "start_ns": start,
                "end_ns": max(plan[1][i] for plan in plans) + 4 * MS,
                "peer": None,
            }
            for i, start in enumerate(started)
        ]
        active = (8 if rank == big else 4) * MIB
        rows = [
            [origin + i * MS, MIB, 0, 2 * MIB, active * i // series, 0, 0] for i in range(series)
        ]
        rows.append([origin + series * MS, MIB, MIB, 2 * MIB, active, 0, 0])
        peak = dict(zip(CATEGORIES, rows[-1][1:], strict=True))
        end = max([origin, *(s[1] for s in spans), *(c["end_ns"] for c in comm)])
        out.append(
            {
                "rank": rank,
                "world_size": ranks,
                "wall_s": (end - origin) / 1e9,
                "start_ns": origin,
                "comm": comm,
                "memory": {
                    "peak_bytes": sum(peak.values()),
                    "at_peak": peak,
                    "peaks": peak,
                    "end": peak,
                    "series": rows,
                },
                "spans": spans,
                "steps": marks,
                "flops": 10**9,
                "pss_bytes": 90 * MIB,
                "wire": {"sent": 100 * MIB, "received": 100 * MIB},
            }
        )
    return out


def title(figure) -> str:
    return figure.layout.title.text.replace("<br>", " ")


def of_run(run: Run, lang: str) -> dict:
    return {
        "memory": figures.memory_figure(run.memory.data(), lang),
        "memory over time": figures.memory_over_time_figure(run.memory.data(), lang),
        "timeline": figures.timeline_figure(run.timeline.data(), lang),
        "comm": figures.comm_figure(run.comm.data(), lang),
        "throughput": figures.throughput_figure(run.throughput.data(), lang),
    }


def of_many_runs(lang: str) -> dict:
    sizes = [2**k for k in range(10, 25)]
    times = [5e-5 + size / 2**30 for size in sizes]
    rows = [{"label": "bytes", "predicted": 4 * MIB, "measured": 6 * MIB, "unit": "bytes"}]
    return {
        "sweep": charts.sweep_figure(
            sizes,
            {"ring": times},
            x_title="x",
            y_title="y",
            x_unit="bytes",
            y_unit="seconds",
            log_x=True,
            best="min",
            lang=lang,
        ),
        "predicted": charts.predicted_vs_measured_figure(rows, lang),
        "cost": charts.cost_model_figure(
            sizes, {"ring": times}, {"ring": times}, lang, title="", colors=colors.ALGORITHMS
        ),
        "bars": charts.bars_figure(
            ["DDP", "naive"], [0.04, 0.09], axis="y", unit="seconds", lang=lang
        ),
    }


@pytest.fixture(scope="module", params=["ko", "en"])
def every_figure(request):
    return of_run(Run(records()), request.param) | of_many_runs(request.param)


def test_each_figure_says_what_was_found_and_names_its_axes(every_figure):
    for name, figure in every_figure.items():
        if name != "cost":  # whose title its lesson gives
            assert any(char.isdigit() for char in title(figure)), f"{name}: {title(figure)!r}"
        assert len(title(figure)) < 110, name
        axes = [figure.layout.xaxis, figure.layout.yaxis]
        named = [axis for axis in axes if axis.title.text]
        assert named or all(axis.ticktext for axis in axes), name
        measured = figure.layout.yaxis if "over time" in name else figure.layout.xaxis
        if name not in ("throughput", "cost", "sweep", "predicted", "bars"):
            assert any(f"({unit})" in measured.title.text for unit in ("MiB", "KiB", "ms", "s"))


def test_each_figure_suits_both_themes_and_carries_no_template(every_figure):
    for name, figure in every_figure.items():
        layout = figure.to_plotly_json()["layout"]
        assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)", name
        assert layout["font"]["color"] == colors.INK, name
        assert len(str(layout["template"])) < 100, name  # plotly's own has 6 KB
        assert "width" not in layout, f"{name} must follow the width of the notebook"
        assert type(figure).__name__ == "Figure", name


def test_a_large_run_still_makes_small_figures():
    run = Run(records(ranks=16, steps=40, calls=24, series=400, late=5))
    sizes = {name: len(figure.to_json()) for name, figure in of_run(run, "ko").items()}
    assert max(sizes.values()) < 50_000, sizes
    assert sum(len(trace.x) for trace in of_run(run, "en")["timeline"].data) <= figures.MAX_SPANS


def test_memory_is_stacked_in_the_categories_colours_and_units():
    figure = figures.memory_figure(Run(records(big=2)).memory.data(), "en")
    bars = {trace.name: trace for trace in figure.data if trace.type == "bar"}
    assert list(bars) == ["parameters", "gradients", "optimizer state", "activations"]
    assert bars["activations"].marker.color == colors.CATEGORIES["activations"]
    assert list(bars["activations"].x) == [4, 4, 8, 4]
    assert list(bars["parameters"].x) == [1, 1, 1, 1]
    assert "MiB" in figure.layout.xaxis.title.text
    assert title(figure) == (
        "Rank 2 peaks at 12 MiB, rank 0 at 8 MiB; the largest part, activations, is 67%"
    )
    even = figures.memory_figure(Run(records()).memory.data(), "ko")
    assert title(even) == "랭크마다 최대 8 MiB. 가장 큰 몫은 활성화값: 50%"
    alone = figures.memory_figure(Run(records(ranks=1)).memory.data(), "en")
    assert title(alone).startswith("Rank 0 peaks at 8 MiB;")


def test_what_is_equal_bit_for_bit_is_0_apart():
    assert [apart_text(x) for x in (0.0, 4.77e-7, -0.25)] == ["0", "4.8e-07", "-2.5e-01"]


def test_a_panel_of_lanes_has_its_name_above_its_bars():
    rows = [[(0.0, 1.0, ("F", 0, 0))], [(1.0, 2.0, ("F", 0, 0))]]
    figure = gantt_figure({"one": rows, "two": rows}, title="")
    lanes = [y for trace in figure.data for y in trace.y]
    (width,) = {trace.width for trace in figure.data}
    top = figure.layout.yaxis.range
    lane_pixels = (figure.layout.height - 130) / abs(top[1] - top[0])  # without the margins
    letters = 10 / lane_pixels  # half of a line of 12 pixels, Korean ones are taller
    for note in figure.layout.annotations:
        assert note.y - letters > top[1], "inside the figure"
        assert all(abs(note.y - lane) > width / 2 + letters for lane in lanes), note.text


def test_memory_over_time_keeps_the_peak_when_it_thins_out():
    data = Run(records(ranks=1, series=399)).memory.data()
    rows = data["ranks"][0]["series"]
    rows[200:200] = [[rows[200][0], *([0] * 3), 50 * MIB, 0, 0]]
    for i in range(3000):
        rows.append([1.0 + i / 1000, MIB, 0, 0, 0, 0, 0])
    figure = figures.memory_over_time_figure(data, "en")
    activations = next(trace for trace in figure.data if trace.name == "activations")
    assert len(activations.x) <= 300
    assert max(activations.y) == 50


def test_timeline_tells_hidden_communication_from_waiting():
    run = Run(records())
    figure = figures.timeline_figure(run.timeline.data(), "en")
    hidden = run.timeline.hidden_fraction
    assert 0.8 < hidden < 1
    assert title(figure).startswith(f"{hidden:.0%} of communication is hidden")
    names = {trace.name for trace in figure.data}
    assert names == {"forward", "backward", "optimizer", "communication"}
    late = figures.timeline_figure(Run(records(late=2)).timeline.data(), "en")
    assert title(late).endswith("mostly for rank 2")
    waiting = next(trace for trace in late.data if trace.name == "waiting for other ranks")
    assert waiting.marker.pattern.shape == "/", "waiting must not rest on colour alone"
    # Rank 2 waits for nobody: no bar in its lane.
    assert {math.floor(lane + 0.3) for lane in waiting.y} == {0, 1, 3}


def test_nobody_waits_for_a_rank_that_takes_no_part():
    data = Run(records(late=2)).timeline.data()
    data["ranks"][0] |= {"spans": [], "totals": {}}
    assert title(figures.timeline_figure(data, "en")).endswith("mostly for rank 2")


def test_timeline_can_show_one_step():
    data = Run(records(steps=5)).timeline.data()
    one = figures.timeline_figure(data, "en", steps=3)
    assert one.layout.xaxis.title.text == "time (ms) · step 4 of 5"
    assert one.layout.xaxis.range[1] == pytest.approx(36)  # 10 + 6 * 4 + 2 ms
    many = figures.timeline_figure(Run(records(steps=9)).timeline.data(), "en")
    assert many.layout.xaxis.title.text == "time (ms) · step 7-9 of 9"
    with pytest.raises(ValueError, match=r"steps=5.*0 to 4"):
        figures.timeline_figure(data, "en", steps=5)


def test_comm_has_one_bar_for_equal_ranks_and_else_one_a_rank():
    run = Run(records())
    figure = figures.comm_figure(run.comm.data(), "en")
    assert len(figure.data) == 1
    sent = 5 * 6 * 2 * (4 - 1) / 4  # steps * calls of 1 MiB; each of 4 ranks sends 2 * 3/4 of it
    assert title(figure) == f"Every rank sends {sent:g} MiB; all_reduce is 100% of it"
    assert "30×" in figure.data[0].text[0]
    assert "25 MiB" in figure.layout.title.subtitle.text  # the system's counters
    uneven = records()
    uneven[3]["comm"].append(
        uneven[3]["comm"][0] | {"op": "send", "peer": 0, "seq": 99, "bytes": 8 * MIB}
    )
    figure = figures.comm_figure(Run(uneven).comm.data(), "en")
    assert len(figure.data) == 4
    assert [trace.marker.color for trace in figure.data] == list(colors.RANKS[:4])
    assert title(figure).startswith("Rank 3 sends most, 53 MiB; rank 0 sends 45 MiB")


def test_figures_of_a_cell_that_did_nothing():
    quiet = records(ranks=1, steps=0, calls=0)
    quiet[0]["spans"] = [[10**12, 10**12 + MS, "compute", ""]]
    quiet[0]["wall_s"] = 0.001
    run = Run(quiet)
    found = {name: title(figure) for name, figure in of_run(run, "en").items()}
    assert found["comm"] == "No collective was called"
    assert found["throughput"] == "No steps were marked"
    assert found["timeline"] == "No communication: ranks compute 100% of the time"
    for make in (figures.memory_figure, figures.timeline_figure, figures.comm_figure):
        with pytest.raises(ValueError, match="--fast"):
            make({"ranks": [], "categories": [], "ops": [], "wall_s": 0}, "en")


def test_sweep_marks_the_best_point_in_human_units():
    x = [2**k for k in range(12, 23)]
    y = [0.05 + abs(k - 17) * 0.01 for k in range(12, 23)]
    figure = charts.sweep_figure(
        x, {"ours": y}, x_title="bucket", y_title="step", x_unit="bytes", y_unit="seconds",
        log_x=True, best="min", lang="en",
    )  # fmt: skip
    assert title(figure) == "Best at 128 KiB: 50 ms"
    assert "128 KiB" in [*figure.data[0].hovertext[5].split(": ")]
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.yaxis.title.text == "step (ms)"
    assert set(figure.layout.xaxis.ticktext) >= {"4 KiB", "4 MiB"}
    with pytest.raises(ValueError, match="best='lowest'"):
        charts.sweep_figure(x, {"ours": y}, x_title="", y_title="", best="lowest")
    with pytest.raises(ValueError, match=r"series\['ours'\] has 2 values for 11"):
        charts.sweep_figure(x, {"ours": [1, 2]}, x_title="", y_title="")


def test_a_run_that_has_diverged_is_drawn_and_is_not_the_best():
    losses = {
        "0.1": [3.0, 2.0, 1.5],
        "10": [math.nan, math.nan, math.nan],
        "1": [3.0, 9.0, math.inf],
    }
    for best, log_y in (("min", False), ("min", True), ("max", True)):
        figure = charts.sweep_figure(
            [1, 2, 4], dict(reversed(losses.items())), x_title="step", y_title="loss",
            log_x=True, log_y=log_y, best=best, lang="en",
        )  # fmt: skip
        assert "nan" not in title(figure) and "inf" not in title(figure)
        assert json.loads(figure.to_json())["data"]
    rows = [{"label": "a", "predicted": 1, "measured": 1, "unit": ""}]
    rows.append({"label": "b", "predicted": 2, "measured": math.nan, "unit": ""})
    assert "prediction: b, nan" in title(charts.predicted_vs_measured_figure(rows, "en"))
    nothing = charts.sweep_figure([], {}, x_title="", y_title="", x_unit="bytes", log_x=True)
    assert not nothing.data


def test_predictions_far_off_are_named_and_hatched():
    rows = [
        {"label": "bytes", "predicted": 100, "measured": 101, "unit": "bytes"},
        {"label": "time", "predicted": 0.1, "measured": 0.05, "unit": "seconds"},
    ]
    figure = charts.predicted_vs_measured_figure(rows, "en")
    assert title(figure) == "Furthest from its prediction: time, 0.500 times as much"
    assert list(figure.data[0].marker.pattern.shape) == ["", "/"]
    close = charts.predicted_vs_measured_figure(rows[:1], "en")
    assert title(close) == "The predictions hold: the largest gap is 1.0%"
    with pytest.raises(ValueError, match="prediction"):
        charts.predicted_vs_measured_figure([{"label": "", "predicted": 0, "measured": 1}])


def test_cost_model_has_points_and_a_line_for_each_algorithm():
    sizes = [2**k for k in range(10, 25)]
    tree = [2e-5 + size / 2**28 for size in sizes]
    ring = [5e-5 + size / 2**30 for size in sizes]
    measured = {"ring": [1.1 * v for v in ring], "tree": tree}
    figure = charts.cost_model_figure(
        sizes, measured, {"ring": ring, "tree": tree}, "en", title="x", colors=colors.ALGORITHMS
    )
    dots, model, *_ = figure.data
    assert [trace.mode for trace in figure.data] == ["markers", "lines"] * 2
    assert [trace.name for trace in figure.data[::2]] == ["ring", "tree"]
    assert dots.line.color == model.line.color == colors.ALGORITHMS["ring"]
    assert [y / line for y, line in zip(dots.y, model.y, strict=True)] == pytest.approx(
        [1.1] * len(sizes), rel=1e-3
    )
    with pytest.raises(ValueError, match="same"):
        charts.cost_model_figure(sizes, {"a": ring}, {"b": ring}, title="x", colors={})


def test_long_titles_are_broken_before_900_pixels():
    figure = charts.bars_figure(
        ["a"], [1.0], axis="x", title="아주 긴 제목입니다. " * 10, lang="ko"
    )
    lines = figure.layout.title.text.split("<br>")
    assert len(lines) > 1
    assert max(len(line) for line in lines) <= 60
    assert figure.layout.margin.t > 46


KERNEL_CODE = """
import json, sys
from dlcourse.figures.charts import bars_figure
figure = bars_figure(["a", "b"], [1.0, 2.0], axis="x", lang="en")
bundle = figure._repr_mimebundle_()
print(json.dumps({name: len(json.dumps(data)) for name, data in bundle.items()}))
"""


def test_a_notebook_stores_the_data_alone_and_needs_no_network():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(startup_timeout=120)
    try:
        said = []
        client.execute_interactive(
            KERNEL_CODE,
            timeout=120,
            output_hook=lambda m: said.append(m["content"].get("text", "")),
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    stored = json.loads("".join(said))
    assert set(stored) == {"application/vnd.plotly.v1+json"}
    assert stored["application/vnd.plotly.v1+json"] < 4_000


def test_importing_the_figures_loads_neither_plotly_nor_torch():
    code = (
        "import sys, dlcourse.figures.charts, dlcourse.figures.run, dlcourse.figures.tables\n"
        "print([m for m in ('torch', 'numpy', 'plotly') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ------------------------------------------------------------------ tables


def test_a_table_lines_up_korean_and_numbers():
    table = Table(["이름", "n"], [("올리듀스", 12), ("ring", 3456)], caption="시간")
    assert repr(table).split("\n") == [
        "시간",
        "이름          n",
        "--------  -----",
        "올리듀스     12",
        "ring      3,456",
    ]
    html = table._repr_html_()
    assert "3,456" in html and "text-align:right" in html
    assert "color" not in html.replace("-color", ""), "colours are the page's own"


def test_a_table_escapes_what_ranks_return_and_keeps_lines():
    table = Table(["v"], [("<b>1</b>\ntwo",)])
    assert "&lt;b&gt;1&lt;/b&gt;\ntwo" in table._repr_html_()
    assert repr(table).split("\n")[2:] == ["<b>1</b>", "two"]
    with pytest.raises(ValueError, match="1 cells"):
        Table(["a", "b"], [(1,)])


def test_a_table_of_many_columns_is_set_small_and_wraps_names_of_rows():
    many, few = (Table(["a"] * n, [["row " * 9] * n])._repr_html_() for n in (12, 4))
    assert many.count("font-size:10px") == 24 and many.count("pre-wrap") == 1
    assert "font-size" not in few and "pre-wrap" not in few
