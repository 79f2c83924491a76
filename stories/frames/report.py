"""build_report.json: what was built, what was left out and why, how the frame budget came out, the split's leak."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.story import BUCKETS, bucket_of
from stories.frames.annotations import Skipped, StoryAnnotation
from stories.frames.budget import FLOOR_TOLERANCE, MIN_FRAMES, frame_budget, story_duration
from stories.frames.split import assign_splits, leak
from stories.frames.store import read_header


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedStory:
    """A story, the times (seconds) of its frames, and the file that holds them once they are extracted."""

    story: StoryAnnotation
    times_s: tuple[tuple[float, ...], ...]
    video_path: Path | None
    frames_path: Path

    @property
    def num_frames(self) -> int:
        """Frames of the whole story."""
        return sum(map(len, self.times_s))


def make_report(
    plans: Sequence[PlannedStory],
    split: Mapping[str, str],
    skipped: Sequence[Skipped],
    settings: dict[str, Any],
    *,
    decoded: bool,
) -> dict[str, Any]:
    """Return the build report; the same stories and settings always give the same report.

    Args:
        plans: The stories that are in the dataset (in a dry run: that would be).
        split: story_id -> split.
        skipped: The stories that are not.
        settings: What the dataset depends on.
        decoded: Whether the frames are there; else the counts of bytes and clamped frames are null.
    """
    stories = [plan.story for plan in plans]
    buckets: dict[str, dict[str, Any]] = {
        name: {"train": 0, "validation": 0, "frames": 0, "sources": {}} for name in BUCKETS
    }
    for plan in plans:
        row = buckets[bucket_of(plan.story.num_scenes)]
        row[split[plan.story.story_id]] += 1
        row["frames"] += plan.num_frames
        row["sources"][plan.story.source] = row["sources"].get(plan.story.source, 0) + 1
    by_story = assign_splits(stories, settings["seed"], "story") if settings["split_by"] == "video" else split
    return {
        "settings": settings,
        "stories": len(plans),
        "videos": len({story.video_name for story in stories}),
        "scenes": sum(story.num_scenes for story in stories),
        "frames": sum(plan.num_frames for plan in plans),
        **_stored(plans, decoded),
        "buckets": {name: {**row, "stories": row["train"] + row["validation"]} for name, row in buckets.items()},
        "stories_by_num_scenes": _counted(story.num_scenes for story in stories),
        "stories_by_source": _counted(story.source for story in stories),
        "skipped": {"stories": len(skipped), "by_kind": _counted(row.kind for row in skipped)},
        "budget": _budget(plans, settings["story_duration"]),
        "leak": {
            "split_by": settings["split_by"],
            **leak(stories, split),
            "if_split_by_story": leak(stories, by_story),
        },
    }


def _counted(values: Any) -> dict[str, int]:
    return {str(key): count for key, count in sorted(Counter(values).items())}


def _stored(plans: Sequence[PlannedStory], decoded: bool) -> dict[str, int | None]:
    if not decoded:
        return {"bytes": None, "frames_clamped_to_the_end": None}
    size = clamped = 0
    for plan in plans:
        header = read_header(plan.frames_path)
        size += int(sum(map(sum, header["sizes"])))
        for wanted, kept in zip(plan.times_s, header["times_s"], strict=True):
            clamped += sum(a != b for a, b in zip(wanted, kept, strict=True))
    return {"bytes": size, "frames_clamped_to_the_end": clamped}


def _budget(plans: Sequence[PlannedStory], measure: Any) -> dict[str, Any]:
    by_budget, compared = Counter[int](), Counter({"equal": 0, "under": 0, "over": 0})
    forced = 0
    for plan in plans:
        duration_s = story_duration(plan.story.intervals, measure)
        budget = frame_budget(duration_s)
        by_budget[budget] += 1
        compared["equal" if plan.num_frames == budget else "under" if plan.num_frames < budget else "over"] += 1
        for start, end in plan.story.intervals:
            forced += math.floor((end - start) * budget / duration_s + FLOOR_TOLERANCE) < MIN_FRAMES
    return {
        "stories_by_frame_budget": {str(key): by_budget[key] for key in sorted(by_budget)},
        "stories_by_frames_against_budget": dict(compared),
        "scenes_raised_to_two_frames": forced,
    }


def describe(report: dict[str, Any]) -> str:
    """Return the report's main numbers as a table for the terminal."""
    lines = [f"{'scenes':>8} {'stories':>8} {'train':>7} {'val':>7} {'frames':>9}"]
    for name, row in report["buckets"].items():
        label = name.removeprefix("scene_").replace("_plus", "+").replace("_", "-")
        lines.append(f"{label:>8} {row['stories']:>8,} {row['train']:>7,} {row['validation']:>7,} {row['frames']:>9,}")
    lines.append(f"{'all':>8} {report['stories']:>8,} {'':>15} {report['frames']:>9,}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in report["skipped"]["by_kind"].items())
    lines.append(f"left out: {report['skipped']['stories']}{f' ({kinds})' if kinds else ''}")
    found = report["leak"]
    lines.append(
        f"validation stories (2 to 7 scenes) whose video is in train: {found['with_video_in_train']} of"
        f" {found['validation_stories']} ({found['percent']} %), split by {found['split_by']}"
    )
    return "\n".join(lines)
