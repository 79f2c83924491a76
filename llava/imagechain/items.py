"""What a batch's `images` and `modalities` mean: one item per image, video or sequence, and the rows they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

SEQUENCE, CACHED_SEQUENCE = "video-seq", "video-seq-features"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One entry of `images`.

    Attributes:
        kind: "image", "video", "text" (the dummy of a row without image), "plain" (an image of a stacked batch, never
            given line ends) or "sequence".
        index: Its place in `images`.
        blocks: Pixels (F, 3, H, W), or features before the projector (F, N, D); a sequence has one block a scene.
        cached: The blocks are features.
    """

    kind: str
    index: int
    blocks: list[torch.Tensor]
    cached: bool = False

    @property
    def num_marks(self) -> int:
        """Image marks that the item fills."""
        return 0 if self.kind == "text" else len(self.blocks)


def read_items(images: Any, modalities: Any) -> list[Item]:
    """Sort a batch's images by kind.

    Args:
        images: A tensor (B, 3, H, W) or (B, T, 3, H, W), or a list with one entry an image: (3, H, W), tiles or video
            frames (T, 3, H, W), or for a sequence a list over scenes of (F, 3, H, W), or of lists of frames.
        modalities: One entry an image ("image", "video", "text", "video-seq", "video-seq-features"), one for all, or
            upstream's nested "video-seq" lists, per sample or one after another. What is no modality (upstream's
            Mistral and Gemma classes put image sizes here) counts as "image".

    Raises:
        ValueError: The two do not fit together; the message names the sample.
    """
    kinds = _kinds(images, modalities)
    if isinstance(images, torch.Tensor) and images.ndim == 4 and not any("video" in kind for kind in kinds):
        return [
            Item(kind="text" if kind == "text" else "plain", index=index, blocks=[image[None]])
            for index, (image, kind) in enumerate(zip(images, kinds, strict=True))
        ]
    return [_item(image, kind, index) for index, (image, kind) in enumerate(zip(images, kinds, strict=True))]


def _kinds(images: Any, modalities: Any) -> list[str]:
    entries = [modalities] if isinstance(modalities, str) else list(() if modalities is None else modalities)
    entries = entries or ["image"]
    nested = [isinstance(entry, (list, tuple)) and bool(entry) for entry in entries]
    scenes = sum(len(image) for image in images if isinstance(image, (list, tuple)))
    if all(nested) and len(entries) != len(images) and len(entries) == scenes:
        return [SEQUENCE] * len(images)  # upstream's flat form: one list a scene
    kinds = [_kind(entry) for entry in entries]
    if len(kinds) == 1:
        kinds *= len(images)
    if len(kinds) != len(images):
        raise ValueError(f"modalities: one entry, or {len(images)} (one an image), were wanted, found {len(kinds)}.")
    return kinds


def _kind(entry: Any) -> str:
    while isinstance(entry, (list, tuple)) and entry:
        entry = entry[0]
    if entry in ("image", "video", "text", SEQUENCE, CACHED_SEQUENCE):
        return entry
    if isinstance(entry, str):
        raise ValueError(
            f"modalities: image, video, text, {SEQUENCE} or {CACHED_SEQUENCE} was wanted, found {entry!r}."
        )
    return "image"


def _item(image: Any, kind: str, index: int) -> Item:
    if kind in (SEQUENCE, CACHED_SEQUENCE):
        return Item(kind="sequence", index=index, blocks=_scenes(image, kind, index), cached=kind == CACHED_SEQUENCE)
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"Sample {index}: a list of scenes goes with modality {SEQUENCE!r}, found {kind!r}.")
    if image.ndim not in (3, 4):
        raise ValueError(
            f"Sample {index}: an image of shape (3, H, W) or (T, 3, H, W) was wanted, found {tuple(image.shape)}."
        )
    return Item(kind=kind, index=index, blocks=[image if image.ndim == 4 else image[None]])


def _scenes(sample: Any, kind: str, index: int) -> list[torch.Tensor]:
    if not len(sample):
        raise ValueError(f"Sample {index}: a sequence needs at least one scene.")
    rank = 3 if kind == CACHED_SEQUENCE else 4
    scenes = []
    for number, scene in enumerate(sample):
        where = f"Sample {index}, scene {number + 1}"
        block = scene if isinstance(scene, torch.Tensor) else _stack_frames(scene, rank, where)
        if block.ndim != rank or not len(block):
            wanted = "frames of features (F, N, D)" if rank == 3 else "at least one square frame, (F, 3, H, W),"
            raise ValueError(f"{where}: {wanted} was wanted, found shape {tuple(block.shape)}.")
        scenes.append(block)
    return scenes


def _stack_frames(frames: Sequence[torch.Tensor], rank: int, where: str) -> torch.Tensor:
    if not frames:
        raise ValueError(f"{where}: at least one frame was wanted, found none.")
    stacked = [frame if frame.ndim == rank else frame[None] for frame in frames]
    tiled = next((frame for frame in stacked if len(frame) != 1), None)
    if tiled is not None:
        raise ValueError(
            f"{where}: one square image a frame was wanted, found a frame of shape {tuple(tiled.shape)}. Tiled "
            "(anyres) frames cannot be averaged; use llava.imagechain.vision.process_scene_frames."
        )
    return torch.cat(stacked)


def items_by_row(items: Sequence[Item], mark_counts: Sequence[int]) -> list[list[Item]]:
    """Give each row of a batch its items, in order.

    Args:
        items: The batch's items.
        mark_counts: Image marks of each row.

    Raises:
        ValueError: Marks and items do not agree; the message names the row.
    """
    queue = list(items)
    spare = sum(item.num_marks for item in items) - sum(mark_counts)
    rows: list[list[Item]] = []
    for row, marks in enumerate(mark_counts):
        taken: list[Item] = []
        filled = 0
        if not marks and queue and (queue[0].kind == "text" or (spare > 0 and queue[0].num_marks == 1)):
            spare -= queue.pop(0).num_marks  # a row without marks comes with one dummy image
        while filled < marks and queue:
            item = queue.pop(0)
            if item.kind == "text" or (item.kind == "sequence" and item.num_marks != marks):
                found = "no image" if item.kind == "text" else f"a sequence of {item.num_marks} scenes"
                raise ValueError(f"Row {row}: its text has {marks} image marks, but it came with {found}.")
            filled += item.num_marks
            taken.append(item)
        if filled != marks:
            raise ValueError(f"Row {row}: its text has {marks} image marks, but only {filled} images were left for it.")
        rows.append(taken)
    if left := [item for item in queue if item.kind != "text"]:
        raise ValueError(
            f"Row {len(mark_counts) - 1} is the last and {len(left)} images are left over: the batch's texts have "
            f"{sum(mark_counts)} image marks, its images fill {sum(item.num_marks for item in items)}."
        )
    return rows
