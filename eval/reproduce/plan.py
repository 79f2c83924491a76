"""The plan of a grid as text: every task and every cell with its state and what it needs, totals at the end."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eval.judge.base import Judge
from eval.reproduce.costs import Costs, Need
from eval.reproduce.grid import TEST_CONTEXTS
from eval.reproduce.states import State
from eval.reproduce.tasks import Task
from eval.runs import PREDICTIONS, read_run
from llava.imagechain.story import CONTEXTS
from llava.imagechain.variants import VARIANTS

StateOf = Callable[[Task], State]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of the grid, or one task that is not of a single cell.

    Attributes:
        words: What it is.
        kind: Its state.
        detail: Why.
        need: What it needs in all; None where its inputs are not there yet.
        left: The part of it that is still to be done.
        counts: Stories predicted and judged, for cells.
    """

    words: tuple[str, ...]
    kind: str
    detail: str
    need: Need | None
    left: Need | None
    counts: tuple[int, int] | None = None


def entries_of(
    tasks: Sequence[Task], state_of: StateOf, costs: Costs, judge: Judge, *, only: Sequence[str] = ()
) -> dict[str, list[Entry]]:
    """Return the plan's entries by section.

    Args:
        tasks: All tasks of the grid.
        state_of: Reads a task's state from disk.
        costs: Estimates.
        judge: The judge, for its calls and their price.
        only: Names of the tasks to show, a cell's prediction and judging together; empty: all.
    """
    shown = {name.replace("judge/", "predict/", 1) for name in only}
    states = {task.name: state_of(task) for task in tasks}
    sections: dict[str, list[Entry]] = {"prepare": [], "train": [], "cells": [], "Mementos": [], "results": []}
    for task in tasks:
        state = states[task.name]
        if shown and task.name not in shown:
            continue
        if task.kind == "train":
            need = costs.training(task)
            epochs = "" if need is None or need.epochs is None else f"{need.epochs:g} epochs"
            left = Need() if state.kind in ("done", "left out") else need
            sections["train"].append(_entry(task, state, need, left, epochs))
        elif task.kind == "predict":
            judged = next(other for other in tasks if other.name == f"judge/{task.cell.name}") if task.cell else task
            sections["cells"] += cell_entries(task, state, states[judged.name], costs, judge)
        elif task.kind == "mementos":
            keywords = next(other for other in tasks if other.kind == "keywords" and other.folder == task.folder)
            sections["Mementos"].append(mementos_entry(task, keywords, state, states[keywords.name], costs))
        elif task.kind not in ("judge", "keywords"):
            state = _result_state(task, tasks, states) if task.kind == "result" else state
            sections["results" if task.kind == "result" else "prepare"].append(_entry(task, state, Need(), Need()))
    return sections


def _result_state(result: Task, tasks: Sequence[Task], states: Mapping[str, State]) -> State:
    """Return the state of a result: not done while runs of it are still to be made."""
    needs = {task.name: task.needs for task in tasks}

    def kinds(name: str) -> set[str]:
        return {states[name].kind}.union(*map(kinds, needs[name]))

    every = [found for name in result.after if "left out" not in (found := kinds(name))]
    to_do = sum(found != {"done"} for found in every)
    if states[result.name].kind != "done" or not to_do:
        return states[result.name]
    return State(kind="partly", detail=f"{to_do} of its {len(every)} runs are not done")


def _entry(task: Task, state: State, need: Need | None, left: Need | None, more: str = "") -> Entry:
    return Entry(words=(task.name.partition("/")[2], more), kind=state.kind, detail=state.detail, need=need, left=left)


def mementos_entry(task: Task, keywords: Task, state: State, asked: State, costs: Costs) -> Entry:
    """Return the entry of a row of Table 3: description and keywords."""
    need = costs.mementos(task)
    calls = costs.extracting(keywords, need.stories) if need else Need()
    left = (need if state.kind != "done" and need else Need()) + (calls if asked.kind != "done" else Need())
    shown = state if state.kind != "done" else asked
    kind = "partly" if state.kind == "done" and asked.kind == "missing" else shown.kind
    assert task.cell is not None
    return Entry(
        words=(task.cell.name,), kind=kind, detail=shown.detail, need=need + calls if need else None, left=left
    )


def cell_entries(task: Task, predicted: State, judged: State, costs: Costs, judge: Judge) -> list[Entry]:
    """Cut a prediction run into the cells of the grid: variant x training context x test context x seed."""
    cell = task.cell
    assert cell is not None
    parts = costs.prediction(task) or {}
    unasked: dict[int, list[tuple[str, str]]] = collections.defaultdict(list)
    if (task.folder / PREDICTIONS).is_file() and judged.kind != "failed":
        for row in read_run(task.folder).rows:
            if row.verdict is None:
                unasked[row.row.num_scenes].append((row.row.reference, row.row.prediction))
    title = VARIANTS[cell.variant].title
    words = (
        f"{title}, {cell.control}"
        if cell.control != "none"
        else f"{title}, {cell.ablation.name}"
        if cell.ablation
        else title,
        cell.context or "-",
        "-" if cell.seed is None else str(cell.seed),
    )
    entries = []
    for context in TEST_CONTEXTS:
        scenes = CONTEXTS[context][0] if context in CONTEXTS else int(context[1:])
        there, scored = predicted.rows.get(scenes, 0), judged.rows.get(scenes, 0)
        part = parts.get(scenes)
        if part is None and not there and parts:
            continue  # no story of that length
        stories = part.stories if part else there
        share = 1 - there / stories if stories and predicted.kind != "done" else 0.0
        to_predict = stories - there if predicted.kind != "done" else 0
        calls = costs.judging(judge, unasked[scenes] if judged.kind != "done" else (), to_predict)
        left = Need(stories=to_predict, gpu_hours=share * part.gpu_hours if part else 0.0,
                    disk_bytes=round(share * part.disk_bytes) if part else 0) + calls  # fmt: skip
        kind, detail = _cell_state(predicted, judged, there, scored, stories)
        entries.append(
            Entry(
                words=(words[0], words[1], context, words[2]), kind=kind, detail=detail, counts=(there, scored),
                need=part + costs.judging(judge, (), stories) if part else None,
                left=left if part or there else None,
            )
        )  # fmt: skip
    return entries


def _cell_state(predicted: State, judged: State, there: int, scored: int, stories: int) -> tuple[str, str]:
    for state in (predicted, judged):
        if state.kind in ("failed", "changed", "left out"):
            return state.kind, state.detail
    if predicted.kind == "done" and scored == there:
        return "done", predicted.detail
    return ("partly" if there else "missing"), (
        judged.detail if there and predicted.kind == "done" else predicted.detail
    )


def to_text(sections: dict[str, list[Entry]], output: Path, costs: Costs) -> str:
    """Return the plan as lines, a detail that several cells of a run share printed once.

    Args:
        sections: From `entries_of`.
        output: The grid's folder.
        costs: What the entries were estimated with.
    """
    lines = [f"Plan of {output}"]
    counts = ("stories", "predicted", "judged", "GPU h", "disk", "calls", "$")
    heads: dict[str, tuple[str, ...]] = {
        "prepare": ("To prepare", "", ""), "train": ("Trainings", "", "GPU h", "disk"),
        "cells": ("Cells", "trained on", "tested on", "seed", *counts),
        "Mementos": ("Mementos", "samples", *counts[3:]), "results": ("Results", "", ""),
    }  # fmt: skip
    for name, entries in sections.items():
        if entries:
            rows = [("state", *heads[name]), *(_row(name, entry) for entry in entries)]
            lines += ["", *_columns(rows, [""] + [entry.detail for entry in entries])]
    notes = [f"GPU hours are those of one GPU at {costs.config.tflops:g} useful TFLOP/s (--tflops): a lower bound"]
    notes += [f"* {path} is not on this disk; published: {words}" for path, words in costs.absent.items()]
    return "\n".join([*lines, "", *totals(sections), *notes])


def _row(section: str, entry: Entry) -> tuple[str, ...]:
    need, named = entry.need, (entry.kind, *entry.words)
    mark = "*" if need and need.published else ""
    device = (_hours(need.gpu_hours) + mark, _size(need.disk_bytes) + mark) if need else ("?", "?")
    asked = (f"{need.calls:,}{mark}", "?" if need.usd is None else _dollars(need.usd) + mark) if need else ("?", "?")
    stories = f"{need.stories}{mark}" if need else "?"
    if section == "cells":
        there, scored = entry.counts or (0, 0)
        return *named, stories, str(there), str(scored), *device, *asked
    if section == "Mementos":
        return *named, stories, *device, *asked
    return (*named, *device) if section == "train" else named


def _columns(rows: Sequence[tuple[str, ...]], details: Sequence[str]) -> list[str]:
    count = max(map(len, rows))
    padded = [(*row, *[""] * (count - len(row))) for row in rows]
    widths = [max(map(len, column)) for column in zip(*padded, strict=True)]
    lines, said = [], ""
    for row, detail in zip(padded, details, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if detail and detail != said:
            lines.append(f"          {detail}")
        said = detail
    return lines


def totals(sections: dict[str, list[Entry]]) -> list[str]:
    """Return the sums over all entries: what is there, what is left, and what that needs."""
    every = [entry for entries in sections.values() for entry in entries]
    kinds = collections.Counter(entry.kind for entry in sections["cells"])
    trainings = collections.Counter(entry.kind for entry in sections["train"])
    left = sum((entry.left for entry in every if entry.left), Need())
    whole = sum((entry.need for entry in every if entry.need), Need())
    unknown = [entry for name in ("train", "cells", "Mementos") for entry in sections[name] if entry.need is None]
    at_least = "at least " if unknown else ""
    left_at_least = at_least if any(entry.kind not in ("done", "left out") for entry in unknown) else ""
    lines = [
        f"trainings: {_counted(trainings)}; cells: {_counted(kinds)}",
        f"left to do: {left_at_least}{_sum(left)}",
        f"the whole grid: {at_least}{_sum(whole)}",
    ]
    if unknown:
        why = "the model or the stories they start from are not there yet"
        lines.append(f"{len(unknown)} entries are not in the sums (?): {why}")
    return lines


def _counted(kinds: collections.Counter[str]) -> str:
    return f"{sum(kinds.values())} ({', '.join(f'{number} {kind}' for kind, number in kinds.items()) or 'none'})"


def _sum(need: Need) -> str:
    mark = "*" if need.published else ""
    return (
        f"{_hours(need.gpu_hours)}{mark} GPU hours, {_size(need.disk_bytes)}{mark} of disk, {need.calls:,}{mark} calls "
        f"of the judge, {_dollars(need.usd)}"
    )


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.3f}"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _dollars(usd: float | None) -> str:
    return "price unknown" if usd is None else f"${usd:.2f}"
