"""scripts/bench/train.sh over a checkout: LLaVA-NeXT's own trainer is a row whose losses are the authors' way's.

OVERLAY_OLD_PYTHON names a Python with transformers 4.45; without it the tests' own is used when the trainer imports.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("OVERLAY_OLD_PYTHON", sys.executable)


def test_upstreams_trainer_has_the_losses_of_the_authors_way(overlaid, python_in, tmp_path):
    tried = python_in(overlaid, "-c", "import llava.train.llava_trainer", python=PYTHON)
    if tried.returncode:
        pytest.skip(f"llava/train/llava_trainer.py does not import: {tried.stderr.strip().splitlines()[-1]}")
    folder = "from conftest import build_tiny_llava; from pathlib import Path; build_tiny_llava(Path('tiny'))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests/unit'}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", folder], cwd=tmp_path, env=environment, check=True)
    settings = [str(ROOT / f"configs/train/{name}.yaml") for name in ("base", "imagechain", "c2_7")]
    command = [
        "bash", str(ROOT / "scripts/bench/train.sh"), "--config-from", "tiny/full", "--synthetic", "16", "--output-dir",
        "out", "--train-config", *settings, "--warmup", "1", "--steps", "2", "--threads", "1", "--least-speedup", "0",
        "--set", "per_device_train_batch_size=4", "global_batch_size=4", "lora_r=4",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHON": PYTHON, "LLAVA_NEXT_DIR": str(overlaid)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads((tmp_path / "out/train.json").read_text())["rows"]
    assert [row["row"] for row in rows[:2]] == ["LLaVA-NeXT's trainer, the authors' way", "the authors' way"]
    assert rows[1]["losses"] == pytest.approx(rows[0]["losses"], rel=1e-3)
