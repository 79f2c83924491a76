"""Several prediction processes, as a user starts them: the script, torchrun, and a stop in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
FLAGS = ["--max-new-tokens", "6", "--device", "cpu", "--batch-size", "1"]


def script(model, stories, output):
    words = ["bash", "scripts/eval/predict.sh", model, "imagechain_noft", stories, output, "--", *FLAGS]
    return [str(word) for word in words]


def run(words, **settings):
    return subprocess.run(
        words, cwd=ROOT, env={**ENVIRONMENT, **settings}, capture_output=True, text=True, timeout=1800
    )


@pytest.fixture(scope="module")
def whole(tiny_base, small_stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = run(script(tiny_base, small_stories, folder))
    assert result.returncode == 0, result.stderr[-3000:]
    return (folder / "predictions.jsonl").read_bytes()


def test_torchrun_numbers_the_processes(tiny_base, small_stories, tmp_path, whole):
    words = ["-m", "eval.predict", "--checkpoint", tiny_base, "--variant", "imagechain_noft", "--stories",
             small_stories, "--output-dir", tmp_path, *FLAGS]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = run([*launch, *map(str, words)], PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole


def test_the_script_starts_parts_stops_them_all_and_a_rerun_merges(tiny_base, small_stories, tmp_path, whole):
    process = subprocess.Popen(
        script(tiny_base, small_stories, tmp_path), cwd=ROOT, env={**ENVIRONMENT, "NUM_GPUS": "2"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.time() + 1800
    manifests = [tmp_path / "shards" / f"{part}-of-2" / "run.json" for part in (0, 1)]
    while not all(path.is_file() for path in manifests) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=1800)
    assert process.returncode == 130
    assert {json.loads(path.read_text())["status"] for path in manifests} <= {"interrupted", "success"}
    again = run(script(tiny_base, small_stories, tmp_path), NUM_GPUS="2")
    assert again.returncode == 0, again.stderr[-3000:]
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole
    assert json.loads((tmp_path / "run.json").read_text())["num_shards"] == 2
    assert "1-of-2" in (tmp_path / "shards" / "1-of-2.log").read_text()


def test_a_number_of_gpus_that_is_none_is_refused(tmp_path):
    result = run(script(tmp_path, tmp_path, tmp_path), NUM_GPUS="two")
    assert result.returncode == 2 and "NUM_GPUS: 1 or more was wanted, found two" in result.stderr
