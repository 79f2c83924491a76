"""Running tasks: order, failures, locks, GPUs, stopping; the commands are a stand-in that writes a file."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from eval.reproduce.runner import Runner, last_words, locked
from eval.reproduce.states import State
from eval.reproduce.tasks import Task
from llava.imagechain.config import ConfigError

STAND_IN = """
    import argparse, os, pathlib, signal, sys, time
    parser = argparse.ArgumentParser()
    for name in ("--folder", "--fail", "--wait", "--meet", "--overwrite", "--leave", "--deaf"):
        parser.add_argument(name, nargs="?", const="yes")
    given = parser.parse_args()
    folder = pathlib.Path(given.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    (folder / "began").touch()
    if given.leave:
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        (folder / "left").write_text(str(child.pid))
    if given.deaf:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        (folder / "began").write_text("deaf")
    time.sleep(float(given.wait or 0))
    end = time.time() + 300
    while given.meet and not pathlib.Path(given.meet, "began").exists() and time.time() < end:
        time.sleep(0.01)
    if given.fail:
        sys.exit("it broke: " + given.fail)
    (folder / "done").write_text("overwritten" if given.overwrite else str(time.time()))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def task(folder, name, **more):
    settings = {"folder": str(folder / name)} | more.pop("settings", {})
    return Task(
        name=name, stage="train", kind="made", module="stand_in", settings=settings, folder=folder / name, **more
    )


def state_of(task):
    return State(kind="done" if (task.folder / "done").is_file() else "missing")


def run(tasks, folder, **more):
    more = {"state_of": state_of} | more
    with locked(folder) as lock:
        return {o.task.name: o for o in Runner(tasks, locks=[lock], logs_dir=folder / "logs", **more).run()}


def test_a_failed_task_stops_only_what_needs_it_and_names_its_log(stand_in, capfd):
    tasks = [
        task(stand_in, "a"),
        task(stand_in, "b", settings={"fail": "disk full"}),
        task(stand_in, "c", needs=("b",)),
        task(stand_in, "d", needs=("a",)),
        task(stand_in, "e", after=("b", "c")),
    ]
    found = run(tasks, stand_in)
    assert {name: outcome.ending for name, outcome in found.items()} == {
        "a": "made", "b": "failed", "c": "blocked", "d": "made", "e": "made",
    }  # fmt: skip
    assert "it broke: disk full" in found["b"].reason
    assert "it broke: disk full" in found["b"].log.read_text()
    assert "needs b" in capfd.readouterr().err


def test_what_is_done_is_kept_and_what_failed_is_tried_again(stand_in):
    tasks = [task(stand_in, "a"), task(stand_in, "b", settings={"fail": "once"}, needs=("a",))]
    run(tasks, stand_in)
    before = (stand_in / "a" / "done").read_text()
    tasks[1] = task(stand_in, "b", needs=("a",))
    found = run(tasks, stand_in)
    assert (found["a"].ending, found["b"].ending) == ("kept", "made")
    assert (stand_in / "a" / "done").read_text() == before


def test_a_task_that_ends_well_without_its_result_has_failed(stand_in):
    found = run([task(stand_in, "a")], stand_in, state_of=lambda task: State(kind="missing"))
    assert found["a"].ending == "failed"
    assert "although it ended well" in found["a"].reason


def test_other_settings_are_refused_unless_asked_for(stand_in):
    def changed(task):
        text = (task.folder / "done").read_text() if (task.folder / "done").is_file() else ""
        return State(kind="done") if text == "overwritten" else State(kind="changed", detail="seed was 0, is 1")

    found = run([task(stand_in, "a")], stand_in, state_of=changed)
    assert found["a"].ending == "failed"
    assert "seed was 0, is 1" in found["a"].reason
    assert not (stand_in / "a").exists()
    assert run([task(stand_in, "a")], stand_in, state_of=changed, redo_changed=True)["a"].ending == "made"


def test_what_a_task_needs_of_others_has_to_be_done_when_it_runs_alone(stand_in):
    tasks = [task(stand_in, "a"), task(stand_in, "b", needs=("a",))]
    found = run(tasks, stand_in, only=["b"])
    assert [(outcome.ending, outcome.reason) for outcome in found.values()] == [("blocked", "needs a")]
    run(tasks, stand_in, only=["a"])
    assert run(tasks, stand_in, only=["b"])["b"].ending == "made"


def test_a_task_that_cannot_be_started_stops_no_other(stand_in):
    (stand_in / "logs").mkdir()
    (stand_in / "logs" / "a.log").mkdir()
    found = run([task(stand_in, "a", gpus=1), task(stand_in, "b", gpus=1)], stand_in, gpus=["0"])
    assert (found["a"].ending, found["b"].ending) == ("failed", "made")
    assert "could not be started" in found["a"].reason


def test_processes_that_a_task_leaves_behind_are_ended(stand_in):
    run([task(stand_in, "a", settings={"leave": "yes"})], stand_in)
    number = int((stand_in / "a" / "left").read_text())

    def gone():
        state = Path(f"/proc/{number}/stat")
        return not state.is_file() or state.read_text().split()[2] == "Z"

    wait_for(gone)


def test_tasks_share_the_gpus_and_run_at_the_same_time(stand_in):
    tasks = [
        task(stand_in, name, gpus=1, settings={"meet": str(stand_in / other)}) for name, other in ("ab", "ba")
    ]  # each ends when the other has begun
    tasks.append(task(stand_in, "both", gpus=8, needs=("a", "b")))
    began = time.time()
    run(tasks, stand_in, gpus=["2", "5"])
    assert time.time() - began < 300
    assert {(stand_in / name / "gpus").read_text() for name in "ab"} == {"2", "5"}
    assert (stand_in / "both" / "gpus").read_text() == "2,5"


def test_a_second_run_of_a_folder_is_refused_and_shared_ones_are_not(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match="in use by another run"), locked(tmp_path):
        pass
    with (
        locked(tmp_path, shared=True),
        locked(tmp_path, shared=True),
        pytest.raises(ConfigError, match="in use"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    def no_locks(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path):
        assert "no locks (No locks available)" in caplog.text


def test_a_refusal_names_who_is_there_now(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on"), locked(tmp_path):
        pass
    with locked(tmp_path, shared=True), pytest.raises(ConfigError, match="of a job array"), locked(tmp_path):
        pass


PROGRAM = """
    import sys
    sys.path[:0] = [{tests!r}]
    import test_reproduce_runner as helpers
    from pathlib import Path
    folder = Path({folder!r})
    tasks = [helpers.task(folder, "slow", settings={settings!r}), helpers.task(folder, "next", needs=("slow",))]
    found = helpers.run(tasks, folder)
    print({{name: outcome.ending for name, outcome in found.items()}})
"""


def start(folder, **settings):
    settings = {"wait": "300"} | settings
    code = textwrap.dedent(PROGRAM.format(tests=str(Path(__file__).parent), folder=str(folder), settings=settings))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (folder / "slow" / "began").is_file())
    return process


def wait_for(happened, seconds=300):
    end = time.time() + seconds
    while not happened():
        assert time.time() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_task_at_work_and_says_what_was_not_reached(stand_in, number):
    process = start(stand_in)
    process.send_signal(number)
    said, problems = process.communicate(timeout=300)
    assert "{'slow': 'stopped', 'next': 'stopped'}" in said
    assert "stopping (slow)" in problems
    assert not (stand_in / "slow" / "done").exists()
    with locked(stand_in):
        pass


def test_a_second_signal_does_not_wait_for_a_task_that_does_not_end(stand_in):
    process = start(stand_in, deaf="yes")
    wait_for(lambda: (stand_in / "slow" / "began").read_text() == "deaf")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert "{'slow': 'stopped', 'next': 'stopped'}" in said


@pytest.mark.skipif(sys.platform != "linux", reason="a child that ends with its parent is Linux's")
def test_a_killed_run_takes_its_task_along_and_leaves_the_folder_free(stand_in):
    process = start(stand_in)
    process.kill()
    process.communicate(timeout=300)

    def free():
        try:
            with locked(stand_in):
                return True
        except ConfigError:
            return False

    wait_for(free)
    assert not (stand_in / "slow" / "done").exists()


def test_the_last_words_are_those_of_the_last_command(tmp_path):
    log = tmp_path / "log"
    log.write_text("$ first\nold trouble\n\n$ second\n10%\r20%\nTypeError: wrong\n")
    assert last_words(log) == "10% / 20% / TypeError: wrong"
    log.write_text(
        "$ torchrun\n[rank1]: ValueError: too long\n"
        "E1120 13:44 7099 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1)\n"
        "Traceback (most recent call last):\nChildFailedError:\n=====\n"
    )
    assert last_words(log) == "[rank1]: ValueError: too long"
