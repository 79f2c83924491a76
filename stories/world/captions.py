"""Single frames of the story world with their captions: what the base model learns from.

The frames come from scenes of their own, planned with seeds that no video uses; there is no story in them.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.judge.world.grammar import ACTIONS, CLOTHES, COLOURS, OBJECTS, PLACES, Meaning, describe
from llava.imagechain.labels import IGNORE_INDEX
from llava.imagechain.prompts import Span, encode, render
from llava.imagechain.variants import FIRST_QUESTION, NEXT_QUESTION, Dialogue, Part, Turn
from stories.world.draw import draw_frame
from stories.world.plan import plan_figures
from stories.world.tokenizer import actor_question

SLOTS: dict[str, tuple[str, ...]] = {
    "person": tuple(CLOTHES),
    "colour": COLOURS,
    "action": tuple(ACTIONS),
    "object": tuple(OBJECTS),
    "place": tuple(PLACES),
}
FRAME_SIZE = 128  # drawn at the videos' default size, then brought to the tower's


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames with what they show.

    Attributes:
        pixels: (n, 3, H, W) uint8.
        meanings: The two people of each frame, left one first.
    """

    pixels: torch.Tensor
    meanings: list[tuple[Meaning, Meaning]]

    def targets(self) -> torch.Tensor:
        """Return the index of each slot's value, (n, 2 sides, 5 slots)."""
        return torch.tensor(
            [
                [[values.index(getattr(m, slot)) for slot, values in SLOTS.items()] for m in pair]
                for pair in self.meanings
            ]
        )


def draw_frames(count: int, image_size: int, seed: str) -> Frames:
    """Draw frames of unrelated scenes.

    Args:
        count: Number of frames.
        image_size: Side of the vision tower's input, pixels.
        seed: Source of chance; the same seed gives the same frames.
    """
    from PIL import Image

    rng = random.Random(seed)
    pixels = np.empty((count, 3, image_size, image_size), np.uint8)
    meanings = []
    for number in range(count):
        actors = tuple(zip(rng.sample(sorted(CLOTHES), 2), rng.sample(COLOURS, 2), strict=True))
        figures = sorted(plan_figures(actors, rng), key=lambda figure: figure.x)
        image = draw_frame(figures[0].meaning.place, figures, rng.random(), FRAME_SIZE)
        if image_size != FRAME_SIZE:
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        pixels[number] = np.asarray(image).transpose(2, 0, 1)
        meanings.append((figures[0].meaning, figures[1].meaning))
    return Frames(pixels=torch.from_numpy(pixels), meanings=meanings)


class CaptionWriter:
    """Turns a frame's meanings into a dialogue's token ids: a question about the picture and its answer, then one more.

    The first question asks what is happening or, half of the time, what one of the people is doing; the second asks
    about the other person. Prompts are the two formats the variants know, so that none of them is new to the base.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._prompt = functools.cache(self._encode_prompt)
        self._words = functools.lru_cache(maxsize=50_000)(self._encode_answer)

    def write(self, meanings: tuple[Meaning, Meaning], rng: random.Random) -> tuple[list[int], list[int]]:
        """Return input ids with one image mark, and labels on the answers."""
        first, second = meanings if rng.random() < 0.5 else meanings[::-1]
        question = actor_question(*first.actor)
        if rng.random() < 0.5:
            question = FIRST_QUESTION if rng.random() < 0.6 else NEXT_QUESTION
        style = "figure3" if rng.random() < 0.6 else "template"
        pieces = self._prompt(style, question, actor_question(*second.actor))
        ids: list[int] = []
        labels: list[int] = []
        answers = iter((first, second))
        for piece in pieces:
            ids += piece
            labels += [IGNORE_INDEX] * len(piece)
            if meaning := next(answers, None):
                answer = self._words(describe(meaning, rng, [meaning] if rng.random() < 0.25 else []))
                ids += answer
                labels += answer
        return ids, labels

    def question(self, question: str) -> list[int]:
        """Return the ids of a prompt that asks one question, ending where the model writes on."""
        return list(self._prompt("figure3", question, None)[0])

    def _encode_prompt(self, style: str, question: str, second: str | None) -> list[list[int]]:
        """Return the ids before the first answer, between the answers, and after the last (nothing)."""
        turns = [Turn((Part("question", question), Part("image")), "x")]
        turns += [Turn((Part("question", second),), "x")] if second else []
        dialogue = Dialogue(story_id="frame", turns=tuple(turns), scenes=())
        encoded = encode(render(dialogue, style, self._tokenizer), self._tokenizer)
        pieces: list[list[int]] = [[]]
        answered = False
        for token, kind in zip(encoded.input_ids, encoded.kinds, strict=True):
            if kind in ("answer", "end"):
                answered = True
                continue
            if answered:
                pieces.append([])
                answered = False
            pieces[-1].append(token)
        return pieces

    def _encode_answer(self, text: str) -> list[int]:
        encoded = encode([Span(text, "answer")], self._tokenizer).input_ids
        return [token for token in encoded if token != self._tokenizer.bos_token_id] + [self._tokenizer.eos_token_id]


def collate(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad on the right; return ids, labels and attention mask, each (B, L)."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORE_INDEX, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for row, (row_ids, row_labels) in enumerate(rows):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_labels)] = torch.tensor(row_labels)
        mask[row, : len(row_ids)] = True
    return ids, labels, mask
