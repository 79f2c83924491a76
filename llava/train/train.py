"""Train a variant on StoryFrames: LoRA in the language model and the projector, vision tower frozen (section 5.3).

    python -m llava.train.train --config configs/train/base.yaml configs/train/imagechain.yaml configs/train/c2_7.yaml \
        --model_name_or_path BASE --stories DIR --output_dir OUT

Later files win over earlier ones, flags over files. A rerun of the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the seconds of these imports: no traceback out of them

from llava.imagechain.arguments import Groups, as_json, parse_arguments
from llava.imagechain.config import ConfigError
from llava.imagechain.distributed import end_process, leave_group
from llava.imagechain.examples import Stories, make_examples, read_stories
from llava.imagechain.files import sha256_json
from llava.imagechain.locks import only_one
from llava.imagechain.manifest import Run, run_manifest
from llava.imagechain.resume import find_start
from llava.imagechain.start import base_folder, identity
from llava.imagechain.variants import Variant, get_variant

logger = logging.getLogger("llava.train")


def train(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # between the libraries themselves
    try:
        groups, given = parse_arguments(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        print(f"python -m llava.train.train: {error}", file=sys.stderr)
        return 2
    _, data, settings = groups
    first = settings.process_index == 0
    level = logging.INFO if first else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    variant = None if data.data_path else get_variant(str(data.variant), data.variant_set)
    if variant and "num_train_epochs" not in given:
        settings.num_train_epochs = variant.num_epochs(data.context)
    lock, writes = Path(str(settings.output_dir)) / ".training", first and not settings.dry_run
    try:
        with only_one(lock, work="training in") if writes else contextlib.nullcontext():
            return train_or_plan(groups, variant)
    except (ConfigError, ValueError, OSError) as error:
        print(f"python -m llava.train.train: {error}", file=sys.stderr)
        return 2


def train_or_plan(groups: Groups, variant: Variant | None) -> int:
    """Train, or say that it is done, or with --dry_run what it needs; return the exit status."""
    _, data, settings = groups
    stories = read_stories(data, settings)
    made_from = {**stories.train.sha256(), **identity(str(groups[0].model_name_or_path))}
    checkpoint = find_start(groups, made_from)
    if checkpoint == "finished":
        logger.info("%s is trained already; --overwrite starts anew", settings.output_dir)
        return 0
    first = settings.process_index == 0
    if settings.dry_run:
        from llava.imagechain.plan import describe_plan

        print(describe_plan(groups, variant, stories) if first else "", end="")
        return 0
    with run_manifest(settings.output_dir, config=as_json(groups)) if first else contextlib.nullcontext() as run:
        if run:
            run.record(made_from=made_from)
        run_training(groups, variant, stories, checkpoint, run)
    leave_group()
    return 0


def run_training(
    groups: Groups, variant: Variant | None, stories: Stories, checkpoint: str | None, run: Run | None
) -> None:
    """Load, train, save; `run` is None on every process but the first."""
    from transformers import set_seed

    from llava.imagechain.callbacks import STOP
    from llava.imagechain.parts import prepare_model, trainable_table
    from llava.imagechain.reporting import prepare_reporting
    from llava.imagechain.start import load_model
    from llava.imagechain.trainer import make_trainer

    model_arguments, _, settings = groups
    if run:  # a request to stop that is older than the run
        (Path(str(settings.output_dir)) / STOP).unlink(missing_ok=True)
    set_seed(settings.seed)  # a plain language model gets its projector now
    loaded = load_model(groups)
    examples, evaluation = make_examples(groups, variant, stories, loaded)
    set_seed(settings.seed)  # here, so that the adapters start the same whether features had to be computed or not
    model = prepare_model(loaded.model, model_arguments)
    prepare_reporting(settings, resumed=checkpoint is not None)
    table = trainable_table(model)
    logger.info(format_table(table))
    trainer = make_trainer(
        model, settings, examples, evaluation,
        tokenizer=loaded.tokenizer, base_dir=base_folder(str(model_arguments.model_name_or_path)),
        rates={"projector": model_arguments.mm_projector_lr, "vision tower": model_arguments.mm_vision_tower_lr},
    )  # fmt: skip
    if run:
        run.record(
            trained=table, stories=examples.summary(), skipped=len(examples.skipped), resumed_from=checkpoint,
            story_ids={"rows": len(stories.train), "sha256": sha256_json(stories.train.ids)},
            accumulation=settings.gradient_accumulation_steps, epochs=settings.num_train_epochs,
        )  # fmt: skip
    if checkpoint:
        logger.info("going on from %s", checkpoint)
    started = time.time()
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < trainer.state.max_steps:
        logger.info("stopped at step %d; the same command goes on from there", trainer.state.global_step)
        raise KeyboardInterrupt
    trainer.save_model()
    trainer.save_state()
    first_step = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    facts = outcome(trainer, result.training_loss, first_step, time.time() - started)
    if run:
        run.record(**facts, label_tokens=sum(plan.num_labels for plan in examples.plans))
    logger.info(
        "%s is trained: %s (%d steps in %.0f s, mean loss %.4f, last %.4f)",
        variant.title if variant else "The model", settings.output_dir,
        *(facts[name] for name in ("steps", "train_seconds", "train_loss", "last_loss")),
    )  # fmt: skip


def outcome(trainer: Any, training_loss: float, first_step: int, seconds: float) -> dict[str, Any]:
    """Return what a finished training has come to; losses, time and pace are those since it last began.

    Args:
        trainer: The trainer.
        training_loss: The library's: the losses since then, divided by the number of all steps.
        first_step: Where it began: at 0, or at the step of a checkpoint.
        seconds: Time since then.
    """
    steps = trainer.state.global_step
    mean = training_loss * steps / max(steps - first_step, 1)
    last = next((row["loss"] for row in reversed(trainer.state.log_history) if "loss" in row), mean)
    pace = trainer.args.global_batch_size * (steps - first_step) / seconds
    return {
        "steps": steps, "train_loss": mean, "last_loss": last, "train_seconds": round(seconds, 2),
        "stories_per_second": round(pace, 2),
    }  # fmt: skip


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of what trains."""
    lines = [f"{'part':16}{'parameters':>16}{'trained':>16}"]
    lines += [f"{row['part']:16}{row['parameters']:>16,}{row['trained']:>16,}" for row in rows]
    return "what trains\n" + "\n".join(lines)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        end_process(train())
    except KeyboardInterrupt:
        print("python -m llava.train.train: interrupted; the same command goes on from here", file=sys.stderr)
        end_process(130)
