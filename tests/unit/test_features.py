"""The feature cache: right, computed once, whole after an interruption."""

import hashlib
import importlib.util
import logging
from pathlib import Path

import pytest
import torch

from llava.imagechain import features as module
from llava.imagechain.data import ExampleSettings, StoryExamples
from llava.imagechain.features import cached_features
from llava.imagechain.variants import VARIANTS
from llava.imagechain.vision import process_scene_frames

spec = importlib.util.spec_from_file_location("data_helpers", Path(__file__).with_name("test_data.py"))
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
stories_of, jpeg = helpers.stories_of, helpers.jpeg


@pytest.fixture(scope="module")
def tower(tiny_llava):
    from llava.imagechain.vision import CLIPVisionTower

    class Settings:
        mm_vision_select_layer = -2
        mm_vision_select_feature = "patch"

    tower = CLIPVisionTower(str(tiny_llava.tower), Settings())
    tower.load_model()
    return tower.eval()


class Counting(torch.nn.Module):
    """Counts the frames that go through a tower; breaks off after `limit` calls."""

    def __init__(self, tower, limit=None):
        super().__init__()
        self.tower, self.frames, self.calls, self.limit = tower, 0, 0, limit

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.tower, name)

    def state_dict(self, *arguments, **options):
        return self.tower.state_dict(*arguments, **options)

    def forward(self, frames):
        if self.limit is not None and self.calls >= self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        self.frames += len(frames)
        return self.tower(frames)


def cache(folder, collections, tower, **options):
    return cached_features(folder, collections, tower, tower.image_processor, **{"dtype": "float32", **options})


def count(stories):
    return len({hashlib.sha256(f).digest() for story in stories for scene in story.scenes for f in scene.frames})


def test_cached_features_are_the_towers(tmp_path, tower):
    stories = stories_of(2, 3)
    (found,) = cache(tmp_path, [stories], tower, frames_per_call=4)
    for row, story in enumerate(stories):
        for number, scene in enumerate(story.scenes):
            pixels = process_scene_frames(scene.images(), tower.image_processor)
            with torch.no_grad():
                torch.testing.assert_close(found.scene(row, number), tower(pixels), rtol=1e-5, atol=1e-5)


def test_each_different_frame_is_computed_once_for_all_stories_and_runs(tmp_path, tower):
    stories, others = stories_of(2, 2), stories_of(2, 3, prefix="o")
    counting = Counting(tower)
    cache(tmp_path, [stories, stories], counting)
    assert counting.frames == count(stories)
    cache(tmp_path, [others, stories], counting)
    assert counting.frames == count(stories) + count(others)
    cache(tmp_path, [others], counting)
    assert counting.frames == count(stories) + count(others)


@pytest.mark.parametrize("cut", ["none", "features", "hashes"])
def test_an_interrupted_cache_goes_on_and_ends_the_same(tmp_path, tower, cut):
    stories = stories_of(3, 3, 3)
    (whole,) = cache(tmp_path / "whole", [stories], tower, frames_per_call=4)
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path / "cut", [stories], Counting(tower, limit=2), frames_per_call=4)
    (folder,) = (tmp_path / "cut").iterdir()
    if cut != "none":  # what a power cut leaves behind
        path = folder / {"features": "features.bin", "hashes": "frames.sha256"}[cut]
        path.write_bytes(path.read_bytes()[:-17])
    counting = Counting(tower)
    (found,) = cache(tmp_path / "cut", [stories], counting, frames_per_call=4)
    assert counting.frames < count(stories)
    for row in range(len(stories)):
        for scene in range(3):
            torch.testing.assert_close(found.scene(row, scene), whole.scene(row, scene))


def test_size_is_said_before_anything_is_computed(tmp_path, tower, caplog):
    stories = stories_of(2)
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, [stories], Counting(tower, limit=0))
    assert f"1 stories, {count(stories)} frames to compute, 16 x 32 float32 each" in caplog.text


def test_too_small_a_disk_is_an_error_before_anything_is_computed(tmp_path, tower, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="choose another --feature-cache"):
        cache(tmp_path, [stories_of(2)], Counting(tower, limit=0))


def test_another_tower_preprocessing_or_dtype_has_a_folder_of_its_own(tmp_path, tower):
    stories = stories_of(2)
    cache(tmp_path, [stories], tower)
    cache(tmp_path, [stories], tower, scene_aspect="pad")
    cache(tmp_path, [stories], tower, dtype="float16")
    with torch.no_grad():
        parameter = next(tower.parameters())
        parameter.add_(0.5)
        cache(tmp_path, [stories], tower)
        parameter.sub_(0.5)
    assert len(list(tmp_path.iterdir())) == 4


def test_half_precision_is_for_the_disk_only(tmp_path, tower):
    (found,) = cache(tmp_path, [stories_of(2)], tower, dtype="float16")
    assert found.features.dtype == torch.float16
    assert found.scene(0, 0).dtype == torch.float32


def test_a_damaged_frame_costs_its_story_only(tmp_path, tower):
    import datasets

    from llava.imagechain.story import StoryFrames, storyframes_features

    good, bad = stories_of(2), stories_of(2, prefix="bad", frames=jpeg(1)[:-30])
    rows = [row for stories in (bad, good) for row in stories.table.to_list()]
    both = StoryFrames(datasets.Dataset.from_list(rows, features=storyframes_features()))
    (found,) = cache(tmp_path, [both], tower)
    assert list(found.unreadable) == ["bad0"]
    assert "a frame cannot be read" in found.unreadable["bad0"]
    assert found.scene(1, 0).shape == (2, 16, 32)
    with pytest.raises(KeyError, match="leave it out"):
        found.scene(0, 0)


def test_a_frame_is_left_out_for_its_size_with_a_cache_as_without(tmp_path, tower, monkeypatch):
    from PIL import Image

    from llava.imagechain.data import unreadable_stories

    stories = stories_of(2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # a frame has 40 x 32
    (found,) = cache(tmp_path, [stories], tower)
    assert "DecompressionBombWarning" in found.unreadable["s0"]
    assert found.unreadable == unreadable_stories(stories)


def test_examples_with_a_cache_read_no_frame(tmp_path, tower, tiny_llava, monkeypatch):
    from transformers import AutoTokenizer

    stories, pool = stories_of(2), stories_of(2, 2, 2, prefix="t")
    found = cache(tmp_path, [stories, pool], tower)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava.full, use_fast=False)
    made = StoryExamples(
        stories, VARIANTS["mllm_icl"], tokenizer, tower.image_processor, ExampleSettings(tokens_per_scene=16),
        demonstrations=pool, features=found,
    )  # fmt: skip
    monkeypatch.setattr(type(stories), "__getitem__", lambda *_: pytest.fail("a story's frames were read"))
    example = made[0]
    assert example["modality"] == "video-seq-features"
    assert [tuple(scene.shape) for scene in example["images"]] == [(3, 16, 32)] * 3 + [(2, 16, 32), (3, 16, 32)]
    row = next(scene.row for scene in made.plans[0].scenes if scene.demonstration)
    assert torch.equal(example["images"][0], found[1].scene(row, 1))


def test_the_cache_holds_all_frames_whatever_number_a_run_shows(tmp_path, tower, tiny_llava):
    from transformers import AutoTokenizer

    stories = stories_of(3)
    found = cache(tmp_path, [stories, stories], tower)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava.full, use_fast=False)
    settings = ExampleSettings(tokens_per_scene=16, max_frames_per_scene=1)
    read, cached = (
        StoryExamples(stories, VARIANTS["imagechain"], tokenizer, tower.image_processor, settings, features=features)[0]
        for features in ((), found)
    )
    assert [len(scene) for scene in cached["images"]] == [1, 1, 1]
    for pixels, features in zip(read["images"], cached["images"], strict=True):
        torch.testing.assert_close(features, tower(pixels), rtol=1e-5, atol=1e-5)


def test_a_damaged_row_is_left_out_with_its_reason_and_the_others_stay(tmp_path, tower, tiny_llava):
    import datasets

    from llava.imagechain.story import StoryFrames

    whole = stories_of(2, 2, 2)
    raw = datasets.Features({**whole.table.features, "scenes": [[datasets.Image(decode=False)]]})
    rows = whole.table.cast(raw).to_list()
    rows[1]["end_times"] = rows[1]["end_times"][:1]
    stories = StoryFrames(datasets.Dataset.from_list(rows, features=whole.table.features))
    (found,) = cache(tmp_path, [stories], tower)
    assert list(found.unreadable) == ["s1"] and "'end_times': 1" in found.unreadable["s1"]
    assert found.rows[1] is None and found.scene(2, 1).shape[0] == 3
