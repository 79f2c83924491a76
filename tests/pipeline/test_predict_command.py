"""The prediction commands as a user runs them, on a tiny random model and real StoryFrames of the story world."""

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


def run(*words, **settings):
    command = [str(word) for word in words]
    return subprocess.run(
        command, cwd=ROOT, env={**ENVIRONMENT, **settings}, capture_output=True, text=True, timeout=1800
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base model that has learnt nothing, and stories."""
    root = tmp_path_factory.mktemp("world")
    steps = [
        [sys.executable, "-m", "stories.world.make", "--output-dir", root / "raw", "--num-videos", 40, "--seed", 3],
        ["bash", "scripts/storyframes/build.sh", "--annotations", root / "raw/annotations/valid.json",
         root / "raw/annotations/test.json", "--videos", root / "raw/videos", "--output", root / "stories",
         "--group-by-video", "--num-workers", 1],
        [sys.executable, "-m", "stories.world.base", "--config", "configs/world/fast.yaml",
         "--output-dir", root / "base"],
    ]  # fmt: skip
    for step in steps:
        result = run(*step)
        assert result.returncode == 0, result.stderr[-3000:]
    return root


def predict(world, output, *flags, variant="imagechain_noft", **settings):
    words = [world / "base", variant, world / "stories", output, "--", "--max-new-tokens", 30, *flags]
    return run("bash", "scripts/eval/predict.sh", *words, **settings)


def test_an_interrupted_run_ends_with_the_same_predictions(world, tmp_path):
    whole = predict(world, tmp_path / "whole", BATCH_SIZE="1")
    assert whole.returncode == 0, whole.stderr[-3000:]
    wanted = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    rows = wanted.count(b"\n")
    assert rows >= 10

    path = tmp_path / "cut" / "predictions.jsonl"
    words = [world / "base", "imagechain_noft", world / "stories", tmp_path / "cut", "--", "--max-new-tokens", 30]
    process = subprocess.Popen(
        ["bash", "scripts/eval/predict.sh", *map(str, words)],
        cwd=ROOT, env={**ENVIRONMENT, "BATCH_SIZE": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.time() + 1800
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 2) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=1800)
    assert process.returncode == 130, error[-2000:]
    assert "run the same command again" in error
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    assert 2 <= path.read_bytes().count(b"\n") < rows

    again = predict(world, tmp_path / "cut", BATCH_SIZE="4")
    assert again.returncode == 0, again.stderr[-3000:]
    assert path.read_bytes() == wanted


def test_a_dry_run_prints_the_command_and_stops(world, tmp_path):
    result = run(
        "bash", "scripts/eval/predict.sh", "--dry-run", world / "base", "mllm", world / "stories", tmp_path / "a b"
    )
    assert result.returncode == 0 and "-m eval.predict" in result.stdout and "a\\ b" in result.stdout
    assert not (tmp_path / "a b").exists()
    assert run("bash", "scripts/eval/predict.sh", "one").returncode == 2


def test_the_benchmark_gives_a_row_a_lever_and_the_same_text(world, tmp_path):
    flags = ["--limit", 6, "--rounds", 1, "--max-new-tokens", 8, "--threads", 1, "--variant", "imagechain_noft"]
    result = run(
        "bash", "scripts/bench/predict.sh", "--checkpoint", world / "base", "--stories", world / "stories",
        "--output-dir", tmp_path, *flags,
    )  # fmt: skip
    assert result.returncode in (0, 1), result.stderr[-3000:]  # how fast a busy machine is cannot be a test
    rows = json.loads((tmp_path / "predict.json").read_text())["rows"]
    assert len(rows) == 5 and rows[0]["speedup"] == 1 and "lmms-eval" in rows[1]["row"]
    assert {row["same_text"] for row in rows} == {rows[0]["same_text"]} and rows[0]["same_text"] >= 4
    assert (tmp_path / "predict.md").read_text().count("|") > 20
