"""Build StoryFrames from annotations and videos (paper section 4).

Launch: python -m stories.frames.build --annotations FILE ... --videos DIR ... --output DIR
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from llava.imagechain.config import option, parse_config, to_json
from llava.imagechain.files import read_json, sha256_file, sha256_json, write_json
from llava.imagechain.manifest import run_manifest
from stories.frames.annotations import AnnotationError, Skipped, StoryAnnotation, read_annotations
from stories.frames.budget import frame_times
from stories.frames.dataset import BuildError, first_reason, foreign_output, write_dataset
from stories.frames.decoders import check_decoder
from stories.frames.locate import VideoFinder, VideoRefusedError
from stories.frames.report import PlannedStory, describe, make_report
from stories.frames.split import assign_splits
from stories.frames.worker import JPEG_QUALITY, Failure, Job, extract_story, run_jobs

logger = logging.getLogger("storyframes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Settings of a build; the open decisions are explained in docs/fidelity.md."""

    annotations: list[Path] = option(help="annotation files: StoryBench raw or task JSON, or JSONL; .gz is read too")
    videos: list[Path] = option([], help="folders of videos, searched in this order")
    output: Path | None = option(None, help="folder of the dataset")
    num_workers: int = option(0, help="decoding processes, 0 for one per core")
    split_by: str = option(
        "story", help="story: the paper's split; video: no video on both sides", choices=("story", "video")
    )
    group_by_video: bool = option(False, help="the same as --split-by video")
    seed: int = option(0, help="of the split")
    shard: str | None = option(None, help="i/n: extract only part i (0 to n-1) of n; gather with --merge")
    merge: bool = option(False, help="write the dataset from shards that have all finished; decodes nothing")
    decoder: str = option("pyav", help="library that decodes", choices=("pyav", "decord", "torchcodec"))
    max_side: int | None = option(None, help="longest side of a stored frame in pixels; none: source resolution")
    scene_offset_s: float = option(0.2, help="seconds between a scene's end and the next scene's first frame")
    timestamps: str = option("ends", help="spacing of frames in a scene", choices=("ends", "interior"))
    story_duration: str = option("sum", help="M of the frame budget: scenes added up, or span", choices=("sum", "span"))
    time_limit_s: float = option(300.0, help="seconds one story's video may take to decode")
    limit: int | None = option(None, help="use only the first N stories")
    max_skipped: int | None = option(None, help="stop when more stories than this are left out")
    resume: bool = option(True, help="keep the finished stories of an interrupted build")
    overwrite: bool = option(False, help="replace a dataset that is there already")
    dry_run: bool = option(False, help="read, look videos up, print the counts as JSON and stop")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    config = parse_config(
        BuildConfig, argv, program="python -m stories.frames.build", description="Build StoryFrames (paper section 4)."
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        return build(config)
    except (BuildError, AnnotationError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("Interrupted. Finished stories are kept in %s; run the same command to resume.", _work(config))
        return 130
    except (OSError, RuntimeError) as error:
        logger.error(
            "error: %s. Finished stories are kept in %s; run the same command to resume.", error, _work(config)
        )
        return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def build(config: BuildConfig) -> int:
    """Build the dataset, or one shard of its frames, or print the counts.

    Raises:
        BuildError: Wrong settings, an output that holds something else, unfinished shards, no usable story.
        AnnotationError: An annotation file cannot be used.
    """
    config = _checked(config)
    settings = _settings(config)
    if not config.dry_run and _finished(config, settings):
        return 0
    stories, skipped = read_annotations(config.annotations)
    stories = stories[: config.limit]
    if not stories:
        raise BuildError(f"no usable story in {len(skipped)} records; the first: {first_reason(skipped)}")
    split = assign_splits(stories, config.seed, config.split_by)  # type: ignore[arg-type]
    plans, missing = _plan(stories, config)
    skipped += missing
    if config.dry_run:
        report = make_report(plans, split, skipped, settings, decoded=False)
        print(json.dumps(report, indent=2))
        logger.info(describe(report))
        return 0
    _check_skipped(config, skipped)
    if not config.resume:
        shutil.rmtree(_work(config), ignore_errors=True)
    name = "run.json" if config.shard is None else f"run-shard-{config.shard.replace('/', '-of-')}.json"
    assert config.output is not None
    with run_manifest(config.output, config=to_json(config), inputs=config.annotations, name=name) as run:
        part = plans if config.shard is None else plans[_shard(config.shard)[0] :: _shard(config.shard)[1]]
        failures = _stored_failures(part, skipped, config) if config.merge else _extract(part, skipped, config)
        run.record(num_stories=len(part) - len(failures), num_skipped=len(skipped) + len(failures))
        if config.shard is not None:
            logger.info("shard %s is done: %d stories; when all are, run with --merge", config.shard, len(part))
            return 0
        lost = {failure.id for failure in failures}
        built = [plan for plan in plans if plan.story.story_id not in lost]
        write_dataset(config.output, _work(config), built, split, skipped + failures, settings)
    return 0


def _checked(config: BuildConfig) -> BuildConfig:
    """Check the settings against the file system; all problems in one message."""
    problems = []
    if config.output is None and not config.dry_run:
        problems.append("--output is required")
    if config.output is not None and (problem := foreign_output(config.output)):
        problems.append(problem)
    if not config.videos and not config.dry_run:
        problems.append("--videos is required")
    problems += [
        f"the videos folder {folder} is not there (a folder was wanted)"
        for folder in config.videos
        if not folder.is_dir()
    ]
    if config.shard is not None:
        try:
            _shard(config.shard)
        except ValueError as error:
            problems.append(str(error))
        if config.merge:
            problems.append("--merge gathers all shards; leave --shard out")
    for name, least in (("num_workers", 0), ("limit", 1), ("max_side", 16), ("max_skipped", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            problems.append(f"--{name.replace('_', '-')}: at least {least} was wanted, found {value}")
    if config.scene_offset_s < 0 or config.time_limit_s <= 0:
        problems.append("--scene-offset-s must not be negative and --time-limit-s must be positive")
    if not config.dry_run:
        try:
            check_decoder(config.decoder)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise BuildError("; ".join(problems))
    return dataclasses.replace(config, split_by="video" if config.group_by_video else config.split_by)


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard: i/n with i from 0 to n-1 was wanted, found {text!r}")
    return int(index), int(count)


def _settings(config: BuildConfig) -> dict[str, Any]:
    """Return what the dataset depends on besides the videos."""
    names = ("split_by", "seed", "decoder", "max_side", "scene_offset_s", "timestamps", "story_duration", "limit")
    hashes = [sha256_file(path) for path in config.annotations if path.is_file()]
    return {**{name: getattr(config, name) for name in names}, "jpeg_quality": JPEG_QUALITY, "annotations": hashes}


def _work(config: BuildConfig) -> Path:
    return (config.output or Path()) / ".work"


def _finished(config: BuildConfig, settings: dict[str, Any]) -> bool:
    """Say whether the output is built already; with other settings that is an error unless --overwrite."""
    assert config.output is not None
    report_path = config.output / "build_report.json"
    if config.overwrite or not report_path.is_file():
        return False
    found = read_json(report_path)["settings"]
    differing = [key for key in settings if found.get(key) != settings[key]]
    if differing:
        raise BuildError(
            f"{config.output} holds a dataset built with other {', '.join(differing)}; give another --output, or"
            " --overwrite to replace it"
        )
    if _work(config).exists() or not config.resume:
        return False  # stories are missing that a rerun may find, or everything is to be decoded again
    logger.info("%s is built already; --overwrite builds it anew", config.output)
    return True


def _plan(stories: Sequence[StoryAnnotation], config: BuildConfig) -> tuple[list[PlannedStory], list[Skipped]]:
    """Find each story's video and the times of its frames."""
    finder = VideoFinder(config.videos, (story.video_name for story in stories))
    plans: list[PlannedStory] = []
    skipped: list[Skipped] = []
    for story in stories:
        path: Path | None = None
        if config.videos:
            try:
                path = finder.find(story.video_name)
                kind, reason = "missing_video", f"no video {story.video_name!r} in the given folders"
            except VideoRefusedError as error:
                kind, reason = "refused_video", str(error)
            if path is None:
                skipped.append(_skip(story, kind, reason))
                continue
        times_s = frame_times(
            story.intervals,
            measure=config.story_duration,  # type: ignore[arg-type]
            offset_s=config.scene_offset_s,
            spacing=config.timestamps,  # type: ignore[arg-type]
        )
        key = _frames_key(story, times_s, path, config)
        plans.append(
            PlannedStory(
                story=story,
                times_s=tuple(map(tuple, times_s)),
                video_path=path,
                frames_path=_work(config) / key[:2] / f"{key}.frames",
            )
        )
    return plans, skipped


def _frames_key(story: StoryAnnotation, times_s: list[list[float]], path: Path | None, config: BuildConfig) -> str:
    """Hash all that a story's frames depend on, so that a resumed build never takes others."""
    facts = path.stat() if path else None
    return sha256_json(
        {
            "story": story.story_id,
            "video": [path.name, facts.st_size, facts.st_mtime_ns] if path and facts else None,
            "times_s": times_s,
            "intervals": story.intervals,
            "frames": [config.decoder, config.max_side, JPEG_QUALITY],
        }
    )


def _skip(story: StoryAnnotation, kind: str, reason: str) -> Skipped:
    return Skipped(id=story.story_id, video_name=story.video_name, kind=kind, reason=reason, where=story.source)


def _check_skipped(config: BuildConfig, skipped: Sequence[Skipped]) -> None:
    if config.max_skipped is not None and len(skipped) > config.max_skipped:
        raise BuildError(
            f"{len(skipped)} stories are left out, at most {config.max_skipped} were allowed; the last:"
            f" {skipped[-1].reason}"
        )


def _extract(plans: Sequence[PlannedStory], skipped: Sequence[Skipped], config: BuildConfig) -> list[Skipped]:
    """Extract the frames that are not there yet; return the stories whose video does not give them, in order."""
    todo = [plan for plan in plans if not plan.frames_path.is_file()]
    if len(todo) < len(plans):
        logger.info("%d of %d stories are there from an earlier run", len(plans) - len(todo), len(plans))
    jobs = [
        Job(
            video_path=plan.video_path,
            times_s=plan.times_s,
            starts_s=tuple(start for start, _ in plan.story.intervals),
            decoder=config.decoder,
            max_side=config.max_side,
            target=plan.frames_path,
        )
        for plan in todo
        if plan.video_path is not None
    ]
    failures: dict[str, Skipped] = {}
    num_workers = config.num_workers or _num_cores()
    with contextlib.closing(run_jobs(extract_story, jobs, num_workers, config.time_limit_s)) as results:
        for index, failure in _progress(results, len(jobs), failures):
            plan = todo[index]
            note = plan.frames_path.with_suffix(".json")
            if isinstance(failure, Failure):
                failures[plan.story.story_id] = _skip(plan.story, failure.kind, failure.reason)
                write_json(note, dataclasses.asdict(failure))
                _check_skipped(config, [*skipped, *failures.values()])
            else:
                note.unlink(missing_ok=True)
    return [failures[plan.story.story_id] for plan in plans if plan.story.story_id in failures]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(results: Iterator[Any], total: int, failures: dict[str, Skipped]) -> Iterator[Any]:
    """Show a bar on a terminal, else a line a minute, with rate and time left."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        bar = tqdm(results, total=total, unit="story", smoothing=0.05, dynamic_ncols=True)
        for result in bar:
            yield result
            bar.set_postfix(left_out=len(failures), refresh=False)
        return
    begin = reported = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if now - reported >= 60 or done == total:
            rate = done / max(now - begin, 1e-9)
            left = tqdm.format_interval((total - done) / rate)
            logger.info("%d/%d stories, %d left out, %.1f stories/s, %s left", done, total, len(failures), rate, left)
            reported = now


def _stored_failures(plans: Sequence[PlannedStory], skipped: Sequence[Skipped], config: BuildConfig) -> list[Skipped]:
    """Return what the shards noted as failed.

    Raises:
        BuildError: Some stories have neither frames nor such a note.
    """
    failures: list[Skipped] = []
    unfinished: list[str] = []
    for plan in plans:
        note = plan.frames_path.with_suffix(".json")
        if plan.frames_path.is_file():
            continue
        if note.is_file():
            failures.append(_skip(plan.story, **read_json(note)))
        else:
            unfinished.append(plan.story.story_id)
    if unfinished:
        raise BuildError(
            f"{len(unfinished)} of {len(plans)} stories are not extracted yet ({', '.join(unfinished[:3])}, ...);"
            " finish all shards with the same settings, then --merge"
        )
    _check_skipped(config, [*skipped, *failures])
    return failures


if __name__ == "__main__":
    sys.exit(main())
