"""What a run trains and evaluates on: its stories or samples, and the examples that are made of them."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.arguments import DataArguments, Groups, TrainArguments
from llava.imagechain.data import ExampleSettings, StoryExamples, unreadable_stories
from llava.imagechain.decisions import decision, max_frames_per_scene
from llava.imagechain.files import write_jsonl
from llava.imagechain.llava_json import LlavaJsonExamples, json_settings
from llava.imagechain.rope import LIMIT, scale_positions
from llava.imagechain.samples import Samples, read_samples
from llava.imagechain.start import vision_config
from llava.imagechain.story import StoryFrames, load_stories
from llava.imagechain.variants import Variant

logger = logging.getLogger("llava.train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stories:
    """What is trained and evaluated on."""

    train: Any  # StoryFrames, or Samples of LLaVA's JSON
    evaluation: dict[str, StoryFrames]


def read_stories(data: DataArguments, settings: TrainArguments) -> Stories:
    """Read the training stories of the context, and the validation stories by number of scenes."""
    if data.data_path:
        samples = read_samples(data.data_path, settings.seed)[: data.limit]
        if not samples:
            raise ValueError(f"data_path: {data.data_path} holds no samples; one at least was wanted")
        return Stories(train=Samples(samples), evaluation={})
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
    kind = "samples" if data.data_path else "stories"
    logger.info(
        "%d %s to train on, %s to evaluate on; %d skipped, shortened: %s",
        len(examples), kind, sum(map(len, all_examples[1:])) or "none", len(skipped), shortened or "none",
    )  # fmt: skip
    total = sum(len(made.stories) for made in all_examples)
    if not len(examples) or len(skipped) > data.max_skipped * total:
        raise ValueError(
            f"{len(skipped)} of {total} {kind} had to be skipped, {len(examples)} are left to train on "
            f"(first reason: {skipped[0]['reason'] if skipped else 'none'}). See skipped.jsonl in "
            f"{settings.output_dir}; --max_skipped (now {data.max_skipped}) sets the share that is allowed."
        )
