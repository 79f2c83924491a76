"""Hand a grid to Slurm: job arrays that wait for each other; an element runs its tasks by `--only`."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from eval.reproduce.grid import ROOT, GridConfig
from eval.reproduce.states import State
from eval.reproduce.tasks import STAGES, Task, places_of
from llava.imagechain.config import ConfigError, to_json
from llava.imagechain.files import write_text

SCRIPT = ROOT / "scripts" / "slurm" / "reproduce.sbatch"
ARRAYS = ("train", "predict")  # one element a task; the other stages are one job, their tasks one after the other
OF_A_CALL = ("only", "slurm", "slurm_flags", "dry_run", "gpus")


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

    def command(self, output: Path, after: str | None, flags: Sequence[str]) -> list[str]:
        """Return the sbatch line; `after` is the job that has to have ended, well or not."""
        slurm = output / "slurm"
        words = [
            "sbatch", "--parsable", f"--job-name=imagechain-{self.stage}", f"--array=0-{len(self.elements) - 1}",
            f"--chdir={ROOT}", f"--output={slurm / '%x-%A_%a.log'}",
        ]  # fmt: skip
        words += [f"--gpus-per-node={self.gpus}"] if self.gpus else []
        words += [f"--dependency=afterany:{after}"] if after else []
        files = [slurm / f"{self.stage}.txt", slurm / "grid.yaml", output]
        return [*words, *flags, str(SCRIPT), *map(str, files)]


def jobs_of(tasks: Sequence[Task], state_of: Callable[[Task], State]) -> list[Job]:
    """Return the jobs for everything that is not done, in the order of the stages."""
    jobs = []
    for stage in STAGES:
        left = [task for task in tasks if task.stage == stage and (stage == "results" or _is_left(state_of(task)))]
        names = [task.name for task in left]
        elements = [(name,) for name in names] if stage in ARRAYS else [tuple(names)]
        if left:
            jobs.append(Job(stage=stage, elements=tuple(elements), gpus=max(task.gpus for task in left)))
    return jobs


def _is_left(state: State) -> bool:
    return state.kind not in ("done", "left out")


def submit(config: GridConfig, tasks: Sequence[Task], state_of: Callable[[Task], State]) -> int:
    """Submit everything that is missing, or with `dry_run` print the sbatch lines; return the exit status.

    Raises:
        ConfigError: sbatch is not there, or refused a job; those before it stay submitted and are named.
    """
    output = places_of(config).output
    jobs = jobs_of(tasks, state_of)
    if not config.dry_run:
        settings = {
            name: value for name, value in to_json(config).items() if name not in OF_A_CALL and value is not None
        }
        settings = {name: str(Path(value).resolve()) if name in ("model", "mementos", "output_dir") else value
                    for name, value in settings.items()}  # fmt: skip
        if not config.world:
            settings |= {"stories": places_of(config).stories, "other_split": places_of(config).other_split}
        write_text(output / "slurm" / "grid.yaml", yaml.safe_dump(settings, sort_keys=False))
        for job in jobs:
            lines = [" ".join(element) for element in job.elements]
            write_text(output / "slurm" / f"{job.stage}.txt", "\n".join(lines) + "\n")
    before: str | None = None
    submitted: list[str] = []
    for job in jobs:
        words = job.command(output, before, config.slurm_flags)
        print(shlex.join(words))
        if config.dry_run:
            print(
                "".join(f"    {number}: {' '.join(element)}\n" for number, element in enumerate(job.elements)), end=""
            )
            before = f"ID_OF_{job.stage.upper()}"
            continue
        before = _sbatch(words, submitted)
        submitted.append(before)
    if submitted:
        print(f"submitted: {', '.join(submitted)}; logs: {output / 'slurm'}. The same command submits what is missing.")
    return 0


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
