"""A tiny LLaVA folder and a small StoryFrames folder for the real commands."""

import importlib.util
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "unit"


def load_helpers(name):
    """Load a file of tests/unit as a module."""
    spec = importlib.util.spec_from_file_location(f"helpers_{name}", UNIT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A whole tiny LLaVA model, vision weights inside."""
    return load_helpers("conftest").build_tiny_llava(tmp_path_factory.mktemp("tiny_base")).full


@pytest.fixture(scope="session")
def small_stories(tmp_path_factory):
    """A StoryFrames folder: 40 training and 6 validation stories of 2 to 5 scenes."""
    stories_of = load_helpers("test_data").stories_of
    root = tmp_path_factory.mktemp("stories")
    for folder, counts in (("scene_2", [2]), ("scene_3", [3]), ("scene_4_7", [4, 5])):
        for split, number in (("train", 16), ("val", 2)):
            rows = stories_of(*(counts * number)[:number], prefix=f"{folder}-{split}-")
            rows.table.save_to_disk(str(root / folder / split))
    return root
