"""Tests over a LLaVA-NeXT checkout: they need LLAVA_NEXT_DIR and work on copies; the checkout itself is not written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PARTS = ("llava", "trl")


def _apply_overlay(*arguments):
    """Run scripts/apply_overlay.sh and return the finished process."""
    command = ["bash", str(REPOSITORY / "scripts/apply_overlay.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _python_in(checkout, *arguments, python=sys.executable, seconds=900, folder=None, **environment):
    """Run Python with a checkout's packages first, from inside it (or a folder), and return the finished process."""
    path = {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [python, *map(str, arguments)], cwd=folder or checkout, env={**os.environ, **path, **environment},
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


def _run_checks(checkout, folder, *names, **settings):
    """Run functions of checks.py over a checkout in one process and return their results by name."""
    output = Path(folder) / f"results-{checkout.name}.json"
    output.unlink(missing_ok=True)
    done = _python_in(checkout, Path(__file__).parent / "checks.py", folder, output, *names, **settings)
    assert output.is_file(), done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="session")
def apply_overlay():
    """The script, as a function of its arguments."""
    return _apply_overlay


@pytest.fixture(scope="session")
def python_in():
    """Python inside a checkout, as a function."""
    return _python_in


@pytest.fixture(scope="session")
def run_checks():
    """checks.py inside a checkout, as a function."""
    return _run_checks


@pytest.fixture(scope="session")
def unmodified(tmp_path_factory):
    """A copy of the checkout as it is without the overlay."""
    source = os.environ.get("OVERLAY_CHECKOUT")  # what tests/conftest.py was given as LLAVA_NEXT_DIR
    if not source:
        pytest.skip("LLAVA_NEXT_DIR is not set to a LLaVA-NeXT checkout")
    if not (Path(source) / "llava/model/llava_arch.py").is_file():
        pytest.fail(f"LLAVA_NEXT_DIR={source} is not a LLaVA-NeXT checkout")
    copy = tmp_path_factory.mktemp("checkouts") / "unmodified"
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(source) / part, copy / part, ignore=ignored)
    if (copy / "llava/imagechain").exists():
        assert _apply_overlay("--revert", copy).returncode == 0
    return copy


@pytest.fixture(scope="session")
def overlaid(unmodified, tmp_path_factory):
    """A copy of the checkout with the overlay applied by the script."""
    copy = tmp_path_factory.mktemp("checkouts") / "overlaid"
    shutil.copytree(unmodified, copy)
    done = _apply_overlay(copy)
    assert done.returncode == 0, done.stderr
    return copy
