"""One more row of scripts/bench/train.sh: LLaVA-NeXT's own trainer, over a checkout with the overlay in it.

`LLaVATrainer` of the checkout's llava/train/llava_trainer.py trains the caller's model on the caller's batches: its
arguments, optimizer groups, data loader, accelerator and checkpointing of all layers. As published it trains on no
version of transformers, so that this is neutralised, and nothing else:

- `_inner_training_loop`, a pasted copy that lacks some thirty imports (it stops at `DebugOption`, before the first
  step): the library's own loop runs instead. What the copy adds to a step, a printed line and an emptied CUDA cache,
  is gone with it.
- `create_accelerator_and_postprocess`, with accelerate 1.0 or newer only: it passes `dispatch_batches` and
  `split_batches` to an Accelerator that no longer takes them. The library's own is used there.
- `_get_train_sampler`: the batches come in the caller's random order, so that losses can be compared.

Dataset and collator are the caller's, as upstream's know no scenes. As in the other rows the learning rate is constant
and the same for all parts (`mm_projector_lr` and `mm_vision_tower_lr`, which the trainer reads, are none). Nothing is
saved or logged, so that `_save_checkpoint`, which passes one argument more than transformers 4.47 takes, never runs.

The file imports names that transformers dropped in 4.46, and the checkout's own `trl`, which wants datasets and tyro:
`why_not` says what is missing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler, Subset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, __version__

from llava.imagechain.bench.device import clock

TRAINER = "llava.train.llava_trainer"


def why_not() -> str | None:
    """Return why LLaVA-NeXT's trainer cannot be measured, or None when it can."""
    if importlib.util.find_spec(TRAINER) is None:
        return f"{TRAINER} is not there; LLAVA_NEXT_DIR=a LLaVA-NeXT checkout with the overlay in it was wanted"
    try:
        importlib.import_module(TRAINER)
    except Exception as error:  # whatever a file of others, or a library under it, stops at is the answer
        wanted = "transformers 4.45.2 with datasets and tyro was wanted"
        return f"{TRAINER} does not import with transformers {__version__} ({error}); {wanted}"
    return None


class StepTimes(TrainerCallback):
    """Takes the times of each step: forward, backward, clipping, optimizer; not the reading of its batch."""

    def __init__(self, seed: int) -> None:
        self.seed, self.times = seed, list[tuple[float, float]]()
        self.started = self.used = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clocks; the first step draws its dropout as the other rows do."""
        if state.global_step == 0:
            torch.manual_seed(self.seed)
        self.started, self.used = clock(args.device), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop them."""
        self.times.append((clock(args.device) - self.started, time.process_time() - self.used))


def trainer_class() -> Any:
    """Return upstream's trainer with what cannot run neutralised, and the losses of its steps kept."""
    from accelerate import Accelerator

    upstream = importlib.import_module(TRAINER).LLaVATrainer

    class RunningLLaVATrainer(upstream):  # type: ignore[misc, valid-type]
        _inner_training_loop = Trainer._inner_training_loop
        if "dispatch_batches" not in inspect.signature(Accelerator).parameters:
            create_accelerator_and_postprocess = Trainer.create_accelerator_and_postprocess

        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
            loss = super().training_step(*arguments, **options)
            self.losses.append(loss.detach())
            return loss

    return RunningLLaVATrainer


def train(
    model: Any,
    examples: Dataset[Any],
    batches: Sequence[Sequence[int]],
    collate: Callable[..., Any],
    settings: Any,
) -> list[tuple[float, float, float]]:
    """Train a step on each batch with LLaVA-NeXT's trainer.

    Args:
        model: What trains; gradient checkpointing is left on in it.
        examples: From which the batches take their indices.
        batches: Indices of each step's examples, as many in each.
        collate: Examples -> batch.
        settings: Training arguments of the other rows: rate, decay, clipping, dtype, device, seed.

    Returns:
        Of each step the seconds, the processors' seconds and the loss.
    """
    arguments = TrainingArguments(
        output_dir=settings.output_dir, max_steps=len(batches), per_device_train_batch_size=len(batches[0]),
        learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, lr_scheduler_type="constant",
        max_grad_norm=settings.max_grad_norm, optim="adamw_torch", bf16=settings.bf16, seed=settings.seed,
        gradient_checkpointing=True, use_cpu=settings.device.type == "cpu", remove_unused_columns=False,
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    arguments.mm_projector_lr = arguments.mm_vision_tower_lr = None
    clocks = StepTimes(settings.seed)
    with contextlib.redirect_stdout(sys.stderr):  # it prints; the table alone goes to stdout
        trainer = trainer_class()(
            model=model, args=arguments, data_collator=collate, callbacks=[clocks],
            train_dataset=Subset(examples, [index for batch in batches for index in batch]),
        )  # fmt: skip
        trainer.losses = []
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        finally:  # mixed precision wraps the model's forward; the other rows have their own
            for name in ("forward", "_original_forward"):
                vars(model).pop(name, None)
    return [(*times, float(loss)) for times, loss in zip(clocks.times, trainer.losses, strict=True)]
