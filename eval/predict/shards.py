"""Merge what several prediction processes wrote, after checking that every story is there exactly once.

Launch: python -m eval.predict.shards --output-dir RUN_DIR

Each process of `eval.predict --num-shards N` writes RUN_DIR/shards/K-of-N; the last one to finish merges by itself. The
merged predictions.jsonl and skipped.jsonl are those of a run by one process: the same rows in the same order.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.predict.job import Job, PredictConfig, is_usable
from eval.predict.ranks import SHARDS, Shard, shard_folders
from eval.runs import PREDICTIONS
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, build_config, option, to_json
from llava.imagechain.files import read_json, read_jsonl, write_jsonl
from llava.imagechain.manifest import run_manifest
from llava.imagechain.story import StoryFrames, load_stories

logger = logging.getLogger("eval.predict.shards")
SKIPPED = "skipped.jsonl"
SHOWN_IDS = 5  # of each problem
SUMMED = ("predicted", "prompt_tokens", "new_tokens", "shortened")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Settings of eval.predict.shards."""

    output_dir: Path = option(help="run folder with the shards of eval.predict --num-shards in it")
    stories: Path | None = option(None, help="StoryFrames folder; by default the one the run names")
    dry_run: bool = option(False, help="check, say what would be written, and stop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What one process left."""

    shard: Shard
    run: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    skipped: tuple[dict[str, Any], ...]


def read_parts(output_dir: Path) -> list[Part]:
    """Read all parts of a run.

    Raises:
        ConfigError: With every part that is missing, not finished, damaged or made otherwise.
    """
    cuts = sorted({shard.of for shard in shard_folders(output_dir)})
    if len(cuts) != 1:
        found = f"those of runs by {' and by '.join(map(str, cuts))} processes" if cuts else "none"
        raise ConfigError(f"{output_dir / SHARDS}: the parts (K-of-N) of one run were wanted, found {found}")
    problems: list[str] = []
    parts: list[Part] = []
    for shard in (Shard(number=number, of=cuts[0]) for number in range(cuts[0])):
        part = read_part(output_dir, shard)
        if part.run.get("status") != "success":
            problems.append(f"{shard}: {part.run.get('status', 'not started')}; let it run to its end first")
        elif bad := sum(not is_usable(row) for row in part.rows):
            problems.append(f"{shard}: {bad} rows of {PREDICTIONS} name no story or hold no text")
        elif not isinstance(part.run.get("identity"), dict) or not isinstance(part.run.get("config"), dict):
            problems.append(f"{shard}: its run.json does not say how it was made")
        elif parts and (found := changes(made_with(parts[0]), made_with(part))):
            problems.append(f"{shard} was made otherwise than {parts[0].shard}: {found}")
        else:
            parts.append(part)
    _refuse(output_dir, problems)
    return parts


def read_part(output_dir: Path, shard: Shard) -> Part:
    """Read one part; what is not there is empty."""
    folder = shard.folder(output_dir)
    run = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    rows, skipped = (
        tuple(read_jsonl(folder / name)) if (folder / name).is_file() else () for name in (PREDICTIONS, SKIPPED)
    )
    return Part(shard=shard, run=run, rows=rows, skipped=skipped)


def made_with(part: Part) -> dict[str, Any]:
    """Return everything that decided a part's texts; which dtype its device took by itself is known only afterwards."""
    return {**part.run["identity"], "dtype": part.run.get("dtype") or part.run["identity"].get("dtype")}


def changes(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Return in what two identities differ; empty when they do not."""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return "; ".join(f"{name} is {other.get(name)!r}, not {one.get(name)!r}" for name in names)


def check_ids(output_dir: Path, parts: Sequence[Part], wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise a ConfigError that lists ids which are missing, there more than once, or not of this split."""
    places: dict[str, list[str]] = collections.defaultdict(list)
    for part in parts:
        for row in (*part.rows, *part.skipped):
            places[str(row.get("id"))].append(str(part.shard))
    found = {
        "missing": [story_id for story_id in wanted if story_id not in places],
        "there more than once": [f"{name} ({', '.join(held)})" for name, held in places.items() if len(held) > 1],
        "not of this split": sorted(places.keys() - set(known)),
    }
    _refuse(output_dir, [
        f"{len(ids)} {title}: {', '.join(ids[:SHOWN_IDS])}{' ...' if len(ids) > SHOWN_IDS else ''}"
        for title, ids in found.items() if ids
    ])  # fmt: skip


def _refuse(output_dir: Path, problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n  - ".join([f"{output_dir} was not merged:", *problems]))


def merge(output_dir: Path, stories: StoryFrames | Path | None = None, *, dry_run: bool = False) -> None:
    """Merge the parts of a run.

    Args:
        output_dir: The run folder.
        stories: The split, or the folder it is in; by default what the run names.
        dry_run: Check, and say what would be written.

    Raises:
        ConfigError: With everything that is wrong; nothing is written then.
    """
    parts = read_parts(output_dir)
    limits = [part.run["config"].get("limit") for part in parts]
    first, limit = parts[0].run, None if None in limits else max(limits)
    settings = {**first["config"], "output_dir": output_dir, "num_shards": None, "shard": None, "limit": limit}
    config = build_config(PredictConfig, [settings])
    if not isinstance(stories, StoryFrames):
        stories = load_stories(stories or config.stories, config.split, config.context)
    now = stories.sha256()
    before = {"frames_sha256": now["frames_sha256"], **first["identity"]}  # older runs have no hash of frames
    if any(before.get(name) != value for name, value in now.items()):
        raise ConfigError(f"{output_dir} was made with other stories than {config.stories}; give them with --stories")
    check_ids(output_dir, parts, stories.ids[:limit], stories.ids)
    order = {story_id: number for number, story_id in enumerate(stories.ids)}
    rows = sorted((row for part in parts for row in part.rows), key=lambda row: order[row["id"]])
    skipped = sorted((row for part in parts for row in part.skipped), key=lambda row: order[row["id"]])
    done = f"{len(rows)} predictions and {len(skipped)} skipped stories of {len(parts)} parts -> {output_dir}"
    if dry_run:
        print(f"would be merged: {done}")
        return
    with run_manifest(output_dir, config=to_json(config)) as run:
        write_jsonl(output_dir / PREDICTIONS, rows)
        write_jsonl(output_dir / SKIPPED, skipped)
        run.record(
            identity=first["identity"], trained=first.get("trained", {}), dtype=first.get("dtype"),
            rows=len(rows), skipped=len(skipped),
            **{name: sum(part.run.get(name) or 0 for part in parts) for name in SUMMED},
            predict_seconds=max(part.run.get("predict_seconds") or 0 for part in parts), num_shards=len(parts),
        )  # fmt: skip
    logger.info("merged: %s", done)


def merge_when_complete(job: Job) -> None:
    """Merge when this was the last of the processes to finish.

    Raises:
        ConfigError: The parts hold more than the split, or a story twice.
    """
    output_dir, shard = job.config.output_dir, job.shard
    if shard is None:
        return
    parts = [read_part(output_dir, Shard(number=number, of=shard.of)) for number in range(shard.of)]
    done = [p for p in parts if p.run.get("status") == "success" and p.run.get("identity") == job.identity]
    found = {row.get("id") for part in done for row in (*part.rows, *part.skipped)}
    missing = sum(story_id not in found for story_id in job.stories.ids[: job.num_wanted])
    if len(done) < len(parts) or missing:
        logger.info("%d of %d parts are done; the last one to finish merges them", len(done), len(parts))
        return
    merge(output_dir, job.stories)


def merge_folder(config: MergeConfig) -> None:
    """Merge what the settings name."""
    merge(config.output_dir, config.stories, dry_run=config.dry_run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        MergeConfig, merge_folder, argv, program="python -m eval.predict.shards", description=__doc__ or ""
    )


if __name__ == "__main__":
    sys.exit(main())
