"""Read story annotations: StoryBench raw JSON, StoryBench task JSON (8 fps frame counts), and a plain JSONL.

A file that cannot be read at all is an error; a record that cannot be used is skipped once, with its reason.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from llava.imagechain.story import clean_text

TASK_FPS = 8  # StoryBench's task files count frames at 8 per second
CONTINUATION_FRAMES = 4  # story_cont conditions on the first 0.5 s
MAX_TIME_S = 6 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoryAnnotation:
    """One annotated story; a field the input does not have is None.

    Attributes:
        story_id: Unique, made of letters, digits, ".", "_" and "-".
        source: Where it comes from ("oops", "didemo", ...), for the figure and the report.
        video_name: As annotated; untrusted.
        question_info: StoryBench's annotation id as annotated.
        texts: One description per scene, white space collapsed.
        intervals: Start and end of each scene in seconds.
    """

    story_id: str
    source: str
    video_name: str
    question_info: str
    texts: tuple[str, ...]
    intervals: tuple[tuple[float, float], ...]
    background: str | None = None
    num_actors: int | None = None
    caption: str | None = None
    texts_nocontext: tuple[str, ...] | None = None

    @property
    def num_scenes(self) -> int:
        """Number of scenes."""
        return len(self.texts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """A story that is left out: what it was, why, and where it stood.

    Attributes:
        id: The story's id, None when the record does not have a usable one.
        kind: A short class of reasons, counted in the build report.
        reason: The full reason.
    """

    id: str | None
    video_name: str | None
    kind: str
    reason: str
    where: str


class AnnotationError(ValueError):
    """An annotation file cannot be used at all."""


class _BadRecord(ValueError):
    pass


def read_annotations(paths: Sequence[Path]) -> tuple[list[StoryAnnotation], list[Skipped]]:
    """Read annotation files in order.

    Args:
        paths: JSON or JSONL files, also gzipped. StoryBench task files are joined: `action_exe.json` says where the
            scenes lie, `story_gen.json` (or `story_cont.json`) how long they are and what the background is.

    Returns:
        The usable stories in the order of the files, and the records that are skipped.

    Raises:
        AnnotationError: With all files that are missing, empty or not readable.
    """
    problems: list[str] = []
    found: list[tuple[str, str, dict[str, Any] | str]] = []  # (where, source, record or what is wrong with it)
    tasks: dict[str, dict[str, list[dict[str, Any]]]] = {}  # set -> mode -> records
    for path in paths:
        try:
            records = list(_records(path))
        except AnnotationError as error:
            problems.append(str(error))
            continue
        for where, record in records:
            if isinstance(record, dict) and "exact_frames_per_prompt" in record:
                modes = tasks.setdefault(_task_set(record), {})
                modes.setdefault(str(record.get("storybench_mode")), []).append({**record, "where": where})
            else:
                found.append((where, _source_of(path), record))
    for name, modes in tasks.items():
        try:
            found += _join_tasks(name, modes)
        except AnnotationError as error:
            problems.append(str(error))
    if problems:
        raise AnnotationError("; ".join(problems))
    return _stories(found)


def _stories(found: Sequence[tuple[str, str, dict[str, Any] | str]]) -> tuple[list[StoryAnnotation], list[Skipped]]:
    stories: dict[str, StoryAnnotation] = {}
    skipped: list[Skipped] = []
    for where, source, record in found:
        name = record.get("video_name", record.get("video")) if isinstance(record, dict) else None
        shown_name = _printable(name) if isinstance(name, str) else None
        key: str | None = None
        try:
            if isinstance(record, str):
                raise _BadRecord(record)
            key = _key_of(record)
            story = _story_from_record(record, key, source)
        except _BadRecord as error:
            shown = _safe_id(key) if key else None
            skipped.append(Skipped(id=shown, video_name=shown_name, kind="annotation", reason=str(error), where=where))
            continue
        other = stories.get(story.story_id)
        if other is not None and other.question_info != story.question_info:
            digest = hashlib.sha256(story.question_info.encode()).hexdigest()[:8]
            story = dataclasses.replace(story, story_id=f"{story.story_id}-{digest}")
        if story.story_id in stories:
            reason = f"story {key!r} was already read; ids must be unique"
            skipped.append(
                Skipped(id=story.story_id, video_name=shown_name, kind="duplicate", reason=reason, where=where)
            )
            continue
        stories[story.story_id] = story
    return list(stories.values()), skipped


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where, record); a record that is not an object is given as the text of the complaint."""
    if not path.is_file():
        raise AnnotationError(f"annotation file {path} is not there (a file was wanted)")
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise AnnotationError(f"annotation file {path} cannot be read: {error}") from error
    if not text.strip():
        raise AnnotationError(f"annotation file {path} is empty; a list of stories was wanted")
    if ".jsonl" in path.suffixes:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path.name}, line {number}", _parse_line(line)
        return
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"annotation file {path} is not valid JSON: {error}. One story a line needs the suffix .jsonl"
        ) from error
    if not isinstance(loaded, list) or not loaded:
        raise AnnotationError(f"annotation file {path} holds no stories; a non-empty JSON list was wanted")
    for number, record in enumerate(loaded, start=1):
        yield f"{path.name}, record {number}", record if isinstance(record, dict) else _not_an_object(record)


def _parse_line(line: str) -> Any:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    return record if isinstance(record, dict) else _not_an_object(record)


def _not_an_object(record: Any) -> str:
    return f"a JSON object was wanted, found {type(record).__name__}"


def _source_of(path: Path) -> str:
    return path.name.split(".")[0]


def _source_name(name: str) -> str:
    """Shorten the name of a file or set to its source: "oops-valid" is "oops"."""
    return _safe_id(re.sub(r"-(train|valid|validation|val|test)$", "", name)).strip("_")[:40] or "unknown"


def _key_of(record: dict[str, Any]) -> str:
    for name in ("question_info", "story_id"):
        if isinstance(record.get(name), str) and record[name].strip():
            return _text(record[name], name)
    raise _BadRecord("question_info (StoryBench) or story_id (JSONL) was wanted, found neither")


def _safe_id(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", key)


def _story_from_record(record: dict[str, Any], key: str, source: str) -> StoryAnnotation:
    scenes = record.get("scenes")
    if isinstance(scenes, list):
        if not all(isinstance(scene, dict) for scene in scenes):
            raise _BadRecord("scenes: a list of {start, end, text} was wanted")
        columns = {name: [scene.get(name) for scene in scenes] for name in ("text", "start", "end")}
        texts, starts, ends = columns["text"], columns["start"], columns["end"]
    else:
        texts, starts, ends = (_list(record, name) for name in ("sentence_parts", "start_times", "end_times"))
    if not len(texts) == len(starts) == len(ends) > 0:
        raise _BadRecord(
            f"equally many texts, starts and ends were wanted, found {len(texts)}, {len(starts)}, {len(ends)}"
        )
    video_name = record.get("video_name", record.get("video"))
    if not isinstance(video_name, str) or not video_name or not _encodable(video_name):
        raise _BadRecord(f"a video name was wanted, found {video_name!r}")
    nocontext = record.get("sentence_parts_nocontext")
    if nocontext is not None and not isinstance(nocontext, list):
        raise _BadRecord("sentence_parts_nocontext: a list was wanted")
    actors = record.get("num_actors_in_video")
    if actors is not None and (isinstance(actors, bool) or not isinstance(actors, int) or not 0 <= actors < 2**31):
        raise _BadRecord(f"num_actors_in_video: a count was wanted, found {actors!r}")
    return StoryAnnotation(
        story_id=_safe_id(key),
        source=_source_name(_optional_text(record, "set") or _optional_text(record, "source") or source),
        video_name=video_name,
        question_info=key,
        texts=tuple(_text(text, f"text of scene {number}") for number, text in enumerate(texts, start=1)),
        intervals=_intervals(starts, ends),
        background=_optional_text(record, "background_description") or _optional_text(record, "background"),
        num_actors=actors,
        caption=_optional_text(record, "caption"),
        texts_nocontext=None if nocontext is None else tuple(_text(text, "nocontext", True) for text in nocontext),
    )


def _intervals(starts: Sequence[Any], ends: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    intervals: list[tuple[float, float]] = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        for value in (start, end):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_TIME_S:
                raise _BadRecord(f"scene {number}: seconds from 0 to {MAX_TIME_S:g} were wanted, found {value!r}")
        if not end > start:
            raise _BadRecord(f"scene {number} ends at {end} s, not after its start at {start} s")
        if intervals and start < intervals[-1][0]:
            raise _BadRecord(f"scene {number} starts at {start} s, before the scene that precedes it")
        intervals.append((float(start), float(end)))
    return tuple(intervals)


def _list(record: dict[str, Any], name: str) -> list[Any]:
    value = record.get(name)
    if not isinstance(value, list):
        raise _BadRecord(f"{name}: a list was wanted, found {type(value).__name__}")
    return value


def _optional_text(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    return None if value is None else _text(value, name, empty=True) or None


def _text(value: Any, name: str, empty: bool = False) -> str:
    if not isinstance(value, str) or not _encodable(value):
        raise _BadRecord(f"{name}: text was wanted, found {_printable(repr(value))[:80]}")
    text = clean_text(value)
    if not text and not empty:
        raise _BadRecord(f"{name} is empty")
    return text


def _encodable(text: str) -> bool:
    """Say whether a string has no lone surrogate, which JSON can spell but UTF-8 cannot hold."""
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _task_set(record: dict[str, Any]) -> str:
    """Return the set of a task record ("oops-valid"), the folder that its npz_video path names."""
    parts = PurePosixPath(str(record.get("npz_video"))).parts
    return parts[-3] if len(parts) >= 3 else "unknown"


def _join_tasks(name: str, modes: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str, dict[str, Any] | str]]:
    """Make raw records of one set's task records.

    `action_exe` holds a scene's end in the video (its first scene may start 0.5 s late, after the condition);
    `story_gen` and `story_cont` hold how long each scene is, but not the gaps between scenes.
    """
    stories = modes.get("story_gen") or modes.get("story_cont")
    if not stories or "action_exe" not in modes:
        raise AnnotationError(
            f"StoryBench task set {name}: found {', '.join(sorted(modes))} only. Give action_exe.json, which says where"
            " the scenes lie in the video, together with story_gen.json (or story_cont.json) of the same set"
        )
    ends: dict[str, dict[str, Any]] = {}
    for record in modes["action_exe"]:
        story, _, scene = str(record.get("comment")).rpartition("_")
        ends.setdefault(story, {})[scene] = record.get("npz_gt_video_end_frame")
    rows: list[tuple[str, str, dict[str, Any] | str]] = []
    for record in stories:
        key = str(record.get("comment"))
        try:
            row: dict[str, Any] | str = _raw_from_task(record, ends.get(key, {}))
        except (_BadRecord, TypeError, ValueError) as error:
            row = f"task record {_printable(key)!r}: {error}"
        rows.append((record["where"], name, row))
    return rows


def _raw_from_task(record: dict[str, Any], ends: dict[str, Any]) -> dict[str, Any]:
    counts = list(record["exact_frames_per_prompt"])
    if record.get("storybench_mode") == "story_cont" and counts:
        counts[0] += CONTINUATION_FRAMES
    if set(ends) != {str(number) for number in range(len(counts))}:
        raise _BadRecord(f"{len(counts)} action_exe records were wanted, found {len(ends)}")
    end_frames = [ends[str(number)] for number in range(len(counts))]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in [*counts, *end_frames]):
        raise _BadRecord("frame counts were wanted")
    return {
        "video_name": PurePosixPath(str(record["npz_video"])).name.removesuffix(".npy"),
        "question_info": record["comment"],
        "background_description": record.get("background"),
        "sentence_parts": record.get("texts"),
        "start_times": [(end - count) / TASK_FPS for end, count in zip(end_frames, counts, strict=True)],
        "end_times": [end / TASK_FPS for end in end_frames],
    }
