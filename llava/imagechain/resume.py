"""Where a training begins: at its first step, at its last checkpoint, or nowhere, since it is finished."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from llava.imagechain.arguments import Groups, as_json
from llava.imagechain.checkpoint import is_adapter, last_checkpoint
from llava.imagechain.config import ConfigError
from llava.imagechain.files import read_json

# What may differ between a run and its resumption; the model's files are compared, not its place.
FREE_ON_RESUME = {
    "model_name_or_path",
    "output_dir", "resume", "overwrite", "dry_run", "feature_cache", "eval_limit", "report_to", "run_name", "deepspeed",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "disable_tqdm",
    "dataloader_num_workers", "dataloader_pin_memory", "frames_per_call", "attn_implementation", "max_skipped",
    "tflops", "local_rank", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "activation_checkpointing",
}  # fmt: skip
INPUTS = {
    "stories_sha256": "the stories have changed",
    "frames_sha256": "the frames of the stories have changed",
    "model_sha256": "the base model has changed",
    "adapter_sha256": "the adapter to start from has changed",
}


def find_start(groups: Groups, made_from: dict[str, str]) -> str | None:
    """Return the checkpoint to go on from, "finished", or None to start at the beginning.

    Raises:
        ConfigError: The output folder holds a run with other settings, on other stories or from another base model.
    """
    settings = groups[2]
    folder = Path(str(settings.output_dir))
    if settings.overwrite and not settings.dry_run and settings.process_index == 0:
        for old in [*folder.glob("checkpoint-*"), folder / "run.json"]:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    goes_on = settings.resume and (folder / "run.json").is_file()
    if not (settings.overwrite or goes_on) and (kept := next(folder.glob("checkpoint-*"), None)):
        raise ConfigError(
            f"{folder} holds {kept.name} of an earlier run, which the next resumption would take for this run's. "
            "--overwrite deletes it; or give another --output_dir."
        )
    if settings.overwrite or not goes_on:
        return None
    before = read_json(folder / "run.json")
    if not isinstance(before, dict):
        raise ConfigError(f"{folder / 'run.json'} is no record of a run; give another --output_dir, or --overwrite")
    checkpoint = last_checkpoint(folder)
    finished = before.get("status") == "success" and (is_adapter(folder) or (folder / "config.json").is_file())
    if not (finished or checkpoint):
        return None
    changes = changed_on_resume(before.get("config", {}), as_json(groups))
    if changes := [*changes, *changed_inputs(before.get("made_from", made_from), made_from)]:
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changes)}). Use the same settings to go on, another "
            "--output_dir, or --overwrite to start anew."
        )
    return "finished" if finished else str(checkpoint)


def changed_inputs(before: dict[str, Any], now: dict[str, str]) -> list[str]:
    """Return which inputs of a run are others now, by their hashes; a run that has none of its frames passes there."""
    before = {"frames_sha256": now.get("frames_sha256"), **before}
    return [text for key, text in INPUTS.items() if before.get(key) != now.get(key)]


def changed_on_resume(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the settings that decide the result and differ between a run and its resumption."""
    names = set(before) & set(now) - FREE_ON_RESUME
    names = {name for name in names if not name.startswith(("log", "save", "eval", "hub", "dataloader", "ddp", "_"))}
    if _place_of_stories(before) == _place_of_stories(now):
        names.discard("stories")
    return [f"{name} was {before[name]!r}, is {now[name]!r}" for name in sorted(names) if before[name] != now[name]]


def _place_of_stories(settings: dict[str, Any]) -> str | None:
    """Return where the stories lie, seen from the run: the same place after both were moved together."""
    stories, folder = settings.get("stories"), settings.get("output_dir")
    return os.path.relpath(stories, folder) if stories and folder and Path(stories).is_absolute() else stories
