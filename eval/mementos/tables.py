"""Scored runs as Table 3 of the paper (behaviour F1) and as a table of everything that was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from eval.mementos.data import DOMAINS, Benchmark
from eval.mementos.score import OVERALL, Scored, ScoredRun
from eval.mementos.scoring import MODES
from eval.runs import column_title
from eval.stats import clustered_interval
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
    low, high = clustered_interval([one.f1 for one in found], range(len(found)), seed)
    return Cell(n=len(found), low=100 * low, high=100 * high, **means)


def titles(runs: Sequence[ScoredRun]) -> list[str]:
    """Name each run by its variant, and by its training context and seed where that tells it from another.

    Raises:
        ConfigError: Two runs have the same variant, context and seed.
    """
    keys = [(run.predictions.variant, run.predictions.train_context, run.predictions.seed) for run in runs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        folders = " and ".join(str(run.predictions.folder) for run, key in zip(runs, keys, strict=True) if key == twice)
        raise ConfigError(f"one run for each variant, training context and seed was wanted, found {folders}")
    found = []
    for variant, context, seed in keys:
        others = [key for key in keys if key[0] == variant]
        details = [f"trained on {column_title(str(context))}"] * (len({key[1] for key in others}) > 1)
        details += [f"seed {seed}"] * (sum(key[1] == context for key in others) > 1)
        found.append(", ".join([VARIANTS[variant].title if variant in VARIANTS else variant, *details]))
    return found


def table3_sheet(runs: Sequence[ScoredRun], benchmark: Benchmark, *, paper: bool, seed: int) -> Sheet:
    """Arrange runs as Table 3: behaviour F1 in upstream counting, with the strict one and the paper's below.

    Args:
        runs: Scored runs, at most one for a variant, training context and seed.
        benchmark: The data, for the number of samples there are.
        paper: Put the paper's numbers beside and its other rows above.
        seed: Of the bootstrap.
    """
    printed = load_paper() if paper else {}
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    blank = ("",) * 2
    for title, values in printed.get("table3_others", {}).items():
        rows.append((f"{title} (as printed)", *_percent(values), "", *blank))
    names = titles(runs)
    order = [*ROWS, *dict.fromkeys(run.predictions.variant for run in runs if run.predictions.variant not in ROWS)]
    for variant in order:
        chosen = [(name, run) for name, run in zip(names, runs, strict=True) if run.predictions.variant == variant]
        if not chosen:
            rows.append((VARIANTS[variant].title, *("-" for _ in COLUMNS), "-", "-"))
        for name, run in sorted(chosen, key=lambda pair: pair[0]):
            cells = {mode: [cell(run.of(domain), mode, "action", seed) for domain in COLUMNS] for mode in MODES}
            counts = (str(run.count("unparsed")), str(run.count("unscored") + run.count("missing")))
            rows += [
                (name, *(one.shown() for one in cells["upstream"]), *counts),
                (f"{CONTINUED}95 % interval", *(one.interval() for one in cells["upstream"]), *blank),
                (f"{CONTINUED}strict", *(_number(one.f1) for one in cells["strict"]), *blank),
            ]
            records += _records(name, run, seed)
        if variant in printed.get("table3", {}):
            rows.append((f"{CONTINUED}paper", *_percent(printed["table3"][variant]), "", *blank))
    columns = ("Behaviour F1, %", *(domain.title for domain in DOMAINS.values()), "Overall", "unparsed", "unscored")
    notes = _notes(runs, names, benchmark)
    if paper:
        notes.append(
            "Printed numbers: keywords by the benchmark's own prompt, of gpt-4-1106-preview in its notebook (the paper "
            "says GPT-4V). The extractor changes the numbers: the reference's words are extracted anew every time."
        )
        notes += printed["notes"]["table3"]
    return Sheet(
        title="Table 3: behaviour F1 on image sequences of the Mementos benchmark's format",
        columns=columns, rows=tuple(rows), notes=tuple(notes), records=tuple(records),
        data={
            "cells": records, "paper": {name: printed[name] for name in ("table3", "table3_others")} if paper else None,
            "notes": notes, "runs": [_facts(name, run) for name, run in zip(names, runs, strict=True)],
        },
    )  # fmt: skip


def detail_sheet(runs: Sequence[ScoredRun], *, seed: int) -> Sheet:
    """Return recall, precision and F1 of objects and behaviours in both countings, one block a run."""
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for name, run in zip(titles(runs), runs, strict=True):
        rows.append((name,))
        for kind, kind_title in KIND_TITLES.items():
            for domain in COLUMNS:
                cells = [cell(run.of(domain), mode, kind, seed) for mode in MODES]
                if cells[0].n:
                    numbers = [_number(value) for one in cells for value in (one.recall, one.precision, one.f1)]
                    rows.append((f"{kind_title}, {_domain_title(domain)}", str(cells[0].n), *numbers))
        records += _records(name, run, seed)
    columns = ("%", "n", *(f"{mode} {part}" for mode in MODES for part in ("recall", "precision", "F1")))
    notes = (
        "Means over samples, F1 too: it is not the harmonic mean of the recall and precision beside it. Overall is the "
        "mean over all samples, hence weighted by the samples of each domain.",
        "upstream counts as the benchmark's notebook does, strict counts right: docs/mementos.md says what differs.",
    )
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


def _records(name: str, run: ScoredRun, seed: int) -> list[dict[str, Any]]:
    """Return one flat record for each kind of words, domain and mode."""
    facts = {"run": name, "variant": run.predictions.variant, "train_context": run.predictions.train_context}
    return [
        {
            **facts, "seed": run.predictions.seed, "words": KIND_TITLES[kind], "domain": domain, "mode": mode,
            **{key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()},
            **{status: sum(sample.status == status for sample in run.of(domain)) for status in STATUSES},
        }
        for kind in KIND_TITLES
        for domain in COLUMNS
        for mode in MODES
        for found in [dataclasses.asdict(cell(run.of(domain), mode, kind, seed))]
        if run.of(domain)
    ]  # fmt: skip


def _facts(name: str, run: ScoredRun) -> dict[str, Any]:
    return {
        "run": name,
        "path": str(run.predictions.folder),
        "showing": run.showing,
        "extractors": list(run.extractors),
        "samples": {status: run.count(status) for status in ("scored", *STATUSES)},
    }


def _notes(runs: Sequence[ScoredRun], names: Sequence[str], benchmark: Benchmark) -> list[str]:
    """Say everything that a reader of the numbers has to know."""
    named = list(zip(names, runs, strict=True))
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
