"""Make the paper's tables and Figure 5 from a grid file: train, predict, judge what is missing, and print.

Launch: python -m eval.reproduce --config configs/reproduce/paper.yaml --model DIR --stories DIR --output-dir OUT

What is finished is read from the run folders themselves. A task that fails stops only what needs it and is named at the
end (exit status 1). Ctrl-C, or a kill, leaves everything resumable by the same command.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from eval.reproduce.costs import Costs
from eval.reproduce.grid import GridConfig, check, in_repository
from eval.reproduce.plan import entries_of, to_text
from eval.reproduce.runner import Outcome, Runner, duration, first_line, locked
from eval.reproduce.states import RESULT_FILES, State, judge_of, state_of
from eval.reproduce.tasks import Task, places_of, tasks_of
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError


def reproduce(config: GridConfig) -> int:
    """Plan and run the grid; return the exit status."""
    check(config)
    judge = judge_of(in_repository(config.judge))
    gpus = config.gpus or found_gpus()
    tasks = tasks_of(config)
    check_names(tasks, config.only)
    state = functools.partial(state_of, judge_file=config.judge)
    if config.slurm:
        from eval.reproduce.slurm import submit

        return submit(config, tasks, state)
    if config.dry_run:
        costs = Costs(config)
        print(to_text(entries_of(tasks, state, costs, judge, only=config.only), places_of(config).output, costs))
        return 0
    return work(config, tasks, state, gpus)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)  # between the libraries themselves
    return run_command(
        GridConfig, reproduce, argv, program="python -m eval.reproduce", description=__doc__ or "",
        interrupted="the same command goes on from here",
    )  # fmt: skip


def work(config: GridConfig, tasks: Sequence[Task], state: functools.partial[State], gpus: Sequence[str]) -> int:
    """Run the tasks and say how they ended."""
    output = places_of(config).output
    with contextlib.ExitStack() as stack:
        # Elements of job arrays share the folder, and have a lock of their own for each task.
        locks = [stack.enter_context(locked(output, shared=bool(config.only)))]
        folders = [output / "locks" / name.replace("/", "-") for name in config.only]
        locks += [stack.enter_context(locked(folder)) for folder in folders]
        runner = Runner(
            tasks, state, only=config.only, locks=locks, logs_dir=output / "logs", gpus=gpus,
            redo_changed=config.redo_changed, expect=Costs(config).work,
        )  # fmt: skip
        outcomes = runner.run()
    return report(outcomes, output)


def report(outcomes: Sequence[Outcome], output: Path) -> int:
    """Print the results that were made and everything that was not; return the exit status."""
    made = [outcome.task.name.removeprefix("results/") for outcome in outcomes
            if outcome.task.kind == "result" and outcome.ending == "made"]  # fmt: skip
    for name in made:
        path = output / RESULT_FILES[name]
        print(f"\n{path.read_text(encoding='utf-8')}" if path.suffix == ".md" else f"\n{path}")
    endings = [outcome.ending for outcome in outcomes]
    counts = ", ".join(f"{endings.count(kind)} {kind}" for kind in dict.fromkeys(endings))
    print(f"\n{len(outcomes)} tasks: {counts}; {duration(sum(each.seconds for each in outcomes))} of work -> {output}")
    for outcome in outcomes:
        if outcome.ending in ("failed", "blocked", "left out"):
            print(f"  {outcome.ending} {outcome.task.name}: {first_line(outcome.reason)}")
            print(f"    log: {outcome.log}" if outcome.log else "", end="\n" if outcome.log else "")
    if "stopped" in endings:
        print("stopped; the same command goes on from here")
        return 130
    return 1 if {"failed", "blocked"} & set(endings) else 0


def check_names(tasks: Sequence[Task], only: Sequence[str]) -> None:
    """Check the names of `--only`.

    Raises:
        ConfigError: One is unknown.
    """
    names = [task.name for task in tasks]
    one_a_stage = {task.stage: task.name for task in tasks}
    for name in only:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"names are such as {', '.join(one_a_stage.values())}"
            raise ConfigError(f"only: unknown task {name!r}; {hint}")


def found_gpus() -> list[str]:
    """Return the numbers of this machine's GPUs, of those that CUDA_VISIBLE_DEVICES shows."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [number for number in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if number.strip()]
    try:
        answer = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(answer.stdout.splitlines()) if line.startswith("GPU")]


if __name__ == "__main__":
    sys.exit(main())
