"""Read the run folders of eval.mementos.predict, with the extractor's answers beside the predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.mementos.data import DOMAINS
from eval.runs import PREDICTIONS, storable
from llava.imagechain.config import all_problems
from llava.imagechain.files import read_json, read_jsonl, sha256_json

KEYWORDS = "keywords.jsonl"
KEYWORDS_RUN = "keywords_run.json"
TEXTS = ("id", "domain", "variant", "prediction", "reference")
OPTIONAL = {"train_context": str, "seed": int}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of predictions.jsonl."""

    sample_id: str
    domain: str
    prediction: str
    reference: str

    @property
    def pair_sha256(self) -> str:
        """The hash that ties an extractor's answer to exactly these two texts."""
        return sha256_json([self.sample_id, self.reference, self.prediction])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """The rows of one run.

    Attributes:
        skipped: Rows that cannot be used, as {"id", "reason"}.
    """

    path: Path
    variant: str
    train_context: str | None
    seed: int | None
    rows: tuple[Row, ...]
    skipped: tuple[dict[str, Any], ...]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.path.parent


def read_predictions(path: Path) -> Predictions:
    """Read predictions.jsonl of eval.mementos.predict.

    Raises:
        ValueError: No file, no usable row, or rows of several runs.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent}: a run folder with {path.name} (made by eval.mementos.predict) was wanted")
    rows: dict[str, Row] = {}
    skipped: list[dict[str, Any]] = []
    shared: list[tuple[Any, ...]] = []
    for raw in read_jsonl(path):
        wrong = next((name for name in TEXTS if not isinstance(raw.get(name), str)), None)
        other = next((name for name, kind in OPTIONAL.items() if not isinstance(raw.get(name), kind | None)), None)
        sample_id = raw.get("id")
        if wrong:
            reason = f"{wrong}: text was wanted, found {type(raw[wrong]).__name__ if wrong in raw else 'nothing'}"
        elif other:
            reason = f"{other}: {OPTIONAL[other].__name__} or null was wanted, found {type(raw[other]).__name__}"
        elif raw["domain"] not in DOMAINS:
            reason = f"domain: one of {', '.join(DOMAINS)} was wanted, found {raw['domain']!r}"
        elif storable(raw["id"]) != raw["id"]:
            reason = f"id: whole characters were wanted, found {raw['id']!r}"
        elif sample_id in rows:
            reason = "the id was met before; the first row counts"
        else:
            texts = {name: storable(raw[name]) for name in TEXTS}
            rows[str(sample_id)] = Row(
                sample_id=texts["id"], domain=texts["domain"],
                prediction=texts["prediction"], reference=texts["reference"],
            )  # fmt: skip
            kind = (raw["variant"], raw.get("train_context"), raw.get("seed"))
            shared += [kind] if kind not in shared else []
            continue
        skipped.append({"id": storable(sample_id) if isinstance(sample_id, str) else None, "reason": reason})
    if not rows:
        raise ValueError(f"{path}: rows made by eval.mementos.predict were wanted, found none")
    if len(shared) > 1:
        raise ValueError(f"{path}: rows of one run were wanted, found {' and '.join(map(str, shared[:3]))}")
    variant, train_context, seed = shared[0]
    return Predictions(
        path=path, variant=variant, train_context=train_context, seed=seed, rows=tuple(rows.values()),
        skipped=tuple(skipped),
    )  # fmt: skip


def read_all(paths: Sequence[Path]) -> list[Predictions]:
    """Read several predictions files; all problems in one message.

    Raises:
        ValueError: With every file that cannot be read, or two in one folder.
    """
    found: list[Predictions] = []
    problems: list[str] = []
    for path in paths:
        try:
            found.append(read_predictions(path))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if len({path.resolve().parent for path in paths}) < len(paths):
        problems.append("each predictions file needs a folder of its own, found one folder twice")
    if problems:
        raise ValueError(all_problems("the predictions cannot be used", problems))
    return found


def run_file(folder: Path) -> Path:
    """Return the predictions file of a run folder."""
    return folder / PREDICTIONS


def read_answers(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Return the rows of keywords.jsonl by sample id, only those that were made for the very same texts."""
    path = predictions.folder / KEYWORDS
    found = {row["id"]: row for row in read_jsonl(path) if isinstance(row.get("id"), str)} if path.is_file() else {}
    return {
        row.sample_id: found[row.sample_id]
        for row in predictions.rows
        if found.get(row.sample_id, {}).get("pair_sha256") == row.pair_sha256
    }


def read_prompt(folder: Path) -> str:
    """Return " (prompt 01234567)", the hash of the prompt that the extractor was asked with; "" without one."""
    path = folder / KEYWORDS_RUN
    facts = read_json(path) if path.is_file() else {}
    config = facts.get("config") if isinstance(facts, dict) else None
    found = config.get("prompt_sha256") if isinstance(config, dict) else None
    return f" (prompt {str(found)[:8]})" if found else ""


def read_showing(folder: Path) -> dict[str, Any]:
    """Return how the samples were shown, as run.json says, and the run's end."""
    path = folder / "run.json"
    facts = read_json(path) if path.is_file() else {}
    facts = facts if isinstance(facts, dict) else {}
    showing = facts.get("showing")
    return {"status": facts.get("status"), "showing": showing if isinstance(showing, dict) else {}}
