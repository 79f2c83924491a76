"""Scored runs as Table 3 of the paper (behaviour F1) and as a table of everything that was measured."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from eval.mementos.data import DOMAINS, Benchmark
from eval.mementos.score import OVERALL, Scored, ScoredRun
from eval.mementos.scoring import MODES
from eval.resampling import clustered_interval
from eval.runs import column_title
from eval.stats import mean_and_range
from eval.tables.cells import load_paper
from eval.tables.files import CONTINUED, Sheet
from llava.imagechain.config import ConfigError
from llava.imagechain.variants import VARIANTS

# The paper's rows; other variants are added where a run is given.
ROWS = ("mllm", "mllm_ft", "visual_context", "final_scene", "imagechain")
COLUMNS = (*DOMAINS, OVERALL)
KIND_TITLES = {"action": "behaviours", "object": "objects"}
STATUSES = {
    "empty": "The model wrote nothing, which scores 0",
    "unparsed": "The extractor's answer cannot be read (samples.jsonl has it), left out",
    "unscored": "No answer was extracted, left out; run eval.mementos.keywords again",
    "missing": "Not predicted, left out",
    "foreign": "Predictions for other data, left out",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Means over the scored samples of a domain, in percent, with a bootstrap interval of F1 over samples."""

    n: int
    recall: float | None = None
    precision: float | None = None
    f1: float | None = None
    low: float | None = None
    high: float | None = None

    def shown(self) -> str:
        """Return F1 with n."""
        return "-" if self.f1 is None else f"{self.f1:.2f} (n={self.n})"

    def interval(self) -> str:
        """Return the 95 % interval."""
        return "" if self.low is None else f"{self.low:.1f} to {self.high:.1f}"


def cell(samples: Sequence[Scored], mode: str, kind: str, seed: int) -> Cell:
    """Average a score over samples; F1 is the mean of the samples' F1, as the benchmark has it."""
    found = [sample.scores[mode][kind] for sample in samples if sample.scores]
    if not found:
        return Cell(n=0)
    means = {
        name: 100 * sum(getattr(one, name) for one in found) / len(found) for name in ("recall", "precision", "f1")
    }
    if len(found) < 2:  # one sample says nothing about others
        return Cell(n=len(found), **means)
    low, high = clustered_interval([one.f1 for one in found], range(len(found)), seed)
    return Cell(n=len(found), low=100 * low, high=100 * high, **means)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A scored run as the tables show it.

    Attributes:
        training: Its variant, with its training context where that tells it from another.
        name: The same with its seed, where there are several.
        cells: By mode, kind of words and domain.
    """

    training: str
    name: str
    run: ScoredRun
    cells: dict[tuple[str, str, str], Cell]


def measure(runs: Sequence[ScoredRun], seed: int) -> list[Measured]:
    """Name the runs, average their scores, and put them in the order of the tables.

    Args:
        runs: At most one for a variant, training context and seed.
        seed: Of the bootstrap.

    Raises:
        ConfigError: Two runs have the same variant, context and seed.
    """
    keys = [(run.predictions.variant, run.predictions.train_context, run.predictions.seed) for run in runs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        folders = " and ".join(str(run.predictions.folder) for run, key in zip(runs, keys, strict=True) if key == twice)
        raise ConfigError(f"one run for each variant, training context and seed was wanted, found {folders}")
    places = [*ROWS, *dict.fromkeys(variant for variant, _, _ in keys if variant not in ROWS)]
    measured = []
    for (variant, context, number), run in sorted(
        zip(keys, runs, strict=True), key=lambda one: (places.index(one[0][0]), one[0][1] or "", one[0][2] or 0)
    ):
        others = [key for key in keys if key[0] == variant]
        training = VARIANTS[variant].title if variant in VARIANTS else variant
        if len({key[1] for key in others}) > 1:
            training += f", trained on {column_title(context)}" if context else ", not trained"
        several = sum(key[1] == context for key in others) > 1
        cells = {
            (mode, kind, domain): cell(run.of(domain), mode, kind, seed)
            for mode in MODES for kind in KIND_TITLES for domain in COLUMNS
        }  # fmt: skip
        name = training + (f", seed {number}" if several else "")
        measured.append(Measured(training=training, name=name, run=run, cells=cells))
    return measured


def table3_sheet(measured: Sequence[Measured], benchmark: Benchmark, *, paper: bool) -> Sheet:
    """Arrange runs as Table 3: behaviour F1 in upstream counting, with the strict one and the paper's below.

    Args:
        measured: From `measure`.
        benchmark: The data, for the number of samples there are.
        paper: Put the paper's numbers beside and its other rows above.
    """
    printed = load_paper() if paper else {}
    blank = ("",) * 2
    rows: list[tuple[str, ...]] = [
        (f"{title} (as printed)", *_percent(values), "", *blank)
        for title, values in printed.get("table3_others", {}).items()
    ]
    means: list[dict[str, Any]] = []
    for variant in dict.fromkeys([*ROWS, *(one.run.predictions.variant for one in measured)]):
        chosen = [one for one in measured if one.run.predictions.variant == variant]
        if not chosen:
            rows.append((VARIANTS[variant].title, *("-" for _ in COLUMNS), "-", "-"))
        for training, group in itertools.groupby(chosen, key=lambda one: one.training):
            seeds = list(group)
            rows += [row for one in seeds for row in _run_rows(one)]
            if len(seeds) > 1:
                mean_rows, records = _mean_rows(training, seeds)
                rows += mean_rows
                means += records
        if variant in printed.get("table3", {}):
            rows.append((f"{CONTINUED}paper", *_percent(printed["table3"][variant]), "", *blank))
    columns = ("Behaviour F1, %", *(domain.title for domain in DOMAINS.values()), "Overall", "unparsed", "unscored")
    notes = _notes(measured, benchmark)
    if paper:
        notes.append(
            "Printed numbers: keywords by the benchmark's own prompt, of gpt-4-1106-preview in its notebook (the paper "
            "says GPT-4V). The extractor changes the numbers: the reference's words are extracted anew every time."
        )
        notes += printed["notes"]["table3"]
    records = [record for one in measured for record in _records(one)]
    return Sheet(
        title="Table 3: behaviour F1 on image sequences of the Mementos benchmark's format",
        columns=columns, rows=tuple(rows), notes=tuple(notes), records=tuple(records),
        data={
            "cells": records, "means": means,
            "paper": {name: printed[name] for name in ("table3", "table3_others")} if paper else None,
            "notes": notes, "runs": [_facts(one) for one in measured],
        },
    )  # fmt: skip


def _run_rows(one: Measured) -> list[tuple[str, ...]]:
    cells = {mode: [one.cells[mode, "action", domain] for domain in COLUMNS] for mode in MODES}
    counts = (str(one.run.count("unparsed")), str(one.run.count("unscored") + one.run.count("missing")))
    return [
        (one.name, *(found.shown() for found in cells["upstream"]), *counts),
        (f"{CONTINUED}95 % interval", *(found.interval() for found in cells["upstream"]), "", ""),
        (f"{CONTINUED}strict", *(_number(found.f1) for found in cells["strict"]), "", ""),
    ]


def _mean_rows(training: str, seeds: Sequence[Measured]) -> tuple[list[tuple[str, ...]], list[dict[str, Any]]]:
    """Return mean and range over seeds as two rows, and as records; seeds describe the same samples: nothing pools."""
    title = f"{training}, mean of {len(seeds)} seeds"
    found = {
        domain: mean_and_range(values)
        for domain in COLUMNS
        if (values := [f1 for one in seeds if (f1 := one.cells["upstream", "action", domain].f1) is not None])
    }
    rows = [
        (title, *(f"{found[domain][0]:.2f}" if domain in found else "-" for domain in COLUMNS), "", ""),
        (
            f"{CONTINUED}lowest to highest",
            *("{1:.2f} to {2:.2f}".format(*found[domain]) if domain in found else "" for domain in COLUMNS), "", "",
        ),
    ]  # fmt: skip
    names = ("mean_f1", "lowest", "highest")
    records = [
        {"training": training, "seeds": len(seeds), "domain": domain}
        | {name: round(value, 4) for name, value in zip(names, values, strict=True)}
        for domain, values in found.items()
    ]
    return rows, records


def detail_sheet(measured: Sequence[Measured]) -> Sheet:
    """Return recall, precision and F1 of objects and behaviours in both countings, one block a run."""
    rows: list[tuple[str, ...]] = []
    for one in measured:
        rows.append((one.name,))
        for kind, kind_title in KIND_TITLES.items():
            for domain in COLUMNS:
                cells = [one.cells[mode, kind, domain] for mode in MODES]
                if cells[0].n:
                    numbers = [_number(value) for found in cells for value in (found.recall, found.precision, found.f1)]
                    rows.append((f"{kind_title}, {_domain_title(domain)}", str(cells[0].n), *numbers))
    columns = ("%", "n", *(f"{mode} {part}" for mode in MODES for part in ("recall", "precision", "F1")))
    notes = (
        "Means over samples, F1 too: it is not the harmonic mean of the recall and precision beside it. Overall is the "
        "mean over all samples, hence weighted by the samples of each domain.",
        "upstream counts as the benchmark's notebook does, strict counts right: docs/mementos.md says what differs.",
    )
    records = [record for one in measured for record in _records(one)]
    return Sheet(
        title="Objects and behaviours of predicted descriptions", columns=columns, rows=tuple(rows), notes=notes,
        data={"cells": records, "notes": list(notes)}, records=tuple(records),
    )  # fmt: skip


def _domain_title(domain: str) -> str:
    return DOMAINS[domain].title if domain in DOMAINS else "Overall"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(values: dict[str, float]) -> tuple[str, ...]:
    return tuple(f"{values[domain]:.1f}" if domain in values else "" for domain in DOMAINS)


def _records(one: Measured) -> list[dict[str, Any]]:
    """Return one flat record for each kind of words, domain and mode."""
    run, predictions = one.run, one.run.predictions
    facts = {"run": one.name, "variant": predictions.variant, "train_context": predictions.train_context}
    return [
        {
            **facts, "seed": predictions.seed, "words": KIND_TITLES[kind], "domain": domain, "mode": mode,
            **{
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in dataclasses.asdict(one.cells[mode, kind, domain]).items()
            },
            **{status: sum(sample.status == status for sample in run.of(domain)) for status in STATUSES},
        }
        for kind in KIND_TITLES
        for domain in COLUMNS
        for mode in MODES
        if run.of(domain)
    ]  # fmt: skip


def _facts(one: Measured) -> dict[str, Any]:
    return {
        "run": one.name,
        "path": str(one.run.predictions.folder),
        "showing": one.run.showing,
        "extractors": list(one.run.extractors),
        "samples": {status: one.run.count(status) for status in ("scored", *STATUSES)},
    }


def _notes(measured: Sequence[Measured], benchmark: Benchmark) -> list[str]:
    """Say everything that a reader of the numbers has to know."""
    named = [(one.name, one.run) for one in measured]
    runs = [one.run for one in measured]
    used = sorted({extractor for run in runs for extractor in run.extractors}) or ["none"]
    there = ", ".join(f"{DOMAINS[name].title} {count}" for name, count in benchmark.counts().items())
    notes = [
        f"Keywords extracted by {', '.join(used)}. Samples with a human description: {there}.",
        "First line: counted as the benchmark's notebook does (upstream), with a 95 % bootstrap interval over samples; "
        "strict: counted right. Overall is the mean over all scored samples.",
    ]
    if len(used) > 1:
        notes.append("The runs' keywords come from different extractors: their numbers cannot be compared.")
    for status, meaning in STATUSES.items():
        if found := [f"{name} {run.count(status)}" for name, run in named if run.count(status)]:
            notes.append(f"{meaning}: {', '.join(found)}.")
    if unfinished := [name for name, run in named if not run.finished]:
        notes.append(f"Prediction did not come to its end, run eval.mementos.predict again: {', '.join(unfinished)}.")
    scored = {frozenset(sample.sample_id for sample in run.samples if sample.scores) for run in runs}
    if len(scored) > 1:
        notes.append("The runs do not have the same scored samples; compare only where n is equal.")
    shown: dict[str, list[str]] = {}
    for name, run in named:
        if run.showing:
            how = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in run.showing.items())
            shown.setdefault(how, []).append(name)
    notes += [f"{', '.join(found)}: {how}." for how, found in shown.items()]
    if len({run.showing.get("answer") for _, run in named if run.showing}) > 1:
        notes.append(
            "Some rows join one answer for each scene, others give one answer for the sequence: part of a difference "
            "is how much they were asked to say (--earlier-text and --answer of eval.mementos.predict)."
        )
    if skipped := [f"{name} {len(run.predictions.skipped)}" for name, run in named if run.predictions.skipped]:
        notes.append(f"Rows of predictions.jsonl that cannot be used: {', '.join(skipped)}.")
    return notes
