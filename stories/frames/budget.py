"""How many frames a scene gets and at which times (paper section 4, "Frame Extraction"); pure functions.

What the paper leaves open (boundaries, M, the offset, spacing) is listed in docs/fidelity.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

Interval = tuple[float, float]

# Story duration up to (seconds, included) -> frames of the whole story.
BUDGETS: tuple[tuple[float, int], ...] = ((5.0, 8), (10.0, 12), (15.0, 15), (30.0, 20), (math.inf, 25))
MIN_FRAMES = 2
TOLERANCE_S = 1e-3  # 10.000001 s, a float32 trace of 10 s, belongs to "up to 10"
MIN_WINDOW_S = 0.05  # what the offset leaves at least; StoryBench's shortest scenes (0.25 s) keep exactly this
FLOOR_TOLERANCE = 1e-6  # 2.9999999 frames are 3


def frame_budget(duration_s: float) -> int:
    """Return F, the frames of a story that lasts `duration_s` seconds."""
    return next(frames for limit_s, frames in BUDGETS if duration_s <= limit_s + TOLERANCE_S)


def story_duration(intervals: Sequence[Interval], measure: Literal["sum", "span"] = "sum") -> float:
    """Return M in seconds: the scenes' annotated durations added up, or last end minus first start."""
    if measure == "span":
        return intervals[-1][1] - intervals[0][0]
    return math.fsum(end - start for start, end in intervals)


def frames_per_scene(intervals: Sequence[Interval], measure: Literal["sum", "span"] = "sum") -> list[int]:
    """Return K = max(2, floor(m / M * F)) of each scene; the sum is left as the formula gives it."""
    duration_s = story_duration(intervals, measure)
    budget = frame_budget(duration_s)
    return [
        max(MIN_FRAMES, math.floor((end - start) * budget / duration_s + FLOOR_TOLERANCE)) for start, end in intervals
    ]


def scene_windows(intervals: Sequence[Interval], offset_s: float = 0.2) -> list[Interval]:
    """Return the interval of each scene from which frames are taken.

    A non-first scene starts no earlier than `offset_s` after the previous one ends, but keeps `MIN_WINDOW_S` (or all
    of itself, when it is shorter than that).
    """
    windows = [intervals[0]]
    for (_, previous_end), (start, end) in itertools.pairwise(intervals):
        latest = max(start, end - MIN_WINDOW_S)
        windows.append((max(start, min(previous_end + offset_s, latest)), end))
    return windows


def spaced_times(window: Interval, count: int, spacing: Literal["ends", "interior"] = "ends") -> list[float]:
    """Return `count` evenly spaced times in a window: both ends included, or the middles of `count` equal parts."""
    start, end = window
    if spacing == "interior":
        return [start + (end - start) * (index + 0.5) / count for index in range(count)]
    return [start + (end - start) * index / (count - 1) for index in range(count - 1)] + [end]


def frame_times(
    intervals: Sequence[Interval],
    *,
    measure: Literal["sum", "span"] = "sum",
    offset_s: float = 0.2,
    spacing: Literal["ends", "interior"] = "ends",
) -> list[list[float]]:
    """Return the times in seconds of the frames of each scene."""
    counts = frames_per_scene(intervals, measure)
    windows = scene_windows(intervals, offset_s)
    return [spaced_times(window, count, spacing) for window, count in zip(windows, counts, strict=True)]
