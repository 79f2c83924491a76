"""Story and Scene, the published StoryFrames schema, and the readers of StoryFrames folders and of the hub dataset."""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.imagechain.files import sha256_json

if TYPE_CHECKING:
    import datasets
    from PIL import Image

HUB_DATASET = "ingoziegler/StoryFrames"
BUCKETS = {"scene_1": (1, 1), "scene_2": (2, 2), "scene_3": (3, 3), "scene_4_7": (4, 7), "scene_8_plus": (8, None)}
SPLIT_FOLDERS = {"train": "train", "validation": "val"}
# Paper section 5.2; test contexts are single lengths as well.
CONTEXTS: dict[str, tuple[int, int]] = {
    "c2": (2, 2), "c3": (3, 3), "c4": (4, 4), "c5": (5, 5), "c6": (6, 6), "c7": (7, 7),
    "c4_6": (4, 6), "c4_7": (4, 7), "c2_6": (2, 6), "c2_7": (2, 7),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One annotated segment of a video: its frames as stored (encoded image bytes) and its description."""

    description: str
    start_s: float
    end_s: float
    frame_times_s: tuple[float, ...]
    frames: tuple[bytes, ...] = dataclasses.field(repr=False)

    def images(self) -> list[Image.Image]:
        """Decode the frames to RGB images."""
        from PIL import Image

        return [Image.open(io.BytesIO(frame)).convert("RGB") for frame in self.frames]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
    """An ordered sequence of scenes (paper section 3.1)."""

    story_id: str
    video_name: str
    background: str
    scenes: tuple[Scene, ...]

    @property
    def num_scenes(self) -> int:
        """Number of scenes, T in the paper."""
        return len(self.scenes)

    def without_oldest(self, count: int) -> Story:
        """Return the story without its first `count` scenes; the last scene always stays."""
        return dataclasses.replace(self, scenes=self.scenes[min(count, self.num_scenes - 1) :])


@functools.cache
def storyframes_features() -> datasets.Features:
    """Return the 13 features of the published dataset, in file order."""
    from datasets import Features, Image, Sequence, Value

    text, seconds, count = Value("string"), Value("float32"), Value("int32")
    return Features(
        {
            "sentence_parts": Sequence(text),
            "start_times": Sequence(seconds),
            "end_times": Sequence(seconds),
            "background_description": text,
            "video_name": text,
            "question_info": text,
            "num_actors_in_video": count,
            "caption": text,
            "sentence_parts_nocontext": Sequence(text),
            "subsampled_frames_per_scene": Sequence(Sequence(seconds)),
            "story_id": text,
            "scenes": Sequence(Sequence(Image())),
            "num_scenes": count,
        }
    )


def clean_text(text: str) -> str:
    """Collapse white space (new lines, no-break spaces) and strip; annotations are full of it."""
    return re.sub(r"\s+", " ", text).strip()


def bucket_of(num_scenes: int) -> str:
    """Return the StoryFrames folder name of a story with that many scenes.

    Raises:
        ValueError: Fewer than one scene.
    """
    for name, (low, high) in BUCKETS.items():
        if low <= num_scenes and (high is None or num_scenes <= high):
            return name
    raise ValueError(f"A story needs at least one scene, found {num_scenes}.")


def story_from_row(row: dict[str, Any]) -> Story:
    """Build a Story from a dataset row whose images were not decoded.

    Raises:
        ValueError: The story has no id or no scene, its per-scene lists differ in length, or a scene holds no frame.
    """
    if not isinstance(row["story_id"], str):
        raise ValueError("a story without an id was found; story_id is its name in every result.")
    name, times = f"Story {row['story_id']}", row.get("subsampled_frames_per_scene")
    lists = {key: row[key] for key in ("sentence_parts", "start_times", "end_times", "scenes")}
    lists |= {"subsampled_frames_per_scene": times} if times else {}
    lengths = {key: len(value or ()) for key, value in lists.items()}
    if row.get("num_scenes") is not None:
        lengths["num_scenes"] = row["num_scenes"]
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{name}: lists of equal length were wanted, found {lengths}.")
    if not lengths["scenes"]:
        raise ValueError(f"{name}: at least one scene was wanted, found none.")
    scenes = []
    for number, frames in enumerate(row["scenes"]):
        if not frames:
            raise ValueError(f"{name}: scene {number + 1} holds no frame.")
        scenes.append(
            Scene(
                description=clean_text(row["sentence_parts"][number] or ""),
                start_s=row["start_times"][number],
                end_s=row["end_times"][number],
                frame_times_s=tuple((times[number] if times else None) or ()),
                frames=tuple((frame or {}).get("bytes") or b"" for frame in frames),
            )
        )
    return Story(
        story_id=row["story_id"],
        video_name=row["video_name"],
        background=clean_text(row["background_description"] or ""),
        scenes=tuple(scenes),
    )


class StoryFrames(Sequence[Story]):
    """Stories behind a `datasets` table; frames are read when a story is asked for, texts and counts without them."""

    def __init__(self, table: datasets.Dataset) -> None:
        self.table = table
        # Rows as arrow keep the images encoded; casting the column to undecoded images would copy the whole dataset.
        self._rows = table.with_format("arrow")
        counts = list(table["num_scenes"])
        if None in counts:  # such a row is of the context that its descriptions say
            counts = [len(parts) if count is None else count for count, parts in zip(counts, self.texts(), strict=True)]
        self.num_scenes: list[int] = counts
        self.ids: list[str] = list(table["story_id"])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return story_from_row(self._rows[index].to_pylist()[0])

    def __iter__(self) -> Iterator[Story]:
        return (self[index] for index in range(len(self)))

    def attempts(self) -> Iterator[Story | ValueError]:
        """Give each story, or the reason why its row is none."""
        for index in range(len(self)):
            try:
                yield self[index]
            except ValueError as error:
                yield error

    def select(self, indices: Sequence[int]) -> StoryFrames:
        """Return the stories at these indices, in this order."""
        return StoryFrames(self.table.select(indices))

    def in_context(self, context: str) -> StoryFrames:
        """Return the stories whose number of scenes lies in a context ("c2", "c4_7", ...)."""
        low, high = CONTEXTS[context]
        return self.select([i for i, count in enumerate(self.num_scenes) if low <= count <= high])

    def frame_counts(self) -> list[list[int]]:
        """Return the number of frames of each scene of each story, without reading any frame."""
        times = self.table.select_columns(["subsampled_frames_per_scene"])["subsampled_frames_per_scene"]
        return [[len(scene or ()) for scene in story or ()] for story in times]

    def texts(self) -> list[list[str]]:
        """Return the cleaned scene descriptions of each story, without reading any frame."""
        column = self.table.select_columns(["sentence_parts"])["sentence_parts"]
        return [[clean_text(text or "") for text in story or ()] for story in column]

    def frame_sizes(self) -> list[list[list[int | None]]]:
        """Return the bytes of every frame of each scene of each story, from arrow's offsets: no frame is read."""
        import pyarrow as pa
        import pyarrow.compute as pc

        rows: list[list[list[int | None]]] = []
        for stories in self.table.data.column("scenes").chunks:
            scenes = stories.values
            sizes = pc.binary_length(scenes.values.field("bytes"))
            nested = pa.ListArray.from_arrays(scenes.offsets, sizes)
            rows += pa.ListArray.from_arrays(stories.offsets, nested).to_pylist()
        chosen = self.table._indices  # of a `select` that is no slice; to apply it would copy every frame
        return rows if chosen is None else [rows[index] for index in chosen.column(0).to_pylist()]

    def sha256(self) -> dict[str, str]:
        """Return hashes that tell these stories from others: of ids and texts, and of the sizes of the frames."""
        return {
            "stories_sha256": sha256_json([self.ids, self.texts()]),
            "frames_sha256": sha256_json(self.frame_sizes()),
        }


def load_stories(source: Path | str, split: str, context: str | None = None) -> StoryFrames:
    """Load one split of a StoryFrames folder built here, of one `save_to_disk` folder, or of the published hub dataset.

    Args:
        source: A folder, or a hub name such as "ingoziegler/StoryFrames".
        split: "train" or "validation".
        context: Keep only stories of this context; None keeps all lengths of the split.

    Raises:
        ValueError: Unknown split or context, or nothing is left.
        FileNotFoundError: A local path that is not there.
    """
    import datasets

    if split not in SPLIT_FOLDERS:
        raise ValueError(f"split: 'train' or 'validation' was wanted, found {split!r}.")
    if context is not None and context not in CONTEXTS:
        raise ValueError(f"context: one of {', '.join(CONTEXTS)} was wanted, found {context!r}.")
    path = Path(source).expanduser()
    if (path / "state.json").is_file():
        tables = [_read_table(path)]
    elif path.is_dir():
        folders = [path / name / SPLIT_FOLDERS[split] for name in BUCKETS if _overlaps(name, context)]
        tables = [_read_table(folder) for folder in folders if (folder / "state.json").is_file()]
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not path.exists() and str(source) == HUB_DATASET:
        tables = [datasets.load_dataset(str(source), split=split)]
    else:
        raise FileNotFoundError(
            f"No StoryFrames at {source}: a folder made by scripts/storyframes/build.sh or {HUB_DATASET!r} was wanted."
        )
    tables = [table for table in tables if len(table)]
    if not tables:
        raise ValueError(f"{source} holds no {split} stories{f' for context {context}' if context else ''}.")
    stories = StoryFrames(datasets.concatenate_datasets(tables))
    stories = stories.in_context(context) if context else stories
    if not len(stories):
        raise ValueError(f"{source} holds no {split} stories of context {context}.")
    return stories


def _read_table(folder: Path) -> datasets.Dataset:
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except IndexError:  # a table of no rows is saved without a file
        return datasets.Dataset.from_dict({name: [] for name in storyframes_features()}, storyframes_features())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged ({error}); build or copy it again.") from error
    if missing := sorted(set(storyframes_features()) - set(table.column_names)):
        raise ValueError(f"{folder} is no StoryFrames table: it lacks {', '.join(missing)}.")
    return table


def _overlaps(bucket: str, context: str | None) -> bool:
    if context is None:
        return True
    low, high = BUCKETS[bucket]
    return low <= CONTEXTS[context][1] and (high is None or high >= CONTEXTS[context][0])
