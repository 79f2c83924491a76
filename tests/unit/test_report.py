"""report.html: complete, capped, self-contained, and every text in it harmless."""

import base64
import dataclasses
import hashlib
import io
import json
import re

import markupsafe
import pytest
from PIL import Image

from eval.report import __main__ as report
from eval.report.pairs import pair_views, turned
from eval.runs import read_run, sha256_json
from eval.tables.compare import compare
from eval.tables.table1 import build_table, pairs_sheet
from llava.imagechain.story import bucket_of, storyframes_features

HOSTILE = [
    "<script>document.title = 'forged'</script>",
    '"><img src=x onerror="document.title=\'forged\'">',
    "' onmouseover='document.title=1",
    "</script></style><!-- {{ 7 * 7 }} {% raw %}",
    "a & b &amp; \u202ec",
]


def picture(colour="red", size=(400, 300), kind="PNG"):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


def make_stories(folder, stories):
    """Write a StoryFrames folder; `stories` maps a story id to (number of scenes, text, frame bytes)."""
    import datasets

    buckets: dict[str, list[dict]] = {}
    for story_id, (num_scenes, text, frame) in stories.items():
        row = {
            "sentence_parts": [*(f"{text} {i}" for i in range(num_scenes - 1)), "r"],
            "start_times": [float(i) for i in range(num_scenes)],
            "end_times": [i + 1.0 for i in range(num_scenes)], "background_description": text, "video_name": text,
            "question_info": story_id, "num_actors_in_video": 1, "caption": text,
            "sentence_parts_nocontext": [text] * num_scenes,
            "subsampled_frames_per_scene": [[0.1] * 6] * num_scenes, "story_id": story_id,
            "scenes": [[{"bytes": frame, "path": None}] * 6] * num_scenes, "num_scenes": num_scenes,
        }  # fmt: skip
        buckets.setdefault(bucket_of(num_scenes), []).append(row)
    for bucket, rows in buckets.items():
        datasets.Dataset.from_list(rows, features=storyframes_features()).save_to_disk(str(folder / bucket / "val"))
    return folder


def make_run(folder, rows, variant="imagechain", control=None):
    """Write a run folder; `rows` are (story id, number of scenes, prediction, verdict, answer)."""
    folder.mkdir(parents=True)
    with (folder / "predictions.jsonl").open("w") as predictions, (folder / "judgments.jsonl").open("w") as judgments:
        for story_id, num_scenes, text, verdict, answer in rows:
            row = {
                "id": story_id,
                "variant": variant,
                "train_context": None,
                "num_scenes": num_scenes,
                "prediction": text,
            }
            predictions.write(json.dumps({**row, "reference": "r", "control": control}) + "\n")
            judgment = {
                "id": story_id,
                "verdict": verdict,
                "parsed": answer == "Yes",
                "answer": answer,
                "error": answer,
            }
            judgments.write(json.dumps({**judgment, "judge": "mock", "pair_sha256": sha256_json(["r", text])}) + "\n")
    return folder


def make_page(tmp_path, stories, *runs, extra=()):
    out = tmp_path / "out" / "report.html"
    arguments = ["--stories", str(stories), "--runs", *map(str, runs), "--output", str(out), *extra]
    return report.main(arguments), out.read_text() if out.exists() else ""


def test_every_story_has_a_card_with_its_scenes_texts_predictions_and_verdicts(tmp_path):
    stories = make_stories(tmp_path / "sf", {"s2": (2, "two", picture()), "s5": (5, "five", picture("blue"))})
    rows = [("s2", 2, "says yes", "yes", "Yes"), ("s5", 5, "says no", "no", "hmm")]
    runs = [make_run(tmp_path / "a", rows), make_run(tmp_path / "b", rows[:1], "mllm")]
    runs.append(make_run(tmp_path / "c", rows, control="blank_images"))
    status, page = make_page(tmp_path, stories, *runs)
    assert status == 0
    cards = re.sub("</?mark>", "", page).split('<article class="card"')[1:]
    assert [re.search(r"<h3>(.*?)</h3>", card)[1] for card in cards] == ["s2", "s5"]
    assert [card.count('<figure class="scene') for card in cards] == [2, 5]
    assert [card.count("<img ") for card in cards] == [2 * 4, 5 * 4]  # at most four frames a scene
    assert [card.count("data-variant=") for card in cards] == [3, 2]
    assert "five 3" in cards[1] and "says no" in cards[1] and "No, unparsed" in cards[1] and "hmm" in cards[1]
    assert 'data-variant="imagechain+blank_images"' in cards[0]
    assert page.index("Table 1") < page.index("<h2>Controls") < page.index(">Stories<")


def test_behaviour_words_are_marked_in_descriptions_and_predictions(tmp_path):
    pytest.importorskip("HanTa", reason="HanTa is not installed (extra eval)")
    stories = make_stories(tmp_path / "sf", {"s": (2, "The dog jumps over a log.", picture())})
    rows = [("s", 2, "A dog is holding a stick.", "no", "No")]
    _, page = make_page(tmp_path, stories, make_run(tmp_path / "r", rows))
    assert "The dog <mark>jumps</mark> over a log. 0" in page and "A dog is <mark>holding</mark> a stick." in page


def test_runs_of_different_judges_are_not_compared_and_the_page_says_so(tmp_path):
    rows = [("s", 2, "p", "yes", "Yes")]
    one, two = make_run(tmp_path / "a", rows), make_run(tmp_path / "b", rows, "mllm")
    (two / "judgments.jsonl").write_text((two / "judgments.jsonl").read_text().replace('"mock"', '"other"'))
    views, problems = pair_views(build_table([read_run(one), read_run(two)]))
    assert views == {} and "mock" in problems[0] and "other" in problems[0]


def test_a_pair_is_sure_only_after_the_correction_for_all_pairs_in_the_matrix_and_in_the_sentence(tmp_path):
    def run(name, yes, variant, control=None):
        rows = [(f"s{i:02}", 2, "p", *(("yes", "Yes") if i < yes else ("no", "Yes"))) for i in range(40)]
        return read_run(make_run(tmp_path / name, rows, variant, control))

    runs = [run("a", 7, "imagechain"), run("b", 0, "mllm")]
    alone = pair_views(build_table(runs))[0]["imagechain", "mllm"]
    assert alone.sign == "better" and alone.sentence.startswith("ImageChain is better than MLLM: ")
    runs += [run("c", 1, "mllm_ft"), run("d", 1, "visual_context"), run("e", 1, "final_scene")]
    views = pair_views(build_table(runs))[0]
    among, back = views["imagechain", "mllm"], views["mllm", "imagechain"]
    assert (among.sign, among.p_value, among.counts, back.counts) == ("", "0.16", "7 : 0", "0 : 7")
    assert among.sentence.startswith("ImageChain may be better than MLLM, but")
    assert "McNemar p = 0.16 after Holm's correction" in among.sentence
    assert (among.difference, back.difference) == ("+17.5", "-17.5") and back.sentence.startswith("MLLM may be worse")


def test_a_comparison_read_from_the_other_side_has_its_bounds_turned_and_no_minus_before_zero(tmp_path):
    rows = [(f"s{i}", 2, "p", verdict, "Yes") for i, verdict in enumerate(["yes", "yes", "no", "no"])]
    runs = [read_run(make_run(tmp_path / "a", rows)), read_run(make_run(tmp_path / "b", rows[::-1], "mllm"))]
    back = turned(dataclasses.replace(compare(*runs), low=0.0, high=50.0))
    assert f"{back.low:+.1f} to {back.high:+.1f}" == "-50.0 to +0.0"


def test_the_matrix_and_the_table_of_pairs_give_the_same_p_values(tmp_path):
    def run(name, yes, variant, control=None):
        rows = [(f"s{i:02}", 2, "p", "yes" if i < yes else "no", "Yes") for i in range(40)]
        return read_run(make_run(tmp_path / name, rows, variant, control))

    runs = [run("a", 9, "imagechain"), run("b", 0, "mllm"), run("c", 5, "mllm_ft")]
    runs += [run("d", 2, "imagechain", "blank_images"), run("e", 1, "imagechain", "other_text")]
    table = build_table(runs)
    written = pairs_sheet(table).data["comparisons"]
    views = pair_views(table)[0]
    titles = {row.title: row.key for row in (*table.rows, *table.controls)}
    assert len(views) == 2 * len(written) == 10
    for one in written:
        assert views[titles[one["a"]], titles[one["b"]]].sentence == one["verdict"]


def test_several_seeds_have_their_mean_and_range_below_them(tmp_path):
    stories = make_stories(tmp_path / "sf", {"s": (2, "t", picture()), "t": (2, "t", picture())})
    runs = []
    for seed, verdict in enumerate(("yes", "no")):
        rows = [("s", 2, "p", "yes", "Yes"), ("t", 2, "p", verdict, "Yes")]
        runs.append(make_run(tmp_path / str(seed), rows))
        path = runs[-1] / "predictions.jsonl"
        path.write_text(path.read_text().replace('"train_context": null', f'"train_context": "c2_7", "seed": {seed}'))
    _, page = make_page(tmp_path, stories, *runs)
    mean = re.search(r'<tr class="mean">(.*?)</tr>', page, re.DOTALL)[1]
    assert "ImageChain, mean of 2 seeds" in mean and "75.00</span>" in mean and "50.00 – 100.00" in mean


@pytest.mark.parametrize(("yes", "end"), [(0, 10), (20, 30), (60, 100), (100, 100)])
def test_the_bars_of_the_intervals_end_at_a_round_number_above_all_of_them(tmp_path, yes, end):
    rows = [(f"s{i}", 2, "p", "yes" if i < yes else "no", "Yes") for i in range(100)]
    table = build_table([read_run(make_run(tmp_path / "r", rows))])
    assert report.bar_scale(table.rows) == end


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup_wherever_it_stands(tmp_path, text):
    stories = make_stories(tmp_path / "sf", {text: (2, text, picture())})
    rows = [(text, 2, text, "no", text), ("gone" + text, 2, text, None, text)]
    status, page = make_page(tmp_path, stories, make_run(tmp_path / "r", rows))
    assert status == 0
    assert page.count("<script") == page.count("</script>") == page.count("<style") == page.count("</style>") == 1
    assert "<img src=x" not in page and "' onmouseover" not in page
    assert page.count(str(markupsafe.escape(text))) >= 4


def test_the_page_allows_its_own_script_and_style_only(tmp_path):
    stories = make_stories(tmp_path / "sf", {"s": (2, "t", picture())})
    _, page = make_page(tmp_path, stories, make_run(tmp_path / "r", [("s", 2, "p", "yes", "Yes")]))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("script", "style"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        assert f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'" in policy
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)


def test_pictures_are_small_jpegs_whatever_was_stored(tmp_path):
    uri = report.thumbnail(picture(size=(3000, 1000), kind="WEBP"), 192)
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))) as image:
        assert (image.format, image.size) == ("JPEG", (192, 64))


def test_unreadable_frames_are_shown_as_such_and_counted(tmp_path):
    huge = picture(size=(1, 1)).replace(b"\0\0\0\1\0\0\0\1", b"\0\1\0\0\0\1\0\0", 1)  # the header claims 65536 x 65536
    stories = make_stories(
        tmp_path / "sf", {"a": (2, "t", b"not a picture"), "b": (2, "t", huge), "c": (2, "t", b"GIF89a")}
    )
    rows = [(story_id, 2, "p", "yes", "Yes") for story_id in "abc"]
    status, page = make_page(tmp_path, stories, make_run(tmp_path / "r", rows))
    assert status == 0
    assert page.count("frame cannot be read") == 3 * 2 * 4 and "24 frames cannot be read." in page


def test_the_number_of_stories_is_capped_and_said_while_the_table_counts_all(tmp_path):
    frame = picture(size=(8, 8))
    stories = make_stories(tmp_path / "sf", {f"s{i:02}": (2 + i % 3, "t", frame) for i in range(30)})
    rows = [(f"s{i:02}", 2 + i % 3, "p", "yes", "Yes") for i in range(30)]
    _, page = make_page(tmp_path, stories, make_run(tmp_path / "r", rows), extra=["--max-stories", "6"])
    lengths = re.findall(r'<article class="card" data-scenes="(\d)"', page)
    assert lengths == ["2", "2", "3", "3", "4", "4"]
    assert "6 of 30 stories are shown" in page and "30 of 30</span>" in page


def test_predicted_stories_that_are_not_in_the_dataset_are_counted(tmp_path):
    stories = make_stories(tmp_path / "sf", {"s": (2, "t", picture())})
    rows = [("s", 2, "p", "yes", "Yes"), ("other", 2, "p", "yes", "Yes")]
    _, page = make_page(tmp_path, stories, make_run(tmp_path / "r", rows))
    assert "1 predicted stories are not in" in page


def test_a_run_of_another_dataset_is_named_on_the_terminal_and_its_texts_stand_on_no_card(tmp_path, capsys):
    stories = make_stories(tmp_path / "sf", {"s": (2, "t", picture())})
    runs = [make_run(tmp_path / "a", [("s", 2, "of this data", "yes", "Yes")])]
    runs.append(make_run(tmp_path / "b", [("s", 5, "of other data", "yes", "Yes")], "mllm"))
    path = runs[1] / "predictions.jsonl"
    path.write_text(path.read_text().replace('"reference": "r"', '"reference": "\\u001b[2Jof another world"'))
    status, page = make_page(tmp_path, stories, *runs)
    printed = capsys.readouterr().out
    assert status == 0 and "of this data" in page and "of other data" not in page
    assert page.count('<article class="card" data-scenes="2"') == 1
    assert "1 ids have another reference in another run: they come from different datasets" in printed
    assert "1 predicted stories are not in" in printed and "\u001b" not in printed


def test_another_dataset_is_an_error(tmp_path, capsys):
    stories = make_stories(tmp_path / "sf", {"s": (2, "t", picture())})
    status, page = make_page(tmp_path, stories, make_run(tmp_path / "r", [("x", 2, "p", "yes", "Yes")]))
    assert (status, page) == (2, "")
    assert "holds none of the 1 predicted stories" in capsys.readouterr().err


def test_another_story_of_the_same_id_is_never_shown_for_the_predicted_one(tmp_path, capsys):
    stories = make_stories(tmp_path / "sf", {"s": (2, "t", picture()), "t": (2, "t", picture())})
    run = make_run(tmp_path / "r", [("s", 2, "p", "yes", "Yes"), ("t", 2, "p", "yes", "Yes")])
    lines = (run / "predictions.jsonl").read_text().replace('"reference": "r"', '"reference": "of another world"', 1)
    (run / "predictions.jsonl").write_text(lines)
    status, page = make_page(tmp_path, stories, run)
    assert status == 0 and page.count('<article class="card"') == 1
    assert "1 predicted stories are not in" in page
    (run / "predictions.jsonl").write_text(lines.splitlines(keepends=True)[0])
    assert make_page(tmp_path, stories, run)[0] == 2
    assert "holds none of the 1 predicted stories" in capsys.readouterr().err


def test_a_folder_as_output_is_refused_before_any_work(tmp_path, capsys):
    stories = make_stories(tmp_path / "sf", {"s": (2, "t", picture())})
    run = make_run(tmp_path / "r", [("s", 2, "p", "yes", "Yes")])
    arguments = ["--stories", str(stories), "--runs", str(run), "--output", str(tmp_path / "sf")]
    assert report.main(arguments) == 2 and not (tmp_path / "report_run.json").exists()
    assert f"a file such as {tmp_path / 'sf' / 'report.html'} was wanted" in capsys.readouterr().err


def test_missing_stories_are_an_error(tmp_path, capsys):
    status, _ = make_page(tmp_path, tmp_path / "nowhere", make_run(tmp_path / "r", [("x", 2, "p", "yes", "Yes")]))
    assert status == 2 and "No StoryFrames at" in capsys.readouterr().err
