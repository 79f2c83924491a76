"""What a training would do, from texts and configs alone (`--dry_run`); no weight is read."""

from __future__ import annotations

import math
from typing import Any

import transformers

from llava.imagechain.arguments import Groups
from llava.imagechain.data import StoryExamples
from llava.imagechain.estimate import TrainPlan, estimate
from llava.imagechain.examples import Stories, example_settings, json_examples, make_room
from llava.imagechain.files import read_json
from llava.imagechain.parts import trained_parts
from llava.imagechain.start import planned_config, tokens_per_scene
from llava.imagechain.variants import Variant
from llava.model.builder import load_tokenizer


def describe_plan(groups: Groups, variant: Variant | None, stories: Stories) -> str:
    """Return what a run would do, as lines of text."""
    transformers.logging.set_verbosity_error()  # of a config that it does not know by itself
    model_arguments, data, settings = groups
    folder = str(model_arguments.model_name_or_path)
    config, tokenizer = planned_config(model_arguments, data), load_tokenizer(folder)
    if variant is None:
        examples: Any = json_examples(groups, stories, tokenizer, None, config)
    else:
        visual = tokens_per_scene(config, folder)
        make_room(groups, variant, stories, tokenizer, config, visual)
        examples = StoryExamples(
            stories.train, variant, tokenizer, None, example_settings(groups, variant, config, visual),
            demonstrations=stories.train if variant.demonstrations else None,
        )  # fmt: skip
    count, made = len(examples), examples.settings
    steps = math.ceil(math.ceil(count / settings.global_batch_size) * settings.num_train_epochs)
    steps = settings.max_steps if settings.max_steps > 0 else steps
    shortened = sum(entry["shortened"] for entry in examples.summary().values())
    kind = "stories" if variant else "samples"
    evaluation = {name: len(chosen) for name, chosen in stories.evaluation.items()}
    return "\n".join((
        f"{f'{variant.title} on {data.context}' if variant else data.data_path}: {count} {kind}, "
        f"{settings.num_train_epochs:g} epochs, {steps} steps of {settings.global_batch_size} "
        f"({settings.world_size} devices x {settings.per_device_train_batch_size} x "
        f"{settings.gradient_accumulation_steps}), loss on {made.loss_on}",
        f"positions: mean {sum(examples.lengths) / max(count, 1):.0f}, most {max(examples.lengths, default=0)} of "
        f"{made.max_length}; {shortened} {kind} shortened, {len(examples.skipped)} skipped",
        f"validation: {evaluation or 'none'}",
        f"model: {folder}",
        f"output: {settings.output_dir}",
        needs(groups, config, examples),
        "",
    ))  # fmt: skip


def needs(groups: Groups, config: Any, examples: Any) -> str:
    """Return the parameters, memory and time that a run needs, as lines of text.

    Args:
        groups: The run's settings.
        config: The model's config, or its folder.
        examples: `StoryExamples` or `LlavaJsonExamples`.
    """
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
        offload=tuple(part for part in ("optimizer", "param") if _is_offloaded(zero.get(f"offload_{part}"))),
        micro_batch=settings.per_device_train_batch_size,
        global_batch=settings.global_batch_size,
        epochs=settings.num_train_epochs,
        max_steps=settings.max_steps if settings.max_steps > 0 else None,
        checkpointing=settings.gradient_checkpointing,
        label_tokens=max((plan.num_labels for plan in examples.plans), default=0),
        tower_runs=data.feature_cache is None,
        bits=model_arguments.bits,
    )
    return estimate(config, examples.lengths, plan, frames=examples.num_frames(), tflops=settings.tflops).describe()


def _is_offloaded(place: dict[str, Any] | None) -> bool:
    """Say whether DeepSpeed keeps a part outside the GPU; a place named "none" is the GPU."""
    return (place or {}).get("device", "none") != "none"
