"""Controls and the cleaning of answers."""

from types import SimpleNamespace

import pytest

from eval.predict.controls import borrow_earlier_text, check_control, edit_of, shuffle_earlier
from eval.predict.generation import batches_by_length, clean_prediction
from llava.imagechain.config import ConfigError
from llava.imagechain.story import Scene, Story
from llava.imagechain.variants import VARIANTS


def story(name, count, video=None):
    scenes = tuple(
        Scene(description=f"{name} {n}", start_s=0, end_s=1, frame_times_s=(), frames=(name.encode(), bytes([n])))
        for n in range(count)
    )
    return Story(story_id=name, video_name=video or name, background="", scenes=scenes)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_shuffling_moves_earlier_scenes_whole_and_keeps_the_last(count):
    before = story("a", count)
    after = shuffle_earlier(before, seed=0)
    assert after.scenes != before.scenes and after.scenes[-1] == before.scenes[-1]
    assert set(after.scenes) == set(before.scenes)
    assert shuffle_earlier(before, seed=0) == after


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_to_shuffle_leaves_the_story(count):
    assert shuffle_earlier(story("a", count), seed=0) == story("a", count)


def test_borrowed_text_is_of_one_other_video_and_keeps_frames_and_the_last_scene():
    mine = story("a", 3)
    donors = [mine, story("twin", 3, video="a"), story("b", 3)]
    for seed in range(20):
        after = borrow_earlier_text(mine, donors, seed)
        assert [scene.description for scene in after.scenes] == ["b 0", "b 1", "a 2"]
        assert [scene.frames for scene in after.scenes] == [scene.frames for scene in mine.scenes]


def test_without_another_video_there_is_no_text_to_borrow():
    edit = edit_of("other_text", [story("a", 3), story("b", 2)], seed=0)
    with pytest.raises(ValueError, match="3 scenes from another video"):
        edit(story("a", 3))
    assert edit(story("c", 2)).scenes[0].description == "b 0" or edit(story("c", 2)).scenes[0].description == "c 0"
    assert edit(story("d", 1)) == story("d", 1)


@pytest.mark.parametrize(
    ("control", "variant", "works"),
    [
        ("other_text", "imagechain", True),
        ("other_text", "mllm", True),
        ("other_text", "visual_context", False),
        ("shuffled_scenes", "visual_context", True),
        ("shuffled_scenes", "final_scene", False),
        ("blank_images", "final_scene", True),
        ("none", "final_scene", True),
    ],
)
def test_controls_that_change_nothing_are_refused(control, variant, works):
    if works:
        check_control(control, VARIANTS[variant])
    else:
        with pytest.raises(ConfigError, match="changes nothing"):
            check_control(control, VARIANTS[variant])


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  the dog\n runs. ", "the dog runs."),
        ("the dog runs.USER: What is happening in the next image?", "the dog runs."),
        ("ASSISTANT: x", ""),
        ("a</s> dog <image> <Image></Image> runs", "a dog runs"),
        ("a USERS: guide", "a USERS: guide"),
    ],
)
def test_answers_are_one_line_without_marks(text, clean):
    assert clean_prediction(text) == clean


def test_batches_hold_stories_of_like_length_and_of_one_video_longest_first():
    plans = [SimpleNamespace(length=n, video_name=v) for n, v in ((5, "a"), (9, "b"), (1, "c"), (7, "d"), (3, "b"))]
    assert batches_by_length(plans, [0, 1, 2, 4], 2) == [[1, 4], [0, 2]]
