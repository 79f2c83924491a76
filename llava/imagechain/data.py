"""Stories as training and prediction examples, and batches of them.

Texts are encoded once, when the examples are made, so that lengths are known without decoding a frame; frames (or
cached features) are read when an example is asked for.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from llava.imagechain.labels import IGNORE_INDEX, make_labels
from llava.imagechain.pooling import evenly_spaced
from llava.imagechain.prompts import encode, render
from llava.imagechain.story import Scene, Story, StoryFrames
from llava.imagechain.variants import Dialogue, Variant, build_dialogue, draw_demonstrations

if TYPE_CHECKING:
    from llava.imagechain.features import StoryFeatures

OVERLENGTH = ("drop_oldest", "skip", "rope_scaling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleSettings:
    """How stories become examples.

    Attributes:
        tokens_per_scene: Visual tokens that one image mark becomes (576 for CLIP-L at 336 px).
        prompt_format: "figure3" or "template".
        conversation_name: Conversation template of the model.
        loss_on: "all_text", "answers" or "last_answer".
        scene_aspect: "crop" or "pad".
        max_frames_per_scene: Most frames of a scene, evenly spaced; None shows all.
        max_length: Most positions of an example, visual tokens included.
        overlength: "drop_oldest" leaves out the oldest scenes until it fits, "skip" the story; with "rope_scaling" the
            model was given room for all, and what still does not fit is shortened as with "drop_oldest".
        for_generation: The prompt only; `reserve_tokens` positions are kept free for the answer.
        reserve_tokens: Positions kept free.
        seed: Chooses the demonstrations.
    """

    tokens_per_scene: int
    prompt_format: str = "figure3"
    conversation_name: str = "vicuna_v1"
    loss_on: str = "answers"
    scene_aspect: str = "crop"
    max_frames_per_scene: int | None = None
    max_length: int = 4096
    overlength: str = "drop_oldest"
    for_generation: bool = False
    reserve_tokens: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexedScene(Scene):
    """A scene's text and where its frames are to be found."""

    row: int
    number: int
    demonstration: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """An example without its frames; `length` counts visual tokens."""

    story_id: str
    video_name: str
    num_scenes: int
    num_dropped_scenes: int
    reference: str
    input_ids: list[int]
    labels: list[int]
    scenes: tuple[IndexedScene, ...]
    length: int

    @property
    def num_labels(self) -> int:
        """Number of positions that carry loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class StoryExamples(Dataset[dict[str, Any]]):
    """Stories under one variant, as a torch dataset.

    Args:
        stories: Where the examples come from, in this order.
        variant: A row of the variant table.
        tokenizer: The model's.
        image_processor: The model's.
        settings: How stories become examples.
        demonstrations: Training stories that demonstrations are drawn from; needed when the variant shows some.
        features: Cached features of `stories` (and of `demonstrations`, second); frames are then not read at all.
        unreadable: Reason by story id, for stories that are to be left out.

    Attributes:
        plans: One `Plan` an example.
        skipped: Rows {"id", "reason"} of the stories that were left out.
    """

    def __init__(
        self,
        stories: StoryFrames,
        variant: Variant,
        tokenizer: Any,
        image_processor: Any,
        settings: ExampleSettings,
        *,
        demonstrations: StoryFrames | None = None,
        features: Sequence[StoryFeatures] = (),
        unreadable: Mapping[str, str] | None = None,
    ) -> None:
        if settings.overlength not in OVERLENGTH:
            raise ValueError(f"overlength: one of {', '.join(OVERLENGTH)} was wanted, found {settings.overlength!r}.")
        if variant.demonstrations and (demonstrations is None or len(demonstrations) < variant.demonstrations):
            raise ValueError(f"{variant.title} shows {variant.demonstrations} training stories; none were given.")
        self.stories, self.variant, self.settings = stories, variant, settings
        self.tokenizer, self.image_processor, self.features = tokenizer, image_processor, tuple(features)
        self.demonstrations = demonstrations
        shown = text_stories(demonstrations, demonstration=True) if demonstrations else []
        self._demonstration_texts = [story for story in shown if story.scenes]
        self.skipped: list[dict[str, str]] = []
        self.plans: list[Plan] = []
        for story in text_stories(stories):
            try:
                if reason := (unreadable or {}).get(story.story_id):
                    raise ValueError(reason)
                self.plans.append(self._plan(story))
            except ValueError as error:
                self.skipped.append({"id": story.story_id, "reason": str(error)})
        self.lengths = [plan.length for plan in self.plans]

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one example.

        Returns:
            input_ids and labels (L,) long; images: a list over scenes of (F, 3, H, W) frames, or of (F, N, D) cached
            features when modality is "video-seq-features"; length, story_id, num_dropped_scenes, reference.
        """
        plan = self.plans[index]
        return {
            "input_ids": torch.tensor(plan.input_ids),
            "labels": torch.tensor(plan.labels),
            "images": self._cached(plan) if self.features else self._frames(plan),
            "modality": "video-seq-features" if self.features else "video-seq",
            "length": plan.length,
            "story_id": plan.story_id,
            "num_dropped_scenes": plan.num_dropped_scenes,
            "reference": plan.reference,
        }

    def summary(self) -> dict[str, dict[str, int]]:
        """Return, by number of scenes ("c2", "c3", ...), how many stories there are and what was left out of them."""
        counts: dict[str, dict[str, int]] = {}
        for plan in sorted(self.plans, key=lambda plan: plan.num_scenes):
            entry = counts.setdefault(f"c{plan.num_scenes}", {"stories": 0, "shortened": 0, "dropped_scenes": 0})
            entry["stories"] += 1
            entry["shortened"] += plan.num_dropped_scenes > 0
            entry["dropped_scenes"] += plan.num_dropped_scenes
        return counts

    def num_frames(self) -> list[int]:
        """Return how many frames each example shows, without reading any."""
        counts = [each.frame_counts() if each else [] for each in (self.stories, self.demonstrations)]
        most = self.settings.max_frames_per_scene
        shown = [[counts[scene.demonstration][scene.row][scene.number] for scene in plan.scenes] for plan in self.plans]
        return [sum(min(count, most or count) for count in scenes) for scenes in shown]

    def _plan(self, story: Story) -> Plan:
        if not story.scenes:
            raise ValueError("the story has no scenes")
        if not story.scenes[-1].description and not self.settings.for_generation:
            raise ValueError("the last scene has no description to learn")
        demonstrations = draw_demonstrations(story, self._demonstration_texts, self.variant, self.settings.seed)
        limit = self.settings.max_length - self.settings.reserve_tokens
        length = 0
        # The oldest scenes go first, then the demonstrations; the last question and answer always stay.
        for dropped in range(story.num_scenes + len(demonstrations)):
            shown = story.without_oldest(dropped)
            kept = demonstrations[max(0, dropped - story.num_scenes + 1) :]
            plan = self._encode(build_dialogue(shown, self.variant, kept), story)
            length = length or plan.length
            if plan.length <= limit:
                return dataclasses.replace(plan, num_dropped_scenes=story.num_scenes - shown.num_scenes)
            if self.settings.overlength == "skip":
                break
        raise ValueError(f"too long: {length} positions, at most {limit} were wanted")

    def _encode(self, dialogue: Dialogue, story: Story) -> Plan:
        settings = self.settings
        spans = render(
            dialogue, settings.prompt_format, self.tokenizer, settings.conversation_name, settings.for_generation
        )
        encoded = encode(spans, self.tokenizer)
        labels = [] if settings.for_generation else make_labels(encoded, settings.loss_on)
        return Plan(
            story_id=story.story_id,
            video_name=story.video_name,
            num_scenes=story.num_scenes,
            num_dropped_scenes=0,
            reference=story.scenes[-1].description,
            input_ids=encoded.input_ids,
            labels=labels,
            scenes=dialogue.scenes,  # type: ignore[arg-type]
            length=len(encoded.input_ids) + encoded.num_images * (settings.tokens_per_scene - 1),
        )

    def _cached(self, plan: Plan) -> list[torch.Tensor]:
        most = self.settings.max_frames_per_scene
        return [self.features[scene.demonstration].scene(scene.row, scene.number, most) for scene in plan.scenes]

    def shown(self, scene: Scene) -> Scene:
        """Return a scene with those of its frames that are shown."""
        kept = evenly_spaced(len(scene.frames), self.settings.max_frames_per_scene)
        return dataclasses.replace(scene, frames=tuple(scene.frames[number] for number in kept))

    def _frames(self, plan: Plan) -> list[torch.Tensor]:
        from llava.imagechain.vision import process_scene_frames

        read: dict[tuple[bool, int], Story] = {}
        scenes = []
        for scene in plan.scenes:
            key = (scene.demonstration, scene.row)
            if key not in read:
                source = self.demonstrations if scene.demonstration else self.stories
                read[key] = source[scene.row]  # type: ignore[index]
            frames = self.shown(read[key].scenes[scene.number]).images()
            scenes.append(process_scene_frames(frames, self.image_processor, self.settings.scene_aspect))
        return scenes


def text_stories(stories: StoryFrames, *, demonstration: bool = False) -> list[Story]:
    """Return the stories without frames; their scenes know where the frames are."""
    videos = list(stories.table["video_name"])
    return [
        Story(
            story_id=stories.ids[row],
            video_name=videos[row],
            background="",
            scenes=tuple(
                IndexedScene(
                    description=text,
                    start_s=0.0,
                    end_s=0.0,
                    frame_times_s=(),
                    frames=(),
                    row=row,
                    number=number,
                    demonstration=demonstration,
                )
                for number, text in enumerate(texts)
            ),
        )
        for row, texts in enumerate(stories.texts())
    ]


def frame_problem(data: bytes | None) -> str | None:
    """Return why an encoded frame cannot be decoded, or None; whole JPEG files are recognised without decoding.

    A JPEG that was cut off and closed with an end mark passes: Pillow decodes it too, to grey, without an error.
    """
    from PIL import Image

    if not data:
        return "a frame is empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.format != "JPEG" or b"\xff\xd9" not in data[-64:]:
                    image.load()
    except Exception as error:  # Pillow raises many kinds on damaged files; each is the story's skip reason
        return f"a frame cannot be read: {type(error).__name__}: {error}"
    return None


def unreadable_stories(stories: StoryFrames) -> dict[str, str]:
    """Return the reason by id of stories whose row is damaged or whose frames cannot all be decoded."""
    found = {}
    for story_id, story in zip(stories.ids, stories.attempts(), strict=True):
        if isinstance(story, ValueError):
            found[story_id] = str(story)
            continue
        for problem in (frame_problem(frame) for scene in story.scenes for frame in scene.frames):
            if problem:
                found[story_id] = problem
                break
    return found


@dataclasses.dataclass(frozen=True)
class Collator:
    """Examples -> batch: text padded on the right, ragged scenes kept as lists.

    Attributes:
        pad_token_id: Fills `input_ids`; the attention mask is made from lengths, never from this id.
    """

    pad_token_id: int = 0

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return input_ids, labels, attention_mask (B, L), images and modalities.

        The lists run over B; with examples that hold "modalities" (LLaVA's JSON) over the images of all rows, of which
        a row of text has none, and `image_sizes` comes with them.
        """
        length = max(len(example["input_ids"]) for example in examples)
        input_ids = torch.full((len(examples), length), self.pad_token_id, dtype=torch.long)
        labels = torch.full((len(examples), length), IGNORE_INDEX, dtype=torch.long)
        attention_mask = torch.zeros((len(examples), length), dtype=torch.bool)
        for row, example in enumerate(examples):
            size = len(example["input_ids"])
            input_ids[row, :size] = example["input_ids"]
            labels[row, : len(example["labels"])] = example["labels"]
            attention_mask[row, :size] = True
        batch = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
        if "modalities" in examples[0]:
            names = ("images", "modalities", "image_sizes")
            return batch | {name: [entry for example in examples for entry in example[name]] for name in names}
        return batch | {
            "images": [example["images"] for example in examples],
            "modalities": [example["modality"] for example in examples],
        }
