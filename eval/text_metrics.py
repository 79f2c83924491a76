"""Text metrics beside SimRate: BLEU, chrF, ROUGE-L, sentence embeddings, and how they go along with the verdicts.

Launch: python -m eval.text_metrics --runs RUN [RUN ...] --output-dir OUT [--embeddings MODEL]

Writes text_metrics.md, .csv, .tex and .json. The paper holds n-gram overlap unfit for this task (section 5.4); here
its relation to the judge's verdicts is measured: the point-biserial correlation of each story's score with its verdict.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.resampling import Estimate, estimate
from eval.runs import Judged, RunFolder, read_runs, refuse_run_folder, run_title
from eval.tables.files import CONTINUED, Sheet, to_markdown, write_tables
from eval.tables.table1 import run_notes
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.manifest import run_manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextMetricsConfig:
    """Settings of eval.text_metrics."""

    runs: list[Path] = option(help="run folders with predictions.jsonl and, for the correlations, judgments.jsonl")
    output_dir: Path = option(help="folder for text_metrics.md, .csv, .tex and .json")
    embeddings: str | None = option(
        None,
        help="sentence-transformers model (name or folder) for cosine similarity, safetensors only; none = without",
    )
    device: str | None = option(None, help="device of that model, such as cpu or cuda:0")
    batch_size: int = option(64, help="texts per batch of that model", minimum=1)
    seed: int = option(0, help="source of chance of the bootstrap", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        title: Column title.
        overall: Score of all predictions against their references, 0 to 100.
        each: Score of each prediction, 0 to 100; what is correlated with the verdicts.
        signature: Library, version and settings.
    """

    title: str
    overall: Callable[[Sequence[str], Sequence[str]], float]
    each: Callable[[Sequence[str], Sequence[str]], list[float]]
    signature: str


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} cannot be imported ({error}); bash scripts/setup.sh {extra} installs it") from error


def sacrebleu_metrics() -> list[Metric]:
    """Return corpus BLEU and chrF (sacreBLEU); a single sentence's BLEU uses the n-gram orders that it has."""
    library = _library("sacrebleu.metrics", "eval")
    result = []
    for title, corpus, sentence in (
        ("BLEU", library.BLEU(), library.BLEU(effective_order=True)),
        ("chrF", library.CHRF(), library.CHRF()),
    ):
        corpus.corpus_score(["a"], [["a"]])  # the signature is complete after a first score only
        sentence.sentence_score("a", ["a"])

        def overall(predictions: Sequence[str], references: Sequence[str], metric: Any = corpus) -> float:
            return float(metric.corpus_score(list(predictions), [list(references)]).score)

        def each(predictions: Sequence[str], references: Sequence[str], metric: Any = sentence) -> list[float]:
            pairs = zip(predictions, references, strict=True)
            return [float(metric.sentence_score(prediction, [reference]).score) for prediction, reference in pairs]

        signature = f"{title}|{corpus.get_signature()} (each story: {sentence.get_signature()})"
        result.append(Metric(title=title, overall=overall, each=each, signature=signature))
    return result


def rouge_metric() -> Metric:
    """Return ROUGE-L: F measure of the longest common subsequence of words, mean over the stories."""
    scorer = _library("rouge_score.rouge_scorer", "eval").RougeScorer(["rougeL"], use_stemmer=False)

    def each(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(predictions, references, strict=True)
        return [100 * float(scorer.score(reference, prediction)["rougeL"].fmeasure) for prediction, reference in pairs]

    version = importlib.metadata.version("rouge-score")
    return Metric(
        title="ROUGE-L", overall=_mean_of(each), each=each,
        signature=f"rouge-score {version}, rougeL, F measure, no stemmer, words of a-z and 0-9, mean over stories",
    )  # fmt: skip


def embedding_metric(model_name: str, device: str | None, batch_size: int) -> Metric:
    """Return the cosine similarity of sentence embeddings x 100, mean over the stories.

    Raises:
        ConfigError: sentence-transformers is missing, or the model cannot be loaded.
    """
    library = _library("sentence_transformers", "embeddings")
    try:
        # Weights as safetensors only: a pickle runs what its author wrote.
        model = library.SentenceTransformer(model_name, device=device, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--embeddings {model_name}: not a sentence-transformers model in safetensors ({reason})"
        ) from error

    def each(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        made = [
            np.asarray(
                model.encode(list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
            )
            for texts in (predictions, references)
        ]
        return [100 * float(value) for value in (made[0] * made[1]).sum(axis=1)]

    version = importlib.metadata.version("sentence-transformers")
    return Metric(
        title="Embedding", overall=_mean_of(each), each=each,
        signature=f"sentence-transformers {version}, {model_name}, cosine x 100, mean over stories",
    )  # fmt: skip


def _mean_of(each: Callable[[Sequence[str], Sequence[str]], list[float]]) -> Callable[..., float]:
    return lambda predictions, references: float(np.mean(each(predictions, references)))


def correlation(sums: np.ndarray) -> np.ndarray:
    """Return Pearson's r of (..., 6) sums of 1, x, y, xx, yy, xy; with a verdict as y it is the point-biserial one."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (n * xy - x * y) / np.sqrt(spread_x * spread_y)
    constant = (spread_x <= 1e-9 * n * xx) | (spread_y <= 1e-9 * n * yy)
    return np.where(constant, np.nan, value)


def correlate(scores: Sequence[float], rows: Sequence[Judged], seed: int) -> Estimate:
    """Correlate scores with verdicts (Yes = 1) over the scored rows; the interval is clustered by video."""
    kept = [(score / 100, row) for score, row in zip(scores, rows, strict=True) if row.verdict is not None]
    pairs = [(x, float(row.verdict == "yes")) for x, row in kept]
    sums = np.array([[1, x, y, x * x, y * y, x * y] for x, y in pairs]).reshape(-1, 6)
    clusters = [row.row.video_name or row.row.story_id for _, row in kept]
    reason = "not defined: all verdicts or all scores are the same"
    return estimate(sums, clusters, correlation, undefined=reason, seed=seed)


def measure(title: str, rows: Sequence[Judged], metrics: Sequence[Metric], seed: int) -> dict[str, Any]:
    """Return all figures of one line of the table."""
    predictions, references = [row.row.prediction for row in rows], [row.row.reference for row in rows]
    scored = [row for row in rows if row.verdict is not None]
    yes = sum(row.verdict == "yes" for row in scored)
    return {
        "run": title,
        "n": len(rows),
        "scored": len(scored),
        "yes": yes,
        "simrate": 100 * yes / len(scored) if scored else None,
        "metrics": {
            metric.title: {
                "score": metric.overall(predictions, references),
                "correlation": correlate(metric.each(predictions, references), rows, seed),
            }
            for metric in metrics
        },
    }


def metrics_sheet(lines: Sequence[dict[str, Any]], metrics: Sequence[Metric], notes: Sequence[str]) -> Sheet:
    """Return the table: each line's scores, the correlations behind them, their intervals below."""
    names = [metric.title for metric in metrics]
    rows: list[tuple[str, ...]] = []
    for line in lines:
        made = [line["metrics"][name] for name in names]
        correlations = [one["correlation"] for one in made]
        simrate = "–" if line["simrate"] is None else f"{line['simrate']:.2f} ({line['yes']}/{line['scored']})"
        rows.append(
            (line["run"], str(line["n"]), simrate, *(f"{one['score']:.2f}" for one in made), *map(_value, correlations))
        )
        rows.append((CONTINUED + "95 % interval", "", "", *([""] * len(made)), *map(_interval, correlations)))
    about = [
        "r is the point-biserial correlation of each story's score with its verdict (Yes = 1) over the judged stories. "
        "The intervals are 95 % percentile bootstrap intervals, videos drawn. Scores run from 0 to 100.",
        *dict.fromkeys(
            sentence
            for line in lines
            for one in line["metrics"].values()
            if (sentence := one["correlation"].footnote(f"{line['run']}: r"))
        ),
        *notes,
        *(metric.signature for metric in metrics),
    ]
    records = tuple(_record(line) for line in lines)
    return Sheet(
        title="Text metrics beside SimRate, and how they go along with the judge's verdicts",
        columns=("Run", "n", "SimRate", *names, *(f"r ({name})" for name in names)),
        rows=tuple(rows),
        notes=tuple(about),
        data={
            "runs": [_to_json(line) for line in lines],
            "signatures": {m.title: m.signature for m in metrics},
            "notes": about,
        },
        records=records,
    )


def _value(made: Estimate) -> str:
    return "–" if made.value is None else _two_decimals(made.value)


def _interval(made: Estimate) -> str:
    return "–" if made.low is None or made.high is None else " to ".join(map(_two_decimals, (made.low, made.high)))


def _two_decimals(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _to_json(line: dict[str, Any]) -> dict[str, Any]:
    metrics = {
        name: {**made, "correlation": dataclasses.asdict(made["correlation"])} for name, made in line["metrics"].items()
    }
    return {**line, "metrics": metrics}


def _record(line: dict[str, Any]) -> dict[str, Any]:
    record = {name: line[name] for name in ("run", "n", "scored", "yes")}
    record["simrate"] = None if line["simrate"] is None else round(line["simrate"], 2)
    for name, made in line["metrics"].items():
        record[name] = round(made["score"], 4)
        for part, key in (("r", "value"), ("r_low_95", "low"), ("r_high_95", "high")):
            value = getattr(made["correlation"], key)
            record[f"{name}_{part}"] = None if value is None else round(value, 4)
    return record


def measure_runs(config: TextMetricsConfig, runs: Sequence[RunFolder]) -> Sheet:
    """Measure every run, and all of them together."""
    metrics = [*sacrebleu_metrics(), rouge_metric()]
    if config.embeddings:
        metrics.append(embedding_metric(config.embeddings, config.device, config.batch_size))
    titles = [run_title(run) for run in runs]
    lines = [
        measure(title if titles.count(title) == 1 else f"{title} ({run.path})", run.rows, metrics, config.seed)
        for title, run in zip(titles, runs, strict=True)
    ]
    if len(runs) > 1:
        rows = [row for run in runs for row in run.rows]
        lines.append(measure("All runs together", rows, metrics, config.seed))
    judges = sorted({run.judge for run in runs if run.judge})
    notes = [f"Verdicts by {', '.join(judges)}." if judges else "No run is judged, so there is no correlation."]
    if len(judges) > 1:
        notes.append("The runs were judged by different judges: their SimRates and correlations cannot be compared.")
    notes += run_notes([(line["run"], run) for line, run in zip(lines, runs, strict=False)])
    return metrics_sheet(lines, metrics, notes)


def make_table(config: TextMetricsConfig) -> None:
    """Measure, write and print the table."""
    logging.getLogger("absl").setLevel(logging.WARNING)  # rouge-score's remark about its tokenizer
    refuse_run_folder(config.output_dir)
    if len({path.resolve() for path in config.runs}) < len(config.runs):
        raise ConfigError("--runs: each run once was wanted, found one of the folders twice")
    runs = read_runs(config.runs)
    inputs = [path for run in runs for path in run.files]
    with run_manifest(config.output_dir, config=to_json(config), inputs=inputs, name="text_metrics_run.json"):
        sheet = measure_runs(config, runs)
        written = write_tables(config.output_dir / "text_metrics", sheet)
    print(to_markdown(sheet))
    print(f"-> {written[0]} (and .csv, .tex, .json)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        TextMetricsConfig, make_table, argv, program="python -m eval.text_metrics", description=__doc__ or ""
    )


if __name__ == "__main__":
    sys.exit(main())
