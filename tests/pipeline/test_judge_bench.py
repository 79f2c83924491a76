"""scripts/bench/judge.sh, cut short; and what it calls a failure."""

import json
import subprocess
from pathlib import Path

from eval.judge.bench import LOOP, Row, problems

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_compares_and_counts_the_calls_of_a_second_run(tmp_path):
    flags = ["--rows", "24", "--loop-rows", "12", "--answer-ms", "20", "--rounds", "1", "--concurrency", "1", "8"]
    command = ["bash", str(ROOT / "scripts" / "bench" / "judge.sh"), *flags, "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    loop, one, eight = json.loads((tmp_path / "judge.json").read_text())["rows"]
    assert loop["row"] == LOOP and loop["rates"][0] < 50
    assert [one["second_run_calls"], eight["second_run_calls"]] == [0, 0]
    assert "| eval.simrate --concurrency 8 |" in done.stdout


def test_too_slow_a_second_call_and_another_answer_are_failures():
    fine = {
        LOOP: Row(rates=[10.0], answers=["Yes"]),
        "eval.simrate --concurrency 32": Row(rates=[80.0], answers=["Yes"]),
    }
    assert problems(fine, 10.0) == []
    wrong = {
        LOOP: Row(rates=[10.0], answers=["Yes"]),
        "eval.simrate --concurrency 32": Row(rates=[79.0], answers=["No"], second_run_calls=1),
    }
    assert len(problems(wrong, 10.0)) == 3
