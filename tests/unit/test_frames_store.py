"""Frames of a finished story on disk, and the tables made of them."""

from pathlib import Path

import datasets
import pytest

from llava.imagechain.story import storyframes_features
from stories.frames.annotations import StoryAnnotation
from stories.frames.store import StoredFrames, read_frames, read_header, replace_folder, write_frames, write_table


def stored(number: int) -> StoredFrames:
    scenes = ((b"\xff\xd8a\n", b"b" * number), (b"\n", b"cd"))
    return StoredFrames(times_s=((0.0, 0.1), (1.5, 2.0)), frames=scenes)


def annotation(number: int) -> StoryAnnotation:
    return StoryAnnotation(
        story_id=f"s{number}",
        source="x",
        video_name="it's -a",
        question_info=f"q {number}",
        texts=("One.", "Zwei – ü."),
        intervals=((0.0, 1.0), (1.0, 2.0)),
    )


def test_frames_come_back_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "ab" / "key.frames"
    assert write_frames(path, stored(5)) == 4 + 5 + 1 + 2
    assert read_frames(path) == stored(5)
    assert read_header(path) == {"times_s": [[0.0, 0.1], [1.5, 2.0]], "sizes": [[4, 5], [1, 2]]}
    assert [entry.name for entry in path.parent.iterdir()] == ["key.frames"]


def rows(folder: Path, count: int) -> list[tuple[StoryAnnotation, Path]]:
    made = []
    for number in range(count):
        path = folder / f"{number}.frames"
        write_frames(path, stored(1000))
        made.append((annotation(number), path))
    return made


def test_a_table_is_cut_into_shards_by_size_and_keeps_the_order(tmp_path: Path) -> None:
    write_table(tmp_path / "t", rows(tmp_path, 7), max_shard_bytes=2500)
    names = sorted(path.name for path in (tmp_path / "t").glob("*.arrow"))
    assert names == [f"data-{number:05d}-of-00004.arrow" for number in range(4)]
    table = datasets.load_from_disk(str(tmp_path / "t"))
    assert table.features == storyframes_features()
    assert table["story_id"][:] == [f"s{number}" for number in range(7)]
    row = table.with_format("arrow")[6].to_pylist()[0]
    assert row["scenes"][0][1] == {"bytes": b"b" * 1000, "path": None}
    assert row["sentence_parts"] == ["One.", "Zwei – ü."]
    assert row["start_times"] == [0.0, 1.0] and row["num_scenes"] == 2
    assert row["subsampled_frames_per_scene"][0] == pytest.approx([0.0, 0.1])
    assert (row["caption"], row["num_actors_in_video"], row["sentence_parts_nocontext"]) == (None, None, None)


def test_the_same_stories_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, rows(tmp_path, 3))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("new", "old", ".old-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new"]
