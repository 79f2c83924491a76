"""scripts/eval/serve_judge.sh and the command that it runs: signals, input, a command that is not there."""

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("serving_tests", Path(__file__).with_name("test_judge_serving.py"))
serving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving)
work = serving.work


def started(work, job, first=":"):
    """Start the script with a command and wait until that has done its first part and runs."""
    process = subprocess.Popen(
        ["bash", str(serving.SCRIPT), "--", "sh", "-c", f"{first}; echo $$ > job.new; mv job.new job; {job}"], cwd=work,
        env=serving.environment(work, PORT="0"), stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (work / "job").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process, int((work / "job").read_text())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_script_alone_ends_the_server_at_once(work, number, status):
    process, job = started(work, "exec sleep 250")
    process.send_signal(number)
    try:
        assert process.wait(120) == status
        assert not any(map(serving.alive, serving.server_pids(work)))
        assert number != signal.SIGTERM or not serving.alive(job)
    finally:
        if serving.alive(job):
            os.kill(job, signal.SIGKILL)


def test_ctrl_c_reaches_the_command_which_may_finish_its_work(work):
    process, _ = started(work, "while :; do sleep 0.1; done", first="trap 'touch tidy; exit 3' INT")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    assert (work / "tidy").exists() and not any(map(serving.alive, serving.server_pids(work)))


def test_the_command_reads_the_scripts_input_and_a_missing_one_is_named(work):
    shown = subprocess.run(
        ["bash", str(serving.SCRIPT), "--", "cat"], cwd=work, env=serving.environment(work), input="said\n",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stdout) == (0, "said\n")
    status, _, err = serving.serve(work, "--", "no-such-command")
    assert status == 127 and "serve_judge.sh: no-such-command: No such file or directory" in err
