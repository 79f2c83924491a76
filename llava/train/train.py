"""Train a variant on StoryFrames: LoRA in the language model and the projector, vision tower frozen (section 5.3).

    python -m llava.train.train --config configs/train/base.yaml configs/train/imagechain.yaml configs/train/c2_7.yaml \
        --model_name_or_path BASE --stories DIR --output_dir OUT

Later files win over earlier ones, flags over files. A rerun of the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the seconds of these imports: no traceback out of them

from llava.imagechain.arguments import (
    DataArguments,
    Groups,
    TrainArguments,
    as_json,
    changed_on_resume,
    parse_arguments,
)
from llava.imagechain.config import ConfigError
from llava.imagechain.data import ExampleSettings, StoryExamples, unreadable_stories
from llava.imagechain.decisions import asked_of, decision, max_frames_per_scene, settle_decisions
from llava.imagechain.distributed import end_process, leave_group
from llava.imagechain.files import read_json, sha256_json, sha256_model, write_jsonl
from llava.imagechain.locks import only_one
from llava.imagechain.manifest import Run, run_manifest
from llava.imagechain.rope import LIMIT, scale_positions
from llava.imagechain.start import is_language_model, set_layout, tokens_per_scene, vision_config
from llava.imagechain.story import StoryFrames, load_stories
from llava.imagechain.variants import Variant, get_variant

logger = logging.getLogger("llava.train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stories:
    """What is trained and evaluated on."""

    train: Any  # StoryFrames, or llava_json.Samples
    evaluation: dict[str, StoryFrames]


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
    made_from = {
        "stories_sha256": sha256_json([stories.train.ids, stories.train.texts()]),
        "model_sha256": sha256_model(str(groups[0].model_name_or_path)),
    }
    checkpoint = find_start(groups, made_from)
    if checkpoint == "finished":
        logger.info("%s is trained already; --overwrite starts anew", settings.output_dir)
        return 0
    if settings.dry_run:
        return show_plan(groups, variant, stories)
    first = settings.process_index == 0
    with run_manifest(settings.output_dir, config=as_json(groups)) if first else contextlib.nullcontext() as run:
        if run:
            run.record(made_from=made_from)
        run_training(groups, variant, stories, checkpoint, run)
    leave_group()
    return 0


def read_stories(data: DataArguments, settings: TrainArguments) -> Stories:
    """Read the training stories of the context, and the validation stories by number of scenes."""
    if data.data_path:
        from llava.imagechain.llava_json import Samples, read_samples

        return Stories(train=Samples(read_samples(data.data_path, settings.seed)[: data.limit]), evaluation={})
    chosen = load_stories(str(data.stories), "train", data.context)
    if data.limit:
        chosen = chosen[: data.limit]
    evaluation: dict[str, StoryFrames] = {}
    if str(getattr(settings.eval_strategy, "value", settings.eval_strategy)) != "no":
        validation = load_stories(str(data.stories), "validation", data.context)
        for count in sorted(set(validation.num_scenes)):
            rows = [i for i, number in enumerate(validation.num_scenes) if number == count]
            evaluation[f"c{count}"] = validation.select(rows[: data.eval_limit])
    return Stories(train=chosen, evaluation=evaluation)


def find_start(groups: Groups, made_from: dict[str, str]) -> str | None:
    """Return the checkpoint to go on from, "finished", or None to start at the beginning.

    Raises:
        ConfigError: The output folder holds a run with other settings, on other stories or from another base model.
    """
    from llava.imagechain.checkpoint import is_adapter, last_checkpoint

    settings = groups[2]
    folder = Path(str(settings.output_dir))
    if settings.overwrite and not settings.dry_run and settings.process_index == 0:
        for old in [*folder.glob("checkpoint-*"), folder / "run.json"]:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    if not (settings.overwrite or settings.resume) and (kept := next(folder.glob("checkpoint-*"), None)):
        raise ConfigError(
            f"{folder} holds {kept.name} of an earlier run, which the next resumption would take for this run's. "
            "--overwrite deletes it; or give another --output_dir."
        )
    if settings.overwrite or not settings.resume or not (folder / "run.json").is_file():
        return None
    before = read_json(folder / "run.json")
    checkpoint = last_checkpoint(folder)
    finished = before.get("status") == "success" and (is_adapter(folder) or (folder / "config.json").is_file())
    if not (finished or checkpoint):
        return None
    changes = changed_on_resume(before.get("config", {}), as_json(groups))
    earlier = before.get("made_from", made_from)
    what = {"stories_sha256": "the stories have changed", "model_sha256": "the base model has changed"}
    if changes := [*changes, *(text for key, text in what.items() if earlier.get(key) != made_from[key])]:
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changes)}). Use the same settings to go on, another "
            "--output_dir, or --overwrite to start anew."
        )
    return "finished" if finished else str(checkpoint)


def run_training(
    groups: Groups, variant: Variant | None, stories: Stories, checkpoint: str | None, run: Run | None
) -> None:
    """Load, train, save; `run` is None on every process but the first."""
    from transformers import set_seed

    from llava.imagechain.parts import prepare_model, trainable_table
    from llava.imagechain.reporting import prepare_reporting
    from llava.imagechain.start import load_model
    from llava.imagechain.trainer import make_trainer

    model_arguments, _, settings = groups
    loaded = load_model(groups)
    examples, evaluation = make_examples(groups, variant, stories, loaded)
    set_seed(settings.seed)  # here, so that the adapters start the same whether features had to be computed or not
    model = prepare_model(loaded.model, model_arguments)
    prepare_reporting(settings, resumed=checkpoint is not None)
    table = trainable_table(model)
    logger.info(format_table(table))
    trainer = make_trainer(
        model, settings, examples, evaluation,
        tokenizer=loaded.tokenizer, base_dir=str(model_arguments.model_name_or_path),
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
    if run:
        seconds = time.time() - started
        run.record(
            steps=trainer.state.global_step, train_loss=result.training_loss, train_seconds=round(seconds, 2),
            stories_per_second=round(settings.global_batch_size * trainer.state.global_step / seconds, 2),
            label_tokens=sum(plan.num_labels for plan in examples.plans),
        )  # fmt: skip
    logger.info("%s is trained: %s", variant.title if variant else "The model", settings.output_dir)


def make_examples(
    groups: Groups, variant: Variant | None, stories: Stories, loaded: Any
) -> tuple[Any, dict[str, StoryExamples]]:
    """Make the training and validation examples, computing the feature cache when there is to be one."""
    from llava.imagechain.features import cached_features

    _, data, settings = groups
    if variant is None:
        examples = json_examples(groups, stories, loaded.tokenizer, loaded.image_processor, loaded.model.config)
        if settings.process_index == 0:
            report_skipped([examples], settings, data)
        return examples, {}
    tower = loaded.model.get_vision_tower()
    make_room(groups, variant, stories, loaded.tokenizer, loaded.model.config, int(tower.num_patches), loaded.model)
    made = example_settings(groups, variant, loaded.model.config, int(tower.num_patches))
    collections = [stories.train, *stories.evaluation.values()]
    if data.feature_cache:
        cached = cached_features(
            data.feature_cache, collections, tower, loaded.image_processor,
            scene_aspect=made.scene_aspect, dtype=data.feature_dtype, num_workers=settings.dataloader_num_workers,
        )  # fmt: skip
        options: list[dict[str, Any]] = [
            {"features": [found, found], "unreadable": found.unreadable} for found in cached
        ]
    else:
        options = [{"unreadable": unreadable_stories(collection)} for collection in collections]
    all_examples = [
        StoryExamples(
            collection, variant, loaded.tokenizer, loaded.image_processor, made,
            demonstrations=stories.train if variant.demonstrations else None, **option,
        )
        for collection, option in zip(collections, options, strict=True)
    ]  # fmt: skip
    if settings.process_index == 0:
        report_skipped(all_examples, settings, data)
    evaluation = dict(zip(stories.evaluation, all_examples[1:], strict=True))
    return all_examples[0], {name: examples for name, examples in evaluation.items() if len(examples)}


def json_examples(groups: Groups, stories: Stories, tokenizer: Any, image_processor: Any, config: Any) -> Any:
    """Make the examples of a run on LLaVA's JSON."""
    from llava.imagechain.llava_json import LlavaJsonExamples, json_settings

    vision = vision_config(config, str(groups[0].model_name_or_path))
    return LlavaJsonExamples(stories.train, tokenizer, image_processor, json_settings(groups, config, vision))


def example_settings(groups: Groups, variant: Variant, config: Any, tokens_per_scene: int) -> ExampleSettings:
    """Return how stories become examples, from the run's settings and the model's config."""
    model_arguments, data, settings = groups
    names = ("tokenizer_model_max_length", "max_position_embeddings")
    limits = [int(value) for name in names if (value := getattr(config, name, None))] or [settings.model_max_length]
    scaled = getattr(config, LIMIT, None) if data.overlength == "rope_scaling" else None
    if not scaled and min(limits) < settings.model_max_length:
        logger.warning(
            "the model takes %d positions, fewer than model_max_length %d", min(limits), settings.model_max_length
        )
    return ExampleSettings(
        tokens_per_scene=tokens_per_scene,
        prompt_format=decision(config, "imagechain_prompt"),
        scene_aspect=decision(config, "imagechain_scene_aspect"),
        max_frames_per_scene=max_frames_per_scene(config),
        conversation_name=model_arguments.version,
        loss_on=data.loss_on or variant.loss_on,
        max_length=scaled or min(settings.model_max_length, *limits),
        overlength=data.overlength,
        seed=settings.seed,
    )


def make_room(
    groups: Groups, variant: Variant, stories: Stories, tokenizer: Any, config: Any, visual: int, model: Any = None
) -> None:
    """Scale the model's positions to the longest story that is trained or evaluated on, when the run asks for it."""
    if groups[1].overlength != "rope_scaling":
        return
    made = dataclasses.replace(example_settings(groups, variant, config, visual), max_length=sys.maxsize)
    shown = stories.train if variant.demonstrations else None
    collections = (stories.train, *stories.evaluation.values())
    lengths = [
        StoryExamples(each, variant, tokenizer, None, made, demonstrations=shown).lengths for each in collections
    ]
    longest = max((length for each in lengths for length in each), default=0)
    factor = scale_positions(config, longest, model)
    logger.info("longest story: %d positions; the model's positions are scaled by %g", longest, factor)


def report_skipped(all_examples: Sequence[StoryExamples], settings: TrainArguments, data: DataArguments) -> None:
    """Write skipped.jsonl and say what was left out.

    Raises:
        ValueError: More stories had to be skipped than allowed, or none is left.
    """
    examples = all_examples[0]
    skipped = [row for made in all_examples for row in made.skipped]
    write_jsonl(Path(str(settings.output_dir)) / "skipped.jsonl", skipped)
    shortened = {name: entry["shortened"] for name, entry in examples.summary().items() if entry["shortened"]}
    logger.info(
        "%d stories to train on, %s to evaluate on; %d skipped, shortened: %s",
        len(examples), sum(map(len, all_examples[1:])) or "none", len(skipped), shortened or "none",
    )  # fmt: skip
    total = sum(len(made.stories) for made in all_examples)
    if not len(examples) or len(skipped) > data.max_skipped * total:
        raise ValueError(
            f"{len(skipped)} of {total} stories had to be skipped, {len(examples)} are left to train on "
            f"(first reason: {skipped[0]['reason'] if skipped else 'none'}). See skipped.jsonl in "
            f"{settings.output_dir}; --max_skipped (now {data.max_skipped}) sets the share that is allowed."
        )


def show_plan(groups: Groups, variant: Variant | None, stories: Stories) -> int:
    """Print what a run would do, from the texts and configs alone."""
    from llava.model.builder import load_tokenizer

    model_arguments, _, settings = groups
    folder = str(model_arguments.model_name_or_path)
    config = SimpleNamespace(**read_json(Path(folder) / "config.json"))
    settle_decisions(config, asked_of(model_arguments), trained=False)
    if model_arguments.vision_tower and is_language_model(folder):
        config.mm_vision_tower = model_arguments.vision_tower
    set_layout(config, model_arguments, groups[1])
    made: Any
    if variant is None:
        examples: Any = json_examples(groups, stories, load_tokenizer(folder), None, config)
        made = examples.settings
    else:
        tokenizer, visual = load_tokenizer(folder), tokens_per_scene(config, folder)
        make_room(groups, variant, stories, tokenizer, config, visual)
        made = example_settings(groups, variant, config, visual)
        examples = StoryExamples(
            stories.train, variant, tokenizer, None, made,
            demonstrations=stories.train if variant.demonstrations else None,
        )  # fmt: skip
    count = len(examples)
    steps = math.ceil(math.ceil(count / settings.global_batch_size) * settings.num_train_epochs)
    steps = settings.max_steps if settings.max_steps > 0 else steps
    shortened = sum(entry["shortened"] for entry in examples.summary().values())
    what = f"{variant.title} on {groups[1].context}" if variant else f"{groups[1].data_path}"
    print(
        f"{what}: {count} stories, {settings.num_train_epochs:g} epochs, {steps} steps "
        f"of {settings.global_batch_size} ({settings.world_size} devices x {settings.per_device_train_batch_size} x "
        f"{settings.gradient_accumulation_steps}), loss on {made.loss_on}\n"
        f"positions: mean {sum(examples.lengths) / max(count, 1):.0f}, most {max(examples.lengths, default=0)} of "
        f"{made.max_length}; {shortened} stories shortened, {len(examples.skipped)} skipped\n"
        f"validation: { {name: len(chosen) for name, chosen in stories.evaluation.items()} or 'none' }\n"
        f"model: {folder}\noutput: {settings.output_dir}"
    )
    if isinstance(examples, StoryExamples):
        print(expected(groups, folder, examples))
    return 0


def expected(groups: Groups, folder: str, examples: StoryExamples) -> str:
    """Return parameters, memory and time that a run needs, from the model's config alone."""
    from llava.imagechain.estimate import TrainPlan, estimate
    from llava.imagechain.parts import trained_parts

    model_arguments, data, settings = groups
    parts = trained_parts(model_arguments)
    zero: dict[str, Any] = read_json(settings.deepspeed).get("zero_optimization", {}) if settings.deepspeed else {}
    plan = TrainPlan(
        lora_rank=model_arguments.lora_r if model_arguments.lora_enable else None,
        language_model="language model" in parts,
        projector="projector" in parts,
        tower="vision tower" in parts,
        num_gpus=settings.world_size,
        zero_stage=int(zero.get("stage", 0)),
        micro_batch=settings.per_device_train_batch_size,
        global_batch=settings.global_batch_size,
        epochs=settings.num_train_epochs,
        max_steps=settings.max_steps if settings.max_steps > 0 else None,
        checkpointing=settings.gradient_checkpointing,
        label_tokens=max((plan.num_labels for plan in examples.plans), default=0),
        tower_runs=data.feature_cache is None,
        bits=model_arguments.bits,
    )
    return estimate(folder, examples.lengths, plan, frames=examples.num_frames(), tflops=settings.tflops).describe()


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
