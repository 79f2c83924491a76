"""The story world's videos and annotations: what is shown is what is said, from a seed, resumable."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from eval.judge.world.grammar import PLACES, Meaning, parse
from stories.world.draw import POSES, Figure, draw_frame
from stories.world.make import main, render_frames
from stories.world.plan import TICKS_PER_SECOND, plan_video

PLANS = [plan_video(number, 0) for number in range(1300)]
FIELDS = {
    "video_name", "question_info", "background_description", "sentence_parts", "start_times", "end_times",
    "num_actors_in_video", "caption", "sentence_parts_nocontext",
}  # fmt: skip


def _duration(number: int) -> float:
    return sum(scene.end_tick - scene.start_tick for scene in PLANS[number].scenes) / TICKS_PER_SECOND


def test_texts_mean_what_the_pictures_show() -> None:
    for plan in PLANS:
        for actor in range(2):
            for text, plain, meaning in zip(
                plan.texts[actor], plan.plain_texts[actor], plan.meanings(actor), strict=True
            ):
                assert parse(text) == parse(plain) == meaning


def test_both_people_do_something_else_in_every_scene() -> None:
    for plan in PLANS:
        for one, other in zip(plan.meanings(0), plan.meanings(1), strict=True):
            assert one.place == other.place
            assert all(getattr(one, slot) != getattr(other, slot) for slot in ("person", "colour", "action", "object"))


def test_durations_meet_every_frame_budget_and_its_bounds() -> None:
    durations = [_duration(number) for number in range(len(PLANS))]
    assert all(any(low < duration <= high for duration in durations) for low, high in
               [(0, 5), (5, 10), (10, 15), (15, 30), (30, 60)])  # fmt: skip
    assert {5.0, 10.0, 15.0, 30.0} <= set(durations)


def test_segmentations_have_the_odd_cases_of_storybench() -> None:
    counts = Counter(len(plan.scenes) for plan in PLANS)
    assert set(counts) == set(range(1, 10))
    pairs = [(a, b) for plan in PLANS for a, b in zip(plan.scenes, plan.scenes[1:], strict=False)]
    gaps = Counter(b.start_tick - a.end_tick for a, b in pairs)
    assert set(gaps) == {0, 1, 2, 3, 4} and gaps[0] > 0.9 * len(pairs)
    assert any(plan.scenes[0].start_tick > 0 for plan in PLANS)
    assert any(scene.end_tick - scene.start_tick == 2 for plan in PLANS for scene in plan.scenes[1:])
    names = [plan.name for plan in PLANS]
    assert len(set(names)) == len(names)
    assert any(" " in name for name in names) and any("'" in name for name in names)
    assert any(name.startswith("-") for name in names) and any(name.endswith(".") for name in names)


def test_annotations_have_the_nine_fields_and_two_rows_a_video(tmp_path: Path) -> None:
    assert main(["--output-dir", str(tmp_path), "--num-videos", "3", "--frame-size", "32", "--num-workers", "1"]) == 0
    rows = [
        row for split in ("valid", "test") for row in json.loads((tmp_path / f"annotations/{split}.json").read_text())
    ]
    assert len(rows) == 6 and all(set(row) == FIELDS for row in rows)
    assert len({row["question_info"] for row in rows}) == 6
    first, second = rows[:2]
    assert first["video_name"] == second["video_name"] and first["start_times"] == second["start_times"]
    assert first["sentence_parts"] != second["sentence_parts"]
    meanings = [json.loads(line) for line in (tmp_path / "meanings.jsonl").read_text().splitlines()]
    assert {row["id"] for row in meanings} == {row["question_info"] for row in rows}
    for row in rows:
        path = tmp_path / "videos" / f"{row['video_name']}.mp4"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            frames = sum(1 for _ in container.decode(stream))
        assert frames / TICKS_PER_SECOND > row["end_times"][-1]


def test_same_seed_gives_the_same_bytes_and_a_rerun_keeps_finished_videos(tmp_path: Path) -> None:
    arguments = ["--num-videos", "2", "--frame-size", "32", "--num-workers", "1"]
    for name in ("a", "b"):
        assert main(["--output-dir", str(tmp_path / name), *arguments]) == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    for file in files:
        if file.name != "run.json":
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    videos = sorted((tmp_path / "a" / "videos").iterdir())
    kept, videos_lost = videos[0].stat().st_mtime_ns, videos[1]
    videos_lost.unlink()
    assert main(["--output-dir", str(tmp_path / "a"), *arguments]) == 0
    assert videos_lost.is_file() and videos[0].stat().st_mtime_ns == kept
    assert json.loads((tmp_path / "a" / "run.json").read_text())["num_rendered"] == 1


def test_another_world_is_not_mixed_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output-dir", str(tmp_path), "--num-videos", "1", "--frame-size", "32", "--num-workers", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "1"]) == 2
    assert "another world" in capsys.readouterr().err


def test_frames_taken_inside_a_scene_show_that_scene() -> None:
    plan = next(plan for plan in PLANS if len(plan.scenes) == 5 and plan.scenes[0].start_tick > 0)
    frames = render_frames(plan, 32)
    for number, scene in enumerate(plan.scenes):
        first = scene.start_tick if number == 0 else plan.scenes[number - 1].end_tick + 1
        for tick in (first, scene.end_tick):
            wanted = draw_frame(scene.place, scene.figures, tick % TICKS_PER_SECOND / TICKS_PER_SECOND, 32)
            assert np.array_equal(np.asarray(frames[tick]), np.asarray(wanted))
    assert not np.array_equal(np.asarray(frames[0]), np.asarray(frames[plan.scenes[0].start_tick // 8 * 8 + 8]))


def test_every_slot_of_a_meaning_changes_the_picture() -> None:
    base = {"person": "man", "colour": "red", "action": "kick", "object": "ball", "place": "park"}
    other = {"person": "boy", "colour": "blue", "action": "carry", "object": "box", "place": "snow"}

    def picture(slots: dict[str, str]) -> np.ndarray:
        return np.asarray(draw_frame(slots["place"], [Figure(meaning=Meaning(**slots), x=0.3, facing=1)], 0.0, 64))

    for slot in base:
        assert np.abs(picture(base).astype(int) - picture({**base, slot: other[slot]})).max() > 60, slot


def test_people_and_objects_stay_inside_their_half_of_the_picture() -> None:
    empty = {place: np.asarray(draw_frame(place, [], 0.0, 64)).astype(int) for place in PLACES}
    for person in ("man", "woman", "boy", "girl"):
        for action in set(POSES) - {"idle"}:
            for facing in (-1, 1):
                meaning = Meaning(person=person, colour="red", action=action, object="pillow", place="park")
                frame = np.asarray(draw_frame("park", [Figure(meaning=meaning, x=0.26, facing=facing)], 0.25, 64))
                changed = np.abs(frame.astype(int) - empty["park"]).max(axis=(0, 2)) > 60
                assert not changed[38:].any(), (person, action, facing)


def test_ctrl_c_reaches_the_whole_group_and_leaves_one_line_no_traceback_and_no_half_video(tmp_path):
    command = [sys.executable, "-m", "stories.world.make", "--output-dir", str(tmp_path), "--num-videos", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("videos/.*")) and time.monotonic() < deadline:  # the first video is being written
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "the same command goes on from here" in errors and "Traceback" not in errors
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    assert not list(tmp_path.glob("videos/.*"))
