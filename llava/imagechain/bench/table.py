"""The rows of the training benchmark, and what is shown of them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}  # relative; a step's loss also carries what earlier steps rounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What is done the authors' way."""

    title: str
    scene_by_scene: bool = False
    random_order: bool = False
    all_positions: bool = False
    checkpointing: bool = False
    compiled: bool = False
    upstream_trainer: bool = False


ROWS = (
    Row(title="the authors' way", scene_by_scene=True, random_order=True, all_positions=True, checkpointing=True),
    Row(title="+ one tower and projector call a batch", random_order=True, all_positions=True, checkpointing=True),
    Row(title="+ batches of like length", all_positions=True, checkpointing=True),
    Row(title="+ logits at positions with loss only", checkpointing=True),
    Row(title="+ no checkpointing (llava.train.train)"),
)
# All of the first row, in LLaVA-NeXT's trainer, whose arguments ask for the checkpointing.
UPSTREAM = Row(
    title="LLaVA-NeXT's trainer, the authors' way", scene_by_scene=True, random_order=True, all_positions=True,
    checkpointing=True, upstream_trainer=True,
)  # fmt: skip
COMPILED = Row(title="+ torch.compile of the language model's layers", compiled=True)


@dataclasses.dataclass(kw_only=True)
class Measured:
    """One run of a row; memory in bytes, None where the system does not tell."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    useful: int = 0
    padded: int = 0
    memory: int | None = None
    losses: list[float] = dataclasses.field(default_factory=list)


def summarize(
    rows_run: Sequence[Row], runs: Sequence[Sequence[Measured]], stories: int, flops: float
) -> list[dict[str, Any]]:
    """Return speed, padding, memory and losses by row.

    Args:
        rows_run: What was measured, the authors' way first.
        runs: Of each row, its rounds.
        stories: Of a run.
        flops: Useful floating point operations of a run.
    """
    seconds = [statistics.median(run.seconds for run in done) for done in runs]
    rows = []
    for number, (row, done) in enumerate(zip(rows_run, runs, strict=True)):
        same = next(runs[i][0] for i, other in enumerate(rows_run) if other.random_order == row.random_order)
        pairs = [pair for run in done for pair in zip(run.losses, same.losses, strict=True)]
        rows.append({
            "row": row.title,
            "stories_per_second": stories / seconds[number],
            "speedup": seconds[0] / seconds[number],
            "useful_tokens_per_second": done[0].useful / seconds[number],
            "padding": 1 - done[0].useful / done[0].padded,
            "memory_bytes": max((run.memory for run in done if run.memory is not None), default=None),
            "tflops": flops / seconds[number] / 1e12,
            "loss_difference": max(abs(mine - theirs) / abs(theirs) for mine, theirs in pairs),
            "seconds": [run.seconds for run in done],
            "processor_seconds": [run.processor_seconds for run in done],
            "losses": done[0].losses,
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]], facts: dict[str, Any], *, with_tflops: bool) -> str:
    """Return the rows as a Markdown table with the facts under it."""
    titles = ["row", "stories/s", "speed", "useful tokens/s", "padding", "peak memory, MB", "loss differs by"]
    titles += ["TFLOP/s"] if with_tflops else ["processor s", "speed by it"]
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for row in rows:
        memory = row["memory_bytes"]
        cells = [
            row["row"], f"{row['stories_per_second']:.2f}", f"{row['speedup']:.2f}x",
            f"{row['useful_tokens_per_second']:,.0f}", f"{row['padding']:.0%}",
            "?" if memory is None else f"{memory / 1e6:,.0f}", f"{row['loss_difference']:.1e}",
        ]  # fmt: skip
        if with_tflops:
            cells.append(f"{row['tflops']:.0f}")
        else:  # on a machine with other work the processors' own time says more than the clock
            own, first = (statistics.median(each["processor_seconds"]) for each in (row, rows[0]))
            cells += [f"{own:.1f}", f"{first / own:.2f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ", ".join(f"{name} {value}" for name, value in facts.items())]) + "\n"
