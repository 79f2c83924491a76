"""Where a run's curves go: W&B (offline unless told otherwise) and TensorBoard, one run however often it is resumed.

The library's callbacks write them (`report_to`); here is only what they read from the environment. What the user has
set there stays: WANDB_MODE=online sends the curves, WANDB_PROJECT and WANDB_DIR say where to.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from llava.imagechain.config import nearest
from llava.imagechain.files import write_text

RUN_ID = "wandb_id.txt"
# Name for `report_to` -> (packages of which one is needed, how to get it).
PACKAGES = {
    "tensorboard": (("tensorboard", "tensorboardX"), "bash scripts/setup.sh train tensorboard"),
    "wandb": (("wandb",), "pip install wandb"),
}


def reporting_problems(wanted: Sequence[str]) -> list[str]:
    """Return which names of `report_to` are unknown, and which packages are missing for the others."""
    known = [*INTEGRATION_TO_CALLBACK, "all", "none"]
    return [f"report_to: unknown value {name!r}{nearest(name, known)}" for name in wanted if name not in known] + [
        f"report_to: {name} is not installed; {how}"
        for name, (packages, how) in PACKAGES.items()
        if name in wanted and not any(importlib.util.find_spec(package) for package in packages)
    ]


def prepare_reporting(settings: Any, *, resumed: bool) -> None:
    """Set what the library's W&B and TensorBoard callbacks read; call it before the trainer is made.

    Args:
        settings: `TrainArguments`.
        resumed: The run goes on from a checkpoint, and so do its curves.
    """
    wanted, output_dir = settings.report_to, Path(str(settings.output_dir))
    if "tensorboard" in wanted:
        folder = str(output_dir / "tensorboard")
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", folder)  # transformers 5
        if hasattr(settings, "logging_dir") and Path(settings.logging_dir).parent == output_dir / "runs":
            settings.logging_dir = folder  # its default up to transformers 4.57 has the date in it
    if settings.process_index or "wandb" not in wanted:
        return
    file = output_dir / RUN_ID
    if not (resumed and file.is_file()):
        write_text(file, secrets.token_hex(8))
    values = {
        "WANDB_MODE": "offline", "WANDB_PROJECT": "imagechain", "WANDB_DIR": str(output_dir), "WANDB_RESUME": "allow",
        "WANDB_RUN_ID": file.read_text(encoding="utf-8"),
    }  # fmt: skip
    for name, value in values.items():
        os.environ.setdefault(name, value)
