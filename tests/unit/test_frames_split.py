"""Train and validation, by story as the paper does and by video without a leak."""

import random

from llava.imagechain.story import bucket_of
from stories.frames.annotations import StoryAnnotation
from stories.frames.split import assign_splits, leak


def stories(count: int = 500, per_video: int = 2) -> list[StoryAnnotation]:
    made = []
    for number in range(count):
        scenes = number // per_video % 9 + 1
        made.append(
            StoryAnnotation(
                story_id=f"s{number}",
                source="x",
                video_name=f"v{number // per_video}",
                question_info=f"s{number}",
                texts=("t",) * scenes,
                intervals=tuple((float(index), index + 1.0) for index in range(scenes)),
            )
        )
    return made


def held_out(split: dict[str, str]) -> set[str]:
    return {name for name, side in split.items() if side == "validation"}


def test_a_fifth_of_each_trained_bucket_is_validation_and_all_of_the_others() -> None:
    made = stories()
    split = assign_splits(made, 0)
    for bucket, share in {"scene_1": 1, "scene_2": 0.2, "scene_3": 0.2, "scene_4_7": 0.2, "scene_8_plus": 1}.items():
        names = [story.story_id for story in made if bucket_of(story.num_scenes) == bucket]
        assert len(held_out(split) & set(names)) == int(len(names) * share + 0.5)


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    made = stories()
    shuffled = random.Random(1).sample(made, len(made))
    for split_by in ("story", "video"):
        assert assign_splits(made, 0, split_by) == assign_splits(shuffled, 0, split_by)
        assert assign_splits(made, 0, split_by) != assign_splits(made, 1, split_by)


def test_by_story_a_video_leaks_and_the_leak_is_counted() -> None:
    made = stories()
    found = leak(made, assign_splits(made, 0, "story"))
    assert 60 < found["percent"] < 95  # about 80 % of the partners are in train
    assert found["with_video_in_train"] == sum(
        found["with_video_in_train_by_bucket"][name] for name in ("scene_2", "scene_3", "scene_4_7")
    )


def test_by_video_nothing_leaks_and_the_sizes_hold() -> None:
    made = stories()
    # one video with stories in several buckets
    made += [
        StoryAnnotation(**{**vars(story), "story_id": f"x{story.story_id}", "video_name": "v4"}) for story in made[:8]
    ]
    split = assign_splits(made, 0, "video")
    assert leak(made, split)["with_video_in_train"] == 0
    for bucket in ("scene_2", "scene_3", "scene_4_7"):
        names = [story.story_id for story in made if bucket_of(story.num_scenes) == bucket]
        assert abs(len(held_out(split) & set(names)) - len(names) * 0.2) <= 2
