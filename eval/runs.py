"""Read run folders: predictions.jsonl with their judgments.jsonl, as simrate, tables, figure and report need them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.config import all_problems
from llava.imagechain.files import read_json, read_jsonl, sha256_json
from llava.imagechain.variants import VARIANTS

PREDICTIONS = "predictions.jsonl"
JUDGMENTS = "judgments.jsonl"
JUDGE_RUN = "judge_run.json"
CONTROLS = {
    "blank_images": "blank images",
    "other_text": "another story's earlier text",
    "shuffled_scenes": "scenes shuffled",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row of predictions.jsonl."""

    story_id: str
    num_scenes: int
    prediction: str
    reference: str
    dropped_scenes: int
    video_name: str | None = None  # None where the rows do not say it

    @property
    def pair_sha256(self) -> str:
        """The hash that ties a judgment to exactly these two texts."""
        return sha256_json([self.reference, self.prediction])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """A prediction with its verdict; None = unscored (not judged, a failed call, or judged before it changed)."""

    row: Prediction
    verdict: str | None
    parsed: bool
    answer: str | None
    error: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
    """All rows of one prediction run."""

    path: Path
    variant: str
    train_context: str | None
    control: str | None
    rows: tuple[Judged, ...]
    judge: str | None
    stories: str | None
    skipped: int
    finished: bool  # False when its run.json says that predicting did not come to its end
    seed: int | None = None  # training seed of the checkpoint; None for a base model
    unusable: int = 0  # rows of predictions.jsonl that are malformed or repeat an id
    mixed: bool = False  # its judgments are of several judges
    mementos: bool = False  # its rows are image sequences of a domain of Mementos, no stories

    @property
    def files(self) -> tuple[Path, Path]:
        """Its predictions and its judgments."""
        return self.path / PREDICTIONS, self.path / JUDGMENTS

    def by_id(self) -> dict[str, Judged]:
        """Return the rows by story id."""
        return {judged.row.story_id: judged for judged in self.rows}


def refuse_run_folder(output_dir: Path) -> None:
    """Keep tables out of a run: where the output folder was forgotten, the first run stands in its place.

    Raises:
        ValueError: The folder is a run's.
    """
    if (output_dir / PREDICTIONS).exists():
        raise ValueError(
            f"output_dir: {output_dir} is a run folder; a folder for the tables was wanted before the runs"
        )


def column_title(context: str) -> str:
    """Return the paper's spelling of a context: c4_6 is C4-6."""
    return context.upper().replace("_", "-")


def run_title(run: RunFolder) -> str:
    """Name a run as the tables do, with what tells it from its siblings."""
    variant = VARIANTS[run.variant].title if run.variant in VARIANTS else run.variant
    context = run.train_context if run.train_context != "c2_7" else None
    details = [
        *([f"trained on {column_title(str(context))}"] if context else []),
        *([f"seed {run.seed}"] if run.seed is not None else []),
        *([CONTROLS.get(run.control, run.control)] if run.control else []),
    ]
    return ", ".join([variant, *details])


def _with_seed(run: RunFolder) -> str:
    return f"{run.path} ({'no seed' if run.seed is None else f'seed {run.seed}'})"


def by_cell(runs: Sequence[RunFolder], key: Callable[[RunFolder], Hashable]) -> dict[Any, list[RunFolder]]:
    """Group runs by the table cells that they fill; the runs of one cell are seeds of one training, in their order.

    Raises:
        ValueError: A run on Mementos, an unknown variant or control, or two runs of a cell that no seed tells apart.
    """
    found: dict[Any, list[RunFolder]] = {}
    for run in runs:
        if run.mementos:
            raise ValueError(f"{run.path}: predictions about stories were wanted, found a run on Mementos (Table 3)")
        if run.variant not in VARIANTS or (run.control is not None and run.control not in CONTROLS):
            raise ValueError(
                f"{run.path}: one of {', '.join(VARIANTS)} and no control or one of {', '.join(CONTROLS)} was wanted, "
                f"found {run.variant!r} and {run.control!r}; scripts/eval/compare.sh takes any two run folders"
            )
        others = found.setdefault(key(run), [])
        for other in others:
            if run.seed is None or other.seed is None or run.seed == other.seed:
                raise ValueError(
                    f"one run for each row was wanted, found two of {run_title(dataclasses.replace(run, seed=None))}: "
                    f"{_with_seed(other)}, {_with_seed(run)}; several runs of one row need different training seeds"
                )
        others.append(run)
    return {cell: sorted(some, key=lambda run: run.seed or 0) for cell, some in found.items()}


def read_predictions(path: Path) -> tuple[list[Prediction], list[dict[str, Any]], dict[str, Any]]:
    """Read predictions.jsonl.

    Returns:
        The usable rows, the others as {"id", "reason"}, and what all rows share (variant, train_context, control,
        seed, mementos).

    Raises:
        ValueError: No row, a malformed line, or rows of several runs in one file.
    """
    rows: dict[str, Prediction] = {}
    skipped: list[dict[str, Any]] = []
    shared: list[dict[str, Any]] = []
    raw_rows = read_jsonl(path)
    for raw in raw_rows:
        story_id = raw.get("id")
        if reason := _wrong(raw):
            skipped.append({"id": storable(story_id) if isinstance(story_id, str) else None, "reason": reason})
        elif story_id in rows:
            skipped.append({"id": story_id, "reason": "the id was met before; the first row counts"})
        else:
            rows[str(story_id)] = Prediction(
                story_id=str(story_id),
                num_scenes=raw["num_scenes"],
                prediction=storable(raw["prediction"]),
                reference=storable(raw["reference"]),
                dropped_scenes=raw.get("dropped_scenes") or 0,
                video_name=raw.get("video_name") or None,
            )
            kind = {name: raw.get(name) for name in ("variant", "train_context", "control", "seed")}
            kind["mementos"] = isinstance(raw.get("domain"), str)
            shared += [kind] if kind not in shared else []
    if not rows:
        why = f" (first: {skipped[0]['reason']})" if skipped else ""
        raise ValueError(f"{path}: rows made by eval.predict were wanted, found {len(raw_rows)} rows, none usable{why}")
    if len(shared) > 1:
        raise ValueError(f"{path}: rows of one run were wanted, found {' and '.join(map(str, shared[:3]))}")
    return list(rows.values()), skipped, shared[0]


def _wrong(raw: dict[str, Any]) -> str | None:
    """Say what keeps a row from being used: a field that is missing or of another kind."""
    wanted = {"id": str, "variant": str, "prediction": str, "reference": str, "num_scenes": int}
    optional = {"train_context": str, "control": str, "video_name": str, "seed": int, "dropped_scenes": int}
    for name, kind in (wanted | optional).items():
        value = raw.get(name)
        if name not in ("prediction", "reference") and isinstance(value, str) and storable(value) != value:
            return f"{name}: whole characters were wanted, found {value!r}"
        if (name in optional and value is None) or (isinstance(value, kind) and not isinstance(value, bool)):
            continue
        words = f"{'a whole number' if kind is int else 'text'}{' or null' if name in optional else ''}"
        return f"{name}: {words} was wanted, found {type(value).__name__ if name in raw else 'nothing'}"
    return None


def storable(text: str) -> str:
    """Replace half characters (JSON can carry them, files in UTF-8 cannot)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_run(folder: Path) -> RunFolder:
    """Read a run folder; a judgment counts only for the very texts it was given for.

    Raises:
        ValueError: A file is missing or malformed.
    """
    if not (folder / PREDICTIONS).is_file():
        raise ValueError(f"{folder}: a run folder with {PREDICTIONS} (made by eval.predict) was wanted")
    predictions, unusable, shared = read_predictions(folder / PREDICTIONS)
    judgments = read_jsonl(folder / JUDGMENTS) if (folder / JUDGMENTS).is_file() else []
    by_id = {row["id"]: row for row in judgments if isinstance(row.get("id"), str)}
    run_json = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    config = run_json.get("config", {}) if isinstance(run_json, dict) else {}
    names = sorted({storable(str(row["judge"])) for row in judgments if row.get("judge")})
    skipped = folder / "skipped.jsonl"
    return RunFolder(
        path=folder,
        variant=shared["variant"],
        train_context=shared["train_context"],
        control=shared["control"],
        rows=tuple(_judged(row, by_id.get(row.story_id)) for row in predictions),
        judge=" and ".join(names) + storable(_asked(folder)) if names else None,
        stories=str(config["stories"]) if isinstance(config, dict) and config.get("stories") else None,
        skipped=len(read_jsonl(skipped)) if skipped.is_file() else 0,
        finished=not isinstance(run_json, dict) or run_json.get("status", "success") == "success",
        seed=shared["seed"],
        unusable=len(unusable),
        mixed=len(names) > 1,
        mementos=shared["mementos"],
    )


def _asked(folder: Path) -> str:
    """Return which model a judge asked with which prompt: runs judged by different ones must not be compared."""
    judged = read_json(folder / JUDGE_RUN) if (folder / JUDGE_RUN).is_file() else {}
    config = judged.get("config") if isinstance(judged, dict) else None
    settings = config.get("judge_settings") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(settings, dict) or settings.get("answers_from") != "server":
        return ""
    model = str(settings.get("model") or "model unknown")
    model += f" at {settings['revision']}" if settings.get("revision") else ""
    return f" ({model}, prompt {str(config.get('prompt_sha256'))[:8]})"


def _judged(row: Prediction, judgment: dict[str, Any] | None) -> Judged:
    if judgment is None or judgment.get("pair_sha256") != row.pair_sha256:
        reason = "not judged yet" if judgment is None else "the prediction changed after it was judged"
        return Judged(row=row, verdict=None, parsed=False, answer=None, error=reason)
    verdict = judgment.get("verdict")
    return Judged(
        row=row,
        verdict=verdict if verdict in ("yes", "no") else None,
        parsed=judgment.get("parsed") is True,
        answer=storable(judgment["answer"]) if isinstance(judgment.get("answer"), str) else None,
        error=storable(judgment["error"]) if isinstance(judgment.get("error"), str) else None,
    )


def read_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """Read several run folders; all problems in one message.

    Raises:
        ValueError: With every folder that cannot be read.
    """
    runs: list[RunFolder] = []
    problems: list[str] = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError(all_problems("some runs cannot be read", problems))
    return runs
