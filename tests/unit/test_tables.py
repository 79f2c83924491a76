"""Table 1: counts, order, aggregates, controls, notes, and the paper's numbers beside only where they belong."""

import csv
import json

import pytest

from eval import tables
from eval.runs import read_run, sha256_json
from eval.stats import wilson
from llava.imagechain.story import HUB_DATASET
from llava.imagechain.variants import VARIANTS

PAPER_N = {2: 519, 3: 296, 4: 120, 5: 52, 6: 13}
PAPER_YES = {2: 95, 3: 63, 4: 23, 5: 5, 6: 4}


def make_run(folder, verdicts, *, variant="imagechain", control=None, context="c2_7", judge="world", stories="DIR"):
    """Write a run folder; `verdicts` is a list of (number of scenes, "yes" | "no" | "unparsed" | None)."""
    folder.mkdir(parents=True)
    predictions, judgments = [], []
    for i, (num_scenes, verdict) in enumerate(verdicts):
        texts = [f"reference {i}", f"prediction {i}"]
        predictions.append(
            {
                "id": f"s{i}",
                "variant": variant,
                "train_context": context,
                "num_scenes": num_scenes,
                "reference": texts[0],
                "prediction": texts[1],
                "dropped_scenes": int(num_scenes == 6),
                "control": control,
            }
        )
        judgments.append(
            {
                "id": f"s{i}",
                "verdict": "no" if verdict == "unparsed" else verdict,
                "parsed": verdict != "unparsed",
                "answer": "a",
                "error": None,
                "judge": judge,
                "pair_sha256": sha256_json(texts),
            }
        )
    for name, rows in (("predictions", predictions), ("judgments", judgments)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"status": "success", "config": {"stories": stories}}))
    return folder


def paper_verdicts():
    return [(n, "yes" if i < PAPER_YES[n] else "no") for n, total in PAPER_N.items() for i in range(total)]


def run_tables(tmp_path, *runs, extra=()):
    status = tables.main(["--runs", *map(str, runs), "--output-dir", str(tmp_path / "out"), *extra])
    return status, tmp_path / "out"


def cells_of(out, title="ImageChain"):
    data = json.loads((out / "table1.json").read_text())
    return {cell["column"]: cell for cell in data["cells"] if cell["title"] == title}


def test_the_papers_counts_give_the_papers_percentages(tmp_path):
    status, out = run_tables(tmp_path, make_run(tmp_path / "r", paper_verdicts()), extra=["--paper"])
    assert status == 0
    cells = cells_of(out)
    for column in ("C2", "C3", "C4", "C5", "C6"):
        assert cells[column]["percent"] == pytest.approx(cells[column]["paper"], abs=0.011)
    assert (cells["C4-6"]["yes"], cells["C4-6"]["n"]) == (32, 185)
    assert (cells["C2-6"]["yes"], cells["C2-6"]["n"], cells["C2-6"]["percent"]) == (190, 1000, 19.0)
    assert cells["C2-6"]["paper"] == 19.02
    assert [cells["C2-6"]["low_95"], cells["C2-6"]["high_95"]] == [round(100 * x, 2) for x in wilson(190, 1000)]


def test_rows_stand_in_the_papers_order_with_its_titles_and_missing_runs_are_named(tmp_path):
    _, out = run_tables(tmp_path, make_run(tmp_path / "r", paper_verdicts()))
    text = (out / "table1.md").read_text()
    titles = ["MLLM", "MLLM-ICL", "MLLM-FT", "VisualContext", "FinalScene", "ImageChain-NoFT", "ImageChain"]
    assert [variant.title for variant in VARIANTS.values()] == titles
    first_cells = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert [cell for cell in first_cells if cell in titles] == titles
    assert "No run was given for MLLM, MLLM-ICL, MLLM-FT, VisualContext, FinalScene, ImageChain-NoFT (-)." in text
    assert [cell.strip() for cell in next(x for x in text.splitlines() if "| MLLM-FT" in x).split("|")[2:-1]] == [
        "-"
    ] * 9


def test_unparsed_counts_as_no_and_unscored_counts_nowhere(tmp_path):
    run = make_run(tmp_path / "r", [(2, "yes"), (2, "no"), (2, "unparsed"), (2, None), (3, "yes")])
    _, out = run_tables(tmp_path, run)
    cell = cells_of(out)["C2"]
    assert (cell["yes"], cell["n"], cell["unparsed"], cell["unscored"]) == (1, 3, 1, 1)
    text = (out / "table1.md").read_text()
    assert "33.33 (1/3)" in text and "Unscored stories, run eval.simrate again: ImageChain 1 (s3)." in text


def test_a_run_without_judgments_is_unscored_not_zero(tmp_path):
    run = make_run(tmp_path / "r", [(2, "yes")])
    (run / "judgments.jsonl").unlink()
    _, out = run_tables(tmp_path, run)
    cell = cells_of(out)["C2"]
    assert (cell["n"], cell["percent"], cell["unscored"]) == (0, None, 1)


def test_a_judgment_of_another_text_does_not_count(tmp_path):
    run = make_run(tmp_path / "r", [(2, "yes"), (2, "yes")])
    path = run / "predictions.jsonl"
    path.write_text(path.read_text().replace("prediction 0", "prediction changed"))
    judged = read_run(run).rows[0]
    assert (judged.verdict, judged.error) == (None, "the prediction changed after it was judged")


def test_seven_scenes_are_counted_in_a_note_and_in_the_json_only(tmp_path):
    run = make_run(tmp_path / "r", [(2, "yes"), (7, "yes"), (7, "no")])
    _, out = run_tables(tmp_path, run)
    cells = cells_of(out)
    assert (cells["C2-6"]["n"], cells["C7"]["yes"], cells["C7"]["n"]) == (1, 1, 2)
    text = (out / "table1.md").read_text()
    assert "Stories of 7 scenes are in no column of the paper's table: ImageChain: 1/2." in text
    assert "C7" not in text.splitlines()[2]


def test_the_papers_value_is_shown_only_when_the_data_is_storyframes(tmp_path):
    plain = make_run(tmp_path / "plain", [(2, "yes")])
    hub = make_run(tmp_path / "hub", [(2, "yes")], stories=HUB_DATASET)
    _, out = run_tables(tmp_path, plain)
    assert "paper |" not in (out / "table1.md").read_text().lower() and cells_of(out)["C2"]["paper"] is None
    _, out = run_tables(tmp_path, hub)
    assert "| – paper" in (out / "table1.md").read_text() and cells_of(out)["C2"]["paper"] == 18.3


def test_controls_stand_under_the_table_and_in_no_row_of_it(tmp_path):
    controls = ("shuffled_scenes", "blank_images", "other_text")
    runs = [make_run(tmp_path / name, [(2, "no")] * 4, control=name) for name in controls]
    runs.append(make_run(tmp_path / "r", [(2, "yes")] * 4))
    _, out = run_tables(tmp_path, *runs)
    text = (out / "table1.md").read_text()
    top, bottom = text.split("## Controls")
    assert "100.00 (4/4)" in top and "0.00 (0/4)" not in top
    order = [bottom.index(f"ImageChain, {name}") for name in ("blank", "another story's earlier text", "scenes")]
    assert order == sorted(order)
    assert "a story of 2 scenes has one earlier scene" in bottom


def test_what_makes_numbers_incomparable_is_said(tmp_path):
    first = make_run(tmp_path / "a", [(6, "yes")] * 3)
    second = make_run(tmp_path / "b", [(2, "yes")] * 2, variant="mllm", context=None, judge="simrate")
    (second / "skipped.jsonl").write_text('{"id": "x", "reason": "no picture"}\n')
    other = make_run(tmp_path / "c", [(2, "yes")], context="c3")
    _, out = run_tables(tmp_path, first, second, other)
    text = (out / "table1.md").read_text()
    for words in (
        "judged by different judges",
        "do not cover the same stories",
        "skipped.jsonl): MLLM 1.",
        "oldest scenes were dropped to fit the model's context: ImageChain C6: 3.",
        "Left out, trained on another context",
    ):
        assert words in text


def test_runs_over_other_stories_of_the_same_ids_are_told_apart(tmp_path):
    first = make_run(tmp_path / "a", [(2, "yes")])
    second = make_run(tmp_path / "b", [(2, "yes")], variant="mllm", context=None)
    _, out = run_tables(tmp_path, first, second)
    assert "do not cover the same stories" not in (out / "table1.md").read_text()
    rows = (second / "predictions.jsonl").read_text().replace("reference 0", "of another world")
    (second / "predictions.jsonl").write_text(rows)
    _, out = run_tables(tmp_path, first, second)
    assert "do not cover the same stories" in (out / "table1.md").read_text()


def test_a_run_whose_prediction_did_not_finish_is_named(tmp_path):
    run = make_run(tmp_path / "a", [(2, "yes")])
    (run / "run.json").write_text('{"status": "interrupted"}')
    _, out = run_tables(tmp_path, run)
    assert "did not come to its end, run eval.predict again: ImageChain." in (out / "table1.md").read_text()


def test_an_output_that_cannot_be_written_is_an_error_without_traceback(tmp_path):
    (tmp_path / "out").write_text("a file")
    assert run_tables(tmp_path, make_run(tmp_path / "a", [(2, "yes")]))[0] == 2


def test_csv_and_json_hold_the_same_cells(tmp_path):
    _, out = run_tables(tmp_path, make_run(tmp_path / "r", paper_verdicts()))
    with (out / "table1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = json.loads((out / "table1.json").read_text())["cells"]
    assert len(rows) == len(cells) == 7 * 7
    assert [row["yes"] for row in rows] == [str(cell["yes"]) for cell in cells]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "imagchain"}, "found 'imagchain'"),
        ({"control": "upside_down"}, "'upside_down'"),
        ({}, "one run for each row was wanted, found two of ImageChain"),
    ],
)
def test_runs_that_fit_no_row_are_refused(tmp_path, capsys, change, message):
    runs = [make_run(tmp_path / "a", [(2, "yes")]), make_run(tmp_path / "b", [(2, "yes")], **change)]
    assert run_tables(tmp_path, *runs)[0] == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_unreadable_runs_are_named_at_once(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run_tables(tmp_path, tmp_path / "empty", tmp_path / "gone")[0] == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "empty") in error and str(tmp_path / "gone") in error
