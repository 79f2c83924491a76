"""The tiny model and the small stories of tests/pipeline; everything here needs a CUDA device."""

import importlib.util
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Mark what lies in this folder, and skip it where there is no GPU."""
    import torch

    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


spec = importlib.util.spec_from_file_location(
    "pipeline_fixtures", Path(__file__).parents[1] / "pipeline" / "conftest.py"
)
pipeline_fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pipeline_fixtures)
tiny_base, small_stories = pipeline_fixtures.tiny_base, pipeline_fixtures.small_stories
