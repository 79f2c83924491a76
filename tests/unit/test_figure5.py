"""Figure 5: the numbers drawn, what is said about them, and a picture that is the same every time."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image, ImageColor

from eval.runs import read_run
from eval.stats import wilson
from eval.tables import figure5
from llava.imagechain.story import HUB_DATASET

LENGTHS = (2, 3, 4, 5, 6, 7)


def verdicts(right, each=10):
    return [(length, "yes" if i < right else "no") for length in LENGTHS for i in range(each)]


def some_runs(make_run, tmp_path, seed=None):
    return [
        make_run(tmp_path / f"{variant}-{context}-{seed}", verdicts(k), variant=variant, context=context, seed=seed)
        for variant, base in (("imagechain", 4), ("mllm_ft", 2), ("final_scene", 1))
        for context, k in zip(figure5.TRAINED_ON, (base, base + 1, base + 2), strict=True)
    ]


def make_figure(tmp_path, *runs, extra=(), out="out"):
    status = figure5.main(["--runs", *map(str, runs), "--output-dir", str(tmp_path / out), *extra])
    return status, tmp_path / out


def build(*runs, **settings):
    """Return the points by place and the whole figure, without drawing it."""
    figure = figure5.build_figure([read_run(run) for run in runs], **settings)
    return {(point.variant, point.train_context, point.test): point for point in figure.points}, figure


def test_the_numbers_are_the_rates_with_their_wilson_intervals(make_run, tmp_path):
    points, _ = build(*some_runs(make_run, tmp_path))
    assert len(points) == 3 * 3 * 7
    point = points["imagechain", "c4_7", "c2_6"]
    assert (point.percent, point.n) == (60.0, 50)
    assert (point.low, point.high) == pytest.approx([100 * bound for bound in wilson(30, 50)])
    assert points["mllm_ft", "c2", "c4_6"].n == 30


def test_several_seeds_are_their_mean_with_the_interval_of_one_seeds_stories(make_run, tmp_path):
    runs = [make_run(tmp_path / f"r{seed}", verdicts(k), context="c2", seed=seed) for seed, k in enumerate((2, 4, 5))]
    point = build(*runs)[0]["imagechain", "c2", "c2"]
    assert (point.percent, point.n, point.seeds) == (pytest.approx(110 / 3), 10, (20.0, 40.0, 50.0))
    assert (point.low, point.high) == pytest.approx([100 * bound for bound in wilson(11 / 3, 10)])


def test_the_pictures_are_whole_and_the_same_every_time(make_run, tmp_path):
    runs = some_runs(make_run, tmp_path)
    status, first = make_figure(tmp_path, *runs, extra=["--paper"])
    _, second = make_figure(tmp_path, *reversed(runs), extra=["--paper"], out="again")
    assert status == 0
    for name in ("figure5.png", "figure5.svg"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with Image.open(first / "figure5.png") as picture:
        assert picture.size == (2200, 1080)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 20)}
    drawn = {"imagechain", "mllm_ft", "final_scene"}
    assert all(ImageColor.getrgb(figure5.LOOKS[name]["color"]) in colours for name in drawn)
    svg = (first / "figure5.svg").read_text()
    assert ElementTree.fromstring(svg).tag.endswith("svg") and "date" not in svg.lower()
    # The paper's point of VisualContext is the only thing of that colour: no run of it was given.
    assert figure5.LOOKS["visual_context"]["color"].lower() in svg
    points = json.loads((first / "figure5.json").read_text())["points"]
    assert len(points) == 3 * 3 * 7 and points[0]["percent"] == 40.0


def test_each_variant_has_its_own_colour_and_marker():
    for kind in ("color", "marker", "linestyle"):
        assert len({str(look[kind]) for look in figure5.LOOKS.values()}) == 4


def test_the_papers_points_are_shown_where_the_data_is_the_papers(make_run, tmp_path):
    runs = some_runs(make_run, tmp_path)
    assert build(*runs)[1].paper == ()
    published = make_run(tmp_path / "hub", verdicts(3), context="c2", stories=HUB_DATASET)
    for figure in (build(*runs, paper=True)[1], build(published)[1]):
        assert [(one["variant"], one["test"], one["simrate"]) for one in figure.paper] == [
            ("imagechain", "c2_6", 13.6), ("mllm_ft", "c2_6", 9.8), ("visual_context", "c6", 7.7),
        ]  # fmt: skip
        assert "only three points are quoted" in figure.notes[-1]


def test_missing_and_left_out_runs_are_named(make_run, tmp_path):
    runs = some_runs(make_run, tmp_path)[:2]
    runs += [make_run(tmp_path / "all", verdicts(3))]
    runs += [make_run(tmp_path / "base", verdicts(3), variant="mllm", context=None)]
    (runs[0] / "run.json").write_text('{"status": "interrupted"}')
    notes = " ".join(build(*runs)[1].notes)
    assert "No run was given for MLLM-FT C2, MLLM-FT C3, MLLM-FT C4-7, VisualContext C2," in notes
    assert f"{tmp_path / 'all'} (imagechain, c2_7), {tmp_path / 'base'} (mllm, base model)." in notes
    assert "Prediction did not come to its end, run eval.predict again: ImageChain C2." in notes


@pytest.mark.parametrize("spoil", ["unjudged", "other", "twice", "unknown"])
def test_runs_that_cannot_be_drawn_are_refused_and_nothing_is_written(make_run, tmp_path, capsys, spoil):
    run = make_run(tmp_path / "a", verdicts(3), context="c2")
    if spoil == "unjudged":
        (run / "judgments.jsonl").unlink()
    kind = {"other": {"variant": "mllm", "context": None}, "unknown": {"variant": "imagchain", "context": "c2"}}
    runs = [make_run(tmp_path / "b", verdicts(3), **kind[spoil])] if spoil in kind else [run]
    runs += [make_run(tmp_path / "c", verdicts(3), context="c2")] if spoil == "twice" else []
    assert make_figure(tmp_path, *runs)[0] == 2
    error = capsys.readouterr().err
    assert ("found two of ImageChain, trained on C2" if spoil == "twice" else "judged runs of mllm_ft") in error
    assert not (tmp_path / "out").exists()
