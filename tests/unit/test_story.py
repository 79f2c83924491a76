"""StoryFrames: the published schema, and one reader for a built folder and a single saved table."""

import io

import datasets
import pytest
from PIL import Image

from llava.imagechain.story import (
    SPLIT_FOLDERS,
    Story,
    StoryFrames,
    bucket_of,
    clean_text,
    load_stories,
    story_from_row,
    storyframes_features,
)

PUBLISHED_FIELDS = [
    "sentence_parts", "start_times", "end_times", "background_description", "video_name", "question_info",
    "num_actors_in_video", "caption", "sentence_parts_nocontext", "subsampled_frames_per_scene", "story_id",
    "scenes", "num_scenes",
]  # fmt: skip


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, format="JPEG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(name, num_scenes):
    return {
        "sentence_parts": [f" scene\n {i} " for i in range(num_scenes)],
        "start_times": [float(i) for i in range(num_scenes)],
        "end_times": [i + 1.0 for i in range(num_scenes)],
        "background_description": "In the background, there is a wall.",
        "video_name": f"{name}.mp4",
        "question_info": name,
        "num_actors_in_video": 1,
        "caption": "",
        "sentence_parts_nocontext": ["" for _ in range(num_scenes)],
        "subsampled_frames_per_scene": [[i + 0.0, i + 0.5] for i in range(num_scenes)],
        "story_id": name,
        "scenes": [[jpeg("red"), jpeg("blue")] for _ in range(num_scenes)],
        "num_scenes": num_scenes,
    }


@pytest.fixture
def folder(tmp_path):
    for split in SPLIT_FOLDERS:
        for count in (2, 3, 5):
            rows = [row(f"{split}-{count}-{i}", count) for i in range(2)]
            table = datasets.Dataset.from_list(rows, features=storyframes_features())
            table.save_to_disk(tmp_path / bucket_of(count) / SPLIT_FOLDERS[split])
    return tmp_path


def test_the_schema_has_exactly_the_published_fields_in_order():
    assert list(storyframes_features()) == PUBLISHED_FIELDS


def test_one_split_and_context_is_read_and_texts_are_cleaned(folder):
    stories = load_stories(folder, "validation", "c4_7")
    assert stories.ids == ["validation-5-0", "validation-5-1"]
    assert stories.texts()[0][1] == "scene 1"
    assert stories.frame_counts()[0] == [2] * 5
    story = stories[0]
    assert isinstance(story, Story)
    assert story.scenes[4].description == "scene 4"
    assert [image.size for image in story.scenes[0].images()] == [(8, 6), (8, 6)]
    assert [other.story_id for other in stories[:2]] == stories.ids


@pytest.mark.parametrize(
    "choose", [lambda s: s, lambda s: s[1:4], lambda s: s.select([4, 0, 3]), lambda s: s.select([4, 0, 3])[1:]]
)
def test_the_sizes_of_frames_are_those_of_the_chosen_stories(folder, choose):
    stories = choose(load_stories(folder, "train"))
    sizes = [[[len(frame) for frame in scene.frames] for scene in story.scenes] for story in stories]
    assert stories.frame_sizes() == sizes


def test_stories_with_other_frames_have_another_hash_and_those_of_the_same_the_same(tmp_path):
    def saved(name, colours):
        rows = [row("a", 2) | {"scenes": [[jpeg(colour) for colour in colours]] * 2}]
        datasets.Dataset.from_list(rows, features=storyframes_features()).save_to_disk(tmp_path / name)
        return load_stories(tmp_path / name, "train").sha256()

    before, again, other = saved("a", ("red", "blue")), saved("b", ("red", "blue")), saved("c", ("red",))
    assert before == again
    assert before["stories_sha256"] == other["stories_sha256"]
    assert before["frames_sha256"] != other["frames_sha256"]


def test_without_a_context_every_length_of_the_split_is_read(folder):
    assert sorted(load_stories(folder, "train").num_scenes) == [2, 2, 3, 3, 5, 5]


def test_a_single_saved_folder_is_read(folder):
    assert len(load_stories(folder / "scene_2" / "train", "train", "c2")) == 2


@pytest.mark.parametrize(
    ("source", "split", "context", "error"),
    [("nowhere", "train", None, FileNotFoundError), (None, "test", None, ValueError), (None, "train", "c9", ValueError),
     (None, "train", "c6", ValueError)],
)  # fmt: skip
def test_wrong_requests_are_named(folder, source, split, context, error):
    with pytest.raises(error):
        load_stories(source or folder, split, context)


def test_a_row_with_uneven_lists_or_an_empty_scene_is_refused():
    broken = row("x", 3)
    broken["end_times"].pop()
    with pytest.raises(ValueError, match="equal length"):
        story_from_row(broken)
    broken = row("x", 3)
    broken["scenes"][1] = []
    with pytest.raises(ValueError, match="scene 2 holds no frame"):
        story_from_row(broken)


def test_dropping_the_oldest_scenes_never_drops_the_last():
    story = story_from_row(row("x", 3))
    assert [s.description for s in story.without_oldest(1).scenes] == ["scene 1", "scene 2"]
    assert [s.description for s in story.without_oldest(9).scenes] == ["scene 2"]


def test_white_space_of_annotations_is_collapsed():
    assert clean_text("  a\n b\u00a0 c ") == "a b c"
    assert [bucket_of(n) for n in (1, 2, 3, 4, 7, 8, 14)] == [
        "scene_1", "scene_2", "scene_3", "scene_4_7", "scene_4_7", "scene_8_plus", "scene_8_plus",
    ]  # fmt: skip


def test_a_table_of_something_else_is_refused_by_name(tmp_path):
    datasets.Dataset.from_dict({"story_id": ["a"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other is no StoryFrames table: it lacks background_description"):
        load_stories(tmp_path / "other", "train")


def test_a_cut_table_is_refused_by_name(folder):
    data = next((folder / "scene_3" / "train").glob("data-*.arrow"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"scene_3.train is damaged"):
        load_stories(folder, "train")


LISTS = ("sentence_parts", "start_times", "end_times", "scenes")


def damaged(**changes):
    """Three stories of which the second's row is changed; "shorter" cuts a list to one entry."""
    rows = [row(f"s{number}", 2) for number in range(3)]
    rows[1].update({name: rows[1][name][:1] if value == "shorter" else value for name, value in changes.items()})
    return StoryFrames(datasets.Dataset.from_list(rows, features=storyframes_features()))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sentence_parts": "shorter"}, "'sentence_parts': 1, 'start_times': 2"),
        ({"sentence_parts": None}, "'sentence_parts': 0"),
        ({"start_times": None}, "'start_times': 0"),
        ({"subsampled_frames_per_scene": "shorter"}, "'subsampled_frames_per_scene': 1"),
        ({"scenes": "shorter"}, "'scenes': 1"),
        ({"scenes": None}, "'scenes': 0"),
        ({"scenes": [[jpeg("red")], []]}, "scene 2 holds no frame"),
        ({"scenes": [[jpeg("red")], [None]]}, "a frame is empty"),
        ({"scenes": [[jpeg("red")], [{"bytes": b"nonsense", "path": None}]]}, "a frame cannot be read"),
        ({"num_scenes": 3}, "'num_scenes': 3"),
        ({"story_id": None}, "without an id"),
        (
            {name: [] for name in (*LISTS, "subsampled_frames_per_scene")} | {"num_scenes": 0},
            "at least one scene",
        ),
    ],
)
def test_a_damaged_row_costs_one_story_and_is_listed_with_its_reason(changes, reason):
    from llava.imagechain.data import unreadable_stories

    stories = damaged(**changes)
    ((name, found),) = unreadable_stories(stories).items()
    assert name == stories.ids[1] and reason in found
    assert len(stories.texts()) == len(stories.frame_counts()) == 3


def test_a_row_without_its_number_of_scenes_is_of_the_context_its_descriptions_say():
    stories = damaged(num_scenes=None)
    assert stories.num_scenes == [2, 2, 2] and len(stories.in_context("c2")) == 3
    assert stories[1].num_scenes == 2


def test_an_empty_table_is_no_split(tmp_path):
    empty = datasets.Dataset.from_dict({name: [] for name in PUBLISHED_FIELDS}, storyframes_features())
    try:
        empty.save_to_disk(tmp_path / "scene_2/train")
    except ZeroDivisionError:
        pytest.skip("this datasets version cannot save a table without rows")
    with pytest.raises(ValueError, match="holds no train stories"):
        load_stories(tmp_path, "train", "c2")
