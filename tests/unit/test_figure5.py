"""Figure 5: the numbers drawn, what is said about them, and a picture that is the same every time."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from eval import figure5
from eval.stats import wilson

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


def numbers(out):
    data = json.loads((out / "figure5.json").read_text())
    return {(one["variant"], one["train_context"], one["test"]): one for one in data["points"]}, data


def test_the_numbers_drawn_are_the_rates_with_their_wilson_intervals(make_run, tmp_path):
    status, out = make_figure(tmp_path, *some_runs(make_run, tmp_path))
    assert status == 0
    points, _ = numbers(out)
    assert len(points) == 3 * 3 * 7
    point = points["imagechain", "c4_7", "c2_6"]
    low, high = wilson(30, 50)
    assert (point["percent"], point["n"]) == (60.0, 50)
    assert (point["low"], point["high"]) == (round(100 * low, 2), round(100 * high, 2))
    assert points["mllm_ft", "c2", "c4_6"]["n"] == 30


def test_several_seeds_are_their_mean_with_the_interval_of_one_seeds_stories(make_run, tmp_path):
    runs = [make_run(tmp_path / f"r{seed}", verdicts(k), context="c2", seed=seed) for seed, k in enumerate((2, 4, 5))]
    _, out = make_figure(tmp_path, *runs)
    point = numbers(out)[0]["imagechain", "c2", "c2"]
    assert (point["percent"], point["n"], point["seeds"]) == (36.67, 10, [20.0, 40.0, 50.0])
    assert point["low"] == round(100 * wilson(11 / 3, 10)[0], 2)


def test_the_pictures_are_whole_and_the_same_every_time(make_run, tmp_path):
    runs = some_runs(make_run, tmp_path)
    _, first = make_figure(tmp_path, *runs, extra=["--paper"])
    _, second = make_figure(tmp_path, *reversed(runs), extra=["--paper"], out="again")
    for name in ("figure5.png", "figure5.svg"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with Image.open(first / "figure5.png") as picture:
        assert picture.size == (2200, 1080) and len(set(picture.convert("RGB").resize((220, 108)).getdata())) > 20
    root = ElementTree.parse(first / "figure5.svg").getroot()
    assert root.tag.endswith("svg") and "date" not in (first / "figure5.svg").read_text().lower()


def test_each_variant_has_its_own_colour_and_marker():
    for kind in ("color", "marker", "linestyle"):
        assert len({str(look[kind]) for look in figure5.LOOKS.values()}) == 4


def test_the_papers_points_are_drawn_where_the_data_is_the_papers(make_run, tmp_path):
    runs = some_runs(make_run, tmp_path)
    _, plain = make_figure(tmp_path, *runs, out="plain")
    _, paper = make_figure(tmp_path, *runs, extra=["--paper"], out="paper")
    assert numbers(plain)[1]["paper"] == []
    assert {(one["variant"], one["test"], one["simrate"]) for one in numbers(paper)[1]["paper"]} == {
        ("imagechain", "c2_6", 13.6), ("mllm_ft", "c2_6", 9.8), ("visual_context", "c6", 7.7),
    }  # fmt: skip
    assert (plain / "figure5.svg").read_bytes() != (paper / "figure5.svg").read_bytes()


def test_missing_and_left_out_runs_are_named(make_run, tmp_path, capsys):
    runs = some_runs(make_run, tmp_path)[:2]
    runs += [
        make_run(tmp_path / "all", verdicts(3)),
        make_run(tmp_path / "base", verdicts(3), variant="mllm", context=None),
    ]
    (runs[0] / "run.json").write_text('{"status": "interrupted"}')
    _, out = make_figure(tmp_path, *runs)
    notes = " ".join(numbers(out)[1]["notes"])
    assert "No run was given for MLLM-FT C2, MLLM-FT C3, MLLM-FT C4-7, VisualContext C2," in notes
    assert f"{tmp_path / 'all'} (imagechain, c2_7), {tmp_path / 'base'} (mllm, base model)." in notes
    assert "Prediction did not come to its end, run eval.predict again: ImageChain C2." in notes
    assert notes.split()[:3] == capsys.readouterr().out.split()[1:4]


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
