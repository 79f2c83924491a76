"""Job arrays with stand-ins for Slurm: lines, dependencies, what is left out, and elements that are queued again."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eval.reproduce.grid import GridConfig
from eval.reproduce.slurm import submit
from eval.reproduce.states import State
from eval.reproduce.tasks import tasks_of
from llava.imagechain.config import ConfigError

ROOT = Path(__file__).parents[2]
FAKE_SBATCH = """
printf '%s\\n' "$*" >> "{log}"
echo "$((100 + $(wc -l < "{log}")));cluster"
"""


def stand_in(folder, name, text):
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)
    return f"{file.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    log = tmp_path / "sbatch.log"
    monkeypatch.setenv("PATH", stand_in(tmp_path, "sbatch", FAKE_SBATCH.format(log=log)))
    return log


def grid(tmp_path, **more):
    return GridConfig(
        output_dir=tmp_path / "out", judge=Path("configs/judge/world.yaml"), world=True, slurm=True,
        slurm_flags=["--partition=gpu"], **more,
    )  # fmt: skip


def missing(task):
    return State(kind="missing")


def test_stages_are_arrays_that_wait_for_each_other(tmp_path, cluster, capsys):
    config = grid(tmp_path)
    assert submit(config, tasks_of(config), missing) == 0
    lines = cluster.read_text().splitlines()
    stages = ["prepare", "train", "predict", "judge", "results"]
    assert [f"--job-name=imagechain-{stage}" in line for stage, line in zip(stages, lines, strict=True)] == [True] * 5
    assert "--dependency" not in lines[0]
    assert ["--dependency=afterany:10" + str(n + 1) in line for n, line in enumerate(lines[1:])] == [True] * 4
    assert "--array=0-15 " in lines[1]
    assert "--gpus-per-node=8" in lines[1]
    assert "--gpus-per-node=1" in lines[2]
    assert "--gpus-per-node" not in lines[3]
    assert all("--partition=gpu" in line for line in lines)
    listed = (tmp_path / "out/slurm/1/train.txt").read_text().splitlines()
    assert len(listed) == 16
    assert listed[0] == "train/mllm_ft-c2_7-seed0"
    assert len((tmp_path / "out/slurm/1/judge.txt").read_text().splitlines()) == 1
    assert yaml.safe_load((tmp_path / "out/slurm/1/grid.yaml").read_text())["world"] is True
    assert "101, 102" in capsys.readouterr().out


def test_finished_tasks_are_not_submitted(tmp_path, cluster):
    config = grid(tmp_path, results=["table2"])
    done = {"train/imagechain-c2_7-seed0", "train/imagechain-c3-seed0"}
    submit(
        config, tasks_of(config), lambda t: State(kind="done" if t.name in done or t.stage == "prepare" else "missing")
    )
    lines = cluster.read_text().splitlines()
    assert len(lines) == 4
    assert "--array=0-1 " in lines[0]
    assert "--dependency" not in lines[0]
    assert not done & set((tmp_path / "out/slurm/1/train.txt").read_text().split())


def test_a_dry_run_prints_the_lines_and_writes_nothing(tmp_path, cluster, capsys):
    config = grid(tmp_path, dry_run=True)
    submit(config, tasks_of(config), missing)
    said = capsys.readouterr().out
    assert said.count("sbatch --parsable") == 5
    assert "--dependency=afterany:ID_OF_TRAIN" in said
    assert "train/imagechain-c4_7-seed0" in said
    assert not cluster.exists()
    assert not (tmp_path / "out").exists()


def test_a_refusal_of_slurm_names_what_was_submitted(tmp_path, monkeypatch):
    refuses = 'case "$*" in *imagechain-predict*) echo "invalid partition" >&2; exit 1;; esac; echo 7'
    monkeypatch.setenv("PATH", stand_in(tmp_path, "sbatch", refuses))
    config = grid(tmp_path)
    with pytest.raises(ConfigError, match=r"submitted before it: 7, 7.*invalid partition"):
        submit(config, tasks_of(config), missing)


def test_a_second_submission_leaves_the_lists_of_the_first_alone(tmp_path, cluster):
    config = grid(tmp_path, results=["table2"])
    submit(config, tasks_of(config), missing)
    first = (tmp_path / "out/slurm/1/train.txt").read_text()
    submit(config, tasks_of(config), lambda task: State(kind="done" if "c2_7" in task.name else "missing"))
    assert (tmp_path / "out/slurm/1/train.txt").read_text() == first
    assert "c2_7" not in (tmp_path / "out/slurm/2/train.txt").read_text()
    assert f"{tmp_path}/out/slurm/2/train.txt {tmp_path}/out/slurm/2/grid.yaml" in cluster.read_text()


def test_nothing_is_submitted_while_jobs_of_the_folder_are_queued(tmp_path, cluster, monkeypatch):
    config = grid(tmp_path, results=["table2"])
    stand_in(tmp_path, "squeue", "echo 99; echo 102")
    submit(config, tasks_of(config), missing)  # 102 was another folder's until now
    with pytest.raises(ConfigError, match="jobs 102 of an earlier submission are still queued"):
        submit(config, tasks_of(config), missing)
    stand_in(tmp_path, "squeue", "echo 99")
    assert submit(config, tasks_of(config), missing) == 0


def test_what_was_made_with_other_settings_is_named_and_not_submitted(tmp_path, cluster, capsys):
    def state(task):
        return State(kind="changed", detail="seed was 0, is 1") if task.name.startswith("train/") else missing(task)

    config = grid(tmp_path, results=["table2"])
    submit(config, tasks_of(config), state)
    assert "not submitted: train/imagechain-c2-seed0: seed was 0, is 1; --redo-changed" in capsys.readouterr().out
    assert "imagechain-train" not in cluster.read_text()
    submit(dataclasses.replace(config, redo_changed=True), tasks_of(config), state)
    assert "imagechain-train" in cluster.read_text()


def test_jobs_find_settings_files_that_were_given_relative_to_another_folder(tmp_path, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("judge.yaml", "train.yaml"):
        (tmp_path / name).write_text("judge: mock\n")
    config = dataclasses.replace(grid(tmp_path), judge=Path("judge.yaml"), train_config=[Path("train.yaml")])
    submit(config, tasks_of(config), missing)
    settings = yaml.safe_load((tmp_path / "out/slurm/1/grid.yaml").read_text())
    assert settings["judge"] == str(tmp_path / "judge.yaml")
    assert settings["train_config"] == [str(tmp_path / "train.yaml")]


def test_several_flags_for_sbatch_fit_in_one_word(tmp_path, cluster):
    config = dataclasses.replace(grid(tmp_path), slurm_flags=["--time=1:00:00 --qos='a b'"])
    submit(config, tasks_of(config), missing)
    assert all("--time=1:00:00 --qos=a b " in line for line in cluster.read_text().splitlines())


def test_without_slurm_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="node of a Slurm cluster"):
        submit(grid(tmp_path), tasks_of(grid(tmp_path)), missing)


def element(tmp_path, does):
    """Start the sbatch script as Slurm would start element 1, with a Python that does something else."""
    path = stand_in(tmp_path, "fake_python", f'[[ "$1" == -c ]] && exit\n{does}')  # -c: the script asks where llava is
    (tmp_path / "list.txt").write_text("train/a\npredict/b predict/c\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_JOB_ID": "7",
        "PYTHON": path.split(os.pathsep)[0] + "/fake_python",
        "PATH": path,
    }
    script = str(ROOT / "scripts/slurm/reproduce.sbatch")
    return subprocess.Popen(
        ["bash", script, str(tmp_path / "list.txt"), "grid.yaml", "out"], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_an_element_runs_the_tasks_of_its_line(tmp_path):
    said, _ = element(tmp_path, 'echo "$@"').communicate(timeout=300)
    assert said == "-m eval.reproduce --config grid.yaml --output-dir out --only predict/b predict/c\n"


@pytest.mark.parametrize(("status", "asked"), [(130, "requeue 7\n"), (0, None)])
def test_an_element_stopped_near_its_time_limit_is_queued_again(tmp_path, status, asked):
    waits = f"trap 'exit {status}' USR1; touch '{tmp_path}/began'; while :; do sleep 0.05; done"
    stand_in(tmp_path, "scontrol", f'echo "$@" >> "{tmp_path}/asked"')
    process = element(tmp_path, waits)
    end = time.time() + 300
    while not (tmp_path / "began").exists() and time.time() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=300)
    assert process.returncode == status
    assert ((tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else None) == asked


def test_an_element_that_fails_by_itself_is_not_queued_again(tmp_path):
    stand_in(tmp_path, "scontrol", f'echo "$@" >> "{tmp_path}/asked"')
    process = element(tmp_path, "exit 1")
    process.communicate(timeout=300)
    assert process.returncode == 1
    assert not (tmp_path / "asked").exists()


def test_the_script_asks_for_what_requeueing_needs():
    text = (ROOT / "scripts/slurm/reproduce.sbatch").read_text()
    for line in ("#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@300"):
        assert line in text
    assert sys.executable not in text
