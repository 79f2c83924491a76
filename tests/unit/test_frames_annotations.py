"""Reading annotations: three formats, and every way in which a file or a record can be wrong."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stories.frames.annotations import AnnotationError, read_annotations

RAW = {
    "video_name": "a clip's name.",
    "question_info": "oops_val_7_0",
    "background_description": "In the background, there is a wall. ",
    "sentence_parts": ["A man\nwalks  in.", " He sits. "],
    "start_times": [0.5, 3.0],
    "end_times": [3.0, 5.125],
    "num_actors_in_video": 2,
    "caption": "A man walks in. He sits.",
    "sentence_parts_nocontext": ["A man walks in.", "The man sits."],
}
OWN = {"story_id": "mine 1", "video": "x", "scenes": [{"start": 0, "end": 2, "text": "One."}]}


def write(path: Path, value: Any) -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def reasons(path: Path) -> list[str]:
    return [row.reason for row in read_annotations([path])[1]]


def test_raw_storybench_keeps_all_nine_fields_and_cleans_white_space(tmp_path: Path) -> None:
    stories, skipped = read_annotations([write(tmp_path / "oops-valid.json", [RAW])])
    assert not skipped
    (story,) = stories
    assert story.source == "oops"
    assert story.story_id == story.question_info == "oops_val_7_0"
    assert story.video_name == "a clip's name."
    assert story.texts == ("A man walks in.", "He sits.")
    assert story.intervals == ((0.5, 3.0), (3.0, 5.125))
    assert (story.num_actors, story.caption) == (2, "A man walks in. He sits.")
    assert story.texts_nocontext == ("A man walks in.", "The man sits.")
    assert story.background == "In the background, there is a wall."


def test_own_jsonl_is_read_and_what_it_lacks_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", json.dumps(OWN) + "\n\n" + json.dumps({**OWN, "story_id": "2"}))
    stories, skipped = read_annotations([path])
    assert [story.story_id for story in stories] == ["mine_1", "2"] and not skipped
    assert stories[0].question_info == "mine 1"
    assert (stories[0].background, stories[0].num_actors, stories[0].texts_nocontext) == (None, None, None)


def task(mode: str, comment: str, counts: list[int], end: int | None, **extra: Any) -> dict[str, Any]:
    video = "storybench/npy/oops-valid/videos/Fails (Ep. 3) it's.npy"
    fixed = {"background": "A wall.", "npz_gt_video_end_frame": end, "storybench_mode": mode, "npz_video": video}
    texts = [f"Scene {number}." for number in range(len(counts))]
    return {**fixed, "comment": comment, "exact_frames_per_prompt": counts, "texts": texts, **extra}


def test_task_files_are_joined_to_seconds(tmp_path: Path) -> None:
    # A story that starts at frame 0 and has a gap of one frame; action_exe's first scene starts 4 frames late.
    scenes = [task("action_exe", "s_0_0", [12], 16), task("action_exe", "s_0_1", [8], 25)]
    files = [
        write(tmp_path / "action_exe.json.gz", scenes),
        write(tmp_path / "story_gen.json", [task("story_gen", "s_0", [16, 8], None)]),
    ]
    (story,), skipped = read_annotations(files)
    assert not skipped
    assert story.intervals == ((0.0, 2.0), (2.125, 3.125))
    assert (story.source, story.video_name, story.background) == ("oops", "Fails (Ep. 3) it's", "A wall.")
    continued = write(tmp_path / "story_cont.json", [task("story_cont", "s_0", [12, 8], None, background=None)])
    (story,), _ = read_annotations([files[0], continued])
    assert story.intervals == ((0.0, 2.0), (2.125, 3.125)) and story.background is None


def test_a_task_file_that_cannot_say_where_scenes_lie_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "story_gen.json", [task("story_gen", "s_0", [16], None)])
    with pytest.raises(AnnotationError, match=r"found story_gen only.*action_exe\.json"):
        read_annotations([path])


def test_a_task_story_without_its_scenes_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", [task("action_exe", "s_0_0", [12], 16), task("story_gen", "s_0", [16, 8], None)])
    assert reasons(path) == ["task record 's_0': 2 action_exe records were wanted, found 1"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"end_times": [3.0, 2.0]}, "scene 2 ends at 2.0 s, not after its start at 3.0 s"),
        ({"end_times": [3.0, 3.0]}, "not after its start"),
        ({"start_times": [0.5, 0.25], "end_times": [3.0, 4.0]}, "before the scene that precedes it"),
        ({"start_times": [-1, 3.0]}, "seconds from 0"),
        ({"start_times": [0.5, float("nan")]}, "seconds from 0"),
        ({"end_times": [3.0, float("inf")]}, "seconds from 0"),
        ({"end_times": [3.0, True]}, "seconds from 0"),
        ({"end_times": ["3", "4"]}, "seconds from 0"),
        ({"end_times": [3.0]}, "found 2, 2, 1"),
        ({"sentence_parts": [], "start_times": [], "end_times": []}, "found 0, 0, 0"),
        ({"sentence_parts": ["One.", " \n"]}, "text of scene 2 is empty"),
        ({"sentence_parts": ["One.", 5]}, "text was wanted"),
        ({"sentence_parts": ["One.", "\ud800"]}, "text was wanted"),
        ({"sentence_parts": "One."}, "sentence_parts: a list was wanted"),
        ({"video_name": None}, "a video name was wanted"),
        ({"video_name": "\udfff"}, "a video name was wanted"),
        ({"num_actors_in_video": 2**40}, "a count was wanted"),
        ({"question_info": None}, "found neither"),
    ],
)
def test_an_unusable_record_is_skipped_with_its_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    stories, skipped = read_annotations([write(tmp_path / "valid.json", [{**RAW, **change}, OWN])])
    assert [story.story_id for story in stories] == ["mine_1"]
    assert len(skipped) == 1
    assert (
        reason in skipped[0].reason and skipped[0].kind == "annotation" and skipped[0].where == "valid.json, record 1"
    )
    json.dumps(skipped[0].reason).encode()


def test_a_malformed_line_costs_itself_only(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", f"{json.dumps(OWN)}\n{{broken\n[1]\n{json.dumps({**OWN, 'story_id': 'b'})}\n")
    stories, skipped = read_annotations([path])
    assert [story.story_id for story in stories] == ["mine_1", "b"]
    assert [row.where for row in skipped] == ["mine.jsonl, line 2", "mine.jsonl, line 3"]
    assert "not valid JSON" in skipped[0].reason and "found list" in skipped[1].reason


def test_a_repeated_story_is_skipped_once(tmp_path: Path) -> None:
    stories, skipped = read_annotations([write(tmp_path / "a.json", [RAW, RAW])])
    assert len(stories) == 1
    assert [row.kind for row in skipped] == ["duplicate"]


def test_ids_that_differ_only_in_odd_characters_stay_apart(tmp_path: Path) -> None:
    rows = [{**OWN, "story_id": name} for name in ("a@b", "a b", "../a")]
    stories, skipped = read_annotations([write(tmp_path / "a.json", rows)])
    assert not skipped and len({story.story_id for story in stories}) == 3
    assert stories[0].story_id == "a_b" and stories[1].story_id.startswith("a_b-")
    assert "/" not in stories[2].story_id


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.json", "", "is empty"),
        ("a.jsonl", " \n", "is empty"),
        ("a.json", "[]", "holds no stories"),
        ("a.json", '{"video_name": 1}', "holds no stories"),
        ("a.json", "[{", "not valid JSON"),
        ("a.json", "[" * 100_000, "not valid JSON"),
    ],
)
def test_a_file_without_stories_is_an_error_that_names_it(tmp_path: Path, name: str, text: str, found: str) -> None:
    with pytest.raises(AnnotationError, match=found) as caught:
        read_annotations([write(tmp_path / name, text)])
    assert name in str(caught.value)


def test_all_unreadable_files_are_named_at_once(tmp_path: Path) -> None:
    binary = tmp_path / "b.json"
    binary.write_bytes(b"\xff\xfe\x00")
    cut = tmp_path / "c.json.gz"
    cut.write_bytes(gzip.compress(b"[1, 2, 3]")[:-6])
    with pytest.raises(AnnotationError) as caught:
        read_annotations([tmp_path / "missing.json", binary, cut])
    assert all(name in str(caught.value) for name in ("missing.json", "b.json", "c.json.gz"))
