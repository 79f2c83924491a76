"""Hand a grid to Slurm: job arrays that wait for each other; an element runs its tasks by `--only`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.reproduce.grid import ROOT, GridConfig, in_repository
from eval.reproduce.states import State
from eval.reproduce.tasks import STAGES, Task, places_of
from llava.imagechain.config import ConfigError, to_json
from llava.imagechain.files import write_text

SCRIPT = ROOT / "scripts" / "slurm" / "reproduce.sbatch"
ARRAYS = ("train", "predict")  # one element a task; the other stages are one job, their tasks one after the other
OF_A_CALL = ("only", "slurm", "slurm_flags", "dry_run", "gpus")
JOBS = "jobs.txt"  # numbers of a submission's jobs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One job array.

    Attributes:
        stage: One of `STAGES`.
        elements: Names of the tasks of each element.
        gpus: GPUs of an element.
    """

    stage: str
    elements: tuple[tuple[str, ...], ...]
    gpus: int

    def command(self, slurm: Path, output: Path, after: str | None, flags: Sequence[str]) -> list[str]:
        """Return the sbatch line; `after` is the job that has to have ended, well or not."""
        words = [
            "sbatch", "--parsable", f"--job-name=imagechain-{self.stage}", f"--array=0-{len(self.elements) - 1}",
            f"--chdir={ROOT}", f"--output={slurm / '%x-%A_%a.log'}",
        ]  # fmt: skip
        words += [f"--gpus-per-node={self.gpus}"] if self.gpus else []
        words += [f"--dependency=afterany:{after}"] if after else []
        files = [slurm / f"{self.stage}.txt", slurm / "grid.yaml", output]
        return [*words, *(word for flag in flags for word in shlex.split(flag)), str(SCRIPT), *map(str, files)]


def jobs_of(tasks: Sequence[Task]) -> list[Job]:
    """Return the jobs of tasks, in the order of the stages."""
    jobs = []
    for stage in STAGES:
        names = [task.name for task in tasks if task.stage == stage]
        elements = [(name,) for name in names] if stage in ARRAYS else [tuple(names)]
        if names:
            gpus = max(task.gpus for task in tasks if task.stage == stage)
            jobs.append(Job(stage=stage, elements=tuple(elements), gpus=gpus))
    return jobs


def left_of(config: GridConfig, tasks: Sequence[Task], state_of: Callable[[Task], State]) -> list[Task]:
    """Return what there is to do; say of each task that cannot be done why."""
    left = []
    for task in tasks:
        state = state_of(task)
        if state.kind == "changed" and not config.redo_changed:
            print(f"not submitted: {task.name}: {state.detail}; --redo-changed makes it anew")
        elif task.stage == "results" or state.kind not in ("done", "left out"):
            left.append(task)
    return left


def submit(config: GridConfig, tasks: Sequence[Task], state_of: Callable[[Task], State]) -> int:
    """Submit everything that is missing, or with `dry_run` print the sbatch lines; return the exit status.

    Raises:
        ConfigError: Jobs of an earlier submission are still queued, sbatch is not there, or it refused a job; those
            before it stay submitted and are named.
    """
    output = places_of(config).output
    if not config.dry_run:
        refuse_while_queued(output / "slurm")
    jobs = jobs_of(left_of(config, tasks, state_of))
    last = max((int(path.name) for path in (output / "slurm").glob("[0-9]*") if path.name.isdigit()), default=0)
    slurm = output / "slurm" / str(last + 1)  # its own: queued jobs read the lists of theirs
    if not config.dry_run:
        slurm.mkdir(parents=True)
        write_text(slurm / "grid.yaml", yaml.safe_dump(settings_of_jobs(config), sort_keys=False))
        for job in jobs:
            lines = [" ".join(element) for element in job.elements]
            write_text(slurm / f"{job.stage}.txt", "\n".join(lines) + "\n")
    before: str | None = None
    submitted: list[str] = []
    for job in jobs:
        words = job.command(slurm, output, before, config.slurm_flags)
        print(shlex.join(words))
        if config.dry_run:
            print(
                "".join(f"    {number}: {' '.join(element)}\n" for number, element in enumerate(job.elements)), end=""
            )
            before = f"ID_OF_{job.stage.upper()}"
            continue
        before = _sbatch(words, submitted)
        submitted.append(before)
        write_text(slurm / JOBS, "\n".join(submitted) + "\n")
    if submitted:
        print(
            f"submitted: {', '.join(submitted)}; logs: {slurm}. After their end the same command submits what is left."
        )
    return 0


def settings_of_jobs(config: GridConfig) -> dict[str, Any]:
    """Return the grid's settings for the jobs, which start in the repository: every path is absolute."""
    places = places_of(config)
    settings = {name: value for name, value in to_json(config).items() if name not in OF_A_CALL and value is not None}
    for name in ("train_config", "world_base"):
        settings[name] = [str(in_repository(path).resolve()) for path in getattr(config, name)]
    settings |= {"judge": str(in_repository(config.judge).resolve()), "output_dir": str(places.output)}
    if not config.world:
        mementos = str(places.mementos) if places.mementos else None
        settings |= {"model": str(places.model), "stories": places.stories, "other_split": places.other_split,
                     "mementos": mementos}  # fmt: skip
    return settings


def refuse_while_queued(slurm: Path) -> None:
    """Make sure that no job of an earlier submission is waiting or running.

    Raises:
        ConfigError: Some are.
    """
    numbers = [number for path in slurm.glob(f"*/{JOBS}") for number in path.read_text(encoding="utf-8").split()]
    with contextlib.suppress(OSError):  # without squeue sbatch says what is wrong
        answer = subprocess.run(
            ["squeue", "--noheader", "--format=%F", f"--user={os.getuid()}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if queued := sorted(set(numbers) & set(answer.stdout.split())):
            raise ConfigError(
                f"jobs {', '.join(queued)} of an earlier submission are still queued (squeue); wait for their end, or "
                "scancel them"
            )


def _sbatch(words: Sequence[str], submitted: Sequence[str]) -> str:
    try:
        answer = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(
            f"sbatch cannot be started ({error.strerror}); --slurm belongs on a node of a Slurm cluster"
        ) from error
    number = answer.stdout.strip().partition(";")[0]
    if answer.returncode or not number:
        kept = f" (submitted before it: {', '.join(submitted)}; scancel removes them)" if submitted else ""
        raise ConfigError(f"sbatch refused {words[2]}{kept}: {answer.stderr.strip() or answer.stdout.strip()}")
    return number
