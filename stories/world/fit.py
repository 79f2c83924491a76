"""A small training loop that can be stopped at any moment: batches follow from the step's number alone."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from llava.imagechain.files import atomic_path

SAVE_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train."""

    num_steps: int
    learning_rate: float
    bf16: bool
    warmup_steps: int = 50
    max_grad_norm: float = 1.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warmup, then cosine to 2 %."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * step / self.num_steps)))


def fit(
    name: str, module: nn.Module, loss_of_step: Callable[[int], torch.Tensor], schedule: Schedule, state_path: Path
) -> float:
    """Train the parameters of a module that require a gradient.

    Args:
        name: Shown beside the progress bar.
        module: What is trained and kept in the state file.
        loss_of_step: Builds the loss of a step from its number, so that a stopped run goes on as if it had not been.
        schedule: Steps and learning rate.
        state_path: State file, written once a minute and at the end; read when it is there.

    Returns:
        The loss, averaged over the last steps.
    """
    from tqdm import tqdm

    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    first, average = _load(state_path, module, optimizer)
    saved = time.monotonic()
    interval = 0.5 if sys.stderr.isatty() else 60.0
    progress = tqdm(total=schedule.num_steps, initial=first, desc=name, unit="step", mininterval=interval)
    try:
        for step in range(first, schedule.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bf16):
                loss = loss_of_step(step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, schedule.max_grad_norm)
            optimizer.step()
            value = float(loss.detach())
            average = value if math.isnan(average) else 0.95 * average + 0.05 * value
            progress.set_postfix(loss=f"{average:.3f}", refresh=False)
            progress.update()
            if time.monotonic() - saved > SAVE_EVERY_S:
                _save(state_path, module, optimizer, step + 1, average)
                saved = time.monotonic()
    finally:
        progress.close()
    if first < schedule.num_steps:
        _save(state_path, module, optimizer, schedule.num_steps, average)
    return average


def _save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, average: float) -> None:
    with atomic_path(path) as temporary:
        torch.save(
            {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "average": average},
            temporary,
        )


def _load(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    if not path.is_file():
        return 0, math.nan
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["average"])
