"""Training data in LLaVA's JSON: conversations with `image`, `video`, `video-seq` or text only.

A sample: {"id", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, ...]} and at most one of
`image` (a name or a list), `video` (a file or a folder of frames), `video-seq` (a list over scenes of lists of frames).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import Dataset

from llava.imagechain.data import Plan
from llava.imagechain.decisions import decision, max_frames_per_scene
from llava.imagechain.items import SEQUENCE
from llava.imagechain.labels import make_labels
from llava.imagechain.media import (
    Sampling,
    frame_files,
    image_size,
    read_image,
    read_video,
    safe_path,
    video_facts,
)
from llava.imagechain.merge import MergeRules, image_tokens, video_tokens
from llava.imagechain.messages import is_transcript, read_turns, render_messages, with_image_first
from llava.imagechain.pooling import evenly_spaced
from llava.imagechain.prompts import encode

MEDIA = ("image", "video", SEQUENCE)
LAYOUT_KEYS = (
    "image_aspect_ratio", "image_grid_pinpoints", "mm_patch_merge_type", "mm_newline_position",
    "mm_spatial_pool_mode", "imagechain_scene_aspect", "add_faster_video",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonSettings:
    """How samples become examples.

    Attributes:
        image_folder: Where `image` and `video-seq` names lie.
        video_folder: Where `video` names lie.
        conversation_name: Template of the model.
        max_length: Most positions of an example, visual tokens included.
        loss_on: "answers" or "last_answer".
        scene_aspect: "crop" or "pad", for the frames of `video-seq`.
        max_frames_per_scene: Most frames of a scene of `video-seq`, evenly spaced; None shows all.
        sampling: Frames of a video.
        add_time_instruction: Put the video's length and the frames' times before the question.
        side, image_size: Tokens and pixels along the side of an image.
        config: The model's config (or what stands for it), for image layouts.
    """

    config: Any
    side: int
    image_size: int
    image_folder: str | None = None
    video_folder: str | None = None
    conversation_name: str = "vicuna_v1"
    max_length: int = 4096
    loss_on: str = "answers"
    scene_aspect: str = "crop"
    max_frames_per_scene: int | None = None
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    add_time_instruction: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
    """The files of a sample: blocks of frames, and the visual tokens that each block becomes."""

    kind: str
    blocks: tuple[tuple[Path, ...], ...] = ()
    frames: tuple[int, ...] = ()  # of a video file
    tokens: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    note: str = ""


class LlavaJsonExamples(Dataset[dict[str, Any]]):
    """Samples of LLaVA's JSON as a torch dataset; what cannot be used is skipped once and listed.

    Args:
        samples: From `read_samples`.
        tokenizer: The model's.
        image_processor: The model's.
        settings: How samples become examples.

    Attributes:
        plans: One `Plan` an example.
        lengths: Positions of each, visual tokens included.
        multimodal: Says of each whether it has images (`image`, `video` and `video-seq` alike).
        skipped: Rows {"id", "reason"} of the samples left out.
    """

    def __init__(self, samples: Sequence[Any], tokenizer: Any, image_processor: Any, settings: JsonSettings) -> None:
        self.stories = samples
        self.tokenizer, self.image_processor, self.settings = tokenizer, image_processor, settings
        self.plans: list[Plan] = []
        self.media: list[Media] = []
        self.skipped: list[dict[str, str]] = []
        for number, sample in enumerate(samples):
            name = str(sample.get("id", number)) if isinstance(sample, dict) else str(number)
            name = name.encode(errors="backslashreplace").decode()
            try:
                plan, media = self._plan(sample, name)
            except ValueError as error:
                self.skipped.append({"id": name, "reason": str(error)})
                continue
            self.plans.append(plan)
            self.media.append(media)
        self.lengths = [plan.length for plan in self.plans]
        self.multimodal = [media.kind != "text" for media in self.media]

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one example: input_ids, labels (L,), images, modalities and image_sizes (one entry an image)."""
        plan, media = self.plans[index], self.media[index]
        images = self._pixels(media)
        return {
            "input_ids": torch.tensor(plan.input_ids),
            "labels": torch.tensor(plan.labels),
            "images": images,
            "modalities": [media.kind] * len(images),
            "image_sizes": list(media.sizes) or [(0, 0)] * len(images),
            "length": plan.length,
            "story_id": plan.story_id,
        }

    def summary(self) -> dict[str, dict[str, int]]:
        """Return how many samples there are of each kind."""
        counts: dict[str, dict[str, int]] = {}
        for media in self.media:
            counts.setdefault(media.kind, {"stories": 0, "shortened": 0, "dropped_scenes": 0})["stories"] += 1
        return counts

    def num_frames(self) -> list[int]:
        """Return how many images each example gives the vision tower: tiles and frames count singly."""
        most = self.settings.max_frames_per_scene
        counts = []
        for media in self.media:
            shown = [
                min(len(block), most or len(block)) if media.kind == SEQUENCE else len(block) for block in media.blocks
            ]
            tiles = sum(map(self._num_tiles, media.sizes)) if media.kind == "image" else 0
            counts.append(tiles or len(media.frames) or sum(shown))
        return counts

    def _plan(self, sample: Any, name: str) -> tuple[Plan, Media]:
        turns = read_turns(sample)
        try:
            json.dumps(sample, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"it holds half a character, {error.object[error.start]!a}") from None
        if not any(answer.strip() for _, answer in turns):
            raise ValueError("it has no answer to learn")
        media = self._media(sample)
        transcript = is_transcript(turns)
        if media.kind in ("image", "video") and not transcript:
            turns = with_image_first(turns, media.note)
        spans = render_messages(turns, self.tokenizer, self.settings.conversation_name, keep_turn_marks=transcript)
        encoded = encode(spans, self.tokenizer)
        if encoded.num_images != len(media.tokens):
            raise ValueError(f"its text has {encoded.num_images} image marks, it names {len(media.tokens)} images")
        length = len(encoded.input_ids) + sum(media.tokens) - len(media.tokens)
        if length > self.settings.max_length:
            raise ValueError(f"too long: {length} positions, at most {self.settings.max_length} were wanted")
        labels = make_labels(encoded, self.settings.loss_on)
        plan = Plan(
            story_id=name, video_name="", num_scenes=len(media.tokens), num_dropped_scenes=0, reference=turns[-1][1],
            input_ids=encoded.input_ids, labels=labels, scenes=(), length=length,
        )  # fmt: skip
        return plan, media

    # --- files ---

    def _media(self, sample: dict[str, Any]) -> Media:
        given = [key for key in MEDIA if sample.get(key)]
        if len(given) > 1:
            raise ValueError(f"one of {', '.join(MEDIA)} was wanted, found {' and '.join(given)}")
        if not given:
            return Media(kind="text")
        value = sample[given[0]]
        return {"image": self._images, "video": self._video, SEQUENCE: self._sequence}[given[0]](value)

    def _images(self, value: Any) -> Media:
        names = value if isinstance(value, list) else [value]
        paths = tuple(safe_path(self.settings.image_folder, name, "image_folder") for name in names)
        sizes = tuple(image_size(path) for path in paths)
        tokens = tuple(self._image_tokens(size) for size in sizes)
        return Media(kind="image", blocks=tuple((path,) for path in paths), tokens=tokens, sizes=sizes)

    def _video(self, value: Any) -> Media:
        path = safe_path(self.settings.video_folder, value, "video_folder")
        files = frame_files(path) if path.is_dir() else []
        count, rate = (len(files), 1.0) if files else video_facts(path)
        indices = self.settings.sampling.indices(count, rate)
        chosen = tuple(files[index] for index in indices) if files else ()
        sizes = [image_size(file) for file in chosen]
        tokens = len(video_tokens(self._empty(len(indices)), self._rules()))
        note = ""
        if self.settings.add_time_instruction:
            times = ",".join(f"{index / rate:.2f}s" for index in indices)
            note = (
                f"The video lasts for {count / rate:.2f} seconds, and {len(indices)} frames are uniformly sampled "
                f"from it. These frames are located at {times}."
                "Please answer the following questions related to this video."
            )
        return Media(
            kind="video", blocks=(chosen or (path,),), frames=() if files else tuple(indices), tokens=(tokens,),
            sizes=tuple(sizes[:1]) or ((0, 0),), note=note,
        )  # fmt: skip

    def _sequence(self, value: Any) -> Media:
        if not isinstance(value, list) or not all(isinstance(scene, list) and scene for scene in value):
            raise ValueError(f"{SEQUENCE}: a list over scenes of lists of frame names was wanted")
        blocks = tuple(
            tuple(safe_path(self.settings.image_folder, name, "image_folder") for name in scene) for scene in value
        )
        for path in itertools.chain.from_iterable(blocks):
            image_size(path)
        ends = (
            self._rules().newline is not None and getattr(self.settings.config, "imagechain_scene_aspect", None) is None
        )
        return Media(kind=SEQUENCE, blocks=blocks, tokens=(self.settings.side**2 + ends,) * len(blocks))

    # --- lengths: the model's own merging, on tensors without memory ---

    def _rules(self) -> MergeRules:
        unpad = "unpad" in (getattr(self.settings.config, "mm_patch_merge_type", None) or "")
        newline = torch.empty(1, device="meta") if unpad else None
        return MergeRules(
            config=self.settings.config, side=self.settings.side, image_size=self.settings.image_size, newline=newline
        )

    def _empty(self, count: int) -> torch.Tensor:
        return torch.empty(count, self.settings.side**2, 1, device="meta")

    def _num_tiles(self, size: tuple[int, int]) -> int:
        from llava.mm_utils import get_anyres_image_grid_shape

        if not (self.settings.config.image_aspect_ratio or "square").startswith("anyres"):
            return 1
        points = self.settings.config.image_grid_pinpoints
        columns, rows = get_anyres_image_grid_shape(size, points, self.settings.image_size)
        return 1 + columns * rows

    def _image_tokens(self, size: tuple[int, int]) -> int:
        return len(image_tokens(self._empty(self._num_tiles(size)), size, self._rules()))

    # --- pixels ---

    def _pixels(self, media: Media) -> list[Any]:
        from llava.imagechain.vision import process_scene_frames
        from llava.mm_utils import process_images

        if media.kind == SEQUENCE:
            aspect = self.settings.scene_aspect
            most = self.settings.max_frames_per_scene
            scenes = [[read_image(block[i]) for i in evenly_spaced(len(block), most)] for block in media.blocks]
            return [[process_scene_frames(frames, self.image_processor, aspect) for frames in scenes]]
        if media.kind == "video":
            (block,) = media.blocks
            frames = read_video(block[0], media.frames) if media.frames else [read_image(path) for path in block]
            return [torch.as_tensor(self.image_processor.preprocess(frames, return_tensors="pt")["pixel_values"])]
        images = [read_image(block[0]) for block in media.blocks]
        return [process_images([image], self.image_processor, self.settings.config)[0] for image in images]


def json_settings(groups: Any, config: Any, vision: Any) -> JsonSettings:
    """Return how samples become examples, from the run's settings, the model's config and its tower's."""
    model_arguments, data, settings = groups
    limits = [getattr(config, name, None) for name in ("tokenizer_model_max_length", "max_position_embeddings")]
    aspect = getattr(config, "image_aspect_ratio", None) or "square"
    if aspect.startswith("anyres") and not getattr(config, "image_grid_pinpoints", None):
        raise ValueError(
            f"image_aspect_ratio {aspect}: the model's config has no resolutions; set image_grid_pinpoints"
        )
    return JsonSettings(
        config=SimpleNamespace(**{name: getattr(config, name, None) for name in LAYOUT_KEYS}),
        side=vision.image_size // vision.patch_size,
        image_size=vision.image_size,
        image_folder=data.image_folder,
        video_folder=data.video_folder,
        conversation_name=model_arguments.version,
        max_length=min([settings.model_max_length, *[int(limit) for limit in limits if limit]]),
        loss_on=data.loss_on or "answers",
        scene_aspect=decision(config, "imagechain_scene_aspect"),
        max_frames_per_scene=max_frames_per_scene(config),
        sampling=Sampling(fps=data.video_fps, most=data.frames_upbound, always_most=data.force_sample),
        add_time_instruction=data.add_time_instruction,
    )


def json_problems(groups: Any) -> list[str]:
    """Return what is wrong with the settings of a run on LLaVA's JSON."""
    _, data, train = groups
    problems = [
        f"{name}: found beside data_path; a run has stories or LLaVA's JSON"
        for name in ("stories", "variant", "feature_cache")
        if getattr(data, name)
    ]
    if str(getattr(train.eval_strategy, "value", train.eval_strategy)) != "no":
        problems.append("eval_strategy: with data_path there is nothing to evaluate on; set it to no")
    if data.overlength == "rope_scaling":
        problems.append("overlength: with data_path, samples that are too long are skipped; rope_scaling needs stories")
    if data.loss_on == "all_text":
        problems.append("loss_on: with data_path, answers or last_answer was wanted")
    problems += [
        f"{name}: {folder} is not a folder"
        for name in ("image_folder", "video_folder")
        if (folder := getattr(data, name)) and not Path(folder).is_dir()
    ]
    aspect = data.image_aspect_ratio or "square"
    if aspect not in ("square", "pad") and not aspect.startswith("anyres"):
        problems.append(f"image_aspect_ratio: square, pad, anyres or anyres_max_N was wanted, found {aspect!r}")
    return problems
