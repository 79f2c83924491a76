"""The Slurm script with stand-ins for Slurm: its command, and that a job stopped in time is queued again."""

import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ["bash", str(ROOT / "scripts" / "slurm" / "train.sbatch")]


def environment(tmp_path, **more):
    given = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return given | {"MODEL": "m", "STORIES": "s", "OUTPUT_DIR": str(tmp_path / "run"), **more}


def stand_in(tmp_path, name, text):
    file = tmp_path / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)
    return f"{file.parent}{os.pathsep}{os.environ['PATH']}"


def test_nodes_and_gpus_come_from_slurm(tmp_path):
    path = stand_in(tmp_path, "scontrol", "echo first; seq 100000")  # more than a pipe holds
    path = stand_in(tmp_path, "srun", 'shift; SLURM_NODEID=1 "$@"') and path
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    done = subprocess.run(
        [*SCRIPT, "--seed", "3"], env=environment(tmp_path, DRY_RUN="1", PATH=path, **slurm), cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = "--nnodes 2 --nproc_per_node 4 --node_rank 1 --master_addr first --master_port 20007"
    assert wanted in done.stdout
    assert "--seed 3" in done.stdout


def test_a_requeued_job_goes_on_though_its_first_start_was_to_overwrite(tmp_path):
    def command(**more):
        given = environment(tmp_path, DRY_RUN="1", PATH=stand_in(tmp_path, "srun", 'shift; "$@"'), **more)
        done = subprocess.run([*SCRIPT, "--overwrite"], env=given, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert command()[-1] == "--overwrite"
    assert command(SLURM_RESTART_COUNT="1")[-3:] == ["--overwrite", "--overwrite", "false"]


def test_a_job_near_its_time_limit_stops_the_run_and_is_queued_again(tmp_path):
    wait = f'touch "{tmp_path}/started"; while [[ ! -f "$OUTPUT_DIR/stop" ]]; do sleep 0.1; done; sleep 0.3; exit 1'
    path = stand_in(tmp_path, "srun", wait)
    stand_in(tmp_path, "scontrol", f'echo "$@" >> "{tmp_path}/asked"')
    given = environment(tmp_path, PATH=path, SLURM_JOB_ID="7")
    process = subprocess.Popen(SCRIPT, env=given, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=300)
    assert process.returncode == 1
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


def test_a_job_that_fails_by_itself_is_not_queued_again(tmp_path):
    path = stand_in(tmp_path, "srun", "exit 2")
    stand_in(tmp_path, "scontrol", f'echo "$@" >> "{tmp_path}/asked"')
    done = subprocess.run(SCRIPT, env=environment(tmp_path, PATH=path, SLURM_JOB_ID="7"), cwd=ROOT, check=False)
    assert done.returncode == 2
    assert not (tmp_path / "asked").exists()
