"""Answers of an earlier judge stay in the folder: they leave the file of answers for one beside it, and count again
when that judge comes back."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.files import read_json, read_jsonl, sha256_json, write_jsonl

logger = logging.getLogger("eval.judge")
# What decides an answer beside the texts; the prompt's hash stands beside the settings.
DECIDE = ("name", "model", "revision", "rendering", "temperature", "max_tokens")


def kept_rows(target: Path) -> list[dict[str, Any]]:
    """Return the rows of the files beside `target` that earlier judges' answers are kept in."""
    return [row for path in sorted(target.parent.glob(f"{target.stem}-*.jsonl")) for row in read_jsonl(path)]


def keep(target: Path, leaving: Sequence[dict[str, Any]], run_file: Path) -> None:
    """Write answers that are about to leave `target` to a file that is named after who gave them.

    Args:
        target: The file of answers, such as judgments.jsonl.
        leaving: Its rows that the next judge does not use.
        run_file: The JSON file beside it that says who gave them.
    """
    known = {str(row.get("key")) for row in kept_rows(target)}
    if not (new := [row for row in leaving if str(row.get("key")) not in known]):
        return
    path = target.with_name(f"{target.stem}-{_name(run_file)}.jsonl")
    write_jsonl(path, [*(read_jsonl(path) if path.is_file() else []), *new])
    logger.info("%d answers of an earlier judge are kept in %s", len(new), path)


def _name(run_file: Path) -> str:
    """Return judge, model and a short hash of all that decides its answers, as a part of a file name."""
    facts = read_json(run_file) if run_file.is_file() else None
    config = facts.get("config") if isinstance(facts, dict) else None
    config = config if isinstance(config, dict) else {}
    settings = config.get("judge_settings") or config.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    decided = sha256_json([*(settings.get(name) for name in DECIDE), config.get("prompt_sha256")])
    words = [str(settings[name]) for name in ("name", "model") if settings.get(name)] or ["earlier"]
    return f"{re.sub('[^A-Za-z0-9.]+', '-', '-'.join(words))[:80].strip('-')}-{decided[:8]}"
