"""Train and validation (paper section 4, "Dataset Splits"): 80/20 in each of the buckets 2, 3 and 4-7."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llava.imagechain.story import bucket_of
from stories.frames.annotations import StoryAnnotation

SPLIT_BUCKETS = ("scene_2", "scene_3", "scene_4_7")  # 1 and 8 or more scenes are validation only
VALIDATION_SHARE = 0.2


def assign_splits(
    stories: Sequence[StoryAnnotation], seed: int, split_by: Literal["story", "video"] = "story"
) -> dict[str, str]:
    """Return story_id -> "train" or "validation".

    The choice depends on the seed and on which stories there are, not on their order nor on which videos decode.

    Args:
        stories: All annotated stories.
        seed: Any whole number.
        split_by: "story" as the paper does; "video" keeps all stories of a video on one side, over all buckets.
    """
    split = {story.story_id: "validation" for story in stories}
    groups: dict[str, list[StoryAnnotation]] = defaultdict(list)
    for story in stories:
        if bucket_of(story.num_scenes) in SPLIT_BUCKETS:
            groups[story.story_id if split_by == "story" else story.video_name].append(story)
            split[story.story_id] = "train"
    sizes = Counter(bucket_of(story.num_scenes) for group in groups.values() for story in group)
    wanted = {bucket: int(size * VALIDATION_SHARE + 0.5) for bucket, size in sizes.items()}
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest()):
        needs = Counter(bucket_of(story.num_scenes) for story in groups[key])
        if all(count <= wanted[bucket] for bucket, count in needs.items()):
            for bucket, count in needs.items():
                wanted[bucket] -= count
            split.update({story.story_id: "validation" for story in groups[key]})
    return split


def leak(stories: Sequence[StoryAnnotation], split: Mapping[str, str]) -> dict[str, Any]:
    """Count the validation stories whose video is also in train."""
    train_videos = {story.video_name for story in stories if split[story.story_id] == "train"}
    held_out, shared = Counter[str](), Counter[str]()
    for story in stories:
        if split[story.story_id] == "validation":
            bucket = bucket_of(story.num_scenes)
            held_out[bucket] += 1
            shared[bucket] += story.video_name in train_videos
    of_split = sum(held_out[bucket] for bucket in SPLIT_BUCKETS)
    leaked = sum(shared[bucket] for bucket in SPLIT_BUCKETS)
    return {
        "validation_stories": of_split,
        "with_video_in_train": leaked,
        "percent": round(100 * leaked / of_split, 2) if of_split else 0.0,
        "with_video_in_train_by_bucket": dict(sorted(shared.items())),
    }
