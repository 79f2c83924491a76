"""The library's Trainer with what ImageChain needs: length groups, a loss over the global batch, whole checkpoints."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from llava.imagechain.checkpoint import (
    NON_LORA,
    is_adapter,
    load_named,
    read_non_lora,
    save_checkpoint,
    trainable_state,
)
from llava.imagechain.compat import is_distributed, numpy_state_allowed
from llava.imagechain.data import Collator, StoryExamples
from llava.imagechain.files import atomic_path
from llava.imagechain.labels import IGNORE_INDEX
from llava.imagechain.parts import parameter_groups, part_of, prepare_model, trainable_table
from llava.imagechain.weights import read_tensors

__all__ = ["ImageChainTrainer", "LengthGroupedSampler", "make_trainer", "part_of", "prepare_model", "trainable_table"]
logger = logging.getLogger(__name__)
STOP = "stop"


# --- order of the examples --------------------------------------------------------------------------------------------


class LengthGroupedSampler(Sampler[int]):
    """A random order in which neighbours have like lengths, new each epoch and the same for the same seed.

    The shuffled examples are cut into megabatches, each sorted by length and cut into global batches; the global
    batches of the whole epoch are shuffled. The longest comes first, so that a lack of memory shows at once.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        global_batch_size: int,
        group_batches: int,
        seed: int,
        kinds: Sequence[bool] | None = None,
        multiple: int = 1,
    ) -> None:
        """Choose the order.

        Args:
            lengths: Of the examples.
            global_batch_size: Examples of a step, over all devices.
            group_batches: Global batches sorted by length together; 0 leaves the random order.
            seed: Of all epochs.
            kinds: A global batch holds examples of one kind only (with images or text); what is left over of both
                comes last, together.
            multiple: Of what the number of indices is one; the blank of `FilledExamples` makes it up.
        """
        self.lengths, self.seed, self.epoch, self.kinds = lengths, seed, 0, kinds
        self.global_batch_size, self.group_batches = global_batch_size, group_batches
        self.blanks = -len(lengths) % multiple

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.blanks

    def __iter__(self) -> Iterator[int]:
        return iter(self._order() + [len(self.lengths)] * self.blanks)

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if not self.group_batches and self.kinds is None:
            return order
        batch = self.global_batch_size
        size = batch * max(self.group_batches, 1)
        kinds = self.kinds or [True] * len(order)
        batches: list[list[int]] = []
        for pool in ([i for i in order if kinds[i]], [i for i in order if not kinds[i]]):
            for start in range(0, len(pool), size):
                group = sorted(pool[start : start + size], key=lambda i: -self.lengths[i])
                batches += [group[i : i + batch] for i in range(0, len(group), batch)]
        rest = [i for b in batches if len(b) < batch for i in b]  # incomplete batches can only stand at the end
        last = [rest[i : i + batch] for i in range(0, len(rest), batch)]
        whole = [b for b in batches if len(b) == batch]
        whole = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        longest = max(self.lengths, default=0)
        whole.sort(key=lambda b: max(self.lengths[i] for i in b) < longest)
        return [i for b in whole + last for i in b]


class FilledExamples(Dataset[dict[str, Any]]):
    """Examples, and behind the last one a blank: the shortest of them without labels.

    Several processes take as many examples each. Where an epoch ends with fewer, the library starts over with the first
    ones, which then count twice; the blank in their place lets a step train on what one process would.
    """

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.examples):
            return self.examples[index]
        lengths = self.examples.lengths
        shortest = self.examples[min(range(len(lengths)), key=lengths.__getitem__)]
        return {**shortest, "labels": torch.full_like(shortest["labels"], IGNORE_INDEX)}


# --- the trainer ------------------------------------------------------------------------------------------------------


class ImageChainTrainer(Trainer):
    """Trains on `StoryExamples`; `eval_dataset` is a dict of them by number of scenes."""

    def __init__(
        self, *arguments: Any, base_dir: str, rates: dict[str, float | None] | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.base_dir, self.rates = base_dir, rates or {}
        self._tokens = 0
        self.diverged = torch.zeros((), dtype=torch.bool, device=self.args.device)

    def get_train_dataloader(self) -> Any:
        """Return the batches; transformers 4 takes their size from a checkpoint, whatever the run asks for."""
        self._train_batch_size = self.args.train_batch_size
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        examples, settings = self.train_dataset.examples, self.args
        shared = settings.world_size * settings.per_device_train_batch_size
        self.order = LengthGroupedSampler(
            examples.lengths, settings.global_batch_size, settings.length_group_batches, settings.seed,
            getattr(examples, "multimodal", None) if settings.group_by_modality_length else None,
            shared if settings.world_size > 1 and not settings.dataloader_drop_last else 1,
        )  # fmt: skip
        return self.order

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer; each part of the model can have its own learning rate."""
        model = self.model if model is None else model
        if self.optimizer is None:  # type: ignore[has-type]
            decayed = set(self.get_decay_parameter_names(model))
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(model, decayed, self.args.weight_decay, self.rates, self.args.learning_rate)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Run one batch forward and backward, and note a loss that is no number."""
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self.diverged |= ~torch.isfinite(loss.detach())
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return the loss: the sum over the label tokens divided by their number in the global batch.

        The vocabulary projection runs on the label positions only.
        """
        inputs = {**inputs, "return_logits": False}
        if not hasattr(Trainer, "get_batch_samples"):  # transformers 4.45: the library does not count label tokens
            count = (inputs["labels"] != IGNORE_INDEX).sum()
            inputs["num_items_in_batch"] = self.accelerator.reduce(count.float(), reduction="mean").clamp(min=1)
        return super().compute_loss(model, inputs, *arguments, **options)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss per label token: eval_c2_loss, ... by number of scenes, eval_loss over all."""
        datasets: Mapping[str, StoryExamples] = self.eval_dataset if eval_dataset is None else eval_dataset
        started = time.time()
        sums = {name: self._loss_sum(examples) for name, examples in datasets.items()}
        metrics = {f"{metric_key_prefix}_{name}_loss": float(loss / count) for name, (loss, count) in sums.items()}
        total = torch.stack([torch.stack(pair) for pair in sums.values()]).sum(dim=0)
        metrics[f"{metric_key_prefix}_loss"] = float(total[0] / total[1])
        metrics[f"{metric_key_prefix}_runtime"] = round(time.time() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    @torch.no_grad()
    def _loss_sum(self, examples: StoryExamples) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the number of label tokens over all processes, each doing as many batches."""
        size, rank, world = self.args.per_device_eval_batch_size, self.args.process_index, self.args.world_size
        order = sorted(range(len(examples)), key=lambda i: examples.lengths[i])
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        mine = batches[rank::world]
        rounds = -(-len(batches) // world)
        padded = mine + batches[:1] * (rounds - len(mine))  # repeated batches keep the processes in step; they weigh 0
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        model.eval()
        sums = torch.zeros(2, device=self.args.device, dtype=torch.float64)
        # Its own generator: evaluating must not change what is trained.
        loader = DataLoader(
            examples, batch_sampler=padded, collate_fn=self.data_collator, generator=torch.Generator(),
            num_workers=self.args.dataloader_num_workers,
        )  # fmt: skip
        for number, batch in enumerate(loader):
            inputs = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                loss = model(**inputs, return_logits=False, num_items_in_batch=1)["loss"]
            if number < len(mine):
                sums += torch.stack([loss.double(), (inputs["labels"] != IGNORE_INDEX).sum().double()])
        model.train()
        sums = self.accelerator.reduce(sums, reduction="sum")
        return sums[0], sums[1]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a complete checkpoint; every process takes part in collecting the tensors."""
        model = self.accelerator.unwrap_model(self.model)
        state = trainable_state(model)
        for name, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise diverged(f"{name} holds NaN or infinite numbers", self.state.global_step)
        if self.args.should_save:
            tokenizer = getattr(self, "processing_class", None) or self.tokenizer  # its name up to transformers 4.45
            folder = Path(output_dir or self.args.output_dir)
            save_checkpoint(folder, model, state, tokenizer, self.base_dir)
            if {part_of(name) for name, p in model.named_parameters() if p.requires_grad} == {"projector"}:
                with atomic_path(folder / "mm_projector.bin") as temporary:  # what a second stage starts from
                    torch.save({name: t for name, t in state.items() if "mm_projector" in name}, temporary)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with numpy_state_allowed():
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder, model = Path(resume_from_checkpoint), model or self.model
        if not is_adapter(folder):
            load_named(model, read_tensors(folder), source=folder)
            return
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, read_tensors(folder / "adapter_model.safetensors"))
        load_named(model, read_non_lora(folder), source=folder / NON_LORA)


def make_trainer(
    model: Any,
    settings: Any,
    examples: StoryExamples,
    eval_examples: Mapping[str, StoryExamples],
    *,
    tokenizer: Any,
    base_dir: str,
    rates: dict[str, float | None] | None = None,
) -> ImageChainTrainer:
    """Make a trainer for prepared examples; `settings` are `TrainArguments`, `rates` learning rates by part."""
    import inspect

    name = "processing_class" if "processing_class" in inspect.signature(Trainer).parameters else "tokenizer"
    if not hasattr(Trainer, "get_batch_samples") and settings.gradient_accumulation_steps > 1:
        logger.warning(
            "transformers %s gives the %d accumulated batches of a step the same weight, whatever their number of "
            "label tokens. Install transformers 4.46 or newer, or set per_device_train_batch_size so that nothing is "
            "accumulated.", transformers.__version__, settings.gradient_accumulation_steps,
        )  # fmt: skip
    trainer = ImageChainTrainer(
        model=model,
        args=settings,
        train_dataset=FilledExamples(examples),
        eval_dataset=dict(eval_examples) or None,
        data_collator=Collator(pad_token_id=tokenizer.pad_token_id or 0),
        callbacks=[MinuteLog(), StopGently()],
        base_dir=base_dir,
        rates=rates,
        **{name: tokenizer},
    )
    trainer.add_callback(EpochOrder(trainer))
    trainer.add_callback(StopWhenDiverged(trainer))
    if not sys.stderr.isatty():  # a line a minute instead of a bar
        trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


# --- callbacks --------------------------------------------------------------------------------------------------------


class EpochOrder(TrainerCallback):
    """Tells the sampler its epoch: with several processes the library does not reach it when it resumes in one."""

    def __init__(self, trainer: ImageChainTrainer) -> None:
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

    def __init__(self, trainer: ImageChainTrainer) -> None:
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
