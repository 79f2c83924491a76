"""Per-frame features before the projector, computed once and shared by every variant and by evaluation.

All frames of a story are cached, whatever number of them a run shows: runs with another number share the cache. A cache
folder holds one folder per (tower weights, preprocessing, dtype). In it `features.bin` has one row of N x D
numbers a frame, `frames.sha256` the 32-byte hash of the encoded frame behind each row. Both only grow, features first:
whatever an interruption leaves behind is cut back to the rows that both files hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils.data import DataLoader, Dataset

from llava.imagechain.compat import gathered
from llava.imagechain.data import frame_problem
from llava.imagechain.files import sha256_json, write_json
from llava.imagechain.pooling import evenly_spaced
from llava.imagechain.story import Story, StoryFrames

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
HASH_BYTES = 32
StoryHashes = list[list[bytes]] | str  # of each frame of each scene, or why the story's row is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoryFeatures:
    """The cached features of one collection of stories.

    Attributes:
        features: All rows of the cache (R, N, D), memory-mapped.
        rows: For each story and scene the rows of its frames; None for a story that could not be read.
        unreadable: Reason by story id.
    """

    features: torch.Tensor
    rows: list[list[torch.Tensor] | None]
    unreadable: dict[str, str]

    def scene(self, story: int, scene: int, most: int | None = None) -> torch.Tensor:
        """Return a scene's features (F, N, D); float16 is only for the disk, autocast on the CPU does not know it.

        Args:
            story: Number of the story.
            scene: Number of the scene.
            most: At most that many frames, evenly spaced; None returns all.
        """
        rows = self.rows[story]
        if rows is None:
            raise KeyError(f"Story {story} could not be read when the features were made; leave it out.")
        found = self.features[rows[scene][evenly_spaced(len(rows[scene]), most)]]
        return found.float() if found.dtype == torch.float16 else found


def tower_hash(tower: torch.nn.Module) -> str:
    """Return the SHA-256 of a vision tower's weights, in float32 so that the loading dtype matters only by rounding."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def cached_features(
    cache_dir: Path | str,
    collections: Sequence[StoryFrames],
    tower: Any,
    image_processor: Any,
    *,
    scene_aspect: str = "crop",
    dtype: str = "float16",
    num_workers: int = 0,
    frames_per_call: int = 64,
) -> list[StoryFeatures]:
    """Return the features of all frames of some stories, computing those that the cache lacks.

    With several processes only the first computes; call it on all of them.

    Args:
        cache_dir: Folder of the cache.
        collections: Collections of stories, such as the training and the validation stories.
        tower: The model's vision tower, called with (F, 3, H, W) and giving (F, N, D).
        image_processor: The model's.
        scene_aspect: "crop" or "pad".
        dtype: Stored as "float16", "bfloat16" or "float32".
        num_workers: Processes that decode frames.
        frames_per_call: Most frames in one call of the tower.

    Raises:
        OSError: The disk has no room for the missing features.
    """
    with gathered(tower.parameters()):  # ZeRO-3 has spread them
        return _cached_features(
            Path(cache_dir), collections, tower, image_processor, scene_aspect, dtype, num_workers, frames_per_call
        )


def _cached_features(
    cache_dir: Path,
    collections: Sequence[StoryFrames],
    tower: Any,
    image_processor: Any,
    scene_aspect: str,
    dtype: str,
    num_workers: int,
    frames_per_call: int,
) -> list[StoryFeatures]:
    key = {
        "tower": tower_hash(tower),
        "select_layer": getattr(tower, "select_layer", None),
        "select_feature": getattr(tower, "select_feature", None),
        "processor": _plain(image_processor.to_dict()),
        "scene_aspect": scene_aspect,
        "dtype": dtype,
    }
    folder = cache_dir / sha256_json(key)[:20]
    store = _Store(folder, (int(tower.num_patches), int(tower.hidden_size)), DTYPES[dtype])
    reasons: dict[bytes, str] = {}
    hashes = [[_story_hashes(story) for story in stories.attempts()] for stories in collections]
    if _is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        with store.locked():
            write_json(folder / "meta.json", key)
            store.repair()
            missing = _missing(hashes, store.known())
            _announce(folder, sum(map(len, hashes)), missing, store)
            decoder = _PendingFrames(collections, missing, image_processor, scene_aspect)
            reasons = _compute(store, decoder, tower, num_workers, frames_per_call)
    _wait_for_all()
    known = store.known()
    features = store.map(len(known))
    return [
        _index(stories, collection_hashes, known, features, reasons)
        for stories, collection_hashes in zip(collections, hashes, strict=True)
    ]


class _Store:
    """The two growing files of a cache folder."""

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.features_path, self.hashes_path = folder / "features.bin", folder / "frames.sha256"
        self.row_bytes = math.prod(shape) * dtype.itemsize

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time add features."""
        import fcntl

        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def repair(self) -> None:
        """Cut both files back to the rows that both hold in full."""
        sizes = [path.stat().st_size if path.exists() else 0 for path in (self.hashes_path, self.features_path)]
        rows = min(sizes[0] // HASH_BYTES, sizes[1] // self.row_bytes)
        for path, size in ((self.hashes_path, rows * HASH_BYTES), (self.features_path, rows * self.row_bytes)):
            path.touch()
            os.truncate(path, size)

    def known(self) -> dict[bytes, int]:
        """Return the row by frame hash."""
        data = self.hashes_path.read_bytes() if self.hashes_path.exists() else b""
        return {data[i : i + HASH_BYTES]: i // HASH_BYTES for i in range(0, len(data), HASH_BYTES)}

    def append(self, hashes: Sequence[bytes], features: torch.Tensor) -> None:
        """Add rows; the hashes are written once the features are on disk."""
        if tuple(features.shape[1:]) != self.shape:
            raise ValueError(f"Features of shape {self.shape} were wanted, the tower gave {tuple(features.shape[1:])}.")
        rows = features.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        for path, data in ((self.features_path, rows), (self.hashes_path, b"".join(hashes))):
            with path.open("ab") as file:
                _write_through(file, data)

    def map(self, rows: int) -> torch.Tensor:
        """Return the features as a memory-mapped tensor (R, N, D)."""
        if not rows:
            return torch.zeros((0, *self.shape), dtype=self.dtype)
        flat = torch.from_file(
            str(self.features_path), shared=False, size=rows * math.prod(self.shape), dtype=self.dtype
        )
        return flat.view(rows, *self.shape)


def _write_through(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pending:
    """Frames of one story whose features are missing."""

    collection: int
    story: int
    frames: dict[bytes, tuple[int, int]]


class _PendingFrames(Dataset[tuple[list[bytes], Any, dict[bytes, str]]]):
    """Decodes and preprocesses the missing frames, story by story; runs in worker processes."""

    def __init__(
        self, collections: Sequence[StoryFrames], pending: list[_Pending], image_processor: Any, scene_aspect: str
    ) -> None:
        self.collections, self.pending = collections, pending
        self.image_processor, self.scene_aspect = image_processor, scene_aspect

    def __len__(self) -> int:
        return len(self.pending)

    def __getitem__(self, index: int) -> tuple[list[bytes], Any, dict[bytes, str]]:
        from llava.imagechain.vision import process_scene_frames

        pending = self.pending[index]
        story: Story = self.collections[pending.collection][pending.story]
        hashes, images, reasons = [], [], {}
        for digest, (scene, frame) in pending.frames.items():
            data = story.scenes[scene].frames[frame]
            if reason := frame_problem(data):
                reasons[digest] = reason
                continue
            try:
                images.append(_decode(data))
                hashes.append(digest)
            except (OSError, ValueError, SyntaxError) as error:  # damage that only decoding shows
                reasons[digest] = f"a frame cannot be read: {type(error).__name__}: {error}"
        pixels = process_scene_frames(images, self.image_processor, self.scene_aspect) if images else None
        return hashes, pixels, reasons


def _decode(data: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


@torch.inference_mode()
def _compute(
    store: _Store, frames: _PendingFrames, tower: Any, num_workers: int, frames_per_call: int
) -> dict[bytes, str]:
    from tqdm import tqdm

    reasons: dict[bytes, str] = {}
    hashes: list[bytes] = []
    waiting: list[torch.Tensor] = []
    parameter = next(tower.parameters())
    total = sum(len(pending.frames) for pending in frames.pending)
    loader = DataLoader(frames, batch_size=None, num_workers=num_workers)
    with tqdm(total=total, desc="features", unit="frame", disable=not total, mininterval=2) as progress:
        for number, (found, pixels, problems) in enumerate(loader):
            reasons.update(problems)
            if pixels is not None:
                hashes += found
                waiting.append(pixels)
            last = number + 1 == len(frames)
            while len(hashes) >= frames_per_call or (last and hashes):
                pixels = torch.cat(waiting)
                call, rest = pixels[:frames_per_call], pixels[frames_per_call:]
                features = tower(call.to(parameter.device, parameter.dtype))
                store.append(hashes[: len(call)], features)
                hashes, waiting = hashes[len(call) :], [rest] if len(rest) else []
                progress.update(len(call))
    return reasons


def _missing(collections: list[list[StoryHashes]], known: dict[bytes, int]) -> list[_Pending]:
    """Return which frames have to be computed, each only once however many stories share it."""
    taken = set(known)
    missing = []
    for collection, stories in enumerate(collections):
        for story, scenes in enumerate(stories):
            frames: dict[bytes, tuple[int, int]] = {}
            for scene, digests in enumerate(scenes if isinstance(scenes, list) else ()):
                for frame, digest in enumerate(digests):
                    if digest not in taken:
                        taken.add(digest)
                        frames[digest] = (scene, frame)
            if frames:
                missing.append(_Pending(collection=collection, story=story, frames=frames))
    return missing


def _announce(folder: Path, num_stories: int, missing: list[_Pending], store: _Store) -> None:
    count = sum(len(pending.frames) for pending in missing)
    wanted, free = count * store.row_bytes, shutil.disk_usage(folder).free
    logger.info(
        "feature cache %s: %d stories, %d frames to compute, %d x %d %s each, %.1f MB to write (%.1f GB free)",
        folder, num_stories, count, *store.shape, str(store.dtype).removeprefix("torch."), wanted / 1e6, free / 1e9,
    )  # fmt: skip
    if wanted > free:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, the features need {wanted / 1e9:.1f} GB. "
            "Free some space, choose another --feature-cache, or train without one."
        )


def _index(
    stories: StoryFrames,
    hashes: list[StoryHashes],
    known: dict[bytes, int],
    features: torch.Tensor,
    reasons: dict[bytes, str],
) -> StoryFeatures:
    rows: list[list[torch.Tensor] | None] = []
    unreadable: dict[str, str] = {}
    for story_id, scenes in zip(stories.ids, hashes, strict=True):
        if isinstance(scenes, str):
            unreadable[story_id] = scenes
            rows.append(None)
            continue
        absent = [digest for scene in scenes for digest in scene if digest not in known]
        if absent:
            unreadable[story_id] = reasons.get(absent[0], "a frame cannot be read")
            rows.append(None)
        else:
            rows.append([torch.tensor([known[digest] for digest in scene]) for scene in scenes])
    return StoryFeatures(features=features, rows=rows, unreadable=unreadable)


def _story_hashes(story: Story | ValueError) -> StoryHashes:
    if isinstance(story, ValueError):
        return str(story)
    return [[hashlib.sha256(frame or b"").digest() for frame in scene.frames] for scene in story.scenes]


def _plain(value: Any) -> Any:
    """Return an image processor's settings as JSON values, without what does not change the pixels."""
    if isinstance(value, dict) or hasattr(value, "keys"):
        names = {"processor_class", "image_processor_type", "feature_extractor_type", "_processor_class"}
        return {str(k): _plain(value[k]) for k in sorted(value.keys()) if k not in names}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _is_first_process() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def _wait_for_all() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
