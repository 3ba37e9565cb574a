"""Sliders and their pictures, without a browser: what is drawn, how fast, and what stands still."""

from __future__ import annotations

import math
import time
import xml.etree.ElementTree as ElementTree

import pytest

from dlcourse.explorer import Film, explore, sliders
from dlcourse.explorer import film as films
from dlcourse.explorer.memory_anatomy import IN_TURN, memory_on_card
from dlcourse.explorer.plan import plan_picture
from dlcourse.figures.accumulation import memory_of_a_step
from dlcourse.figures.collectives import ring_tree_direct
from dlcourse.figures.data_parallel import overlap_of_buckets
from dlcourse.figures.expert_parallel import tokens_on_the_wire
from dlcourse.figures.matrix_cut import CUTS, cut_and_sent
from dlcourse.figures.mixed_precision import range_and_step
from dlcourse.figures.moe import experts_by_kind, memory_of_experts
from dlcourse.figures.one_model import work_and_bytes
from dlcourse.figures.picture import sentence, stacked_bars
from dlcourse.figures.sharding_offload import step_over_link
from dlcourse.figures.zero import fits_on_a_card
from dlcourse.formulas.memory import predict_peak
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import MODELS, GPTConfig
from dlcourse.measure.frames import read_frames, write_frame
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.layout_space import all_layouts
from dlcourse.plan.planner import evaluate
from dlcourse.plan.report import layout_text
from dlcourse.words.strings import set_language

COUNTS = [1, 2, 4, 8, 16, 32, 64]
VIEW = "application/vnd.jupyter.widget-view+json"


def words(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_every_position_is_a_whole_picture_within_100_ms(lang):
    set_language(lang)
    seen = set()
    for count in COUNTS:
        spent = []
        for _ in range(3):  # processor time: a busy machine does not make it slow
            before = time.process_time()
            picture = memory_of_a_step(micro_batches=count)
            spent.append(time.process_time() - before)
        assert min(spent) < 0.1
        title = words(picture.svg)[0]
        assert title.startswith(f"{count} × {64 // count}:") and title in picture.text
        assert ("activations" in picture.text) == (lang == "en")
        seen.add(picture.svg)
    assert len(seen) == len(COUNTS)


@pytest.mark.parametrize(("model", "sequences"), [("gpt2-large", 1), ("7b", 16)])
def test_a_step_on_a_card_is_what_the_formula_says(model, sequences):
    set_language("en")
    batch = dict(sequences=sequences, block=1024, world_size=4)
    for count in range(len(IN_TURN) + 1):
        sizes = predict_peak(MODELS[model], Recipe.of(IN_TURN[:count]), **batch)
        gigabytes = sum(sizes.values()) / 1e9
        spent = []
        for _ in range(3):
            before = time.process_time()
            picture = memory_on_card(model, 24, sequences, count)
            spent.append(time.process_time() - before)
        assert min(spent) < 0.1
        title = words(picture.svg)[0]
        assert f"{gigabytes:.1f} GB" in title
        assert (f"{gigabytes - 24:.1f} GB more" in title) == (gigabytes > 24)


def test_the_bars_are_what_the_formula_says():
    set_language("en")
    root = ElementTree.fromstring(memory_of_a_step(micro_batches=4).svg)
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") == "30"]
    widths = [float(bar.get("width")) for bar in bars[:4]]
    starts = [float(bar.get("x")) for bar in bars[:4]]
    ends = [start + width for start, width in zip(starts, widths, strict=True)]
    assert starts[1:] == pytest.approx(ends[:3], abs=0.2), "the pieces lie end to end"
    whole, parts = (
        predict_peak(
            GPTConfig(n_layer=4, n_head=4, n_embd=128, vocab_size=256, block_size=128),
            Recipe(accumulate=count),
            sequences=64,
            block=32,
        )
        for count in (1, 4)
    )
    names = ("parameters", "gradients", "optimizer_state", "activations")
    share = [parts[name] / sum(whole.values()) for name in names]
    assert [w / sum(widths) for w in widths] == pytest.approx([s / sum(share) for s in share], 0.01)
    assert sum(widths) == pytest.approx(630 * sum(share), abs=1)


def test_a_bar_beyond_the_axis_and_an_unknown_category_are_refused():
    plain = dict(title="", axis="", limit=1, totals={"a": ""})
    with pytest.raises(ValueError, match="axis ends at 1"):
        stacked_bars({"a": {"parameters": 2}}, **plain)
    with pytest.raises(ValueError, match="give some of"):
        stacked_bars({"a": {"weights": 1}}, **plain)


def test_headless_the_picture_stands_still_and_no_widget_is_made(monkeypatch):
    set_language("en")
    monkeypatch.setattr(sliders, "front_end_present", lambda: False)
    explorer = explore(memory_of_a_step, micro_batches=COUNTS)
    shown = explorer._repr_mimebundle_()
    assert set(shown) == {"text/plain", "image/svg+xml"}
    assert words(shown["image/svg+xml"])[0].startswith("8 × 8:")
    assert repr(explorer) == shown["text/plain"]
    monkeypatch.setattr(sliders, "front_end_present", lambda: True)
    assert VIEW in explorer._repr_mimebundle_()[0]


def test_a_value_that_has_words_is_said_in_them():
    """Numbers, and names that are the same everywhere, stay as they are."""
    assert sliders._shown("ranks", 8) == "8" and sliders._shown("model", "7B") == "7B"
    for lang, said in (("ko", "있음"), ("en", "yes")):
        set_language(lang)
        assert sliders._shown("overlap", "yes") == said


def test_several_sliders_and_what_is_refused():
    set_language("en")
    drawn = []

    def draw(micro_batches):
        drawn.append(micro_batches)
        return memory_of_a_step(1)

    assert len(explore(draw, micro_batches=[1, 2, 3]).pictures) == 3 and drawn == [1, 2, 3]
    assert explore(memory_of_a_step, micro_batches=COUNTS).start == [3]
    early = explore(memory_of_a_step, micro_batches=COUNTS, start={"micro_batches": 2})
    assert early.start == [1] and words(early.picture.svg)[0].startswith("2 × 32:")
    for start in ({"micro_batches": 3}, {"ranks": 2}):
        with pytest.raises(ValueError, match="start has"):
            explore(memory_of_a_step, micro_batches=COUNTS, start=start)
    with pytest.raises(ValueError, match="at least one value"):
        explore(draw, micro_batches=[])
    with pytest.raises(ValueError, match="at most 100"):
        explore(draw, micro_batches=list(range(101)))
    with pytest.raises(ValueError, match="micro_batches=5 is one value: give a list"):
        explore(draw, micro_batches=5)
    assert len(explore(draw, micro_batches=(n for n in (1, 2))).pictures) == 2
    with pytest.raises(ValueError, match="draw gave None: let it return a Picture"):
        explore(lambda micro_batches: None, micro_batches=[1])
    with pytest.raises(ValueError, match=r"explore\.unknown"):
        explore(draw, unknown=[1])


# draw, sliders, what is said
OTHER_VALUES = [
    (ring_tree_direct, dict(tensor=["1 MiB", "1 GiB"], ranks=[4]), "give one of 1 KiB, 128 KiB"),
    (ring_tree_direct, dict(tensor=["1 MiB"], ranks=[1, 2]), "ranks=1: give 2 or more"),
    (tokens_on_the_wire, dict(ranks=[1], top_k=[8]), "ranks=1: give 2 or more"),
    (tokens_on_the_wire, dict(ranks=[8], top_k=[1.5]), r"no picture for ranks=8, top_k=1\.5"),
    (fits_on_a_card, dict(model=["7b"], ranks=[8], precision=["fp32"]), r"give one of 1\.5B"),
    (fits_on_a_card, dict(model=["70B"], ranks=[8], precision=["fp8"]), "'fp8' is unknown"),
    (cut_and_sent, dict(first=CUTS, second=CUTS, ranks=[10**6]), "ranks=1000000: give at most 64"),
    (work_and_bytes, dict(ranks=[0, 1]), "no picture for ranks=0: ZeroDivisionError"),
    (overlap_of_buckets, dict(layers_in_a_bucket=[-1], latency_ms=[1]), "numbers from 0 on"),
    (overlap_of_buckets, dict(layers_in_a_bucket=[1], latency_ms=[math.nan]), "numbers from 0 on"),
    (memory_of_experts, dict(experts=[8], top_k=[-1]), "top_k=-1: give numbers from 0 on"),
    (step_over_link, dict(on_host=["layers"], link_gb=[0], overlap=["no"]), "link_gb=0"),
    (range_and_step, dict(exponent_bits=[15], mantissa_bits=[10]), "exponent_bits=15"),
]


@pytest.mark.parametrize(("draw", "sliders", "said"), OTHER_VALUES)
def test_other_values_than_the_lessons_are_drawn_or_refused_in_words(draw, sliders, said):
    """Readers change the lists in the cell; some of them went on for minutes."""
    with pytest.raises(ValueError, match=said):
        explore(draw, **sliders)


def test_what_is_wrong_in_a_picture_of_ones_own_is_said_as_it_is():
    with pytest.raises(ZeroDivisionError):
        explore(lambda micro_batches: 1 / micro_batches, micro_batches=[0])
    assert explore(lambda micro_batches: sentence("one"), micro_batches=[-1])


# ------------------------------------------------------------------------------------ a film


def frame(share):
    rest = (1 - share) / 7
    return {"load": {kind: [share] + [rest] * 7 for kind in ("code", "english", "korean")}}


def test_a_film_shows_the_newest_frame_and_keeps_all_for_a_slider():
    set_language("en")
    film = Film(experts_by_kind)
    assert "moves here" in repr(film)
    with pytest.raises(ValueError, match="no frame yet"):
        _ = film.steps
    for step, share in ((5, 0.2), (10, 0.5)):
        write_frame(film.path, step=step, **frame(share))
    assert film.steps == [5, 10]
    assert "Step 10: expert 0 is used by 100% of all tokens" in film.picture.text
    assert "used by 40%" in film.at(5).text
    with pytest.raises(ValueError, match="step=7 has no frame: there are 5, 10"):
        film.at(7)
    write_frame(film.path, step=5, **frame(0.3))  # the cell that trains runs again
    assert film.steps == [5] and "used by 60%" in film.picture.text


def test_a_frame_that_is_half_written_is_not_read(tmp_path):
    path = tmp_path / "frames.jsonl"
    assert read_frames(path) == []
    write_frame(path, step=1)
    path.write_text(path.read_text() + '{"step": 2')
    assert [frame["step"] for frame in read_frames(path)] == [1]
    write_frame(path, step=3)  # behind the half, of a full disk or a rank that has ended
    write_frame(path, step=4)
    assert [frame["step"] for frame in read_frames(path)] == [1, 4]


def test_in_a_front_end_the_picture_moves_by_itself(monkeypatch):
    set_language("en")
    monkeypatch.setattr(films, "front_end_present", lambda: True)
    monkeypatch.setattr(films, "INTERVAL_S", 0.01)
    film = Film(experts_by_kind)
    assert VIEW in film._repr_mimebundle_()[0]
    write_frame(film.path, step=5, **frame(0.4))
    limit = time.monotonic() + 60
    while "Step 5" not in film._view.pictures[0] and time.monotonic() < limit:
        time.sleep(0.01)
    assert "Step 5: expert 0 is used by 80%" in film._view.pictures[0]


def test_a_frame_that_cannot_be_drawn_says_so_and_the_film_goes_on(monkeypatch):
    monkeypatch.setattr(films, "front_end_present", lambda: True)
    monkeypatch.setattr(films, "INTERVAL_S", 0.01)
    film = Film(experts_by_kind)
    film._repr_mimebundle_()
    limit = time.monotonic() + 60
    for values, said in (({}, "KeyError"), (frame(0.4), "80%")):
        write_frame(film.path, step=5, **values)
        while said not in film._view.pictures[0] and time.monotonic() < limit:
            time.sleep(0.01)
        assert said in film._view.pictures[0]


# ------------------------------------------------------------------------------- the planner

# Dense models and mixtures, on part of a node and on thousands
POSITIONS = [
    dict(),
    dict(model="llama-3-70b", gpus=512, stage=3),
    dict(model="llama-3-405b", gpus=1024, recompute="full"),
    dict(model="qwen3-30b-a3b", gpus=8, stage=0, micro_batch=4),
    dict(model="qwen3-235b-a22b", gpus=256),
    dict(model="mistral-7b", gpus=4, gpu="a100", sequence=8192),
]


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_every_position_of_the_planner_is_drawn_within_100_ms(lang):
    """Measured 0.03 to 0.09 s on 2 cores, 2026-11; the issue asks for 0.2 s a moved slider."""
    set_language(lang)
    seen = set()
    for given in POSITIONS:
        spent = []
        for _ in range(4):
            before = time.process_time()
            picture = plan_picture(**given)
            spent.append(time.process_time() - before)
        assert min(spent) < 0.2, given
        assert words(picture.svg)[0] in picture.text.replace("\n", " ")
        assert ("activations" in picture.text) == (lang == "en")
        assert len(picture.svg) < 40_000
        seen.add(picture.svg)
    assert len(seen) == len(POSITIONS)


def test_the_bar_is_the_planners_layout_and_the_map_what_fits():
    set_language("en")
    picture = plan_picture(model="llama-3-8b", gpus=16, stage=0, micro_batch=1, recompute="none")
    job = Job(
        shape=published_model("llama-3-8b"),
        cluster=cluster_of("h100", gpus=16),
        batch_tokens=1024 * 4096,
    )
    layouts = all_layouts(
        job, context=[1], offload=["none"], stage=[0], micro_batch=[1], recompute=["none"]
    )
    answer = evaluate(job, layouts)
    best = answer.fastest
    root = ElementTree.fromstring(picture.svg)
    rects = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    widths = [float(r.get("width")) for r in rects if r.get("height") == "34"]
    limit = (880 - 150 - 24) / 1.5
    share = answer.memory["total"][best] / job.cluster.memory
    assert sum(widths) == pytest.approx(limit * share, abs=0.5)
    assert layout_text(layouts[best]) in picture.text
    fits = {}
    for index, fit in enumerate(answer.fits):
        place = (layouts[index].tensor, layouts[index].pipeline)
        fits[place] = fits.get(place, False) or bool(fit)
    filled = [r for r in rects if r.get("height") == "44" and r.get("fill") != "none"]
    dashed = [r for r in rects if r.get("stroke-dasharray")]
    assert (len(filled), len(dashed)) == (sum(fits.values()), len(fits) - sum(fits.values()))
    assert dashed, "something does not fit: plain layouts of 8B"
    assert picture.text.count("100%") >= 1


def test_the_planners_picture_says_what_does_not_fit_or_divide():
    set_language("en")
    none = plan_picture(model="llama-3-405b", gpus=8)
    assert "none of" in none.text and "GB too large" in none.text
    assert "100%:" not in none.text.replace("is 100%", "")
    nothing = plan_picture(gpus=64, stage=0, micro_batch=3)
    assert "no layout divides" in nothing.text
    for given, said in (
        (dict(model="gpt-9"), "model='gpt-9' is unknown"),
        (dict(gpus=0), "a cluster has 1 GPU or more"),
        (dict(gpus=12), "not whole nodes"),
        (dict(stage=4), "stage=4"),
        (dict(recompute="some"), "recompute='some'"),
        (dict(micro_batch=0), "micro_batch=0"),
    ):
        with pytest.raises(ValueError, match=said):
            plan_picture(**given)


def test_the_planner_under_sliders_stands_still_without_a_front_end(monkeypatch):
    set_language("en")
    monkeypatch.setattr(sliders, "front_end_present", lambda: False)
    explorer = explore(plan_picture, model=["llama-3-8b", "llama-2-7b"], gpus=[8, 16, 32])
    assert len(explorer.pictures) == 6
    shown = explorer._repr_mimebundle_()
    assert set(shown) == {"text/plain", "image/svg+xml"}
    assert "llama-2-7b on 16 H100" in repr(explorer)
