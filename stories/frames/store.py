"""Where frames are kept: one file per finished story while building, then `save_to_disk` folders with the 13 fields."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.files import atomic_path, sha256_json, write_json
from llava.imagechain.story import storyframes_features
from stories.frames.annotations import StoryAnnotation

MAX_SHARD_BYTES = 500_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredFrames:
    """The frames of a story: JPEG bytes and times in seconds, one list per scene."""

    times_s: tuple[tuple[float, ...], ...]
    frames: tuple[tuple[bytes, ...], ...] = dataclasses.field(repr=False)


def write_frames(path: Path, stored: StoredFrames) -> int:
    """Write a story's frames atomically: one line of JSON (times, sizes), then the JPEG files; return their bytes."""
    header = {"times_s": stored.times_s, "sizes": [[len(frame) for frame in scene] for scene in stored.frames]}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        file.writelines(frame for scene in stored.frames for frame in scene)
    return sum(map(sum, header["sizes"]))  # type: ignore[arg-type]


def read_header(path: Path) -> dict[str, list[list[float]]]:
    """Read the times (seconds) and sizes (bytes) of a story's frames without the frames."""
    with path.open("rb") as file:
        return json.loads(file.readline())


def read_frames(path: Path) -> StoredFrames:
    """Read what `write_frames` wrote."""
    with path.open("rb") as file:
        header = json.loads(file.readline())
        frames = tuple(tuple(file.read(size) for size in scene) for scene in header["sizes"])
    return StoredFrames(times_s=tuple(map(tuple, header["times_s"])), frames=frames)


def story_row(story: StoryAnnotation, stored: StoredFrames) -> dict[str, Any]:
    """Return the row of a story with the 13 published fields; what the annotation does not have is null."""
    return {
        "sentence_parts": list(story.texts),
        "start_times": [start for start, _ in story.intervals],
        "end_times": [end for _, end in story.intervals],
        "background_description": story.background,
        "video_name": story.video_name,
        "question_info": story.question_info,
        "num_actors_in_video": story.num_actors,
        "caption": story.caption,
        "sentence_parts_nocontext": None if story.texts_nocontext is None else list(story.texts_nocontext),
        "subsampled_frames_per_scene": [list(scene) for scene in stored.times_s],
        "story_id": story.story_id,
        "scenes": [[{"bytes": frame, "path": None} for frame in scene] for scene in stored.frames],
        "num_scenes": story.num_scenes,
    }


def write_table(
    folder: Path, stories: Sequence[tuple[StoryAnnotation, Path]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write one bucket's split in the layout of `Dataset.save_to_disk`.

    The arrow files are written here, story by story, because `Dataset.from_generator` would first write everything to
    a cache, and so that the same stories always give the same bytes.

    Args:
        folder: New folder, e.g. `scene_2/train`.
        stories: The stories in order, each with the file of its frames.
        max_shard_bytes: A shard takes stories until their frames exceed this.
    """
    import pyarrow
    from datasets import DatasetInfo

    features = storyframes_features()
    shards = list(_shards(stories, max_shard_bytes))
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        sink = pyarrow.OSFile(str(folder / name), "wb")
        with sink, pyarrow.ipc.new_stream(sink, features.arrow_schema) as writer:
            for story, path in shard:
                row = story_row(story, read_frames(path))
                writer.write_batch(pyarrow.RecordBatch.from_pylist([row], schema=features.arrow_schema))
    DatasetInfo(features=features).write_to_directory(str(folder), pretty_print=True)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": sha256_json([path.name for _, path in stories])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)


def _shards(
    stories: Sequence[tuple[StoryAnnotation, Path]], max_shard_bytes: int
) -> Iterator[list[tuple[StoryAnnotation, Path]]]:
    shard: list[tuple[StoryAnnotation, Path]] = []
    size = 0
    for story, path in stories:
        size += path.stat().st_size
        if shard and size > max_shard_bytes:
            yield shard
            shard, size = [], path.stat().st_size
        shard.append((story, path))
    if shard:
        yield shard


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in the place of another one, which is removed."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    target.parent.mkdir(parents=True, exist_ok=True)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
