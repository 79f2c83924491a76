"""The table of changed settings: what it compares, what it says about its training context, and what it refuses."""

import dataclasses

import pytest

from eval.reproduce.ablations import build_sheet
from eval.runs import read_run

TITLES = {"base": "default", "changed": "one frame a scene"}


def runs(make_run, tmp_path, **changes):
    words = {"y": "yes", "n": "no"}
    return [
        read_run(make_run(tmp_path / name, [(2, words[v]) for v in verdicts], context="c2", **changes.get(name, {})))
        for name, verdicts in (("base", "yynn"), ("changed", "yyyn"))
    ]


def test_a_setting_is_compared_with_the_default_and_the_training_context_is_said(make_run, tmp_path):
    sheet = build_sheet(runs(make_run, tmp_path), TITLES)
    assert sheet.title.endswith("trained on C2")
    assert sheet.notes[0].startswith("Trained on C2, tested on C2-6.")
    assert [row[:2] for row in sheet.rows] == [("default", "50.00 (2/4)"), ("one frame a scene", "75.00 (3/4)")]
    assert sheet.rows[1][3] == "+25.00"
    assert sheet.data["train_context"] == "c2"


def test_what_makes_numbers_incomparable_is_said(make_run, tmp_path):
    default, changed = runs(make_run, tmp_path)
    assert len(build_sheet([default, changed], TITLES).notes) == 1
    notes = " ".join(build_sheet([default, dataclasses.replace(changed, finished=False)], TITLES).notes)
    assert "Judge: world." in notes and "did not come to its end, run eval.predict again: one frame a scene." in notes


def test_runs_trained_on_different_contexts_are_refused(make_run, tmp_path):
    default, _ = runs(make_run, tmp_path)
    other = read_run(make_run(tmp_path / "other/changed", [(2, "yes")] * 4, context="c2_7"))
    with pytest.raises(ValueError, match=r"one training context was wanted, found c2 \(.*\), c2_7 \("):
        build_sheet([default, other], TITLES)


def test_a_setting_without_a_default_of_its_seed_is_refused(make_run, tmp_path):
    with pytest.raises(ValueError, match="a default run of seed 3 was wanted"):
        build_sheet(runs(make_run, tmp_path, base={"seed": 0}, changed={"seed": 3}), TITLES)
