"""How a sequence of images becomes a conversation: as a story whose scenes are groups of frames, without texts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.mementos.data import Sample
from llava.imagechain.story import Scene, Story, StoryFrames
from llava.imagechain.variants import Dialogue, Part, Variant

FRAMES = ("groups", "average", "composite")
EARLIER_TEXT = ("own", "empty")  # not "none", which on a command line means: not given
ANSWERS = ("joined", "last")
# The question that public loaders of the benchmark ask.
BENCHMARK_QUESTION = (
    "Write a description for the given image sequence in a single paragraph, what is happening in this episode?"
)
QUESTIONS = ("own", "benchmark")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Showing:
    """How samples are shown to a model; docs/mementos.md gives the reasons for the defaults.

    Attributes:
        frames: "groups" (at most `max_scenes` groups of frames in order, one scene each), "average" (all frames one
            scene) or "composite" (the composite image one scene).
        max_scenes: Most groups.
        earlier_text: What stands for the descriptions that the benchmark does not have: the model's "own" answers,
            scene after scene, or "empty".
        question: The last question: the variant's "own", or the "benchmark"'s.
        answer: With own earlier text, all answers "joined" or the "last" one.
    """

    frames: str
    max_scenes: int
    earlier_text: str
    question: str
    answer: str

    def scenes_of(self, sample: Sample) -> tuple[tuple[Path, ...], ...]:
        """Return the picture files of each scene.

        Raises:
            ValueError: They are not there, or not clear.
        """
        pictures = sample.pictures(self.frames == "composite")
        return group_evenly(pictures, self.max_scenes if self.frames == "groups" else 1)

    def final_question(self) -> str | None:
        """Return what replaces the variant's last question, if anything does."""
        return BENCHMARK_QUESTION if self.question == "benchmark" else None

    def text(self, answers: Sequence[str]) -> str:
        """Return the prediction that is made of the answers."""
        if self.answer == "last":
            return answers[-1]
        ended = (answer if answer.endswith((".", "!", "?")) else f"{answer}." for answer in answers if answer)
        return " ".join(ended)


def settle(
    variant: Variant,
    max_scenes: int = 6,
    frames: str | None = None,
    earlier_text: str | None = None,
    question: str | None = None,
    answer: str | None = None,
) -> Showing:
    """Fill in what the user left open.

    A variant with a turn for each scene describes scene after scene with its own questions, and all its answers are
    the description (the paper's Figure 6 shows such a text). One with a single turn is asked the benchmark's question
    about the whole sequence; the variant with a single image gets the whole sequence averaged into it.
    """
    several = variant.scene_turns or bool(variant.earlier_parts)
    earlier_text = earlier_text or ("own" if variant.scene_turns else "empty")
    question = question or ("own" if earlier_text == "own" else "benchmark")
    together = earlier_text == "own" and question == "own"
    return Showing(
        frames=frames or ("groups" if several else "average"),
        max_scenes=max_scenes,
        earlier_text=earlier_text,
        question=question,
        answer=answer or ("joined" if together else "last"),
    )


def group_evenly(items: Sequence[Path], most: int) -> tuple[tuple[Path, ...], ...]:
    """Cut a list into at most `most` consecutive groups whose sizes differ by at most one.

    Raises:
        ValueError: Nothing to cut.
    """
    if not items or most < 1:
        raise ValueError(f"at least one frame and one group were wanted, found {len(items)} and {most}")
    count = min(most, len(items))
    cuts = [number * len(items) // count for number in range(count + 1)]
    return tuple(tuple(items[start:stop]) for start, stop in itertools.pairwise(cuts))


def ask(dialogue: Dialogue, question: str | None) -> Dialogue:
    """Replace the last question of a dialogue."""
    if question is None:
        return dialogue
    *turns, last = dialogue.turns
    user = tuple(Part("question", question) if part.kind == "question" else part for part in last.user)
    return dataclasses.replace(dialogue, turns=(*turns, dataclasses.replace(last, user=user)))


@dataclasses.dataclass(kw_only=True)
class Described:
    """A sample on its way: the pictures of its scenes and the model's answers so far."""

    sample: Sample
    scenes: tuple[tuple[Path, ...], ...]
    answers: list[str] = dataclasses.field(default_factory=list)
    dropped_scenes: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    problem: str | None = None


class Sequences(StoryFrames):
    """Samples with their first scenes as stories; the pictures are read when a story is asked for.

    Args:
        described: The samples with the answers so far, which are the texts of the scenes.
        counts: Number of scenes that each shows.
    """

    def __init__(self, described: Sequence[Described], counts: Sequence[int]) -> None:
        # Not the base class's: there is no table behind it.
        self.described = list(described)
        self.num_scenes = list(counts)
        self.ids = [one.sample.sample_id for one in described]
        self.table: Any = {"video_name": self.ids}

    def __getitem__(self, index: Any) -> Any:
        one = self.described[index]
        texts = self.texts()[index]
        scenes = tuple(
            Scene(
                description=text, start_s=0.0, end_s=0.0, frame_times_s=(),
                frames=tuple(path.read_bytes() for path in paths),
            )
            for text, paths in zip(texts, one.scenes, strict=False)
        )  # fmt: skip
        return Story(story_id=self.ids[index], video_name=self.ids[index], background="", scenes=scenes)

    def texts(self) -> list[list[str]]:
        """Return a text for each scene that is shown: the model's own, where there is one."""
        return [
            [one.answers[number] if number < len(one.answers) else "" for number in range(count)]
            for one, count in zip(self.described, self.num_scenes, strict=True)
        ]
