"""The seven variants of paper section 5.1 as one table: how a story becomes a conversation.

    python -m llava.imagechain.variants --show [--stories DIR] [--variant all] [--tokenizer DIR]

prints exactly what a story becomes under each variant, with the text that carries loss between « and ».
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, nearest, option
from llava.imagechain.files import write_text
from llava.imagechain.story import Scene, Story

# Paper section 3.3: Q_1 opens the conversation, the other questions carry it on.
FIRST_QUESTION = "What is happening in this image?"
NEXT_QUESTION = "What is happening in the next image?"

PartKind = Literal["question", "description", "image"]


@dataclasses.dataclass(frozen=True)
class Part:
    """One piece of a user turn; an image has no text, its scene stands in `Dialogue.scenes`."""

    kind: PartKind
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One user turn and the assistant's answer to it."""

    user: tuple[Part, ...]
    assistant: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A story as a conversation; `scenes` are in the order of the image parts."""

    story_id: str
    turns: tuple[Turn, ...]
    scenes: tuple[Scene, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        name: Key of the table, used in configs and file names.
        title: The paper's name.
        trained_as: The variant whose checkpoint is used; None means the base model.
        scene_turns: Each earlier scene is a turn of its own (question, image, answer) instead of parts of the last.
        earlier_parts: What an earlier scene adds to the single user turn, in order; ignored with `scene_turns`.
        demonstrations: Number of training stories shown first.
        demonstration_parts: What a demonstration shows of its story: its "last" scene, the "story" (as the variant
            itself would show it) or the "text" of the last scene alone.
        loss_on: Default of the `loss_on` setting.
        epochs: (context, training epochs) where they differ from the backbone's 3 (paper section 5.3).
    """

    name: str
    title: str
    trained_as: str | None
    scene_turns: bool = False
    earlier_parts: tuple[PartKind, ...] = ()
    demonstrations: int = 0
    demonstration_parts: Literal["last", "story", "text"] = "last"
    loss_on: str = "answers"
    epochs: tuple[tuple[str, int], ...] = ()

    def num_epochs(self, context: str) -> int:
        """Return the paper's number of training epochs for a context (section 5.3)."""
        return dict(self.epochs).get(context, 3)


TEXT_AND_IMAGES: tuple[PartKind, ...] = ("image", "description")

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(name="mllm", title="MLLM", trained_as=None, earlier_parts=TEXT_AND_IMAGES),
        Variant(name="mllm_icl", title="MLLM-ICL", trained_as=None, earlier_parts=TEXT_AND_IMAGES, demonstrations=3),
        Variant(name="mllm_ft", title="MLLM-FT", trained_as="mllm_ft", earlier_parts=TEXT_AND_IMAGES),
        Variant(name="visual_context", title="VisualContext", trained_as="visual_context", earlier_parts=("image",)),
        Variant(name="final_scene", title="FinalScene", trained_as="final_scene"),
        Variant(name="imagechain_noft", title="ImageChain-NoFT", trained_as=None, scene_turns=True, loss_on="all_text"),
        Variant(
            name="imagechain",
            title="ImageChain",
            trained_as="imagechain",
            scene_turns=True,
            loss_on="all_text",
            epochs=(("c2", 5), ("c3", 5), ("c4_7", 7)),
        ),
    )
}

# What `--variant-set key=value` may change: DESIGN's alternatives for the baselines the paper leaves open.
CHANGEABLE: dict[str, dict[str, Any]] = {
    "earlier_parts": {"image+description": TEXT_AND_IMAGES, "image": ("image",), "none": ()},
    "demonstration_parts": {"last": "last", "story": "story", "text": "text"},
    "demonstrations": {str(count): count for count in range(9)},
}


def get_variant(name: str, changes: Sequence[str] = ()) -> Variant:
    """Return a variant of the table, with `key=value` changes applied.

    Args:
        name: Key of `VARIANTS`.
        changes: Such as "earlier_parts=image"; the keys and values are those of `CHANGEABLE`.

    Raises:
        ConfigError: Unknown variant, key or value; the message names the nearest known one.
    """
    if name not in VARIANTS:
        raise ConfigError(f"variant: unknown value {name!r}{nearest(name, list(VARIANTS))}")
    replaced = {}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in CHANGEABLE:
            raise ConfigError(f"variant_set: unknown key {key!r}{nearest(key, list(CHANGEABLE))}")
        if value not in CHANGEABLE[key]:
            raise ConfigError(f"variant_set {key}: unknown value {value!r}{nearest(value, list(CHANGEABLE[key]))}")
        replaced[key] = CHANGEABLE[key][value]
    return dataclasses.replace(VARIANTS[name], **replaced)


def build_dialogue(story: Story, variant: Variant, demonstrations: Sequence[Story] = ()) -> Dialogue:
    """Turn a story into the conversation of a variant; the last answer is the description to be predicted.

    Args:
        story: A story of at least one scene.
        variant: A row of `VARIANTS`.
        demonstrations: Training stories shown first; how many is the caller's choice.

    Returns:
        The dialogue, with the scenes in the order of its image parts.
    """
    turns: list[Turn] = []
    scenes: list[Scene] = []
    for demonstration in demonstrations:
        whole = variant.demonstration_parts == "story"
        shown = demonstration if whole else demonstration.without_oldest(demonstration.num_scenes - 1)
        _add_story(shown, variant, turns, scenes, with_images=variant.demonstration_parts != "text")
    _add_story(story, variant, turns, scenes)
    return Dialogue(story_id=story.story_id, turns=tuple(turns), scenes=tuple(scenes))


def draw_demonstrations(story: Story, pool: Sequence[Story], variant: Variant, seed: int) -> list[Story]:
    """Draw the training stories that are shown before a story: of other videos, the same ones in every run.

    Raises:
        ValueError: The pool holds too few videos.
    """
    if not variant.demonstrations:
        return []
    drawn: dict[str, Story] = {}
    for other in random.Random(f"{seed}:{story.story_id}").sample(pool, len(pool)):
        if other.video_name != story.video_name:
            drawn.setdefault(other.video_name, other)
        if len(drawn) == variant.demonstrations:
            return list(drawn.values())
    raise ValueError(
        f"{variant.title} shows {variant.demonstrations} training stories of other videos; {len(drawn)} were found."
    )


def _add_story(
    story: Story, variant: Variant, turns: list[Turn], scenes: list[Scene], *, with_images: bool = True
) -> None:
    *earlier, last = story.scenes
    image = (Part("image"),) if with_images else ()
    parts: list[Part] = []
    for number, scene in enumerate(earlier):
        if variant.scene_turns:
            question = Part("question", NEXT_QUESTION if number else FIRST_QUESTION)
            turns.append(Turn((question, *image), scene.description))
        else:
            parts += [Part(kind, scene.description if kind == "description" else "") for kind in variant.earlier_parts]
        scenes += [scene] * (with_images and (variant.scene_turns or "image" in variant.earlier_parts))
    follows = bool(parts) or (variant.scene_turns and bool(earlier))
    parts += [Part("question", NEXT_QUESTION if follows else FIRST_QUESTION), *image]
    turns.append(Turn(tuple(parts), last.description))
    scenes += [last] * with_images


# --- command line -----------------------------------------------------------------------------------------------------


def example_stories() -> tuple[Story, list[Story]]:
    """Return a small made-up story of three scenes and three stories for demonstrations; the frames are empty."""

    def story(story_id: str, *texts: str) -> Story:
        scenes = tuple(
            Scene(description=text, start_s=4.0 * i, end_s=4.0 * i + 4, frame_times_s=(), frames=())
            for i, text in enumerate(texts)
        )
        return Story(story_id=story_id, video_name=f"{story_id}.mp4", background="", scenes=scenes)

    main = story(
        "example",
        "A boy in a yellow raincoat fills a bucket at the pump.",
        "The boy carries the bucket across the yard.",
        "He trips over the hose and the water spills.",
    )
    others = [
        story("demonstration-1", "A cat looks at a shelf.", "The cat jumps onto the shelf."),
        story("demonstration-2", "A woman paints the fence white."),
        story("demonstration-3", "Two girls build a tower.", "The tower leans.", "The tower falls over."),
    ]
    return main, others


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Settings of the command."""

    show: bool = option(False, help="print what a story becomes; without it the table of variants is listed")
    stories: Path | None = option(None, help="StoryFrames folder; without it a small built-in story is shown")
    split: str = option("train", help="split of the stories", choices=("train", "validation"))
    context: str | None = option(None, help="only stories of this context, such as c4_7")
    limit: int = option(1, help="number of stories to show", minimum=1)
    variant: list[str] = option(["all"], help="variants to show, or all", choices=("all", *VARIANTS))
    variant_set: list[str] = option([], help="changes to the variant, such as earlier_parts=image")
    tokenizer: Path | None = option(None, help="tokenizer folder; shows the final tokens instead of the text")
    imagechain_prompt: str = option("figure3", help="prompt format", choices=("figure3", "template"))
    conversation: str = option("vicuna_v1", help="conversation template of the model")
    loss_on: str | None = option(
        None, help="where the loss is; by default the variant's", choices=("all_text", "answers", "last_answer")
    )
    seed: int = option(0, help="seed of the demonstrations")
    output: Path | None = option(None, help="write to this file instead of the terminal")


def show(config: ShowConfig) -> str:
    """Return the text that the command prints."""
    from llava.imagechain.prompts import describe_dialogue

    tokenizer = None
    if config.tokenizer:
        from llava.model.builder import load_tokenizer

        tokenizer = load_tokenizer(str(config.tokenizer))
    stories: Sequence[Story]
    if config.stories:
        from llava.imagechain.data import text_stories
        from llava.imagechain.story import load_stories

        pool = text_stories(load_stories(config.stories, "train"))
        stories = text_stories(load_stories(config.stories, config.split, config.context)[: config.limit])
    else:
        story, pool = example_stories()
        stories = [story]
    blocks = []
    for name in VARIANTS if "all" in config.variant else config.variant:
        variant = get_variant(name, config.variant_set)
        loss_on = (config.loss_on or variant.loss_on) if variant.trained_as else None
        for story in stories:
            dialogue = build_dialogue(story, variant, draw_demonstrations(story, pool, variant, config.seed))
            body = describe_dialogue(dialogue, config.imagechain_prompt, tokenizer, config.conversation, loss_on)
            trained = f"trained as {variant.trained_as}, loss on {loss_on}" if loss_on else "not trained"
            blocks.append(f"=== {variant.title} ({name}): {trained}; story {story.story_id}\n{body}\n")
    return "\n".join(blocks)


def write(config: ShowConfig) -> None:
    """Print what the settings ask for, or write it to their file."""
    text = show(config) if config.show else _table()
    if config.output:
        write_text(config.output, text)
    else:
        print(text, end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        ShowConfig, write, argv, program="python -m llava.imagechain.variants",
        description="Show what a story becomes, per variant.",
    )  # fmt: skip


def _table() -> str:
    rows = [f"{variant.name:16} {variant.title:16} {variant.trained_as or '-'}" for variant in VARIANTS.values()]
    return "\n".join([f"{'variant':16} {'paper':16} checkpoint", *rows, "Add --show to see the conversations.\n"])


if __name__ == "__main__":
    sys.exit(main())
