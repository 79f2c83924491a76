"""Table 1: counts, order, aggregates, controls, notes, and the paper's numbers beside only where they belong."""

import csv
import json

import pytest

from eval import text_metrics
from eval.runs import read_run
from eval.stats import wilson
from eval.tables import __main__ as tables
from eval.tables import figure5
from eval.tables.compare import compare
from llava.imagechain.story import HUB_DATASET
from llava.imagechain.variants import VARIANTS

PAPER_N = {2: 519, 3: 296, 4: 120, 5: 52, 6: 13}
PAPER_YES = {2: 95, 3: 63, 4: 23, 5: 5, 6: 4}


def paper_verdicts():
    return [(n, "yes" if i < PAPER_YES[n] else "no") for n, total in PAPER_N.items() for i in range(total)]


def run_tables(tmp_path, *runs, extra=()):
    status = tables.main(["--runs", *map(str, runs), "--output-dir", str(tmp_path / "out"), *extra])
    return status, tmp_path / "out"


def cells_of(out, title="ImageChain"):
    data = json.loads((out / "table1.json").read_text())
    return {cell["column"]: cell for cell in data["cells"] if cell["title"] == title}


def test_the_papers_counts_give_the_papers_percentages(make_run, tmp_path):
    status, out = run_tables(tmp_path, make_run(tmp_path / "r", paper_verdicts()), extra=["--paper"])
    assert status == 0
    cells = cells_of(out)
    for column in ("C2", "C3", "C4", "C5", "C6"):
        assert cells[column]["percent"] == pytest.approx(cells[column]["paper"], abs=0.011)
    assert (cells["C4-6"]["yes"], cells["C4-6"]["n"]) == (32, 185)
    assert (cells["C2-6"]["yes"], cells["C2-6"]["n"], cells["C2-6"]["percent"]) == (190, 1000, 19.0)
    assert cells["C2-6"]["paper"] == 19.02
    assert [cells["C2-6"]["low_95"], cells["C2-6"]["high_95"]] == [round(100 * x, 2) for x in wilson(190, 1000)]


def test_rows_stand_in_the_papers_order_with_its_titles_and_missing_runs_are_named(make_run, tmp_path):
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


def test_unparsed_counts_as_no_and_unscored_counts_nowhere(make_run, tmp_path):
    run = make_run(tmp_path / "r", [(2, "yes"), (2, "no"), (2, "unparsed"), (2, None), (3, "yes")])
    _, out = run_tables(tmp_path, run)
    cell = cells_of(out)["C2"]
    assert (cell["yes"], cell["n"], cell["unparsed"], cell["unscored"]) == (1, 3, 1, 1)
    text = (out / "table1.md").read_text()
    assert "33.33 (1/3)" in text and "Unscored stories, run eval.simrate again: ImageChain 1 (s3)." in text


def test_a_run_without_judgments_is_unscored_not_zero(make_run, tmp_path):
    run = make_run(tmp_path / "r", [(2, "yes")])
    (run / "judgments.jsonl").unlink()
    _, out = run_tables(tmp_path, run)
    cell = cells_of(out)["C2"]
    assert (cell["n"], cell["percent"], cell["unscored"]) == (0, None, 1)


def test_a_judgment_of_another_text_does_not_count(make_run, tmp_path):
    run = make_run(tmp_path / "r", [(2, "yes"), (2, "yes")])
    path = run / "predictions.jsonl"
    path.write_text(path.read_text().replace("prediction 0", "prediction changed"))
    judged = read_run(run).rows[0]
    assert (judged.verdict, judged.error) == (None, "the prediction changed after it was judged")


def test_seven_scenes_are_counted_in_a_note_and_in_the_json_only(make_run, tmp_path):
    run = make_run(tmp_path / "r", [(2, "yes"), (7, "yes"), (7, "no")])
    _, out = run_tables(tmp_path, run)
    cells = cells_of(out)
    assert (cells["C2-6"]["n"], cells["C7"]["yes"], cells["C7"]["n"]) == (1, 1, 2)
    text = (out / "table1.md").read_text()
    assert "Stories of 7 scenes are in no column of the paper's table: ImageChain: 1/2." in text
    assert "C7" not in text.splitlines()[2]


def test_the_papers_value_is_shown_only_when_the_data_is_storyframes(make_run, tmp_path):
    plain = make_run(tmp_path / "plain", [(2, "yes")])
    hub = make_run(tmp_path / "hub", [(2, "yes")], stories=HUB_DATASET)
    _, out = run_tables(tmp_path, plain)
    assert "paper |" not in (out / "table1.md").read_text().lower() and cells_of(out)["C2"]["paper"] is None
    _, out = run_tables(tmp_path, hub)
    assert "| – paper" in (out / "table1.md").read_text() and cells_of(out)["C2"]["paper"] == 18.3


def test_controls_stand_under_the_table_and_in_no_row_of_it(make_run, tmp_path):
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


def test_what_makes_numbers_incomparable_is_said(make_run, tmp_path):
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


def test_runs_over_other_stories_of_the_same_ids_are_told_apart(make_run, tmp_path):
    first = make_run(tmp_path / "a", [(2, "yes")])
    second = make_run(tmp_path / "b", [(2, "yes")], variant="mllm", context=None)
    _, out = run_tables(tmp_path, first, second)
    assert "do not cover the same stories" not in (out / "table1.md").read_text()
    rows = (second / "predictions.jsonl").read_text().replace("reference 0", "of another world")
    (second / "predictions.jsonl").write_text(rows)
    _, out = run_tables(tmp_path, first, second)
    assert "do not cover the same stories" in (out / "table1.md").read_text()


def test_stories_that_share_videos_are_said_to_be_no_independent_evidence(make_run, tmp_path):
    _, out = run_tables(tmp_path, make_run(tmp_path / "a", [(2, "yes")] * 6))
    assert "take stories as independent; these 6 are of 3 videos." in (out / "table1.md").read_text()
    _, out = run_tables(tmp_path, make_run(tmp_path / "b", [(2, "yes")] * 6, videos=False))
    assert "as independent" not in (out / "table1.md").read_text()


def test_a_run_whose_prediction_did_not_finish_is_named(make_run, tmp_path):
    run = make_run(tmp_path / "a", [(2, "yes")])
    (run / "run.json").write_text('{"status": "interrupted"}')
    _, out = run_tables(tmp_path, run)
    assert "did not come to its end, run eval.predict again: ImageChain." in (out / "table1.md").read_text()


def test_an_output_that_cannot_be_written_is_an_error_without_traceback(make_run, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert run_tables(tmp_path, make_run(tmp_path / "a", [(2, "yes")]))[0] == 2


def test_csv_and_json_hold_the_same_cells(make_run, tmp_path):
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
        ({}, "one run for each row was wanted, found two of ImageChain: "),
        ({"seed": 1}, "b (seed 1); several runs of one row need different training seeds"),
    ],
)
def test_runs_that_fit_no_row_are_refused(make_run, tmp_path, capsys, change, message):
    runs = [make_run(tmp_path / "a", [(2, "yes")]), make_run(tmp_path / "b", [(2, "yes")], **change)]
    assert run_tables(tmp_path, *runs)[0] == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_first_run_is_not_taken_for_the_folder_of_tables(make_run, tmp_path, capsys):
    first, second = make_run(tmp_path / "a", [(2, "yes")]), make_run(tmp_path / "b", [(2, "yes")])
    before = sorted(first.iterdir())
    for main in (tables.main, text_metrics.main, figure5.main):
        assert main(["--output-dir", str(first), "--runs", str(second)]) == 2
        assert "is a run folder; a folder for the tables was wanted before the runs" in capsys.readouterr().err
    assert sorted(first.iterdir()) == before


def test_a_run_that_is_not_judged_is_no_other_judge(make_run, tmp_path):
    runs = [make_run(tmp_path / name, [(2, "yes")], variant=name) for name in ("imagechain", "mllm_ft")]
    (runs[1] / "judgments.jsonl").unlink()
    text = (run_tables(tmp_path, *runs)[1] / "table1.md").read_text()
    assert "- Judge: world. SimRate: the share of stories" in text and "different judges" not in text
    assert "Unscored stories, run eval.simrate again: MLLM-FT 1" in text


def test_runs_that_are_all_trained_on_another_context_are_refused(make_run, tmp_path, capsys):
    run = make_run(tmp_path / "a", [(2, "yes")], context="c3")
    assert run_tables(tmp_path, run)[0] == 2
    assert "trained on C2-7 were wanted for Table 1, found" in capsys.readouterr().err
    assert run_tables(tmp_path, run, extra=["--train-context", "c3"])[0] == 0


def test_all_unreadable_runs_are_named_at_once(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run_tables(tmp_path, tmp_path / "empty", tmp_path / "gone")[0] == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "empty") in error and str(tmp_path / "gone") in error


def seeds(make_run, tmp_path, variant, *yes, **changes):
    """Write one run per seed: `yes` of ten stories are right."""
    return [
        make_run(
            tmp_path / f"{variant}-{seed}", [(2, "yes" if i < k else "no") for i in range(10)], variant=variant,
            seed=seed, **changes,
        )
        for seed, k in enumerate(yes)
    ]  # fmt: skip


def test_each_seed_is_a_row_and_their_mean_and_range_stand_below_unpooled(make_run, tmp_path):
    _, out = run_tables(tmp_path, *seeds(make_run, tmp_path, "imagechain", 5, 8, 5), extra=["--paper"])
    lines = [line for line in (out / "table1.md").read_text().splitlines() if line.startswith("| ")]
    first = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines]
    place = first.index(["ImageChain, seed 0", "50.00 (5/10)"])
    assert first[place + 2] == ["ImageChain, seed 1", "80.00 (8/10)"]
    assert first[place + 6 : place + 9] == [
        ["ImageChain, mean of 3 seeds", "60.00 (n 10)"], ["– lowest to highest", "50.00 to 80.00"],
        ["– paper", "18.30"],
    ]  # fmt: skip
    means = json.loads((out / "table1.json").read_text())["means"]
    assert means[0] == {
        "variant": "imagechain", "title": "ImageChain, mean of 3 seeds", "control": None, "column": "C2", "seeds": 3,
        "n": [10, 10, 10], "mean_percent": 60.0, "lowest": 50.0, "highest": 80.0,
    }  # fmt: skip
    assert not any("/30" in line for line in lines)


def test_seeds_with_other_numbers_of_scored_stories_show_each_number(make_run, tmp_path):
    runs = seeds(make_run, tmp_path, "imagechain", 5, 5)
    path = runs[1] / "judgments.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    _, out = run_tables(tmp_path, *runs)
    assert "56.25 (n 10, 8)" in (out / "table1.md").read_text()


@pytest.mark.parametrize("numbers", [(0, 0), (None, 1), (None, None)])
def test_two_runs_of_one_cell_that_no_seed_tells_apart_are_refused(make_run, tmp_path, capsys, numbers):
    runs = [make_run(tmp_path / f"r{i}", [(2, "yes")], seed=seed) for i, seed in enumerate(numbers)]
    assert run_tables(tmp_path, *runs)[0] == 2
    assert "several runs of one row need different training seeds" in capsys.readouterr().err


def test_the_rate_without_unparsed_answers_stands_beside_where_there_are_some(make_run, tmp_path):
    verdicts = [(2, "yes"), (2, "unparsed"), (2, "no"), (3, "unparsed")]
    clean = make_run(tmp_path / "b", [(2, "no"), (2, "no"), (2, "no"), (3, "no")], variant="mllm", context=None)
    _, out = run_tables(tmp_path, make_run(tmp_path / "a", verdicts), clean)
    lines = [line for line in (out / "table1.md").read_text().splitlines() if "without unparsed" in line]
    assert [cell.strip() for cell in lines[0].split("|")[2:9]] == [
        "50.00 (1/2)",
        "-",
        "-",
        "-",
        "-",
        "-",
        "50.00 (1/2)",
    ]
    assert len(lines) == 1
    assert cells_of(out)["C2"]["percent_parsed"] == 50.0


def test_the_papers_own_inconsistencies_are_footnotes_with_its_numbers_only(make_run, tmp_path):
    run = make_run(tmp_path / "r", paper_verdicts())
    _, out = run_tables(tmp_path, run)
    assert "Paper:" not in (out / "table1.md").read_text()
    _, out = run_tables(tmp_path, run, extra=["--paper"])
    for kind in ("md", "tex"):
        text = (out / f"table1.{kind}").read_text()
        assert "C4-6 does not follow from its counts" in text and "over 999 stories" in text and "1,000" in text
        assert "190/999 against 175/999, +1.5 points" in text


def test_every_two_rows_are_compared_on_the_same_stories(make_run, tmp_path):
    runs = [
        make_run(tmp_path / "a", [(2, "yes")] * 8, variant="imagechain"),
        make_run(tmp_path / "b", [(2, "yes")] * 4 + [(2, "no")] * 4, variant="mllm", context=None),
        make_run(tmp_path / "c", [(2, "no")] * 8, variant="mllm_ft"),
        make_run(tmp_path / "d", [(2, "no")] * 8, variant="imagechain", control="blank_images"),
    ]
    _, out = run_tables(tmp_path, *runs)
    found = json.loads((out / "table1_pairs.json").read_text())["comparisons"]
    assert [(pair["a"], pair["b"]) for pair in found] == [
        ("ImageChain", "MLLM"), ("ImageChain", "MLLM-FT"), ("MLLM-FT", "MLLM"),
        ("ImageChain", "ImageChain, blank images"),
    ]  # fmt: skip
    assert [(pair["only_a"], pair["only_b"]) for pair in found] == [(4, 0), (8, 0), (0, 4), (8, 0)]


def test_seeds_are_compared_with_the_same_seed_and_a_base_model_with_each(make_run, tmp_path):
    runs = [*seeds(make_run, tmp_path, "imagechain", 5, 8), *seeds(make_run, tmp_path, "mllm_ft", 5, 5)]
    runs += [make_run(tmp_path / "base", [(2, "no")] * 10, variant="mllm", context=None)]
    _, out = run_tables(tmp_path, *runs)
    found = json.loads((out / "table1_pairs.json").read_text())["comparisons"]
    assert [f"{pair['a']} {pair['b']}" for pair in found] == [
        "ImageChain, seed 0 MLLM", "ImageChain, seed 0 MLLM-FT, seed 0", "ImageChain, seed 1 MLLM",
        "ImageChain, seed 1 MLLM-FT, seed 1", "MLLM-FT, seed 0 MLLM", "MLLM-FT, seed 1 MLLM",
    ]  # fmt: skip


def test_rows_that_cannot_be_compared_are_named_and_the_table_is_still_written(make_run, tmp_path):
    runs = [
        make_run(tmp_path / "a", [(2, "yes")] * 2, judge="world"),
        make_run(tmp_path / "b", [(2, "yes")] * 2, variant="mllm", context=None, judge="simrate"),
        make_run(tmp_path / "c", [(2, "yes")] * 2, variant="mllm_ft"),
    ]
    (runs[2] / "judgments.jsonl").unlink()
    status, out = run_tables(tmp_path, *runs)
    text = (out / "table1_pairs.md").read_text()
    assert status == 0 and "ImageChain and MLLM are not compared: runs of one judge were wanted" in text
    assert "ImageChain and MLLM-FT are not compared" in text and "run eval.simrate first" in text
    assert "judged by different judges" in (out / "table1.md").read_text()


def test_missing_and_repeated_ids_are_named(make_run, tmp_path):
    whole = make_run(tmp_path / "a", [(2, "yes")] * 6)
    short = make_run(tmp_path / "b", [(2, "yes")] * 2, variant="mllm", context=None)
    with (short / "predictions.jsonl").open("a") as file:
        file.write((short / "predictions.jsonl").read_text())
    _, out = run_tables(tmp_path, whole, short)
    text = (out / "table1.md").read_text()
    assert "MLLM lacks 4 (s2, s3, s4, ...)." in text
    assert "Rows of predictions.jsonl that are malformed or repeat an id are left out: MLLM 2." in text
    assert cells_of(out, "MLLM")["C2"]["n"] == 2


def test_a_file_of_another_dataset_with_the_same_ids_is_named_as_such(make_run, tmp_path):
    first = make_run(tmp_path / "a", [(2, "yes")] * 3)
    second = make_run(tmp_path / "b", [(2, "yes")] * 3, variant="mllm", context=None)
    path = second / "predictions.jsonl"
    path.write_text(path.read_text().replace('"reference ', '"other reference '))
    _, out = run_tables(tmp_path, first, second)
    assert (
        "3 ids have another reference in another run: they come from different datasets."
        in (out / "table1.md").read_text()
    )


def test_rows_of_two_seeds_in_one_file_and_a_seed_that_is_no_number_are_refused(make_run, tmp_path, capsys):
    run = make_run(tmp_path / "a", [(2, "yes")] * 2, seed=1)
    path = run / "predictions.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"seed": 1', '"seed": 2', 1))
    assert run_tables(tmp_path, run)[0] == 2
    assert "rows of one run were wanted" in capsys.readouterr().err
    path.write_text(text.replace('"seed": 1', '"seed": "1"', 1))
    assert len(read_run(run).rows) == 1 and read_run(run).unusable == 1


def test_a_run_on_mementos_is_no_row_and_another_variant_is_sent_to_the_comparison(make_run, tmp_path, capsys):
    run = make_run(tmp_path / "a", [(2, "yes")] * 2)
    path = run / "predictions.jsonl"
    text = path.read_text()
    path.write_text(text.replace('{"id"', '{"domain": "comics", "id"'))
    assert run_tables(tmp_path, run)[0] == 2
    assert "found a run on Mementos (Table 3)" in capsys.readouterr().err
    path.write_text(text.replace('"imagechain"', '"mine"'))
    assert run_tables(tmp_path, run)[0] == 2
    assert "found 'mine' and None; scripts/eval/compare.sh takes any two run folders" in capsys.readouterr().err


def test_half_characters_in_judgments_do_not_stop_the_table(make_run, tmp_path):
    run = make_run(tmp_path / "a", [(2, "yes")] * 3)
    path = run / "judgments.jsonl"
    path.write_text(path.read_text().replace('"world"', r'"w\ud800"').replace('"id": "s2"', r'"id": "s\ud800"'))
    status, out = run_tables(tmp_path, run)
    assert status == 0 and (cells_of(out)["C2"]["n"], cells_of(out)["C2"]["unscored"]) == (2, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("train_context", ["c2"]), ("control", {"a": 1}), ("video_name", 3), ("dropped_scenes", "x"), ("seed", True)],
)
def test_a_field_of_another_kind_makes_a_row_unusable_and_is_counted(make_run, tmp_path, field, value):
    run = make_run(tmp_path / "a", [(2, "yes")] * 3)
    path = run / "predictions.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {field: value}), *others]) + "\n")
    status, out = run_tables(tmp_path, run)
    assert status == 0 and cells_of(out)["C2"]["n"] == 2
    assert "malformed or repeat an id are left out: ImageChain 1." in (out / "table1.md").read_text()


def test_a_run_with_verdicts_of_several_judges_is_named(make_run, tmp_path):
    run = make_run(tmp_path / "a", [(2, "yes")] * 3)
    path = run / "judgments.jsonl"
    path.write_text(path.read_text().replace('"judge": "world"', '"judge": "simrate"', 1))
    _, out = run_tables(tmp_path, run)
    text = (out / "table1.md").read_text()
    assert "Judged by several judges, run eval.simrate again: ImageChain (simrate and world)." in text
    with pytest.raises(ValueError, match="runs of one judge were wanted"):
        compare(read_run(run), read_run(run))
