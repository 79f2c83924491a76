"""The library's Trainer with what ImageChain needs: length groups, a loss over the global batch, whole checkpoints."""

from __future__ import annotations

import inspect
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer

from llava.imagechain.callbacks import EpochOrder, MinuteLog, StopGently, StopWhenDiverged, diverged
from llava.imagechain.checkpoint import (
    NON_LORA,
    is_adapter,
    load_named,
    read_non_lora,
    save_checkpoint,
    trainable_state,
)
from llava.imagechain.compat import numpy_state_allowed
from llava.imagechain.data import Collator, StoryExamples
from llava.imagechain.files import atomic_path
from llava.imagechain.labels import IGNORE_INDEX
from llava.imagechain.order import FilledExamples, LengthGroupedSampler
from llava.imagechain.parts import parameter_groups, part_of
from llava.imagechain.weights import read_tensors

logger = logging.getLogger(__name__)


class ImageChainTrainer(Trainer):
    """Trains on `StoryExamples`; `eval_dataset` is a dict of them by number of scenes."""

    def __init__(
        self, *arguments: Any, base_dir: str, rates: dict[str, float | None] | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.base_dir, self.rates = base_dir, rates or {}
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
    name = "processing_class" if "processing_class" in inspect.signature(Trainer).parameters else "tokenizer"
    if not hasattr(Trainer, "get_batch_samples") and settings.gradient_accumulation_steps > 1:
        logger.warning(
            "transformers %s gives the %d accumulated batches of a step the same weight, whatever their number of "
            "label tokens. Install transformers 4.46 or newer, or set per_device_train_batch_size so that nothing is "
            "accumulated.", transformers.__version__, settings.gradient_accumulation_steps,
        )  # fmt: skip
    if settings.world_size > 1:  # off by default from transformers 4.46 to 4.51: each process had its own mean
        settings.average_tokens_across_devices = True
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
