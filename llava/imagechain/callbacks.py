"""What happens beside the steps of a training: progress, the order of an epoch, the end on request or on divergence."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from llava.imagechain.compat import is_distributed

logger = logging.getLogger(__name__)
STOP = "stop"


class EpochOrder(TrainerCallback):
    """Tells the sampler its epoch: with several processes the library does not reach it when it resumes in one."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Choose the order of the epoch that begins."""
        self.trainer.order.set_epoch(int((state.epoch or 0) + 1e-6))


def diverged(what: str, step: int) -> ValueError:
    """Return the error that ends a run whose weights are lost; the library would log a loss of 0 and go on."""
    return ValueError(
        f"step {step}: {what}. Training has diverged and this step is not saved. Start anew with a lower learning_rate "
        "(or mm_projector_lr), and with bf16 in place of fp16."
    )


class StopWhenDiverged(TrainerCallback):
    """Ends the run, on all processes at the same step, after a loss that is no number on any of them."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raise before anything of the step is logged or saved."""
        found = self.trainer.diverged.int()
        if is_distributed():
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        if found:
            raise diverged("the loss is NaN or infinite", state.global_step)


class MinuteLog(TrainerCallback):
    """Logs a line a minute, and every evaluation."""

    def __init__(self) -> None:
        self.started = self.last = 0.0
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.started = self.last = time.time()
        self.first_step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the progress when a minute is over."""
        now = time.time()
        if state.is_world_process_zero and now - self.last >= 60:
            self.last = now
            pace = (now - self.started) / max(state.global_step - self.first_step, 1)
            loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), float("nan"))
            left = pace * (state.max_steps - state.global_step)
            logger.info(
                "step %d of %d, epoch %.2f, loss %.4f, %.2f s a step, %.0f min left",
                state.global_step, state.max_steps, state.epoch or 0, loss, pace, left / 60,
            )  # fmt: skip

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """Log the evaluation losses."""
        if state.is_world_process_zero and metrics:
            losses = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items() if key.endswith("loss"))
            logger.info("step %d: %s", state.global_step, losses)


class StopGently(TrainerCallback):
    """On the first interrupt or termination signal: finish the step, write a checkpoint, stop. A second one kills.

    The file STOP in the output folder asks for the same: batch systems can write it where signals do not reach.
    """

    def __init__(self) -> None:
        self.signalled = 0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        logger.info("training from step %d to %d; Ctrl-C stops with a checkpoint", state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for a checkpoint and the end of training, on all processes at the same step."""
        file = Path(args.output_dir) / STOP
        stop = torch.tensor(self.signalled + file.exists(), device=args.device)
        if is_distributed():
            torch.distributed.all_reduce(stop, op=torch.distributed.ReduceOp.MAX)
        if stop:
            file.unlink(missing_ok=True)
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self.signalled += 1
        signal.signal(number, self._before[number])
        logger.warning("stopping after this step, with a checkpoint; once more stops at once")
