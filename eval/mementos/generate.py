"""Sequences through a model: the variant's conversation, scene after scene where the model reads its own answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.mementos.sequences import Described, Sequences, Showing, ask
from eval.predict.generation import PromptExamples, batches_by_length, generate
from llava.imagechain.checkpoint import LoadedModel
from llava.imagechain.data import ExampleSettings, Plan
from llava.imagechain.decisions import decision, max_frames_per_scene
from llava.imagechain.story import Story
from llava.imagechain.variants import Dialogue, Variant


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompting:
    """A model, and how it is asked."""

    loaded: LoadedModel
    variant: Variant
    showing: Showing
    conversation: str
    max_length: int | None
    max_new_tokens: int
    batch_size: int
    num_workers: int

    def settings(self) -> ExampleSettings:
        """Return how sequences become prompts; a composite is padded, never cropped: its edges hold frames."""
        model = self.loaded.model
        limits = (
            self.max_length,
            self.loaded.context_length,
            getattr(model.config, "tokenizer_model_max_length", None),
        )
        aspect = decision(model.config, "imagechain_scene_aspect")
        return ExampleSettings(
            tokens_per_scene=model.get_vision_tower().num_patches,
            prompt_format=decision(model.config, "imagechain_prompt"),
            conversation_name=self.conversation,
            scene_aspect="pad" if self.showing.frames == "composite" else aspect,
            max_frames_per_scene=max_frames_per_scene(model.config),
            max_length=min(limit for limit in limits if limit),
            for_generation=True,
            reserve_tokens=self.max_new_tokens,
        )


class SequenceExamples(PromptExamples):
    """Sequences as prompts.

    Args:
        *args: As for `PromptExamples`.
        questions: What replaces the last question, by sample id; None keeps the variant's.
        **kwargs: As for `PromptExamples`.
    """

    def __init__(self, *args: Any, questions: Mapping[str, str | None], **kwargs: Any) -> None:
        self._questions = questions
        super().__init__(*args, edit=_unchanged, **kwargs)

    def _encode(self, dialogue: Dialogue, story: Story) -> Plan:
        return super()._encode(ask(dialogue, self._questions[story.story_id]), story)


def _unchanged(story: Story) -> Story:
    return story


def describe(prompting: Prompting, block: Sequence[Described]) -> Iterator[Described]:
    """Describe some samples; with own earlier text scene after scene, all samples of the block side by side.

    Yields:
        Each sample as soon as its last answer (or a problem) is there.
    """
    chain = prompting.showing.earlier_text == "own"
    for number in range(1, max(len(one.scenes) for one in block) + 1 if chain else 2):
        active = [one for one in block if not one.problem and number <= len(one.scenes)]
        counts = [number if chain else len(one.scenes) for one in active]
        for one in _answer(prompting, active, counts):
            if one.problem or not chain or number == len(one.scenes):
                yield one


def _answer(prompting: Prompting, active: Sequence[Described], counts: Sequence[int]) -> Iterator[Described]:
    """Have one more answer (or a problem) added to each sample, whose first scenes are shown."""
    final = prompting.showing.final_question()
    asked = {
        one.sample.sample_id: final if count == len(one.scenes) else None
        for one, count in zip(active, counts, strict=True)
    }
    by_id = {one.sample.sample_id: one for one in active}
    loaded = prompting.loaded
    examples = SequenceExamples(
        Sequences(active, counts), prompting.variant, loaded.tokenizer, loaded.image_processor, prompting.settings(),
        questions=asked,
    )  # fmt: skip
    for row in examples.skipped:
        by_id[row["id"]].problem = row["reason"]
        yield by_id[row["id"]]
    batches = batches_by_length(examples.plans, range(len(examples.plans)), prompting.batch_size)
    for batch in generate(
        loaded.model, loaded.tokenizer, examples, batches,
        max_new_tokens=prompting.max_new_tokens, num_workers=prompting.num_workers,
    ):  # fmt: skip
        for result in batch:
            one = by_id[result.plan.story_id]
            one.problem = result.problem
            one.answers.append(result.text)
            one.prompt_tokens += result.plan.length
            one.new_tokens += result.new_tokens
            one.dropped_scenes = max(one.dropped_scenes, result.plan.num_dropped_scenes)
            yield one
