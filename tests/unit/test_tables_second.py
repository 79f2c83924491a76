"""Table 2: ImageChain by training context, the gain of training on C2-7, and how sure the gain is."""

import json

import pytest

from eval.tables import __main__ as tables

CONTEXTS = ("c2", "c3", "c4_7", "c2_7")
LENGTHS = (2, 3, 4, 5, 6, 7)


def verdicts(right):
    """Ten stories of each length, of which the first `right` are right."""
    return [(length, "yes" if i < right else "no") for length in LENGTHS for i in range(10)]


def all_runs(make_run, tmp_path, right, **changes):
    return [
        make_run(tmp_path / f"{context}{changes.get('seed', '')}", verdicts(k), context=context, **changes)
        for context, k in zip(CONTEXTS, right, strict=True)
    ]


def make_table(tmp_path, *runs, extra=()):
    arguments = ["--table", "2", "--runs", *map(str, runs), "--output-dir", str(tmp_path / "out"), *extra]
    return tables.main(arguments), tmp_path / "out"


def rows_of(out):
    lines = [line for line in (out / "table2.md").read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_each_context_is_tested_alone_and_against_training_on_all(make_run, tmp_path):
    status, out = make_table(tmp_path, *all_runs(make_run, tmp_path, (2, 3, 4, 6)))
    assert status == 0
    assert [row[:3] for row in rows_of(out)] == [
        ["ImageChain C2", "C2", "20.00 (2/10)"], ["ImageChain C2-7", "C2", "60.00 (6/10)"],
        ["ImageChain C3", "C3", "30.00 (3/10)"], ["ImageChain C2-7", "C3", "60.00 (6/10)"],
        ["ImageChain C4-7", "C4-6", "40.00 (12/30)"], ["ImageChain C2-7", "C4-6", "60.00 (18/30)"],
    ]  # fmt: skip
    assert [row[4] for row in rows_of(out)] == ["", "+40.00", "", "+30.00", "", "+20.00"]
    gain = json.loads((out / "table2.json").read_text())["rows"][1]
    assert (gain["gain_only_a"], gain["gain_only_b"], gain["gain_p_value"]) == (4, 0, 0.125)
    assert {path.suffix for path in out.glob("table2.*")} == {".md", ".csv", ".tex", ".json"}


def test_the_papers_numbers_stand_beside_ours_with_their_footnote(make_run, tmp_path):
    runs = all_runs(make_run, tmp_path, (2, 3, 4, 6))
    _, out = make_table(tmp_path, *runs)
    assert "paper" not in (out / "table2.md").read_text().lower()
    rows = json.loads((out / "table2.json").read_text())["rows"]
    assert {(row["paper"], row["paper_gain"]) for row in rows} == {(None, None)}
    _, out = make_table(tmp_path, *runs, extra=["--paper"])
    assert json.loads((out / "table2.json").read_text())["rows"][1]["paper_gain"] == 1.7
    paper = [row for row in rows_of(out) if row[0] == "– paper"]
    assert [row[2] for row in paper] == ["16.6", "18.3", "16.2", "21.3", "14.0", "16.8"]
    assert [row[4] for row in paper] == ["", "+1.7", "", "+5.1", "", "+2.8"]
    assert "16.8 on C4-6 here and 16.87 in its Table 1" in (out / "table2.md").read_text()


def test_seeds_are_paired_and_their_gains_have_mean_and_range(make_run, tmp_path):
    runs = all_runs(make_run, tmp_path, (2, 2, 2, 6), seed=0) + all_runs(make_run, tmp_path, (4, 4, 4, 5), seed=1)
    _, out = make_table(tmp_path, *runs)
    rows = rows_of(out)[:8]
    assert [row[0] for row in rows] == [
        "ImageChain C2, seed 0", "ImageChain C2, seed 1", "ImageChain C2, mean of 2 seeds", "– lowest to highest",
        "ImageChain C2-7, seed 0", "ImageChain C2-7, seed 1", "ImageChain C2-7, mean of 2 seeds", "– lowest to highest",
    ]  # fmt: skip
    assert [row[4] for row in rows[4:]] == ["+40.00", "+10.00", "+25.00", "+10.00 to +40.00"]
    assert rows[2][2] == "30.00 (n 10)"


def test_a_seed_without_its_partner_is_named_and_has_no_gain(make_run, tmp_path):
    runs = all_runs(make_run, tmp_path, (2, 2, 2, 6), seed=0) + all_runs(make_run, tmp_path, (4, 4, 4, 5), seed=1)[1:]
    other = make_run(tmp_path / "c2-7", verdicts(3), context="c2", seed=7)
    _, out = make_table(tmp_path, *runs, other)
    text = (out / "table2.md").read_text()
    assert "ImageChain C2-7, seed 1 on C2: no single run of the same seed to compare with." in text
    assert "seed 0 on C2: no single run" not in text


def test_one_run_of_all_lengths_is_compared_with_its_own_seed(make_run, tmp_path):
    runs = all_runs(make_run, tmp_path, (2, 2, 2, 6), seed=0)
    runs.append(make_run(tmp_path / "other", verdicts(4), context="c2", seed=1))
    _, out = make_table(tmp_path, *runs)
    gain = next(row for row in json.loads((out / "table2.json").read_text())["rows"] if row["train_context"] == "c2_7")
    assert (gain["test"], gain["gain_difference"]) == ("c2", 40.0)


def test_missing_contexts_are_dashes_and_named(make_run, tmp_path):
    runs = all_runs(make_run, tmp_path, (2, 3, 4, 6))
    status, out = make_table(tmp_path, runs[0], runs[3])
    assert status == 0
    assert rows_of(out)[2] == ["ImageChain C3", "C3", *["-"] * 8]
    assert "No run of ImageChain trained on C3, C4-7 was given (-)." in (out / "table2.md").read_text()


def test_other_variants_and_controls_are_left_out_and_named(make_run, tmp_path):
    runs = all_runs(make_run, tmp_path, (2, 3, 4, 6))
    other = make_run(tmp_path / "other", verdicts(1), variant="mllm_ft", context="c2")
    control = make_run(tmp_path / "control", verdicts(1), control="blank_images")
    _, out = make_table(tmp_path, *runs, other, control)
    text = (out / "table2.md").read_text()
    assert f"Left out, no row of Table 2: {other} (mllm_ft, c2), {control} (imagechain, c2_7, blank_images)." in text


def test_runs_that_cannot_be_compared_have_no_gain_and_the_reason_is_said(make_run, tmp_path):
    runs = all_runs(make_run, tmp_path, (2, 3, 4, 6))
    path = runs[0] / "predictions.jsonl"
    path.write_text(path.read_text().replace('"reference ', '"another '))
    (runs[1] / "judgments.jsonl").unlink()
    status, out = make_table(tmp_path, *runs)
    text = (out / "table2.md").read_text()
    assert status == 0 and [row[4] for row in rows_of(out)] == ["", "", "", "", "", "+20.00"]
    assert "ImageChain C2-7 on C2 is not compared" in text and "another reference" in text
    assert "ImageChain C2-7 on C3 is not compared" in text and "found no judgments" in text


def test_no_run_of_imagechain_is_an_error_that_says_what_was_wanted(make_run, tmp_path, capsys):
    run = make_run(tmp_path / "a", verdicts(1), variant="mllm", context=None)
    assert make_table(tmp_path, run)[0] == 2
    error = capsys.readouterr().err
    assert "runs of imagechain trained on C2, C3, C4-7, C2-7 were wanted" in error and "(mllm, base model)" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["3", "0"])
def test_there_is_no_other_table(value, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        tables.main(["--table", value, "--runs", "x", "--output-dir", str(tmp_path)])
    assert stop.value.code == 2 and "table" in capsys.readouterr().err
