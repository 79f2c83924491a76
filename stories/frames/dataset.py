"""The finished dataset: tables per bucket and split, card, report, skipped.jsonl and pictures."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.files import write_json, write_jsonl, write_text
from llava.imagechain.story import BUCKETS, SPLIT_FOLDERS, bucket_of
from stories.frames.annotations import Skipped
from stories.frames.figures import draw_contact_sheet, draw_figure_4, pick_stories
from stories.frames.report import PlannedStory, describe, make_report
from stories.frames.store import read_frames, replace_folder, write_table

logger = logging.getLogger("storyframes")
MADE_BY = "Made by `scripts/storyframes/build.sh`."


class BuildError(Exception):
    """A build that cannot start or finish; the message says what to do."""


def write_dataset(
    output: Path,
    work: Path,
    plans: Sequence[PlannedStory],
    split: dict[str, str],
    skipped: Sequence[Skipped],
    settings: dict[str, Any],
) -> None:
    """Write the dataset, its report and its pictures.

    The tables are written in the work area first and then put in place; build_report.json comes last and means "done".

    Args:
        output: Folder of the dataset.
        work: Work area, removed at the end unless a rerun may find videos that are missing now.
        plans: Stories whose frames are extracted.
        split: story_id -> split.
        skipped: Stories that are left out.
        settings: What the dataset depends on, kept in the report.

    Raises:
        BuildError: There is no story.
    """
    write_jsonl(output / "skipped.jsonl", map(dataclasses.asdict, skipped))
    if not plans:
        raise BuildError(
            f"no story could be built: {len(skipped)} left out, see {output / 'skipped.jsonl'}; the first:"
            f" {first_reason(skipped)}"
        )
    logger.info("writing %d stories to %s", len(plans), output)
    report = make_report(plans, split, skipped, settings, decoded=True)
    (output / "build_report.json").unlink(missing_ok=True)  # says that the folder is whole; until then it is not
    staging = work / "dataset"
    shutil.rmtree(staging, ignore_errors=True)
    globs: dict[str, list[str]] = {name: [] for name in SPLIT_FOLDERS}
    for bucket in BUCKETS:
        for name, folder in SPLIT_FOLDERS.items():
            rows = [
                (plan.story, plan.frames_path)
                for plan in plans
                if bucket_of(plan.story.num_scenes) == bucket and split[plan.story.story_id] == name
            ]
            if rows:
                write_table(staging / bucket / folder, rows)
                globs[name].append(f"{bucket}/{folder}/data-*.arrow")
    for bucket in BUCKETS:
        if (staging / bucket).exists():
            replace_folder(staging / bucket, output / bucket)
        else:
            shutil.rmtree(output / bucket, ignore_errors=True)
    write_text(output / "README.md", _card(globs, report))
    stories = [plan.story for plan in plans]
    draw_figure_4(output / "figure4.png", stories, split)
    paths = {plan.story.story_id: plan.frames_path for plan in plans}
    chosen = [(story, read_frames(paths[story.story_id])) for story in pick_stories(stories)]
    draw_contact_sheet(output / "contact_sheet.png", chosen, split)
    write_json(output / "build_report.json", report)
    if any(row.kind not in ("annotation", "duplicate") for row in skipped):
        logger.info("%s is kept: a rerun after adding or repairing videos decodes only those", work)
    else:
        shutil.rmtree(work)
    logger.info(describe(report))
    logger.info("StoryFrames is in %s", output)


def _card(globs: dict[str, list[str]], report: dict[str, Any]) -> str:
    """Return the README whose head tells `datasets.load_dataset` which files make which split."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for name, patterns in globs.items():
        if patterns:
            lines += [f"  - split: {name}", "    path:", *[f"    - {pattern}" for pattern in patterns]]
    head = "\n".join([*lines, "---"])
    table = describe(report)
    return f"{head}\n# StoryFrames\n\n{MADE_BY}\n\n```\n{table}\n```\n"


def foreign_output(output: Path) -> str | None:
    """Say why a dataset must not be written to a path: it is no folder, or holds what something else made."""
    if output.exists() and not output.is_dir():
        return f"--output: a folder was wanted, {output} is a file"
    readme = output / "README.md"
    if readme.is_file() and MADE_BY not in readme.read_text(encoding="utf-8", errors="replace"):
        return f"--output: {output} holds a README.md of something else; choose a folder of its own for the dataset"
    return None


def first_reason(skipped: Sequence[Skipped]) -> str:
    """Name the first skipped record and its reason."""
    return f"{skipped[0].where}: {skipped[0].reason}" if skipped else "none"
