"""Table 2 of the paper: what ImageChain gains from training on all context lengths (C2-7) instead of the tested one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from eval.runs import RunFolder, by_cell, column_title
from eval.stats import mean_and_range
from eval.tables.cells import Cell, Spread, count, load_paper, spread
from eval.tables.compare import Comparison, compare, p_text
from eval.tables.files import CONTINUED, Sheet
from eval.tables.table1 import run_names, run_notes, seed_text
from llava.imagechain.story import HUB_DATASET

VARIANT = "imagechain"
ALL = "c2_7"
TESTS = (("c2", "c2"), ("c3", "c3"), ("c4_7", "c4_6"))  # training context, test context
COLUMNS = ("Trained on", "Test", "SimRate, % (k/n)", "95 % interval", "gain, points", "95 % interval of the gain",
           "p", "detectable", "unparsed", "unscored")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One training context on one test context, with its gain over training on the test context alone."""

    train_context: str
    test: str
    run: RunFolder
    seed: int | None  # set where several seeds stand in the table
    cell: Cell
    gain: Comparison | None = None

    @property
    def title(self) -> str:
        """Such as ImageChain C2-7, seed 1."""
        return f"ImageChain {column_title(self.train_context)}" + (
            f", seed {self.seed}" if self.seed is not None else ""
        )


def build_sheet(runs: Sequence[RunFolder], *, paper: bool = False, seed: int = 0) -> Sheet:
    """Arrange runs of ImageChain as Table 2.

    Args:
        runs: Judged runs; other variants, controls and contexts are left out and named.
        paper: Put the paper's numbers beside; also done when every run says that its stories are the published dataset.
        seed: Of the bootstrap.

    Raises:
        ValueError: No run of ImageChain, or two for one row.
    """
    contexts = (*(own for own, _ in TESTS), ALL)
    used = [r for r in runs if r.variant == VARIANT and r.control is None and r.train_context in contexts]
    found = by_cell(used, lambda run: run.train_context)
    if not used:
        raise ValueError(
            f"runs of {VARIANT} trained on {', '.join(map(column_title, contexts))} were wanted for Table 2, found "
            + run_names(runs)
        )
    paper = paper or all(run.stories == HUB_DATASET for run in runs)
    problems: list[str] = []
    rows: list[tuple[str, ...]] = []
    lines: list[Line] = []
    for own, test in TESTS:
        alone = _lines(found.get(own, []), own, test, paper)
        together = [_with_gain(line, alone, problems, seed) for line in _lines(found.get(ALL, []), ALL, test, paper)]
        for group, context in ((alone, own), (together, ALL)):
            rows += _group_rows(group, context, test, paper)
        lines += [*alone, *together]
    notes = _notes(runs, used, found, problems, paper)
    return Sheet(
        title="Table 2: ImageChain trained on the tested context length and on C2-7",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=tuple(notes),
        data={"rows": [_record(line, paper) for line in lines], "notes": notes},
        records=tuple(_record(line, paper) for line in lines),
    )


def _lines(runs: Sequence[RunFolder], context: str, test: str, paper: bool) -> list[Line]:
    return [
        Line(
            train_context=context,
            test=test,
            run=run,
            seed=run.seed if len(runs) > 1 else None,
            cell=count(run.rows, test, _paper(context, test)["simrate"] if paper else None),
        )
        for run in runs
    ]


def _paper(train_context: str, test: str) -> dict[str, float]:
    rows = load_paper()["table2"]
    return next(row for row in rows if (row["train_context"], row["test"]) == (train_context, test))


def _with_gain(line: Line, alone: Sequence[Line], problems: list[str], seed: int) -> Line:
    """Compare with the run trained on the tested context alone: the same seed, or the only one there is."""
    partners = [other for other in alone if len(alone) == 1 or other.run.seed == line.run.seed]
    if len(partners) != 1:
        if alone:
            problems.append(
                f"{line.title} on {column_title(line.test)}: no single run of the same seed to compare with"
            )
        return line
    try:
        return dataclasses.replace(line, gain=compare(line.run, partners[0].run, line.test, seed))
    except ValueError as error:
        problems.append(f"{line.title} on {column_title(line.test)} is not compared: {error}")
        return line


def _group_rows(group: Sequence[Line], context: str, test: str, paper: bool) -> list[tuple[str, ...]]:
    title = f"ImageChain {column_title(context)}"
    rows = [_text(line) for line in group] or [(title, column_title(test), *["-"] * (len(COLUMNS) - 2))]
    if len(group) > 1 and (mean := spread(line.cell for line in group)):
        rows += _mean_rows(f"{title}, mean of {len(group)} seeds", test, mean, group)
    values = _paper(context, test)
    if paper:
        gain = f"{values['delta']:+.1f}" if "delta" in values else ""
        rows.append((f"{CONTINUED}paper", "", f"{values['simrate']:.1f}", "", gain, "", "", "", "", ""))
    return rows


def _mean_rows(title: str, test: str, mean: Spread, group: Sequence[Line]) -> list[tuple[str, ...]]:
    gains = [line.gain.difference for line in group if line.gain]
    average, low, high = mean_and_range(gains) if gains else (0.0, 0.0, 0.0)
    gain, bounds = (f"{average:+.2f}", f"{low:+.2f} to {high:+.2f}") if gains else ("", "")
    return [
        (title, column_title(test), mean.rate_text(), "", gain, "", "", "", "", ""),
        (f"{CONTINUED}lowest to highest", "", mean.range_text(), "", bounds, "", "", "", "", ""),
    ]


def _text(line: Line) -> tuple[str, ...]:
    cell, gain = line.cell, line.gain
    head = (line.title, column_title(line.test), cell.rate_text(), cell.interval_text())
    counts = (str(cell.unparsed), str(cell.unscored))
    if gain is None:
        return (*head, "", "", "", "", *counts)
    bounds = f"{gain.low:+.1f} to {gain.high:+.1f}" if gain.only_a + gain.only_b else "-"
    return (*head, f"{gain.difference:+.2f}", bounds, p_text(gain.p_value), f"{gain.detectable:.1f}", *counts)


def _record(line: Line, paper: bool) -> dict[str, Any]:
    gain = line.gain.to_json() if line.gain else {}
    names = (
        "n",
        "videos",
        "only_a",
        "only_b",
        "difference",
        "low",
        "high",
        "p_value",
        "detectable",
        "left_out",
        "verdict",
    )
    return {
        "train_context": line.train_context,
        "test": line.test,
        "seed": line.run.seed,
        "run": str(line.run.path),
        **line.cell.to_json(),
        "paper_gain": _paper(line.train_context, line.test).get("delta") if paper else None,
        **{f"gain_{name}": gain.get(name) for name in names},
    }


def _notes(
    runs: Sequence[RunFolder], used: Sequence[RunFolder], found: dict[str, list[RunFolder]], problems: Sequence[str],
    paper: bool,
) -> list[str]:  # fmt: skip
    judges = sorted({run.judge or "none" for run in used})
    notes = [
        f"Judge: {', '.join(judges)}. Gain: training on C2-7 minus training on the tested context alone, on the "
        "stories scored in both; its interval is a bootstrap over videos, p an exact McNemar test over stories, "
        "detectable the smallest true gain that the test finds with 80 % probability (Connor 1987). Each p is of its "
        "row alone, not corrected for the number of rows."
    ]
    if any(len(some) > 1 for some in found.values()):
        notes.append(
            "Seeds answer the same stories and are no further evidence about them: nothing is pooled over seeds."
        )
    if missing := [column_title(name) for name in (*(own for own, _ in TESTS), ALL) if name not in found]:
        notes.append(f"No run of ImageChain trained on {', '.join(missing)} was given (-).")
    if len(judges) > 1:
        notes.append("The runs were judged by different judges: their numbers cannot be compared.")
    notes += [f"{problem}." for problem in problems]
    notes += run_notes([(f"ImageChain {column_title(str(run.train_context))}" + seed_text(run), run) for run in used])
    if left_out := [run for run in runs if run not in used]:
        notes.append(f"Left out, no row of Table 2: {run_names(left_out)}.")
    return [*notes, *(load_paper()["notes"]["table2"] if paper else [])]
