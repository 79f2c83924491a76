"""Time the frame decoder against OpenCV's seek by frame number and against one decode of the whole file by ffmpeg.

Launch: python -m stories.frames.bench [--clip FILE ...] [--output FILE]

The peers are what a frame extractor is usually made of: `VideoCapture.set(CAP_PROP_POS_FRAMES)` before each frame, and
the `ffmpeg` command reading the file once (to nowhere: decoding only). All get the same number of threads and run in
turn, the best of some rounds counts. Without --clip, 720p clips with long groups of pictures are made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from llava.imagechain.files import write_json
from stories.frames.budget import spaced_times
from stories.frames.decoders import check_decoder, decode

FRAME_COUNTS = (8, 25)
WANTED_OVER_OPENCV, WANTED_UNDER_FFMPEG = 2.0, 1.3


def make_clip(path: Path, seconds: int, gop: int, fps: int = 25, width: int = 1280, height: int = 720) -> Path:
    """Encode a moving, textured H.264 clip with a key frame every `gop` frames."""
    import av
    import numpy

    random = numpy.random.default_rng(0)
    coarse = random.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), dtype=numpy.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)
    grain = random.integers(0, 24, (height, width, 3), dtype=numpy.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"preset": "fast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(seconds * fps):
            x, y = number * 3 % 500, number * 2 % 500
            picture = texture[y : y + height, x : x + width] // 2 + numpy.roll(grain, number * 7, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def describe_clip(path: Path) -> tuple[float, Fraction]:
    """Return a clip's duration in seconds and its frame rate."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        duration_s = float((stream.duration or 0) * (stream.time_base or 0)) or (container.duration or 0) / 1_000_000
        return duration_s, Fraction(stream.average_rate or 25)


def with_opencv(path: Path, times_s: Sequence[float], rate: Fraction) -> list[Any]:
    """Read RGB frames by seeking to each frame number."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    pictures = []
    for time_s in times_s:
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(time_s * rate + 1e-3))
        found, picture = capture.read()
        if not found:
            raise RuntimeError(f"OpenCV gives no frame at {time_s} s")
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    capture.release()
    return pictures


def with_ffmpeg(path: Path, threads: int) -> None:
    """Decode the whole video stream once with the ffmpeg command."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", str(threads), "-i", str(path.resolve())]
    subprocess.run([*command, "-map", "0:v:0", "-f", "null", "-"], check=True)


def best_of(rounds: int, tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Run the tasks in turn, `rounds` times; return each one's best wall time in milliseconds."""
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            begin = time.perf_counter()
            task()
            best[name] = min(best[name], (time.perf_counter() - begin) * 1000)
    return best


def measure(clip: Path, count: int, decoders: Sequence[str], rounds: int, threads: int) -> dict[str, Any]:
    """Time all ways of taking `count` evenly spaced frames of a clip, after checking that they give the same frames."""
    import numpy

    duration_s, rate = describe_clip(clip)
    last_s = duration_s - 1 / float(rate)
    times_s = spaced_times((0.0, last_s), count)
    reference = with_opencv(clip, times_s, rate)
    tasks: dict[str, Callable[[], object]] = {"opencv": lambda: with_opencv(clip, times_s, rate)}
    for name in decoders:
        frames = [numpy.asarray(frame.image) for frame in decode(clip, times_s, name, threads)]
        difference = max(float(numpy.abs(a.astype(int) - b).mean()) for a, b in zip(frames, reference, strict=True))
        if difference > 3:
            print(f"  {name} differs from OpenCV by {difference:.1f} of 255 on average in one frame", file=sys.stderr)
        tasks[name] = lambda name=name: list(decode(clip, times_s, name, threads))  # type: ignore[misc]
    if shutil.which("ffmpeg"):
        tasks["ffmpeg"] = lambda: with_ffmpeg(clip, threads)
    return {"clip": clip.name, "frames": count, "milliseconds": best_of(rounds, tasks)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; exit status 1 when a wanted ratio is missed on a made clip."""
    parser = argparse.ArgumentParser(prog="python -m stories.frames.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clip", type=Path, nargs="+", help="time these files instead of made clips")
    parser.add_argument("--rounds", type=int, default=3, help="the best of this many rounds counts [3]")
    parser.add_argument("--threads", type=int, default=1, help="decoding threads of every way [1]")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"threads;{options.threads}"
    if not shutil.which("ffmpeg"):
        print("the ffmpeg command is not installed (apt-get install ffmpeg): its column is left out", file=sys.stderr)
    decoders = [name for name in ("pyav", "decord", "torchcodec") if _usable(name)]
    with tempfile.TemporaryDirectory() as folder:
        clips = options.clip or [
            make_clip(Path(folder) / "720p_20s_gop250.mp4", 20, 250),
            make_clip(Path(folder) / "720p_20s_one_key_frame.mp4", 20, 100_000),
        ]
        rows = [
            measure(clip, count, decoders, options.rounds, options.threads) for clip in clips for count in FRAME_COUNTS
        ]
    names = ["opencv", *decoders, "ffmpeg"]
    print(
        f"{'clip, ms':<30} {'frames':>6} " + " ".join(f"{name:>10}" for name in names) + "   opencv/pyav  pyav/ffmpeg"
    )
    missed = False
    for row in rows:
        found = row["milliseconds"]
        over = row["opencv_over_pyav"] = found["opencv"] / found["pyav"]
        under = row["pyav_over_ffmpeg"] = found["pyav"] / found["ffmpeg"] if "ffmpeg" in found else None
        cells = " ".join(f"{found[name]:>10.0f}" if name in found else f"{'-':>10}" for name in names)
        print(f"{row['clip']:<30} {row['frames']:>6} {cells} {over:>12.2f}x {f'{under:.2f}x' if under else '-':>12}")
        missed |= row["frames"] == 25 and (over < WANTED_OVER_OPENCV or (under or 0) > WANTED_UNDER_FFMPEG)
    print(
        f"wanted with 25 frames: opencv/pyav at least {WANTED_OVER_OPENCV}, pyav/ffmpeg at most {WANTED_UNDER_FFMPEG}"
    )
    if options.output:
        write_json(options.output, {"threads": options.threads, "rounds": options.rounds, "rows": rows})
    return int(missed and not options.clip)


def _usable(name: str) -> bool:
    try:
        check_decoder(name)
    except ValueError as error:
        print(error, file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
