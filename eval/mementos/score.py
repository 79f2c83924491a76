"""Table 3: how well the behaviours and objects of predicted descriptions match the human ones, by domain.

Launch: python -m eval.mementos.score --runs RUN [RUN ...] --data DIR --output-dir OUT [--paper]

Writes table3 (behaviour F1) and mementos_scores (recall, precision and F1 of objects and behaviours), each as .md,
.csv, .tex and .json, and samples.jsonl with the words and scores of every sample. "upstream" counts exactly as the
benchmark's notebook does, so that printed numbers can be compared; "strict" counts right.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.mementos.answers import Lists, parse
from eval.mementos.data import DOMAINS, Benchmark, load_benchmark
from eval.mementos.graphs import Graph, load_graphs
from eval.mementos.rows import Predictions, Row, read_all, read_answers, read_prompt, read_showing, run_file
from eval.mementos.scoring import MODES, Score, normal, score
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, all_problems, option, to_json
from llava.imagechain.files import write_jsonl
from llava.imagechain.manifest import run_manifest

KINDS = ("action", "object")
OVERALL = "overall"
EMPTY = Score(recall=0.0, precision=0.0, f1=0.0)
Scores = dict[str, dict[str, Score]]  # mode -> kind -> score


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of eval.mementos.score."""

    runs: list[Path] = option(help="run folders with predictions.jsonl and keywords.jsonl")
    data: Path = option(help="folder with the benchmark's CSVs and synonym graphs (.json or .pkl)")
    output_dir: Path = option(help="folder for table3, mementos_scores and samples.jsonl")
    paper: bool = option(False, help="the data are the benchmark's: show the paper's numbers beside ours")
    seed: int = option(0, help="of the bootstrap over samples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """One sample of a run; `scores` is None where it could not be scored, for the reason in `status`.

    Attributes:
        status: "scored"; "empty" (the model wrote nothing: scored as 0); "unparsed" (the extractor's answer cannot be
            read); "unscored" (it has no answer for these texts); "foreign" (not of this data); "missing" (not
            predicted).
    """

    sample_id: str
    domain: str
    status: str
    scores: Scores | None = None
    lists: Lists | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the sample's line of samples.jsonl."""
        return {
            "id": self.sample_id,
            "domain": self.domain,
            "status": self.status,
            "reason": self.reason,
            "words": dataclasses.asdict(self.lists) if self.lists else None,
            "scores": {
                mode: {kind: dataclasses.asdict(found) for kind, found in kinds.items()}
                for mode, kinds in (self.scores or {}).items()
            },
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run with all its samples and those that it lacks."""

    predictions: Predictions
    samples: tuple[Scored, ...]
    extractors: tuple[str, ...]
    showing: dict[str, Any]
    finished: bool

    def of(self, domain: str) -> list[Scored]:
        """Return the samples of a domain, or of all of them for "overall"."""
        return [sample for sample in self.samples if domain in (OVERALL, sample.domain)]

    def count(self, status: str) -> int:
        """Return the number of samples with a status."""
        return sum(sample.status == status for sample in self.samples)


def score_run(
    predictions: Predictions, benchmark: Benchmark, graphs: dict[str, dict[str, dict[str, Graph]]]
) -> ScoredRun:
    """Score every sample of a run.

    Args:
        predictions: The run's rows.
        benchmark: The data that it was made on.
        graphs: Domain -> mode -> kind of words -> synonyms.

    Raises:
        ConfigError: Not one row belongs to the data.
    """
    references = {sample.sample_id: sample for sample in benchmark.samples}
    answers = read_answers(predictions)
    samples = [_scored(row, references, answers.get(row.sample_id), graphs) for row in predictions.rows]
    if all(sample.status == "foreign" for sample in samples):
        raise ConfigError(f"{predictions.path}: predictions for {benchmark.root} were wanted, none of its rows is")
    predicted = {row.sample_id for row in predictions.rows}
    samples += [
        Scored(sample_id=sample_id, domain=sample.domain, status="missing", reason="not predicted")
        for sample_id, sample in references.items()
        if sample_id not in predicted
    ]
    used = {str(row.get("model") or row.get("extractor")) for row in answers.values() if row.get("answer") is not None}
    prompt = read_prompt(predictions.folder)
    facts = read_showing(predictions.folder)
    return ScoredRun(
        predictions=predictions, samples=tuple(samples),
        extractors=tuple(name + prompt for name in sorted(used)), showing=facts["showing"],
        finished=facts["status"] in (None, "success"),
    )  # fmt: skip


def _scored(
    row: Row, references: dict[str, Any], answer: dict[str, Any] | None, graphs: dict[str, dict[str, dict[str, Graph]]]
) -> Scored:
    def result(status: str, **found: Any) -> Scored:
        return Scored(sample_id=row.sample_id, domain=row.domain, status=status, **found)

    sample = references.get(row.sample_id)
    if sample is None or (sample.domain, sample.reference) != (row.domain, row.reference):
        return result("foreign", reason="no such sample in the data" if sample is None else "another description")
    if not row.prediction.strip():
        return result("empty", scores={mode: dict.fromkeys(KINDS, EMPTY) for mode in MODES})
    if answer is None or not isinstance(answer.get("answer"), str):
        return result("unscored", reason=(answer or {}).get("error") or "no answer was extracted from these texts")
    try:
        lists = parse(answer["answer"])
    except ValueError as error:
        return result("unparsed", reason=f"{error}: {answer['answer'][:500]!r}")
    scores = {
        mode: {
            kind: score(mode, kind, lists.reference[kind], lists.prediction[kind], graphs[row.domain][mode][kind])
            for kind in KINDS
        }
        for mode in MODES
    }
    return result("scored", scores=scores, lists=lists)


def prepare_graphs(benchmark: Benchmark) -> dict[str, dict[str, dict[str, Graph]]]:
    """Return the synonyms by domain, mode and kind of words.

    Raises:
        ConfigError: With every graph that is missing or refused.
    """
    found: dict[str, dict[str, dict[str, Graph]]] = {}
    problems: list[str] = []
    for name in benchmark.counts():
        try:
            graphs = load_graphs(benchmark, DOMAINS[name])
        except ConfigError as error:
            problems.append(str(error))
            continue
        found[name] = {"upstream": graphs, "strict": {kind: normal(graph) for kind, graph in graphs.items()}}
    if problems:
        raise ConfigError(all_problems("the synonym graphs cannot be used", problems))
    return found


def score_runs(config: ScoreConfig) -> None:
    """Score the runs, write the tables, print."""
    benchmark = load_benchmark(config.data)
    graphs = prepare_graphs(benchmark)
    found = read_all([run_file(folder) for folder in config.runs])
    runs = [score_run(predictions, benchmark, graphs) for predictions in found]
    inputs = [path for one in found for path in (one.path, one.folder / "keywords.jsonl")]
    with run_manifest(config.output_dir, config=to_json(config), inputs=inputs, name="mementos_run.json"):
        text = write_all(config, runs, benchmark)
    print(text)
    print(f"-> {config.output_dir / 'table3.md'} (and .csv, .tex, .json), mementos_scores.*, samples.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        ScoreConfig, score_runs, argv, program="python -m eval.mementos.score", description=__doc__ or ""
    )


def write_all(config: ScoreConfig, runs: Sequence[ScoredRun], benchmark: Benchmark) -> str:
    """Write the tables and the samples; return both tables as Markdown."""
    from eval.mementos.tables import detail_sheet, measure, table3_sheet
    from eval.tables.files import to_markdown, write_tables

    measured = measure(runs, config.seed)
    sheets = {
        "table3": table3_sheet(measured, benchmark, paper=config.paper),
        "mementos_scores": detail_sheet(measured),
    }
    for name, sheet in sheets.items():
        write_tables(config.output_dir / name, sheet)
    write_jsonl(
        config.output_dir / "samples.jsonl",
        ({"run": str(run.predictions.folder), **sample.to_json()} for run in runs for sample in run.samples),
    )
    return "\n".join(to_markdown(sheet) for sheet in sheets.values())


if __name__ == "__main__":
    sys.exit(main())
