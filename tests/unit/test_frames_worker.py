"""The process pool: a job that crashes or hangs costs itself."""

import builtins
import math
import subprocess
import sys
import time

import pytest

from stories.frames.worker import Failure, run_jobs


def test_every_job_gets_its_result() -> None:
    assert dict(run_jobs(math.sqrt, [4.0, 9.0, 16.0], 2, 60)) == {0: 2.0, 1: 3.0, 2: 4.0}


def test_no_jobs_are_no_work() -> None:
    assert list(run_jobs(math.sqrt, [], 2, 60)) == []


def test_a_crash_and_a_hang_cost_their_own_job_only() -> None:
    jobs = ["1 + 1", "__import__('os')._exit(3)", "__import__('time').sleep(600)", "__import__('os').abort()", "2 + 2"]
    begin = time.monotonic()
    results = dict(run_jobs(builtins.eval, jobs, 2, 5))
    assert time.monotonic() - begin < 500
    assert (results[0], results[4]) == (2, 4)
    assert isinstance(results[1], Failure) and results[1].kind == "crash" and "exit code 3" in results[1].reason
    assert isinstance(results[2], Failure) and results[2].kind == "timeout" and "5 s" in results[2].reason
    assert isinstance(results[3], Failure) and results[3].kind == "crash"


def test_a_fault_in_the_function_stops_the_run() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(run_jobs(builtins.eval, ["1 / 0"], 1, 60))


def test_workers_ignore_ctrl_c_and_a_schedulers_sigterm() -> None:
    job = "[__import__('os').kill(__import__('os').getpid(), number) for number in (2, 15)] and 'alive'"
    assert dict(run_jobs(builtins.eval, [job], 1, 60)) == {0: "alive"}


def test_the_first_worker_of_a_process_ignores_them_too() -> None:
    code = (  # in a new process: Python unblocks the signals when it starts its helper process, with the first worker
        "import builtins\nfrom stories.frames.worker import run_jobs\nif __name__ == '__main__':\n"
        "    job = \"__import__('os').kill(__import__('os').getpid(), 2) or 'alive'\"\n"
        "    assert dict(run_jobs(builtins.eval, [job], 1, 60)) == {0: 'alive'}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
