"""The frame budget and the times of frames, with the corner cases of the formula that the paper leaves open."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stories.frames.budget import (
    MIN_WINDOW_S,
    frame_budget,
    frame_times,
    frames_per_scene,
    scene_windows,
    spaced_times,
    story_duration,
)


@pytest.mark.parametrize(
    ("duration_s", "frames"),
    [
        (0.25, 8), (5.0, 8), (5.0005, 8), (5.01, 12), (10.0, 12), (10.000001, 12), (9.9999, 12),
        (10.1, 15), (15.0, 15), (15.1, 20), (30.0, 20), (30.1, 25), (3600.0, 25),
    ],
)  # fmt: skip
def test_upper_bounds_belong_to_their_budget_within_a_millisecond(duration_s: float, frames: int) -> None:
    assert frame_budget(duration_s) == frames


def test_a_scene_gets_its_share_rounded_down_but_at_least_two() -> None:
    # 10 s, 12 frames: shares 7.2, 4.5 and 0.3
    assert frames_per_scene([(0, 6), (6, 9.75), (9.75, 10)]) == [7, 4, 2]


def test_shares_that_are_whole_numbers_are_not_lost_to_float_rounding() -> None:
    thirds = [(0.1 * index, 0.1 * (index + 1)) for index in range(3)]
    assert frames_per_scene(thirds) == [2, 2, 2]  # 8 / 3
    tenths = [(0.7 * index, 0.7 * (index + 1)) for index in range(4)]
    assert frames_per_scene(tenths) == [2, 2, 2, 2]  # 2.8 s: exactly 2 of 8 each


def test_gaps_count_in_the_span_and_not_in_the_sum() -> None:
    scenes = [(1.0, 4.0), (6.0, 9.0)]
    assert story_duration(scenes, "sum") == 6.0
    assert story_duration(scenes, "span") == 8.0
    assert frames_per_scene(scenes, "sum") == [6, 6]
    assert frames_per_scene(scenes, "span") == [4, 4]


def test_the_offset_applies_to_touching_scenes_only_as_far_as_needed() -> None:
    scenes = [(3.0, 4.0), (4.0, 6.0), (6.1, 8.0), (9.0, 10.0)]
    windows = scene_windows(scenes, 0.2)
    assert windows[0] == (3.0, 4.0)
    assert windows[1] == pytest.approx((4.2, 6.0))
    assert windows[2] == pytest.approx((6.2, 8.0))
    assert windows[3] == (9.0, 10.0)
    assert scene_windows(scenes, 0.0) == scenes


@pytest.mark.parametrize(
    ("length_s", "window_s"), [(0.25, 0.05), (0.375, 0.175), (0.2, 0.05), (0.1, 0.05), (0.03, 0.03)]
)
def test_a_short_scene_keeps_a_window(length_s: float, window_s: float) -> None:
    start, end = scene_windows([(0.0, 1.0), (1.0, 1.0 + length_s)], 0.2)[1]
    assert end - start == pytest.approx(window_s)


def test_ends_include_both_ends_and_interior_neither() -> None:
    assert spaced_times((1.0, 4.0), 4, "ends") == [1.0, 2.0, 3.0, 4.0]
    assert spaced_times((1.0, 4.0), 3, "interior") == [1.5, 2.5, 3.5]


def test_the_last_time_is_exactly_the_end() -> None:
    assert spaced_times((0.1, 0.7), 7)[-1] == 0.7


@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0.01, 20)), min_size=1, max_size=15),
    st.sampled_from(["ends", "interior"]),
    st.sampled_from(["sum", "span"]),
)
def test_times_ascend_inside_their_scene(parts: list[tuple[float, float]], spacing: str, measure: str) -> None:
    scenes, clock = [], 0.0
    for gap, length in parts:
        scenes.append((clock + gap, clock + gap + length))
        clock += gap + length
    times = frame_times(scenes, spacing=spacing, measure=measure)  # type: ignore[arg-type]
    assert len(times) == len(scenes)
    for (start, end), scene in zip(scenes, times, strict=True):
        assert len(scene) >= 2
        assert all(start - 1e-9 <= time <= end + 1e-9 for time in scene)
        assert scene == sorted(scene)
        assert scene[-1] - scene[0] > 0
    assert sum(map(len, times)) <= max(frame_budget(story_duration(scenes, measure)), 0) + 2 * len(scenes)  # type: ignore[arg-type]


def test_the_window_that_stays_is_what_the_shortest_storybench_scene_has() -> None:
    assert math.isclose(0.25 - 0.2, MIN_WINDOW_S)
