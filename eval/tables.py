"""Table 1 of the paper from judged runs: SimRate by variant and number of scenes, with how sure each number is.

Launch: python -m eval.tables --runs RUN [RUN ...] --output-dir OUT [--paper]

Writes table1.md, table1.csv and table1.json. A cell is yes / scored stories with a 95 % Wilson interval; an unparsed
answer is a No, an unscored story is in no count. C4-6 and C2-6 are total yes / total stories.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.runs import CONTROLS, Judged, RunFolder, read_runs
from eval.stats import wilson
from llava.imagechain.config import option, parse_config, to_json
from llava.imagechain.files import write_json, write_text
from llava.imagechain.manifest import run_manifest
from llava.imagechain.story import CONTEXTS, HUB_DATASET
from llava.imagechain.variants import VARIANTS

logger = logging.getLogger("eval.tables")
COLUMNS = ("c2", "c3", "c4", "c5", "c6", "c4_6", "c2_6")
PAPER_PATH = Path(__file__).resolve().parent / "paper.yaml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Settings of eval.tables."""

    runs: list[Path] = option(help="run folders with predictions.jsonl and judgments.jsonl")
    output_dir: Path = option(help="folder for table1.md, table1.csv and table1.json")
    train_context: str = option("c2_7", help="training context of the trained variants", choices=list(CONTEXTS))
    paper: bool = option(False, help="the stories are StoryFrames: show the paper's numbers beside ours")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Counts over the stories of one column."""

    yes: int
    scored: int
    unparsed: int
    unscored: int
    shortened: int  # stories that lost their oldest scenes to fit the model's context
    paper: float | None = None  # the paper's percentage

    @property
    def percent(self) -> float | None:
        """SimRate in percent; None without a scored story."""
        return 100 * self.yes / self.scored if self.scored else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval in percent."""
        if not self.scored:
            return None
        low, high = wilson(self.yes, self.scored)
        return 100 * low, 100 * high

    def to_json(self) -> dict[str, Any]:
        """Return counts, rate and interval as JSON values."""
        low, high = self.interval or (None, None)
        return {
            "yes": self.yes,
            "n": self.scored,
            "percent": _rounded(self.percent),
            "low_95": _rounded(low),
            "high_95": _rounded(high),
            "unparsed": self.unparsed,
            "unscored": self.unscored,
            "shortened": self.shortened,
            "paper": self.paper,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One variant, or one control under the table; `run` is None where no run was given."""

    variant: str
    title: str
    control: str | None
    run: RunFolder | None
    cells: dict[str, Cell]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Table 1 with the controls that stand under it."""

    rows: tuple[Row, ...]
    controls: tuple[Row, ...]
    notes: tuple[str, ...]
    paper: bool


def count(rows: Iterable[Judged], context: str, paper: float | None = None) -> Cell:
    """Count the verdicts over the stories of one context."""
    low, high = CONTEXTS[context]
    inside = [judged for judged in rows if low <= judged.row.num_scenes <= high]
    scored = [judged for judged in inside if judged.verdict is not None]
    return Cell(
        yes=sum(judged.verdict == "yes" for judged in scored),
        scored=len(scored),
        unparsed=sum(not judged.parsed for judged in scored),
        unscored=len(inside) - len(scored),
        shortened=sum(judged.row.dropped_scenes > 0 for judged in inside),
        paper=paper,
    )


def build_table(runs: Sequence[RunFolder], *, train_context: str = "c2_7", paper: bool = False) -> Table:
    """Arrange runs as Table 1: the paper's seven rows in its order, controls apart.

    Args:
        runs: Judged runs.
        train_context: Trained variants with another training context are left out and named.
        paper: Put the paper's numbers beside; also done when every run says that its stories are the published dataset.

    Raises:
        ValueError: An unknown variant or control, or two runs for one row.
    """
    paper = paper or all(run.stories == HUB_DATASET for run in runs)
    paper_values: dict[str, dict[str, float]] = (
        yaml.safe_load(PAPER_PATH.read_text(encoding="utf-8"))["table1"] if paper and train_context == "c2_7" else {}
    )
    used = [run for run in runs if run.train_context in (None, train_context)]
    by_row = _by_row(used)
    rows = tuple(_row(name, None, by_row.get((name, None)), paper_values.get(name, {})) for name in VARIANTS)
    controls = tuple(
        _row(name, control, by_row[name, control], {})
        for name in VARIANTS
        for control in CONTROLS
        if (name, control) in by_row
    )
    left_out = [run for run in runs if run not in used]
    return Table(rows=rows, controls=controls, notes=tuple(_notes(rows, controls, left_out, paper)), paper=paper)


def _by_row(runs: Sequence[RunFolder]) -> dict[tuple[str, str | None], RunFolder]:
    found: dict[tuple[str, str | None], RunFolder] = {}
    for run in runs:
        if run.variant not in VARIANTS or (run.control is not None and run.control not in CONTROLS):
            raise ValueError(
                f"{run.path}: one of {', '.join(VARIANTS)} and no control or one of {', '.join(CONTROLS)} was wanted, "
                f"found {run.variant!r} and {run.control!r}"
            )
        key = (run.variant, run.control)
        if key in found:
            raise ValueError(
                f"one run for each row was wanted, found two of {run.variant}: {found[key].path}, {run.path}"
            )
        found[key] = run
    return found


def _row(variant: str, control: str | None, run: RunFolder | None, paper: dict[str, float]) -> Row:
    title = VARIANTS[variant].title + (f", {CONTROLS[control]}" if control else "")
    cells = {name: count(run.rows if run else (), name, paper.get(name)) for name in (*COLUMNS, "c7")}
    return Row(variant=variant, title=title, control=control, run=run, cells=cells)


def _notes(rows: Sequence[Row], controls: Sequence[Row], left_out: Sequence[RunFolder], paper: bool) -> list[str]:
    """Say everything that a reader of the numbers has to know."""
    present = [(row, row.run) for row in (*rows, *controls) if row.run is not None]
    judges = sorted({run.judge or "none" for _, run in present})
    notes = [
        f"Judge: {', '.join(judges)}. An answer that is neither Yes nor No is unparsed and counts as No; an unscored "
        "story (failed or missing call) is in no count. C4-6 and C2-6 are total yes / total stories."
    ]
    if len(judges) > 1:
        notes.append("The runs were judged by different judges: their numbers cannot be compared.")
    if missing := [row.title for row in rows if row.run is None]:
        notes.append(f"No run was given for {', '.join(missing)} (-).")
    if unscored := [f"{row.title} {n}" for row, run in present if (n := sum(j.verdict is None for j in run.rows))]:
        notes.append(f"Unscored stories, run eval.simrate again: {', '.join(unscored)}.")
    if skipped := [f"{row.title} {run.skipped}" for row, run in present if run.skipped]:
        notes.append(f"Stories skipped at prediction (skipped.jsonl): {', '.join(skipped)}.")
    if unfinished := [row.title for row, run in present if not run.finished]:
        notes.append(f"Prediction did not come to its end, run eval.predict again: {', '.join(unfinished)}.")
    if len({frozenset((judged.row.story_id, judged.row.reference) for judged in run.rows) for _, run in present}) > 1:
        notes.append("The runs do not cover the same stories; compare only where n is equal.")
    if seven := [
        f"{row.title} {row.cells['c7'].yes}/{row.cells['c7'].scored}" for row, _ in present if row.cells["c7"].scored
    ]:
        notes.append(f"Stories of 7 scenes are in no column of the paper's table: {', '.join(seven)}.")
    shortened = [f"{row.title} {_shortened(row)}" for row, _ in present if _shortened(row)]
    if shortened:
        notes.append(f"Stories whose oldest scenes were dropped to fit the model's context: {'; '.join(shortened)}.")
    if any(row.control == "shuffled_scenes" for row in controls):
        notes.append(
            "Scenes shuffled: a story of 2 scenes has one earlier scene, hence no other order, and stays as it is."
        )
    if left_out:
        shown = ", ".join(f"{run.path} ({run.variant}, {run.train_context})" for run in left_out)
        notes.append(f"Left out, trained on another context: {shown}.")
    if paper:
        notes.append(
            "Paper: its C4-6 does not follow from its counts, and its C2-6 has 999 stories although its columns sum "
            "to 1,000."
        )
    return notes


def _shortened(row: Row) -> str:
    counts = ((name, row.cells[name].shortened) for name in ("c2", "c3", "c4", "c5", "c6", "c7"))
    return " ".join(f"{column_title(name)}: {number}" for name, number in counts if number)


def column_title(name: str) -> str:
    """Return the paper's spelling of a context: c4_6 is C4-6."""
    return name.upper().replace("_", "-")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def to_markdown(table: Table) -> str:
    """Return the table as aligned Markdown: rate (k/n), interval, and the paper's value where it applies."""
    header = ["SimRate, %", *map(column_title, COLUMNS), "unparsed", "unscored"]
    lines = [line for row in table.rows for line in _markdown_lines(row)]
    parts = ["# Table 1: SimRate on next-scene description\n", _aligned([header, *lines])]
    if table.controls:
        header = ["Control, %", *header[1:]]
        lines = [line for row in table.controls for line in _markdown_lines(row)]
        parts += ["\n## Controls\n", _aligned([header, *lines])]
    return "\n".join([*parts, "", *(f"- {note}" for note in table.notes)]) + "\n"


def _markdown_lines(row: Row) -> list[list[str]]:
    cells = [row.cells[name] for name in COLUMNS]
    overall = row.cells["c2_6"]
    counts = [str(overall.unparsed), str(overall.unscored)] if row.run else ["-", "-"]
    rates = [f"{cell.percent:.2f} ({cell.yes}/{cell.scored})" if cell.scored else "-" for cell in cells]
    lines = [[row.title, *rates, *counts]]
    if any(cell.scored for cell in cells):
        bounds = [cell.interval for cell in cells]
        shown = [f"{bound[0]:.1f} to {bound[1]:.1f}" if bound else "" for bound in bounds]
        lines.append(["– 95 % interval", *shown, "", ""])
    if any(cell.paper is not None for cell in cells):
        lines.append(["– paper", *("" if cell.paper is None else f"{cell.paper:.2f}" for cell in cells), "", ""])
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def to_records(table: Table) -> list[dict[str, Any]]:
    """Return one flat record for each row and column, as table1.csv has them."""
    return [
        {
            "variant": row.variant,
            "title": row.title,
            "control": row.control,
            "train_context": row.run.train_context if row.run else None,
            "column": column_title(name),
            **cell.to_json(),
        }
        for row in (*table.rows, *table.controls)
        for name, cell in row.cells.items()
        if name in COLUMNS or cell.scored or cell.unscored
    ]


def write_table(table: Table, output_dir: Path) -> None:
    """Write table1.md, table1.csv and table1.json."""
    records = to_records(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(output_dir / "table1.md", to_markdown(table))
    write_text(output_dir / "table1.csv", text.getvalue())
    runs = [
        {"path": str(row.run.path), "judge": row.run.judge, "rows": len(row.run.rows)}
        for row in (*table.rows, *table.controls)
        if row.run
    ]
    write_json(output_dir / "table1.json", {"cells": records, "notes": list(table.notes), "runs": runs})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = parse_config(TablesConfig, argv, program="eval.tables", description=__doc__ or "")
    try:
        runs = read_runs(config.runs)
        table = build_table(runs, train_context=config.train_context, paper=config.paper)
        inputs = [path for run in runs for path in (run.path / "predictions.jsonl", run.path / "judgments.jsonl")]
        with run_manifest(config.output_dir, config=to_json(config), inputs=inputs, name="tables_run.json"):
            write_table(table, config.output_dir)
    except (ValueError, OSError) as error:
        print(f"eval.tables: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.tables: interrupted; run the same command again", file=sys.stderr)
        return 130
    print(to_markdown(table))
    print(f"-> {config.output_dir / 'table1.md'} (and .csv, .json)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
