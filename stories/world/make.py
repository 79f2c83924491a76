"""Render the story world: H.264 videos and their annotations in StoryBench's raw format.

    python -m stories.world.make --output-dir runs/world --num-videos 1300 --seed 0

Writes videos/*.mp4, annotations/valid.json and test.json (one row a person, two a video), meanings.jsonl (what every
scene means) and run.json. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import bisect
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.files import atomic_path, read_json, write_json, write_jsonl
from llava.imagechain.manifest import run_manifest
from stories.world.plan import TICKS_PER_SECOND, PlannedVideo, plan_video

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)
SETTINGS_FILE = "world.json"


@dataclass(frozen=True, kw_only=True)
class MakeConfig:
    """Settings of `python -m stories.world.make`."""

    output_dir: Path = option(help="folder for videos, annotations and meanings")
    num_videos: int = option(1300, help="number of videos; each gives two stories")
    seed: int = option(0, help="everything is drawn from it; another seed is another world")
    frame_size: int = option(128, help="width and height of the videos, pixels, even")
    num_workers: int = option(0, help="rendering processes, 0 = one a core")
    resume: bool = option(True, help="keep the videos that are already there")
    overwrite: bool = option(False, help="render everything again")
    dry_run: bool = option(False, help="print what would be made and stop")

    def world(self) -> dict[str, int]:
        """Return the settings that the result depends on."""
        return {"num_videos": self.num_videos, "seed": self.seed, "frame_size": self.frame_size}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        MakeConfig, make, argv, program="python -m stories.world.make",
        description="Render the story world's videos and annotations.",
        interrupted="the same command goes on from here",
    )  # fmt: skip


def make(config: MakeConfig) -> None:
    """Make the world, or say what would be made."""
    check(config)
    if config.dry_run:
        plans = [plan_video(number, config.seed) for number in range(config.num_videos)]
        seconds = sum(_num_frames(plan) for plan in plans) / TICKS_PER_SECOND
        print(
            f"{len(plans)} videos, {2 * len(plans)} stories, {seconds:.0f} s of video would go to {config.output_dir}"
        )
        return
    with run_manifest(config.output_dir, config=to_json(config)) as run:
        run.record(**make_world(config))
    logger.info("%d videos and %d stories are in %s", config.num_videos, 2 * config.num_videos, config.output_dir)


def check(config: MakeConfig) -> None:
    """Refuse wrong sizes, and a folder that holds another world.

    Raises:
        ConfigError: With what is wrong.
    """
    if config.num_videos < 1 or config.frame_size < 32 or config.frame_size % 2:
        raise ConfigError("num_videos of at least 1 and an even frame_size of at least 32 were wanted.")
    settings = config.output_dir / SETTINGS_FILE
    if settings.is_file() and not config.overwrite:
        found = read_json(settings)
        if not config.resume:
            raise ConfigError(
                f"{config.output_dir} holds a world already; choose another --output-dir or add --overwrite."
            )
        if found != config.world():
            raise ConfigError(
                f"{config.output_dir} holds another world: found {found}, wanted {config.world()}. "
                "Choose another --output-dir or add --overwrite."
            )


def make_world(config: MakeConfig) -> dict[str, int]:
    """Render what is missing and write the annotations.

    Returns:
        Counts for run.json.
    """
    from tqdm import tqdm

    videos_dir = config.output_dir / "videos"
    if config.overwrite and videos_dir.is_dir():
        for path in videos_dir.glob("*.mp4"):
            path.unlink()
    videos_dir.mkdir(parents=True, exist_ok=True)
    write_json(config.output_dir / SETTINGS_FILE, config.world())
    plans = [plan_video(number, config.seed) for number in range(config.num_videos)]
    missing = [plan for plan in plans if not _video_path(videos_dir, plan).is_file()]
    jobs = [(plan, _video_path(videos_dir, plan), config.frame_size) for plan in missing]
    workers = min(config.num_workers or os.cpu_count() or 1, max(1, len(jobs)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        # The workers start here and inherit the blocked signal: Ctrl-C reaches them too, but is the parent's to answer.
        resource_tracker.ensure_running()  # would unblock the signal again when started with the first worker
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        done = pool.map(_render_job, jobs, chunksize=max(1, min(4, len(jobs) // (4 * workers))))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for _ in tqdm(done, total=len(jobs), desc="rendering", unit="video", mininterval=_interval()):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    write_annotations(config.output_dir, plans)
    return {
        "num_rendered": len(missing),
        "num_kept": len(plans) - len(missing),
        "num_stories": 2 * len(plans),
        "num_frames": sum(_num_frames(plan) for plan in plans),
        "num_distinct_sentences": len({text for plan in plans for texts in plan.texts for text in texts}),
    }


def write_annotations(output_dir: Path, plans: Sequence[PlannedVideo]) -> None:
    """Write annotations/valid.json and test.json and meanings.jsonl."""
    for split in ("valid", "test"):
        rows = [plan.annotation(actor) for plan in plans if plan.split == split for actor in range(2)]
        write_json(output_dir / "annotations" / f"{split}.json", rows)
    write_jsonl(
        output_dir / "meanings.jsonl",
        (
            {
                "id": plan.story_id(actor),
                "video_name": plan.name,
                "scenes": [asdict(meaning) for meaning in plan.meanings(actor)],
                "others": [asdict(meaning) for meaning in plan.meanings(1 - actor)],
            }
            for plan in plans
            for actor in range(2)
        ),
    )


def _render_job(job: tuple[PlannedVideo, Path, int]) -> None:
    plan, path, size = job
    with atomic_path(path) as temporary:
        encode_video(temporary, render_frames(plan, size), size)


def _video_path(videos_dir: Path, plan: PlannedVideo) -> Path:
    return videos_dir / f"{plan.name}.mp4"


def _num_frames(plan: PlannedVideo) -> int:
    return plan.scenes[-1].end_tick + 2


def render_frames(plan: PlannedVideo, size: int) -> list[Image.Image]:
    """Draw all frames of a video, one a tick; movements repeat every second.

    The picture changes one frame after an annotated end, as people's annotations are never exact either: a frame taken
    at the very end of a scene still shows that scene, and the next scene's frames start 0.2 s later (the paper's
    offset).
    """
    from stories.world.draw import draw_frame

    drawn: dict[tuple[int, int], Image.Image] = {}
    cuts = [plan.scenes[0].start_tick, *(scene.end_tick + 1 for scene in plan.scenes[:-1])]
    frames = []
    for tick in range(_num_frames(plan)):
        number = bisect.bisect_right(cuts, tick) - 1  # -1: before the first scene the two people only stand there
        phase = tick % TICKS_PER_SECOND
        if (number, phase) not in drawn:
            scene = plan.scenes[max(number, 0)]
            figures = [replace(figure, idle=number < 0) for figure in scene.figures]
            drawn[number, phase] = draw_frame(scene.place, figures, phase / TICKS_PER_SECOND, size)
        frames.append(drawn[number, phase])
    return frames


def encode_video(path: Path, frames: Sequence[Image.Image], size: int) -> None:
    """Write frames as an H.264 mp4 with one frame a tick; the same frames give the same bytes."""
    import av

    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=TICKS_PER_SECOND)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        stream.codec_context.time_base = Fraction(1, TICKS_PER_SECOND)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _interval() -> float:
    """Seconds between progress lines: a line a minute where there is no terminal."""
    return 0.2 if sys.stderr.isatty() else 60.0


if __name__ == "__main__":
    sys.exit(main())
