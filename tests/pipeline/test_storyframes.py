"""The StoryFrames builder through its script: the dataset, wrong input, interruption, shards."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from PIL import Image

from llava.imagechain.story import load_stories, storyframes_features

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "storyframes" / "build.sh"
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable}


def build(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=1800, check=False)


def built(*arguments: object) -> None:
    done = build(*arguments)
    assert done.returncode == 0, done.stderr


def numbered_video(path: Path, frames: int = 250, fps: int = 25) -> Path:
    """Encode a video whose frames show their number as 16 black or white blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(frames):
            bits = [number >> bit & 1 for bit in range(16)]
            row = numpy.repeat(numpy.array(bits, numpy.uint8) * 255, 8)
            picture = numpy.broadcast_to(row[None, :, None], (64, 128, 3))
            frame = av.VideoFrame.from_ndarray(numpy.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def number_of(jpeg: bytes) -> int:
    grey = numpy.asarray(Image.open(io.BytesIO(jpeg)).convert("L"))
    return sum(int(grey[16:48, bit * 8 + 2 : bit * 8 + 6].mean() > 128) << bit for bit in range(16))


def story(
    story_id: str, video: str, num_scenes: int = 2, length_s: float = 1.5, start_s: float = 0.0
) -> dict[str, Any]:
    scenes = [
        {"start": start_s + index * length_s, "end": start_s + (index + 1) * length_s, "text": f"Scene {index + 1}."}
        for index in range(num_scenes)
    ]
    return {"story_id": story_id, "video": video, "scenes": scenes}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tree(folder: Path) -> dict[str, str]:
    """Return path -> hash of what a build makes; run.json holds times and the work area is gone."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("run") and ".work" not in path.parts
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def skipped(output: Path) -> dict[str, tuple[str, str]]:
    rows = map(json.loads, (output / "skipped.jsonl").read_text().splitlines())
    return {row["id"]: (row["kind"], row["reason"]) for row in rows}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storyframes") / "videos"
    for name in ("plain.mp4", "-a dash's clip.mp4", "didemo.mov.mp4", "bare..mp4"):
        numbered_video(folder / name)
    return folder


@pytest.fixture(scope="module")
def annotations(videos: Path) -> Path:
    names = ["plain", "-a dash's clip", "didemo.mov", "bare."]
    rows = [story(f"s{number}", names[number % 4], number % 8 + 1, 0.75 + number % 3 / 4) for number in range(80)]
    return write_rows(videos.parent / "mine.jsonl", rows)


@pytest.fixture(scope="module")
def reference(videos: Path, annotations: Path) -> Path:
    output = videos.parent / "reference"
    built("--annotations", annotations, "--videos", videos, "--output", output, "--num-workers", 2)
    return output


def test_the_frames_are_those_on_screen_at_the_stored_times(reference: Path) -> None:
    stories = load_stories(reference, "train")
    assert len(stories) > 20
    for one in stories:
        for scene in one.scenes:
            assert len(scene.frames) == len(scene.frame_times_s) >= 2
            for time_s, frame in zip(scene.frame_times_s, scene.frames, strict=True):
                assert number_of(frame) == min(int(time_s * 25 + 1e-3), 249)


def test_a_folder_of_frames_reads_like_the_published_dataset(reference: Path, tmp_path: Path) -> None:
    import datasets

    table = datasets.load_dataset(str(reference), cache_dir=str(tmp_path))
    assert set(table) == {"train", "validation"}
    report = read(reference / "build_report.json")
    for name, split in table.items():
        assert split.features == storyframes_features()
        assert len(split) == sum(row[name] for row in report["buckets"].values())
        threes = split.filter(lambda count: count == 3, input_columns="num_scenes")
        assert len(threes) == report["buckets"]["scene_3"][name] > 0
        assert threes[0]["scenes"][0][0].size == (128, 64)
        assert len(load_stories(reference, name, "c2_7")) == sum(2 <= count <= 7 for count in split["num_scenes"])
    folder = datasets.load_from_disk(str(reference / "scene_2" / "val"))
    assert folder.features == storyframes_features()
    assert [float(time_s) for time_s in folder[0]["start_times"]] == sorted(folder[0]["start_times"])


def test_reading_stories_leaves_no_copy_behind(reference: Path) -> None:
    before = tree(reference)
    assert load_stories(reference, "validation", "c2")[0].num_scenes == 2
    assert tree(reference) == before


def test_the_report_counts_what_is_there(reference: Path) -> None:
    report = read(reference / "build_report.json")
    stories = [one for split in ("train", "validation") for one in load_stories(reference, split)]
    frames = [len(scene.frames) for one in stories for scene in one.scenes]
    assert report["frames"] == sum(frames) == sum(row["frames"] for row in report["buckets"].values())
    assert report["stories"] == 80 and report["skipped"] == {"stories": 0, "by_kind": {}}
    assert report["bytes"] > 0
    assert sum(report["budget"]["stories_by_frames_against_budget"].values()) == 80
    assert report["leak"]["with_video_in_train"] == report["leak"]["validation_stories"] > 0
    assert read(reference / "run.json")["status"] == "success"
    assert not (reference / ".work").exists()
    for name, width in (("figure4.png", 1000), ("contact_sheet.png", 1000)):
        assert Image.open(reference / name).width > width


def test_one_worker_gives_the_same_bytes_as_two(
    reference: Path, videos: Path, annotations: Path, tmp_path: Path
) -> None:
    built("--annotations", annotations, "--videos", videos, "--output", tmp_path / "o", "--num-workers", 1)
    assert tree(tmp_path / "o") == tree(reference)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_build_resumes_to_the_same_bytes(
    reference: Path, videos: Path, annotations: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    output = tmp_path / "o"
    arguments = ["--annotations", annotations, "--videos", videos, "--output", output, "--num-workers", 1]
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 1800
    while len(list(output.rglob("[!.]*.frames"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=1800)
    assert process.returncode == status
    if status == 130:
        assert "run the same command to resume" in errors and "Traceback" not in errors
        assert read(output / "run.json")["status"] == "interrupted"
    finished = {path: path.stat().st_mtime_ns for path in output.rglob("[!.]*.frames")}
    assert 5 <= len(finished) < 80
    again = build(*arguments)
    assert again.returncode == 0 and f"{len(finished)} of 80 stories are there from an earlier run" in again.stderr
    assert tree(output) == tree(reference)


def test_shards_merge_to_the_same_bytes(reference: Path, videos: Path, annotations: Path, tmp_path: Path) -> None:
    common = ["--annotations", annotations, "--videos", videos, "--output", tmp_path / "o"]
    built(*common, "--shard", "0/3")
    early = build(*common, "--merge")
    assert early.returncode == 2 and "53 of 80 stories are not extracted yet" in early.stderr
    built(*common, "--shard", "1/3", "--num-workers", 2)
    built(*common, "--shard", "2/3")
    built(*common, "--merge")
    assert tree(tmp_path / "o") == tree(reference)


def test_a_second_run_does_nothing_and_other_settings_are_an_error(
    videos: Path, annotations: Path, tmp_path: Path
) -> None:
    common = ["--annotations", annotations, "--videos", videos, "--output", tmp_path / "o", "--limit", 6]
    built(*common)
    before = tree(tmp_path / "o")
    again = build(*common)
    assert again.returncode == 0 and "is built already" in again.stderr
    other = build(*common, "--max-side", 32)
    assert other.returncode == 2 and "built with other max_side" in other.stderr
    assert tree(tmp_path / "o") == before
    built(*common, "--max-side", 32, "--overwrite")
    assert load_stories(tmp_path / "o", "validation")[0].scenes[0].images()[0].size == (32, 16)


def test_a_video_that_turns_up_later_is_added_without_decoding_the_others(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    os.link(videos / "plain.mp4", tmp_path / "v" / "a.mp4")
    rows = write_rows(tmp_path / "a.jsonl", [story("a", "a"), story("b", "b")])
    common = ["--annotations", rows, "--videos", tmp_path / "v", "--output", tmp_path / "o"]
    built(*common)
    assert skipped(tmp_path / "o") == {"b": ("missing_video", "no video 'b' in the given folders")}
    os.link(videos / "plain.mp4", tmp_path / "v" / "b.mp4")
    again = build(*common)
    assert "1 of 2 stories are there from an earlier run" in again.stderr
    assert read(tmp_path / "o" / "build_report.json")["stories"] == 2 and skipped(tmp_path / "o") == {}


def test_each_bad_video_costs_its_story_and_is_listed_with_the_reason(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    good = (videos / "plain.mp4").read_bytes()
    (tmp_path / "outside.mp4").write_bytes(good)
    (folder / "plain.mp4").write_bytes(good)
    (folder / "cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:4,\n{tmp_path / 'outside.mp4'}\n#EXT-X-ENDLIST\n")
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    Image.new("RGB", (64, 64)).save(folder / "picture.mp4", "PNG")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 16000), numpy.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    expected = {
        "cut": ("unreadable_video", "cut short"),
        "zero": ("unreadable_video", "empty"),
        "list": ("unreadable_video", "not a video container"),
        "picture": ("unreadable_video", "not a video container"),
        "sound": ("unreadable_video", "no video stream"),
        "link": ("refused_video", "link out of the given folders"),
        "absent": ("missing_video", "no video 'absent'"),
        "../outside": ("refused_video", "refused"),
        str(tmp_path / "outside.mp4"): ("refused_video", "refused"),
        "http://127.0.0.1:9/x.mp4": ("refused_video", "refused"),
    }
    rows = [story(f"bad{number}", name) for number, name in enumerate(expected)]
    backwards = story("backwards", "plain")
    backwards["scenes"][1]["end"] = 0.5
    late = story("late", "plain", start_s=60.0)
    over = story("over", "plain", 2, 6.0)  # 12 s of a 10 s video
    path = write_rows(tmp_path / "a.jsonl", [*rows, backwards, late, over, story("good", "plain")])
    with path.open("a") as file:
        file.write('{"story_id": "broken", \n')
    built("--annotations", path, "--videos", folder, "--output", tmp_path / "o")
    found = skipped(tmp_path / "o")
    for number, (kind, reason) in enumerate(expected.values()):
        assert found[f"bad{number}"][0] == kind
        assert reason in found[f"bad{number}"][1]
    assert found["backwards"][0] == "annotation" and "not after its start" in found["backwards"][1]
    assert found["late"][1] == "scene 1 starts at 60 s, but the video's last frame is at 9.96 s"
    assert "not valid JSON" in found[None][1]  # type: ignore[index]
    assert len(found) == len(expected) + 3
    report = read(tmp_path / "o" / "build_report.json")
    assert report["stories"] == 2 and report["skipped"]["stories"] == len(found)
    assert report["frames_clamped_to_the_end"] > 0
    kept = {one.story_id: one for one in load_stories(tmp_path / "o", "train")}
    assert set(kept) == {"good", "over"}
    assert number_of(kept["over"].scenes[1].frames[-1]) == 249
    assert kept["over"].scenes[1].frame_times_s[-1] == pytest.approx(9.96)


def test_when_no_story_can_be_built_the_reasons_are_kept(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    path = write_rows(tmp_path / "a.jsonl", [story("a", "a"), story("b", "b")])
    done = build("--annotations", path, "--videos", tmp_path / "v", "--output", tmp_path / "o")
    assert done.returncode == 2 and "no story could be built: 2 left out" in done.stderr
    assert set(skipped(tmp_path / "o")) == {"a", "b"}


def test_too_many_skipped_stories_stop_the_build(videos: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [story("a", "plain"), story("b", "b")])
    common = ["--annotations", path, "--videos", videos, "--output", tmp_path / "o"]
    done = build(*common, "--max-skipped", 0)
    assert done.returncode == 2 and "at most 0 were allowed" in done.stderr
    built(*common, "--max-skipped", 1)


def test_wrong_settings_are_named_together(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("")
    missing = tmp_path / "nowhere"
    common = ["--annotations", tmp_path / "empty.json", "--output", tmp_path / "o"]
    done = build(*common, "--videos", missing, "--shard", "3/3", "--limit", 0)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in (f"videos folder {missing} is not there", "--shard: i/n with i from 0", "--limit: at least 1"):
        assert part in done.stderr
    (tmp_path / "v").mkdir()
    done = build(*common, "--videos", tmp_path / "v")
    assert done.returncode == 2 and "empty.json is empty" in done.stderr
    done = build(*common, "--videos", tmp_path / "v", "--decoder", "pyaw")
    assert done.returncode == 2 and "pyav" in done.stderr
    assert not (tmp_path / "o").exists()


def test_an_output_that_belongs_to_something_else_is_refused_and_stays(annotations: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# mine\n")
    (tmp_path / "file").write_text("mine\n")
    for output, message in (
        (tmp_path, "README.md of something else"),
        (tmp_path / "file", "is a file"),
        ("", "a path"),
    ):
        done = build("--annotations", annotations, "--videos", tmp_path, "--output", output)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "file"]
    assert (tmp_path / "README.md").read_text() == "# mine\n"


def test_a_dry_run_counts_without_videos_and_writes_nothing(annotations: Path, tmp_path: Path) -> None:
    done = build("--annotations", annotations, "--output", tmp_path / "o", "--dry-run")
    report = json.loads(done.stdout)
    assert report["stories"] == 80 and report["bytes"] is None
    assert not (tmp_path / "o").exists()


def test_help_is_the_usage_comment_and_needs_no_heavy_library() -> None:
    done = build("--help")
    assert done.returncode == 0 and "--group-by-video" in done.stdout and "#" not in done.stdout
    code = "import sys, stories.frames.build as b\ntry: b.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'datasets', 'matplotlib', 'av') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_the_other_decoders_choose_the_same_frames(
    videos: Path, annotations: Path, tmp_path: Path, decoder: str
) -> None:
    from stories.frames.decoders import check_decoder

    try:
        check_decoder(decoder)
    except ValueError as error:
        pytest.skip(str(error))
    common = ["--annotations", annotations, "--videos", videos, "--limit", 12, "--num-workers", 1]
    built(*common, "--output", tmp_path / decoder, "--decoder", decoder)
    for one in load_stories(tmp_path / decoder, "train"):
        for scene in one.scenes:
            expected = [min(int(time_s * 25 + 1e-3), 249) for time_s in scene.frame_times_s]
            assert [number_of(frame) for frame in scene.frames] == expected


def test_a_world_becomes_a_dataset_without_leak(tmp_path: Path) -> None:
    world = tmp_path / "world"
    command = [sys.executable, "-m", "stories.world.make", "--output-dir", str(world), "--num-videos", "20"]
    subprocess.run([*command, "--seed", "5", "--frame-size", "32"], check=True, cwd=ROOT, capture_output=True)
    files = sorted((world / "annotations").glob("*.json"))
    output = tmp_path / "o"
    built("--annotations", *files, "--videos", world / "videos", "--output", output, "--group-by-video")
    report = read(output / "build_report.json")
    assert report["stories"] == 40 and report["skipped"]["stories"] == 0
    assert report["leak"]["with_video_in_train"] == 0 < report["leak"]["if_split_by_story"]["with_video_in_train"]
    row = load_stories(output, "train").table[0]
    assert row["num_actors_in_video"] == 2 and row["caption"] and row["sentence_parts_nocontext"]
