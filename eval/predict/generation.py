"""Batches of stories through a model: frames encoded together, greedy text out, one row a story.

Shape letters: B stories of a batch, L positions, F frames.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from eval.predict.controls import Edit
from eval.predict.decoding import greedy
from llava.imagechain.data import ExampleSettings, Plan, StoryExamples
from llava.imagechain.prompts import COMMON_MARKS, render_marked
from llava.imagechain.story import Scene, Story, clean_text
from llava.imagechain.vision import encode_frames, process_scene_frames

RECENT_FRAMES = 64  # decoded frames that are kept while batches are put together
_ROLE_MARKS = re.compile(r"\b(?:USER|ASSISTANT):")
_OTHER_MARKS = re.compile("|".join(re.escape(mark) for mark in COMMON_MARKS if mark not in ("USER:", "ASSISTANT:")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneFrames:
    """Pixels (3, H, W) of a scene's frames, and for each a key: equal keys, equal pixels."""

    keys: tuple[bytes, ...]
    pixels: tuple[torch.Tensor, ...]


class PromptExamples(StoryExamples):
    """Stories as prompts, with a control applied to each before it is written out.

    An example's "images" are `SceneFrames`, or cached features as in `StoryExamples`.

    Args:
        *args: As for `StoryExamples`.
        edit: What the control does to a story's scenes.
        blank: Give one frame of the mean colour in place of a scene's frames.
        **kwargs: As for `StoryExamples`.
    """

    def __init__(self, *args: Any, edit: Edit, blank: bool = False, **kwargs: Any) -> None:
        self._edit, self._blank = edit, blank
        self._recent: dict[bytes, torch.Tensor] = {}
        super().__init__(*args, **kwargs)

    def _plan(self, story: Story) -> Plan:
        return super()._plan(self._edit(story))

    def _frames(self, plan: Plan) -> Any:
        if self._blank:
            size = self.image_processor.crop_size
            pixels = torch.zeros(3, size["height"], size["width"])
            return [SceneFrames(keys=(b"blank",), pixels=(pixels,))] * len(plan.scenes)
        read: dict[tuple[bool, int], Story] = {}
        scenes = []
        for place in plan.scenes:
            story = (place.demonstration, place.row)
            if story not in read:
                read[story] = (self.demonstrations if place.demonstration else self.stories)[place.row]  # type: ignore[index]
            scenes.append(self._scene(self.shown(read[story].scenes[place.number])))
        return scenes

    def _scene(self, scene: Scene) -> SceneFrames:
        """Decode and preprocess a scene's frames; stories of one video share frames, which are decoded once."""
        keys = tuple(hashlib.blake2b(frame or b"", digest_size=16).digest() for frame in scene.frames)
        new = [number for number, key in enumerate(keys) if key not in self._recent]
        if new:
            images = dataclasses.replace(scene, frames=tuple(scene.frames[number] for number in new)).images()
            pixels = process_scene_frames(images, self.image_processor, self.settings.scene_aspect)
            self._recent.update(zip((keys[number] for number in new), pixels, strict=True))
        found = SceneFrames(keys=keys, pixels=tuple(self._recent[key] for key in keys))
        for old in list(self._recent)[:-RECENT_FRAMES]:
            del self._recent[old]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """One story's text, or the reason why there is none."""

    plan: Plan
    text: str = ""
    new_tokens: int = 0
    problem: str | None = None


class _Readable(Dataset[tuple[int, Any]]):
    """Gives examples, or the reason why one cannot be read."""

    def __init__(self, examples: StoryExamples) -> None:
        self.examples = examples

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.examples[index]
        except Exception as error:  # Pillow raises many kinds on damaged frames; each is the story's skip reason
            return index, f"{type(error).__name__}: {error}"


def batches_by_length(plans: Sequence[Plan], indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of examples of like length, the longest first (what does not fit shows at once).

    Stories of one video stay together, so that their common frames are decoded and encoded once.
    """
    longest: dict[str, int] = {}
    for index in indices:
        video = plans[index].video_name
        longest[video] = max(longest.get(video, 0), plans[index].length)
    order = sorted(indices, key=lambda i: (-longest[plans[i].video_name], plans[i].video_name, -plans[i].length, i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


Readable = list[tuple[Plan, Mapping[str, Any]]]


def read_batches(
    examples: StoryExamples, batches: Sequence[Sequence[int]], num_workers: int
) -> Iterator[tuple[list[Generated], Readable]]:
    """Read batches of examples, ahead when there are workers; yields those that cannot be read, and the others."""
    loader = DataLoader(
        _Readable(examples), batch_sampler=[list(batch) for batch in batches], collate_fn=list, num_workers=num_workers
    )
    for loaded in loader:
        yield (
            [Generated(plan=examples.plans[i], problem=found) for i, found in loaded if isinstance(found, str)],
            [(examples.plans[i], found) for i, found in loaded if not isinstance(found, str)],
        )


def generate(
    model: Any,
    tokenizer: Any,
    examples: StoryExamples,
    batches: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_workers: int = 0,
) -> Iterator[list[Generated]]:
    """Run batches through the model, greedily.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        examples: Prompts.
        batches: Indices of examples.
        max_new_tokens: Most tokens of an answer.
        num_workers: Processes that read and decode frames ahead.

    Yields:
        One list a batch.
    """
    end = end_tokens(tokenizer, examples.settings)
    for unreadable, readable in read_batches(examples, batches, num_workers):
        answers = answer_batch(model, [found for _, found in readable], end, max_new_tokens) if readable else []
        yield unreadable + [as_text(tokenizer, plan, ids) for (plan, _), ids in zip(readable, answers, strict=True)]


def end_tokens(tokenizer: Any, settings: ExampleSettings) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's own, and the template's where that is a token of its own.

    Llama 3's template ends a turn with <|eot_id|>, while its tokenizer may name <|end_of_text|>.
    """
    found = [tokenizer.eos_token_id]
    if settings.prompt_format == "template":
        spans = render_marked([("", "answer")], settings.conversation_name)
        marks, added = [span.text.strip() for span in spans if span.kind == "end"], tokenizer.get_added_vocab()
        found += [added[mark] for mark in marks if mark in added and added[mark] not in found]
    return found


def as_text(tokenizer: Any, plan: Plan, ids: Sequence[int]) -> Generated:
    """Return an answer's text; a model may have more rows than its tokenizer has words, and slow ones refuse those."""
    known = [token for token in ids if token < len(tokenizer)]
    text = clean_prediction(tokenizer.decode(known, skip_special_tokens=True))
    return Generated(plan=plan, text=text, new_tokens=len(ids))


@torch.inference_mode()
def answer_batch(
    model: Any, batch: Sequence[Mapping[str, Any]], end: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Return the new token ids of each example, the end token (one of `end`) included."""
    longest = max(len(example["input_ids"]) for example in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : len(example["input_ids"])] = example["input_ids"]
        mask[row, : len(example["input_ids"])] = 1
    _, _, present, _, embeddings, _ = model.prepare_inputs_labels_for_multimodal(
        ids.to(model.device), None, mask.to(model.device), None, None,
        scene_features(model, batch), ["video-seq-features"] * len(batch), always_embed=True,
    )  # fmt: skip
    prompts = [row[kept.bool()] for row, kept in zip(embeddings, present, strict=True)]
    return greedy(model, prompts, end_tokens=end, max_new_tokens=max_new_tokens)


def scene_features(model: Any, batch: Sequence[Mapping[str, Any]]) -> list[list[torch.Tensor]]:
    """Return for each example its scenes' tower features (F, N, D); the batch's frames go in one call, each once."""
    if batch[0]["modality"] == "video-seq-features":
        return [[scene.to(model.device) for scene in example["images"]] for example in batch]
    scenes: list[list[SceneFrames]] = [example["images"] for example in batch]
    pixels = {
        key: frame for story in scenes for scene in story for key, frame in zip(scene.keys, scene.pixels, strict=True)
    }
    rows = {key: row for row, key in enumerate(pixels)}
    tower = model.get_vision_tower()
    frames = torch.stack(list(pixels.values())).to(tower.device, tower.dtype)
    features = encode_frames(tower, frames, tower.frames_per_call)
    return [[features[[rows[key] for key in scene.keys]] for scene in story] for story in scenes]


def clean_prediction(text: str) -> str:
    """Return an answer as one line: what follows a role mark (the model talking to itself) and other marks are cut."""
    return clean_text(_OTHER_MARKS.sub(" ", _ROLE_MARKS.split(text, maxsplit=1)[0]))
