"""Run tasks as subprocesses: what is done is kept, what fails stops only what needs it, Ctrl-C leaves all resumable."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from eval.reproduce.states import State, first_line, forget
from eval.reproduce.tasks import Task
from llava.imagechain.config import ConfigError
from llava.imagechain.manifest import redact

Ending = Literal["kept", "made", "failed", "blocked", "left out", "stopped"]
PATIENCE_S = 120  # that an interrupted task may take to write what it has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended."""

    task: Task
    ending: Ending
    reason: str = ""
    log: Path | None = None
    seconds: float = 0.0


@dataclasses.dataclass(kw_only=True)
class Running:
    """A task at work."""

    task: Task
    process: subprocess.Popen[bytes]
    gpus: list[str]
    log: Path
    started: float


class Stopped(BaseException):
    """A signal asked to stop."""


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[IO[str]]:
    """Hold the folder's lock; the tasks inherit it, so that it lasts as long as any of them.

    Args:
        folder: The output folder.
        shared: Several holders at once (elements of a job array), but none beside an exclusive one.

    Raises:
        ConfigError: Somebody else holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"{folder} is in use by another run ({file.read().strip() or 'unknown'}); wait for its end, stop it, "
                "or take another --output-dir"
            ) from error
        if not shared:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
        yield file


class Runner:
    """Runs tasks in order, as many at a time as there are GPUs for.

    Args:
        tasks: In an order in which each stands after what it needs.
        state_of: Reads a task's state from disk.
        locks: Open lock files, which the tasks inherit.
        logs_dir: Folder of the logs.
        gpus: Numbers of the GPUs; without any, one task at a time.
        redo_changed: Make anew what is there with other settings.
        expect: Returns the work of a task in any unit (None: unknown); the remaining time is told from it.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        state_of: Callable[[Task], State],
        *,
        locks: Sequence[IO[str]],
        logs_dir: Path,
        gpus: Sequence[str] = (),
        redo_changed: bool = False,
        expect: Callable[[Task], float | None] = lambda task: None,
    ) -> None:
        self.tasks, self.state_of, self.locks, self.logs_dir = list(tasks), state_of, tuple(locks), logs_dir
        self.free, self.gpus, self.redo_changed, self.expect = list(gpus), tuple(gpus), redo_changed, expect
        self.outcomes: dict[str, Outcome] = {}
        self.running: list[Running] = []
        self.started = self.shown = time.time()
        self.gently = False

    def run(self) -> list[Outcome]:
        """Run all tasks.

        Returns:
            One outcome a task, in order; after a signal those that did not come to their turn are "stopped".
        """
        before = {
            number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        try:
            while len(self.outcomes) < len(self.tasks):
                progress = self._start_some()
                progress |= self._collect()
                if not progress:
                    self._show_running()
                    time.sleep(0.2)
        except Stopped:
            for number in before:
                signal.signal(number, signal.SIG_IGN)
            self._end_running()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for task in self.tasks:
            self.outcomes.setdefault(task.name, Outcome(task=task, ending="stopped"))
        return [self.outcomes[task.name] for task in self.tasks]

    def _stop(self, number: int, frame: Any) -> None:
        self.gently = number == signal.SIGUSR1
        raise Stopped

    def _start_some(self) -> bool:
        """Start or settle the tasks whose turn it is; tell whether anything happened."""
        at_work = {running.task.name for running in self.running}
        for task in self.tasks:
            if task.name in self.outcomes or task.name in at_work:
                continue
            lacking = [name for name in task.needs if name in self.outcomes and not self._is_there(name)]
            if lacking:
                left_out = self.outcomes[lacking[0]].ending == "left out"
                self._settle(task, "left out" if left_out else "blocked", f"needs {', '.join(lacking)}")
                return True
            waits = [name for name in (*task.needs, *task.after) if name in self._names - self.outcomes.keys()]
            if waits or not self._has_room(task):
                continue
            state = self.state_of(task)
            if state.kind == "left out" or (state.kind == "done" and task.kind != "result"):
                self._settle(task, "kept" if state.kind == "done" else "left out", state.detail)
            elif state.kind == "changed" and not self.redo_changed:
                self._settle(task, "failed", f"{state.detail}; --redo-changed makes it anew")
            elif task.kind == "result" and not any(
                (Path(run) / "predictions.jsonl").is_file() for run in task.settings["runs"]
            ):
                self._settle(task, "blocked", "none of its runs is there")
            else:
                self._start(task, redo=state.kind == "changed")
            return True
        return False

    @property
    def _names(self) -> set[str]:
        return {task.name for task in self.tasks}

    def _is_there(self, name: str) -> bool:
        return self.outcomes[name].ending in ("kept", "made")

    def _has_room(self, task: Task) -> bool:
        """A task gets GPUs when it can use some; of those that cannot, one is at work at a time."""
        if task.gpus and self.gpus:
            return len(self.free) >= min(task.gpus, len(self.gpus))
        return not any(not running.gpus for running in self.running)

    def _start(self, task: Task, *, redo: bool) -> None:
        count = min(task.gpus, len(self.gpus))
        taken, self.free = self.free[:count], self.free[count:]
        words = task.command(len(taken), redo=redo)
        log = self.logs_dir / f"{task.name.replace('/', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if taken:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        with log.open("ab") as file:
            file.write(f"\n$ {shlex.join(redact(words))}\n".encode())
            file.flush()
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, pass_fds=[lock.fileno() for lock in self.locks], preexec_fn=_follow_parent,
            )  # fmt: skip
        self.running.append(Running(task=task, process=process, gpus=taken, log=log, started=time.time()))

    def _collect(self) -> bool:
        """Settle the tasks that ended."""
        ended = [running for running in self.running if running.process.poll() is not None]
        for running in ended:
            self.running.remove(running)
            self.free += running.gpus
            forget()
            status, seconds = running.process.returncode, time.time() - running.started
            state = self.state_of(running.task)
            if status == 0 and state.kind == "done":
                self._settle(running.task, "made", "", running.log, seconds)
            else:
                said = last_words(running.log)
                reason = (
                    f"exit status {status}: {said}"
                    if status
                    else f"{state.kind} {state.detail}, although it ended well"
                )
                self._settle(running.task, "failed", reason, running.log, seconds)
        return bool(ended)

    def _settle(self, task: Task, ending: Ending, reason: str, log: Path | None = None, seconds: float = 0.0) -> None:
        self.outcomes[task.name] = Outcome(task=task, ending=ending, reason=reason, log=log, seconds=seconds)
        took = f"{duration(seconds)}; " if seconds else ""
        line = f"[{len(self.outcomes):>3}/{len(self.tasks)}] {ending:8} {task.name}"
        if ending in ("made", "failed"):
            line += f" ({took}{duration(time.time() - self.started)} so far{self._remaining()})"
        if ending in ("failed", "blocked", "left out"):
            line += f"\n          {first_line(reason)}"
        say(line, clear=True)

    def _remaining(self) -> str:
        """Return the expected remaining time; "at least" while a kind of task has not been measured yet."""
        measured: dict[str, list[float]] = {}
        for outcome in self.outcomes.values():
            if outcome.ending == "made":
                sums = measured.setdefault(outcome.task.kind, [0.0, 0.0])
                sums[0] += outcome.seconds
                sums[1] += self.expect(outcome.task) or 1.0
        left = [task for task in self.tasks if task.name not in self.outcomes]
        known = [task for task in left if task.kind in measured]
        seconds = sum(measured[task.kind][0] / measured[task.kind][1] * (self.expect(task) or 1.0) for task in known)
        unknown = any(task.kind not in measured and task.kind != "result" for task in left)
        return f", {'at least' if unknown else 'about'} {duration(seconds)} left" if known else ""

    def _show_running(self) -> None:
        every_s = 1 if sys.stderr.isatty() else 60
        if not self.running or time.time() - self.shown < every_s:
            return
        self.shown = time.time()
        now = ", ".join(f"{one.task.name} {duration(self.shown - one.started)}" for one in self.running)
        say(
            f"[{len(self.outcomes):>3}/{len(self.tasks)}] at work: {now}{self._remaining()}",
            stay=not sys.stderr.isatty(),
        )

    def _end_running(self) -> None:
        """Ask what is at work to stop, wait, and say what it became."""
        names = ", ".join(running.task.name for running in self.running) or "nothing at work"
        say(f"stopping ({names}); what is done is kept", clear=True)
        for running in self.running:
            if self.gently and running.task.kind == "train":
                (running.task.folder / "stop").touch()  # it finishes its step and writes a checkpoint
            else:
                _signal(running.process, signal.SIGINT)
        deadline = time.time() + (PATIENCE_S * (2 if self.gently else 1))
        for running in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(max(0.1, deadline - time.time()))
            _signal(running.process, signal.SIGKILL)
            running.process.wait()
        self.running.clear()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _follow_parent() -> None:
    """In the child: Ctrl-C works whatever the shell set, and on Linux it ends when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def last_words(log: Path, lines: int = 3) -> str:
    """Return the end of what the last command of a log said, in one line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    said = text.splitlines()
    begin = max((number for number, line in enumerate(said) if line.startswith("$ ")), default=-1)
    return " / ".join([line.strip() for line in said[begin + 1 :] if line.strip()][-lines:])


def duration(seconds: float) -> str:
    """Return a time such as "41 s", "12 min" or "3 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def say(line: str, *, stay: bool = True, clear: bool = False) -> None:
    """Print a line; on a terminal a line that does not stay is written over by the next."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if stay else ""))
    elif stay or clear:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()
