"""Two runs on the same stories: counts, what is left out, what is refused, and the sentence at the end."""

import dataclasses
import json

import pytest

from eval.runs import read_run
from eval.tables import __main__ as tables
from eval.tables.compare import compare, comparison_sheet, verdict


def pair(make_run, tmp_path, first, second, **changes):
    """Return two runs; `first` and `second` are verdicts of stories with two scenes, y, n, u (unparsed) or - (none)."""
    words = {"y": "yes", "n": "no", "u": "unparsed", "-": None}
    verdicts = ([(2, words[letter]) for letter in letters] for letters in (first, second))
    folders = [
        make_run(tmp_path / name, some, **changes.get(name, {})) for name, some in zip("ab", verdicts, strict=True)
    ]
    return [read_run(folder) for folder in folders]


def test_stories_right_in_one_run_alone_are_counted_in_both_directions(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yyyynn", "ynnnyn")
    found = compare(a, b)
    assert (found.n, found.videos, found.yes_a, found.yes_b, found.only_a, found.only_b) == (6, 3, 4, 2, 3, 1)
    assert found.difference == pytest.approx(100 / 3) and found.p_value == pytest.approx(0.625)
    back = compare(b, a)
    assert (back.only_a, back.only_b, back.p_value) == (1, 3, found.p_value)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_only_stories_scored_in_both_count_and_the_others_are_counted(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yy-yyuy", "ynny-", b={"variant": "mllm"})
    found = compare(a, b)
    assert (found.n, found.left_out, found.yes_a, found.yes_b) == (3, 4, 3, 2)
    assert not any("Unparsed" in remark for remark in found.remarks)  # the unparsed story is not among the three


def test_a_run_that_is_clearly_better_is_called_better_and_the_other_worse(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "y" * 60, "n" * 40 + "y" * 20, b={"variant": "mllm", "context": None})
    assert verdict(compare(a, b)).startswith("ImageChain is better than MLLM: 100.00 % against 33.33 % of the same 60")
    assert verdict(compare(b, a)).startswith("MLLM is worse than ImageChain: ")
    assert "p < 0.0001" in verdict(compare(a, b))


def test_a_small_difference_is_not_called_one_and_says_what_would_show(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yyn" + "n" * 57, "nny" + "n" * 57, b={"variant": "mllm", "context": None})
    sentence = verdict(compare(a, b))
    assert sentence.startswith("Not shown which of ImageChain and MLLM is better")
    assert "only a difference of 13.1 points or more would be likely to show" in sentence


def test_where_test_and_interval_disagree_nothing_is_called_sure(make_run, tmp_path):
    # Nine stories speak for A, but they are of one video: a resampled set of videos often lacks it.
    a, b = pair(make_run, tmp_path, "y" * 9 + "n" * 31, "n" * 40, b={"variant": "mllm"})
    one_video = [dataclasses.replace(j, row=dataclasses.replace(j.row, video_name="v")) for j in a.rows[:9]]
    found = compare(dataclasses.replace(a, rows=(*one_video, *a.rows[9:])), b)
    assert found.p_value < 0.05 and found.low == 0.0
    assert verdict(found).startswith("ImageChain may be better than MLLM, but the test and the interval disagree")


def test_stories_of_one_video_alone_show_nothing_for_sure(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "y" * 9, "n" * 9, b={"variant": "mllm"})
    one_video = [dataclasses.replace(j, row=dataclasses.replace(j.row, video_name="v")) for j in a.rows]
    found = compare(dataclasses.replace(a, rows=tuple(one_video)), b)
    assert (found.videos, found.low, found.high) == (1, -100.0, 100.0) and found.p_value < 0.05
    assert verdict(found).startswith("ImageChain may be better than MLLM, but the test and the interval disagree")


def test_runs_with_the_same_verdicts_are_not_told_apart(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yyn", "yyn", b={"control": "shuffled_scenes"})
    assert verdict(compare(a, b)) == (
        "No story tells ImageChain and ImageChain, scenes shuffled apart: both have a Yes on the same 2 of 3 stories."
    )
    assert comparison_sheet([compare(a, b)], "T").rows[0][6:9] == ("+0.00", "-", "1.00")


def test_two_runs_of_one_name_are_told_apart_by_their_folders(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "y", "n")
    assert (compare(a, b).a, compare(a, b).b) == (f"ImageChain ({tmp_path / 'a'})", f"ImageChain ({tmp_path / 'b'})")
    c = read_run(make_run(tmp_path / "c", [(2, "y")], seed=3, context="c2", variant="mllm_ft"))
    assert tables.compare(a, dataclasses.replace(c, rows=b.rows)).b == "MLLM-FT, trained on C2, seed 3"


def test_only_the_asked_context_is_compared(make_run, tmp_path):
    runs = [
        read_run(make_run(tmp_path / name, [(2, "yes"), (4, "no"), (6, "yes"), (7, "yes")], variant=name))
        for name in ("imagechain", "mllm")
    ]
    assert [compare(*runs, context=name).n for name in ("c2_6", "c4_6", "c2_7", "c2")] == [3, 2, 4, 1]
    with pytest.raises(ValueError, match="no story of C3 is scored in both"):
        compare(*runs, context="c3")


def test_unknown_videos_count_as_their_own_and_are_said(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yyy", "nyn", a={"videos": False}, b={"videos": False})
    found = compare(a, b)
    assert found.videos == 3
    assert "The video of 3 stories is unknown; each counts as a video of its own." in found.remarks
    assert any("An interval from 3 videos is rough" in remark for remark in found.remarks)


def test_predictions_of_another_dataset_with_the_same_ids_are_refused(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yy", "yy")
    rows = [dataclasses.replace(j, row=dataclasses.replace(j.row, reference="of another")) for j in b.rows]
    with pytest.raises(ValueError, match=r"2 of 2 ids .* another reference .* \(first: 's0'\).*different datasets"):
        compare(a, dataclasses.replace(b, rows=tuple(rows)))


def test_predictions_of_other_ids_are_refused(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yy", "yy")
    rows = [dataclasses.replace(j, row=dataclasses.replace(j.row, story_id=f"other {i}")) for i, j in enumerate(b.rows)]
    with pytest.raises(ValueError, match=r"A has 2 stories there, B has 2, 0 are shared"):
        compare(a, dataclasses.replace(b, rows=tuple(rows)))


def test_runs_of_different_judges_models_or_prompts_are_refused(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yy", "yy", a={"judge": "simrate"}, b={"judge": "world"})
    with pytest.raises(ValueError, match=r"runs of one judge were wanted, found simrate in .* and world in"):
        compare(a, b)
    a, b = pair(make_run, tmp_path / "more", "yy", "yy", a={"judge": "simrate"}, b={"judge": "simrate"})
    for run, model in ((a, "llama-70b"), (b, "llama-8b")):
        settings = {"answers_from": "server", "model": model}
        (run.path / "judge_run.json").write_text(
            json.dumps({"config": {"judge_settings": settings, "prompt_sha256": "0123456789"}})
        )
    a, b = read_run(a.path), read_run(b.path)
    assert a.judge == "simrate (llama-70b, prompt 01234567)"
    with pytest.raises(ValueError, match=r"found simrate \(llama-70b, .* and simrate \(llama-8b"):
        compare(a, b)


def test_an_unjudged_run_is_refused_with_what_to_do(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yy", "yy")
    (b.path / "judgments.jsonl").unlink()
    with pytest.raises(ValueError, match=r"b: judged runs were wanted, found no judgments; run eval\.simrate first"):
        compare(a, read_run(b.path))


def test_an_unfinished_run_and_repeated_ids_are_said(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yy", "yn")
    (a.path / "run.json").write_text('{"status": "error"}')
    with (b.path / "predictions.jsonl").open("a") as file:
        file.write((b.path / "predictions.jsonl").read_text().splitlines()[0] + '\n{"id": 3}\n')
    remarks = compare(read_run(a.path), read_run(b.path)).remarks
    assert "Prediction of A did not come to its end, run eval.predict again." in remarks
    assert "2 rows of B are malformed or repeat an id and are left out." in remarks


def test_several_comparisons_have_corrected_p_values(make_run, tmp_path):
    a, b = pair(make_run, tmp_path, "yyyyyyyn", "n" * 8, b={"variant": "mllm"})
    sheet = comparison_sheet([compare(a, b)] * 3, "T")
    assert [record["p_holm"] for record in sheet.data["comparisons"]] == pytest.approx([3 * compare(a, b).p_value] * 3)
    assert [record["verdict"].split(":")[0] for record in sheet.records] == ["ImageChain is better than MLLM"] * 3
    sheet_of_nine = comparison_sheet([compare(a, b)] * 9, "T")
    assert sheet_of_nine.records[0]["p_holm"] > 0.05 and sheet_of_nine.records[0]["p_value"] < 0.05
    for record in (sheet_of_nine.records[0], sheet_of_nine.data["comparisons"][0]):
        assert record["verdict"].startswith("ImageChain may be better") and "Holm" in record["verdict"]
    assert "p (Holm)" in sheet.columns and "p (Holm)" not in comparison_sheet([compare(a, b)], "T").columns


def test_the_command_prints_the_table_and_the_sentence_and_writes_only_where_asked(make_run, tmp_path, capsys):
    a, b = pair(make_run, tmp_path, "y" * 30, "n" * 30, b={"variant": "mllm", "context": None})
    arguments = ["--compare", str(a.path), str(b.path), "--context", "c2"]
    assert tables.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "# ImageChain against MLLM on C2" in printed and "ImageChain is better than MLLM" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    assert tables.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparisons"][0]
    assert (written["only_a"], written["only_b"], written["difference"]) == (30, 0, 100.0)
    assert {path.suffix for path in (tmp_path / "out").glob("comparison.*")} == {".md", ".csv", ".tex", ".json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "x"], "two run folders were wanted, found 1"),
        (["--compare", "x", "y", "z"], "two run folders were wanted, found 3"),
        (["--compare", "x", "y", "--runs", "z"], "either --runs"),
        ([], "either --runs"),
        (["--runs", "x"], "--output-dir is required"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(arguments, message, capsys):
    assert tables.main(arguments) == 2
    assert message in capsys.readouterr().err
