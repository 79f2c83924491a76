"""The shell scripts on other machines: old bash, CDPATH, an environment that was half made."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*(ROOT / "scripts").rglob("*.sh"), *(ROOT / "scripts").rglob("*.sbatch"), ROOT / ".ci/run"]
TRAPS = {
    "the reader may stop early, which ends the script under pipefail": r"\| *(head|grep -[a-zA-Z]*q|sed [^|]*\bq\b)",
    "macOS's bash 3.2 lacks it": r"\b(mapfile|readarray|coproc|wait -n|declare -A|local -n)\b|\$\{\w+(,,|\^\^|@Q)|\|&",
    "bash before 4.4 stops at an empty array": r'(?<!\+)"\$\{(flags|options|paper|parts|more_configs)\[@\]\}"(?!;)',
    "macOS lacks it": r"realpath -|readlink -f|paste [^|)]*[^-]\)|;p\}|grep -\w*P|sed -i|date -d|stat -c|\bnproc\b",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_scripts_keep_clear_of(trap):
    lines = [f"{path.name}: {line}" for path in SCRIPTS for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(SCRIPTS) > 25
    assert [line for line in lines if re.search(TRAPS[trap], line)] == []


def test_a_cdpath_leads_no_script_astray(tmp_path):
    (tmp_path / "scripts/train").mkdir(parents=True)
    settings = {"CDPATH": str(tmp_path), "MODEL": "m", "STORIES": "s", "NUM_GPUS": "0"}
    done = subprocess.run(
        ["bash", "scripts/train/imagechain.sh", "--dry-run"], cwd=ROOT, env={**os.environ, **settings},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"--config {ROOT}/configs/train/base.yaml" in done.stdout


def test_numbers_of_machines_and_gpus_that_are_none_are_refused_together():
    settings = {"MODEL": "m", "STORIES": "s", "NUM_GPUS": "two", "NNODES": "-1"}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/train/imagechain.sh")], env={**os.environ, **settings},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "NUM_GPUS: a whole number was wanted, found two" in done.stderr
    assert "NNODES: a whole number was wanted, found -1" in done.stderr


def test_an_environment_whose_making_was_interrupted_gets_its_pip(tmp_path):
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/setup.sh"), "train"], env={**os.environ, "VENV": str(python.parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0] == "-m ensurepip --default-pip" and "--editable .[train]" in asked[-1]
