"""Every script that runs Python uses llava of LLAVA_NEXT_DIR when it is set, and says which llava it uses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = {  # arguments that make each script reach its Python command
    "merge_lora.sh": ["in", "out"],
    "export_hf.sh": ["in", "out"],
    "eval/predict.sh": ["checkpoint", "imagechain", "stories", "run"],
    "eval/simrate.sh": ["run"],
    "eval/tables.sh": ["out", "run"],
    "eval/report.sh": ["stories", "out.html", "run"],
    "storyframes/build.sh": ["--output", "out"],
    "train/imagechain.sh": [],
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with a package llava whose every import says where it lies and ends."""
    root = tmp_path_factory.mktemp("check out")
    (root / "llava/imagechain").mkdir(parents=True)
    (root / "llava/__init__.py").write_text("raise SystemExit('llava of the checkout: ' + __file__)\n")
    return root


def run_script(name, *words, cwd=ROOT, **settings):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LLAVA_NEXT_DIR")}
    environment |= {
        "PYTHON": sys.executable,
        "MODEL": "m",
        "STORIES": "s",
        "NUM_GPUS": str(int("train" not in name)),
        **settings,
    }
    command = ["bash", str(ROOT / "scripts" / name), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("name", WORDS)
def test_the_checkouts_llava_runs_also_from_inside_this_repository(checkout, name):
    if sys.version_info < (3, 11):
        pytest.skip("Python before 3.11 always takes the current folder first")
    done = run_script(name, *WORDS[name], LLAVA_NEXT_DIR=os.path.relpath(checkout, ROOT))
    assert f"llava: {checkout}/llava\n" in done.stderr
    assert f"llava of the checkout: {checkout}/llava/__init__.py" in done.stderr


def test_without_a_checkout_this_repositorys_llava_is_named(tmp_path):
    done = run_script("merge_lora.sh", "in", "out", cwd=tmp_path)
    assert f"llava: {ROOT}/llava\n" in done.stderr and done.returncode == 2


def test_a_folder_without_the_overlay_is_refused(tmp_path):
    done = run_script("merge_lora.sh", "in", "out", LLAVA_NEXT_DIR=str(tmp_path))
    assert done.returncode == 2 and "has no overlay; run scripts/apply_overlay.sh" in done.stderr


def test_a_python_that_would_take_another_llava_is_refused(checkout, tmp_path):
    old = tmp_path / "python"  # ignores PYTHONSAFEPATH, as Python 3.10 does
    old.write_text(f'#!/bin/sh\nunset PYTHONSAFEPATH\nexec "{sys.executable}" "$@"\n')
    old.chmod(0o755)
    done = run_script("merge_lora.sh", "in", "out", LLAVA_NEXT_DIR=str(checkout), PYTHON=str(old))
    assert done.returncode == 2 and f"llava: {ROOT}/llava\n" in done.stderr and "before 3.11" in done.stderr
    assert f"from inside {checkout}" in done.stderr
    elsewhere = run_script("merge_lora.sh", "in", "out", cwd=checkout, LLAVA_NEXT_DIR=str(checkout), PYTHON=str(old))
    assert "llava of the checkout" in elsewhere.stderr


def test_every_script_with_a_python_command_goes_through_the_common_part():
    own = {"apply_overlay.sh", "common.sh", "overlay_matrix.sh", "quickstart.sh", "setup.sh", "test.sh"}
    scripts = [path for path in (ROOT / "scripts").rglob("*.sh") if path.name not in own]
    missing = [path.name for path in scripts if "common.sh" not in path.read_text()]
    assert not missing and len(scripts) > 8
