"""Run tasks as subprocesses: what is done is kept, what fails stops only what needs it, Ctrl-C leaves all resumable."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import itertools
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from eval.reproduce.states import State, first_line, fitting_gpus, forget
from eval.reproduce.tasks import Task
from llava.imagechain.config import ConfigError
from llava.imagechain.manifest import redact

Ending = Literal["kept", "made", "failed", "blocked", "left out", "stopped"]
PATIENCE_S = 240  # that an interrupted task may take to write what it has; Slurm asks 300 s before the end
TORCHRUN_S = 40  # that torchrun takes to end its processes

logger = logging.getLogger(__name__)


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

    @property
    def by_file(self) -> bool:
        """It is asked to stop by a file: torchrun answers a signal by ending its processes."""
        return self.task.kind == "train" and len(self.gpus) > 1


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
                f"{folder} is in use by another run ({file.read().strip() or 'of a job array'}); wait for its end, "
                "stop it, or take another --output-dir"
            ) from error
        except OSError as error:
            logger.error(
                "%s: this file system has no locks (%s): let one run at a time work there", folder, error.strerror
            )
        file.truncate(0)
        if not shared:
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
        yield file


class Runner:
    """Runs tasks in order, as many at a time as there are GPUs for.

    Args:
        tasks: In an order in which each stands after what it needs.
        state_of: Reads a task's state from disk.
        only: Names of those to run; what they need of the others has to be done already. Empty: all.
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
        only: Collection[str] = (),
        locks: Sequence[IO[str]],
        logs_dir: Path,
        gpus: Sequence[str] = (),
        redo_changed: bool = False,
        expect: Callable[[Task], float | None] = lambda task: None,
    ) -> None:
        self.by_name = {task.name: task for task in tasks}
        self.tasks = [task for task in tasks if not only or task.name in only]
        self.state_of, self.locks, self.logs_dir = state_of, tuple(locks), logs_dir
        self.free, self.gpus, self.redo_changed, self.expect = list(gpus), tuple(gpus), redo_changed, expect
        self.outcomes: dict[str, Outcome] = {}
        self.changed: dict[str, bool] = {}
        self.running: list[Running] = []
        self.started = self.shown = time.monotonic()
        self.signals = 0

    def run(self) -> list[Outcome]:
        """Run all tasks.

        Returns:
            One outcome a task, in order; after a signal those that did not come to their turn are "stopped".
        """
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._count_signal) for number in numbers}
        try:
            while len(self.outcomes) < len(self.tasks) and not self.signals:
                progress = self._start_some()
                progress |= self._collect()
                if not progress:
                    self._show_running()
                    time.sleep(0.2)
            if self.signals:
                self._end_running()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for task in self.tasks:
            self.outcomes.setdefault(task.name, Outcome(task=task, ending="stopped"))
        return [self.outcomes[task.name] for task in self.tasks]

    def _count_signal(self, number: int, frame: Any) -> None:
        self.signals += 1

    def _start_some(self) -> bool:
        """Start or settle a task whose turn it is; tell whether there was one."""
        waiting = {task.name for task in self.tasks} - self.outcomes.keys()
        at_work = {running.task.name for running in self.running}
        for task in self.tasks:
            if task.name not in waiting or task.name in at_work:
                continue
            if any(self._is_missing(name) for name in task.needs if name in self.outcomes):
                self._block(task)
                return True
            if waiting.intersection((*task.needs, *task.after)) or not self._has_room(task):
                continue
            if any(map(self._is_missing, task.needs)):
                self._block(task)
            else:
                self._settle_or_start(task)
            return True
        return False

    def _is_missing(self, name: str) -> bool:
        """Tell whether a task that is settled, or not one of this run, has left nothing to go on with."""
        if name in self.outcomes:
            return self.outcomes[name].ending not in ("kept", "made")
        return self.state_of(self.by_name[name]).kind != "done"

    def _block(self, task: Task) -> None:
        lacking = [name for name in task.needs if self._is_missing(name)]
        left_out = lacking[0] in self.outcomes and self.outcomes[lacking[0]].ending == "left out"
        self._settle(task, "left out" if left_out else "blocked", f"needs {', '.join(lacking)}")

    def _settle_or_start(self, task: Task) -> None:
        state = self.state_of(task)
        redo = state.kind == "changed" and self.redo_changed
        if task.kind == "result":
            task = self._with_its_runs(task)
        if state.kind == "left out" or (state.kind == "done" and task.kind != "result"):
            self._settle(task, "kept" if state.kind == "done" else "left out", state.detail)
        elif state.kind == "changed" and not redo:
            self.changed[task.name] = True
            self._settle(task, "failed", f"{state.detail}; --redo-changed makes it anew")
        elif task.kind == "result" and not task.settings["runs"]:
            self._settle(task, "blocked", "none of its runs is there")
        else:
            try:
                self._start(task, redo=redo)
            except OSError as error:  # such as a full disk: the log cannot be written
                self._settle(task, "failed", f"it could not be started: {error}")

    def _with_its_runs(self, task: Task) -> Task:
        """Return a result's task with those of its runs that are there; without those of other settings."""
        runs = dict(zip(task.settings["runs"], task.after, strict=True))
        there = [run for run in runs if (Path(run) / "predictions.jsonl").is_file()]
        if other := [run for run in there if self._is_changed(runs[run])]:
            say(f"          not in {task.name}, made with other settings: {', '.join(map(os.path.basename, other))}")
        return dataclasses.replace(task, settings=task.settings | {"runs": [run for run in there if run not in other]})

    def _is_changed(self, name: str) -> bool:
        """Tell whether a task, or one that it rests on, was made with other settings or from other inputs."""
        if name not in self.changed:
            own = name not in self.outcomes and self.state_of(self.by_name[name]).kind == "changed"
            self.changed[name] = own or any(map(self._is_changed, self.by_name[name].needs))
        return self.changed[name]

    def _has_room(self, task: Task) -> bool:
        """A task gets GPUs when it can use some; of those that cannot, one is at work at a time."""
        if task.gpus and self.gpus:
            return len(self.free) >= min(task.gpus, len(self.gpus))
        return not any(not running.gpus for running in self.running)

    def _start(self, task: Task, *, redo: bool) -> None:
        count = fitting_gpus(task, min(task.gpus, len(self.gpus)))
        words = task.command(count, redo=redo)
        log = self.logs_dir / f"{task.name.replace('/', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if count:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.free[:count])
        with log.open("ab") as file:
            file.write(f"\n$ {shlex.join(redact(words))}\n".encode())
            file.flush()
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, pass_fds=[lock.fileno() for lock in self.locks], preexec_fn=_follow_parent,
            )  # fmt: skip
        taken, self.free = self.free[:count], self.free[count:]
        self.running.append(Running(task=task, process=process, gpus=taken, log=log, started=time.monotonic()))

    def _collect(self) -> bool:
        """Settle the tasks that ended."""
        ended = [running for running in self.running if running.process.poll() is not None]
        for running in ended:
            self.running.remove(running)
            self.free += running.gpus
            _signal(running.process, signal.SIGKILL)  # what it may have left behind
            forget()
            status, seconds = running.process.returncode, time.monotonic() - running.started
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
            line += f" ({took}{duration(time.monotonic() - self.started)} so far{self._remaining()})"
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
        if not self.running or time.monotonic() - self.shown < every_s:
            return
        self.shown = time.monotonic()
        now = ", ".join(f"{one.task.name} {duration(self.shown - one.started)}" for one in self.running)
        say(
            f"[{len(self.outcomes):>3}/{len(self.tasks)}] at work: {now}{self._remaining()}",
            stay=not sys.stderr.isatty(),
        )

    def _end_running(self) -> None:
        """Ask what is at work to stop, wait, and end it; a second signal ends it at once."""
        names = ", ".join(running.task.name for running in self.running) or "nothing at work"
        say(f"stopping ({names}); what is done is kept; once more stops at once", clear=True)
        for running in self.running:
            if not running.by_file:
                _signal(running.process, signal.SIGINT)
        self._wait(PATIENCE_S, until_signal=self.signals + 1)
        for running in self.running:
            _signal(running.process, signal.SIGTERM)
        self._wait(TORCHRUN_S)
        for running in self.running:
            _signal(running.process, signal.SIGKILL)
            running.process.wait()
            if running.by_file:
                (running.task.folder / "stop").unlink(missing_ok=True)
        self.running.clear()

    def _wait(self, seconds: float, until_signal: int | None = None) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.signals != until_signal:
            alive = [running for running in self.running if running.process.poll() is None]
            for running in alive if until_signal else ():
                if running.by_file:  # again and again, since a training that begins takes an older request away
                    with contextlib.suppress(OSError):
                        (running.task.folder / "stop").touch()
            if not alive:
                return
            time.sleep(0.2)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _follow_parent() -> None:
    """In the child: Ctrl-C works whatever the shell set, and on Linux it ends when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def last_words(log: Path, lines: int = 3) -> str:
    """Return the end of what the last command of a log said, in one line; torchrun's own report is left out."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    said = text.splitlines()
    begin = max((number for number, line in enumerate(said) if line.startswith("$ ")), default=-1)
    own = itertools.takewhile(lambda line: "elastic/multiprocessing/api.py" not in line, said[begin + 1 :])
    return " / ".join([line.strip() for line in own if line.strip()][-lines:])


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
