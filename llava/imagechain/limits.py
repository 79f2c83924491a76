"""The numbers of a training's settings, and which values would train nothing or spoil the run."""

from __future__ import annotations

import math
from typing import Any

ABOVE_ZERO = (
    "limit", "eval_limit", "per_device_train_batch_size", "per_device_eval_batch_size", "global_batch_size",
    "model_max_length", "lora_r", "frames_per_call", "num_train_epochs", "learning_rate", "mm_projector_lr",
    "mm_vision_tower_lr", "video_fps", "lora_alpha", "tflops", "logging_steps", "save_steps", "eval_steps",
)  # fmt: skip
NOT_NEGATIVE = (
    "max_frames_per_scene",
    "length_group_batches",
    "dataloader_num_workers",
    "seed",
    "max_skipped",
    "weight_decay",
    "frames_upbound",
    "adam_epsilon",
    "max_grad_norm",
    "save_total_limit",
    "neftune_noise_alpha",
)
BELOW_ONE = ("lora_dropout", "adam_beta1", "adam_beta2")
MOST_EPOCHS = 1e6


def number_problems(groups: Any) -> list[str]:
    """Return which numbers are out of their range.

    Args:
        groups: The three groups of settings.
    """
    train = groups[2]
    problems = [
        f"{name}: a number above 0 was wanted, found {value}"
        for name in ABOVE_ZERO
        if not 0 < (value := _value(groups, name)) < math.inf
    ]
    problems += [
        f"{name}: a number of at least 0 was wanted, found {value}"
        for name in NOT_NEGATIVE
        if not 0 <= (value := _value(groups, name)) < math.inf
    ]
    problems += [
        f"{name}: a number from 0 to below 1 was wanted, found {value}"
        for name in BELOW_ONE
        if not 0 <= (value := _value(groups, name)) < 1
    ]
    if MOST_EPOCHS < train.num_train_epochs < math.inf:
        problems.append(f"num_train_epochs: at most {MOST_EPOCHS:,.0f} was wanted, found {train.num_train_epochs:g}")
    if train.max_steps == 0 or train.max_steps < -1:
        problems.append(f"max_steps: a number above 0, or -1 for none, was wanted, found {train.max_steps}")
    return problems


def _value(groups: Any, name: str) -> float:
    value = next(getattr(group, name) for group in groups if hasattr(group, name))
    return 1 if value is None else value
