"""Print what each changed setting is worth: SimRate of ImageChain, and its difference to the default.

Launch: python -m eval.reproduce.ablations --runs RUN [RUN ...] --titles NAME=TITLE [...] --output-dir OUT

Writes ablations.md, .csv, .tex and .json. NAME is a run folder's name; the runs titled "default" are compared with.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.runs import RunFolder, column_title, read_runs
from eval.tables.cells import count
from eval.tables.compare import compare, p_text
from eval.tables.files import Sheet, to_markdown, write_tables
from eval.tables.table1 import run_notes
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.manifest import run_manifest

DEFAULT = "default"
CONTEXT = "c2_6"
METHOD = (
    "Gain: the setting minus the default, on the stories scored in both; its interval is a bootstrap over videos, p an "
    "exact McNemar test over stories, not corrected for the number of settings."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationsConfig:
    """Settings of eval.reproduce.ablations."""

    runs: list[Path] = option(help="judged run folders of ImageChain, the default's among them")
    titles: list[str] = option(help="NAME=TITLE of every run folder; TITLE is default for those to compare with")
    output_dir: Path = option(help="folder for ablations.md, .csv, .tex and .json")


def build_sheet(runs: Sequence[RunFolder], titles: dict[str, str]) -> Sheet:
    """Arrange the runs as a table, the default first.

    Args:
        runs: Judged runs.
        titles: Name of a run folder -> the changed setting in words; "default" where none is.

    Raises:
        ValueError: A run has no title, there is no default of its seed, or the runs were trained on different contexts.
    """
    if nameless := [run.path.name for run in runs if run.path.name not in titles]:
        raise ValueError(f"titles: NAME=TITLE of every run was wanted, found none for {', '.join(nameless)}")
    contexts = {str(run.train_context): run.path for run in runs}
    if len(contexts) != 1:
        found = ", ".join(f"{context} ({path})" for context, path in contexts.items()) or "no run"
        raise ValueError(f"runs: one training context was wanted, found {found}")
    trained_on = column_title(*contexts)
    defaults = {run.seed: run for run in runs if titles[run.path.name] == DEFAULT}
    several = len({run.seed for run in runs}) > 1
    rows: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    judges = ", ".join(sorted({run.judge or "none" for run in runs}))
    notes = [f"Trained on {trained_on}, tested on {column_title(CONTEXT)}. {METHOD} Judge: {judges}."]
    named: list[tuple[str, RunFolder]] = []
    for run in runs:
        title, cell = titles[run.path.name], count(run.rows, CONTEXT)
        name = f"{title}, seed {run.seed}" if several else title
        named.append((name, run))
        entry = {"setting": title, "seed": run.seed, "run": str(run.path), **cell.to_json()}
        more: tuple[str, ...] = ("",) * 4
        if title != DEFAULT:
            if run.seed not in defaults:
                raise ValueError(f"{run.path}: a default run of seed {run.seed} was wanted among the runs, found none")
            more, facts = _difference(name, run, defaults[run.seed])
            entry |= facts
            notes += [f"{name} cannot be compared with the default: {facts['problem']}"] if "problem" in facts else []
        rows.append((name, cell.rate_text(), cell.interval_text(), *more))
        data.append(entry)
    notes += run_notes(named)
    return Sheet(
        title=f"Settings that the paper leaves open, changed one at a time in ImageChain trained on {trained_on}",
        columns=(
            "Setting",
            "SimRate, % (k/n)",
            "95 % interval",
            "gain, points",
            "95 % interval of the gain",
            "p",
            "stories",
        ),
        rows=tuple(rows),
        notes=tuple(notes),
        data={"train_context": next(iter(contexts)), "rows": data, "notes": notes},
    )


def _difference(name: str, run: RunFolder, default: RunFolder) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the cells of a comparison with the default, and its facts."""
    try:
        found = dataclasses.replace(compare(run, default, CONTEXT), a=name, b=DEFAULT)
    except ValueError as error:  # such as another split that shares no story
        return ("-", "-", "-", "0"), {"problem": str(error)}
    between = f"{found.low:+.1f} to {found.high:+.1f}" if found.only_a + found.only_b else "-"
    return (f"{found.difference:+.2f}", between, p_text(found.p_value), str(found.n)), {"comparison": found.to_json()}


def make_table(config: AblationsConfig) -> None:
    """Write and print the table."""
    if wrong := [text for text in config.titles if "=" not in text]:
        raise ConfigError(f"titles: NAME=TITLE was wanted, found {wrong[0]!r}")
    titles = dict(text.split("=", 1) for text in config.titles)
    runs = read_runs(config.runs)
    inputs = [path for run in runs for name in ("predictions.jsonl", "judgments.jsonl")
              if (path := run.path / name).is_file()]  # fmt: skip
    with run_manifest(config.output_dir, config=to_json(config), inputs=inputs, name="ablations_run.json"):
        sheet = build_sheet(sorted(runs, key=lambda run: titles.get(run.path.name) != DEFAULT), titles)
        write_tables(config.output_dir / "ablations", sheet)
    print(to_markdown(sheet))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        AblationsConfig, make_table, argv, program="python -m eval.reproduce.ablations", description=__doc__ or ""
    )


if __name__ == "__main__":
    sys.exit(main())
