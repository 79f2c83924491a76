"""What of a task is on disk: read from its run.json, its rows, and the identity of its inputs; nowhere kept apart."""

from __future__ import annotations

import collections
import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from eval.judge.base import Judge, JudgeSettings, load_judge
from eval.reproduce.grid import in_repository
from eval.reproduce.tasks import Task, flags
from eval.runs import PREDICTIONS, read_run
from llava.imagechain.config import ConfigError, build_config, read_yaml
from llava.imagechain.files import read_json, read_jsonl, sha256_file

Kind = Literal["done", "partly", "missing", "failed", "changed", "left out"]
# A file without which a stage is not finished, whatever its run.json says.
PRODUCTS = {
    "stories.world.make": "annotations/valid.json",
    "stories.world.base": "model.safetensors",
    "stories.frames.build": "build_report.json",
    "eval.mementos.keywords": "keywords.jsonl",
}
RESULT_FILES = {"table1": "table1.md", "table2": "table2.md", "table3": "table3.md", "figure5": "figure5.png",
                "report": "report.html", "ablations": "ablations.md"}  # fmt: skip
# Settings that do not decide the result, and paths: of files the hashes are compared, folders have tasks of their own.
NOT_COMPARED = {"config", "output_dir", "output", "overwrite", "data", "batch_size", "annotations", "videos", "world",
                "predictions"}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What is there of a task.

    Attributes:
        kind: done; partly (goes on where it stopped); missing; failed (is tried again); changed (made with other
            settings or from other inputs, so that its command refuses); left out (cannot be asked of this version).
        detail: The reason, or counts.
        rows: Number of scenes -> rows that are there, of predictions and judgments.
    """

    kind: Kind
    detail: str = ""
    rows: dict[int, int] = dataclasses.field(default_factory=dict)


def state_of(task: Task, *, judge_file: Path | None = None) -> State:
    """Read a task's state from disk; no weight is loaded and nothing is written."""
    if task.settings.get("stories") == "":
        return State(kind="left out", detail="no stories split the other way are given (--other-split)")
    try:
        if task.kind == "train":
            return _train_state(task)
        if task.kind == "predict":
            return _predict_state(task)
        if task.kind == "mementos":
            return _mementos_state(task)
        if task.kind == "judge":
            return _judge_state(task, judge_of(in_repository(Path(str(judge_file)))))
        if task.kind == "result":
            return _result_state(task)
        return _made_state(task)
    except (ValueError, OSError) as error:
        return State(kind="failed", detail=first_line(error))


def first_line(error: object) -> str:
    """Return the beginning of an error in one line."""
    return " ".join(str(error).split())[:300]


@functools.lru_cache(maxsize=8)
def judge_of(path: Path) -> Judge:
    """Return the judge that a settings file of eval.simrate names.

    Raises:
        ConfigError: It is no such file, or names no usable judge.
    """
    settings = read_yaml(str(path))
    names = {field.name for field in dataclasses.fields(JudgeSettings)}
    judge = load_judge(str(settings.get("judge", "simrate")))
    return judge.with_environment().with_settings(**{name: value for name, value in settings.items() if name in names})


def _manifest(folder: Path, name: str = "run.json") -> dict[str, Any] | None:
    path = folder / name
    found = read_json(path) if path.is_file() else None
    if found is not None and not (isinstance(found, dict) and isinstance(found.get("config"), dict)):
        raise ValueError(f"{path} does not say how its folder was made; remove the folder to make it anew")
    return found


def _unfinished(run: dict[str, Any]) -> State:
    """Return the state of a run.json that does not say success."""
    if run.get("status") == "error":
        return State(kind="failed", detail=first_line(run.get("error", "no reason given")))
    return State(kind="partly", detail="interrupted")


def _made_state(task: Task) -> State:
    """Compare a run.json with the task's settings and the files it was made from."""
    name = "keywords_run.json" if task.kind == "keywords" else "run.json"
    run = _manifest(task.folder, name)
    if run is None:
        return State(kind="missing")
    before = run["config"]
    wanted: dict[str, Any] = {}
    for path in task.settings.get("config", ()):
        wanted |= read_yaml(path)
    wanted |= task.settings
    changes = [
        f"{key} was {before[key]!r}, is {value!r}"
        for key, value in wanted.items()
        if key in before and key not in NOT_COMPARED and _listed(before[key]) != _listed(value)
    ]
    named = {Path(word).name: Path(word) for value in task.settings.values() for word in _listed(value)}
    for entry in run.get("inputs", ()):
        path = Path(str(entry.get("path")))
        path = named.get(path.name, path)  # the grid may have been moved since
        if entry.get("sha256") and (not path.is_file() or sha256_file(path) != entry["sha256"]):
            changes.append(f"{path.name} has changed")
    if changes:
        return State(kind="changed", detail="; ".join(changes))
    if run.get("status") != "success":
        return _unfinished(run)
    product = PRODUCTS.get(task.module)
    return State(kind="done") if not product or (task.folder / product).exists() else State(kind="partly")


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]


def is_model(folder: str | Path) -> bool:
    """Tell whether a folder has a model's config."""
    return (Path(folder) / "config.json").is_file()


def has_stories(stories: str) -> bool:
    """Tell whether stories are there; the published dataset counts as there."""
    return Path(stories).is_dir() or not Path(stories).is_absolute()


def train_groups(task: Task) -> Any:
    """Return the settings of a training as its command would read them.

    Raises:
        ConfigError: As the command would say.
    """
    from llava.imagechain.arguments import parse_arguments
    from llava.imagechain.variants import get_variant

    groups, given = parse_arguments(flags(task.settings, underscores=True))
    if "num_train_epochs" not in given:
        data = groups[1]
        groups[2].num_train_epochs = get_variant(str(data.variant), data.variant_set).num_epochs(data.context)
    return groups


def fitting_gpus(task: Task, most: int) -> int:
    """Return how many of the GPUs a task can use: a training's global batch has to come out even."""
    if task.kind != "train" or most < 2:
        return most
    try:
        steps = train_groups(task)[2].gradient_accumulation_steps  # on one GPU
    except ConfigError:  # the command says what is wrong
        return most
    return max(number for number in range(1, most + 1) if steps % number == 0)


@functools.lru_cache(maxsize=64)
def _stories_sha256(stories: str, context: str, limit: int | None) -> dict[str, str]:
    from llava.imagechain.story import load_stories

    chosen = load_stories(stories, "train", context)
    chosen = chosen[:limit] if limit else chosen
    return chosen.sha256()


def forget() -> None:
    """Drop what was remembered of inputs; after a task ran, they may be others."""
    _stories_sha256.cache_clear()


def _train_state(task: Task) -> State:
    from llava.imagechain.arguments import as_json
    from llava.imagechain.checkpoint import is_adapter, last_checkpoint
    from llava.imagechain.resume import changed_inputs, changed_on_resume
    from llava.imagechain.start import identity

    settings = task.settings
    if not (is_model(settings["model_name_or_path"]) and has_stories(settings["stories"])):
        return State(kind="missing")
    try:
        groups = train_groups(task)
    except ConfigError as error:
        if task.ablation and task.ablation.optional and "unknown setting" in str(error):
            return State(kind="left out", detail=first_line(error))
        raise
    run = _manifest(task.folder)
    if run is None:
        return State(kind="missing")
    now, before = as_json(groups), run["config"]
    for name in ("use_cpu", "bf16"):  # where the plan is made need not be where the training runs
        now[name] = before.get(name)
    data = groups[1]
    inputs = {
        **_stories_sha256(str(data.stories), data.context, data.limit),
        **identity(settings["model_name_or_path"]),
    }
    changes = changed_on_resume(before, now) + changed_inputs(run.get("made_from", {}), inputs)
    whole = is_adapter(task.folder) or (task.folder / "config.json").is_file()
    finished, checkpoint = run.get("status") == "success" and whole, last_checkpoint(task.folder)
    if changes and (finished or checkpoint):
        return State(kind="changed", detail="; ".join(changes))
    if finished:
        return State(kind="done")
    state = _unfinished(run)
    where = f", goes on from {checkpoint.name}" if checkpoint else ", starts anew"
    return dataclasses.replace(state, detail=state.detail + where)


def predict_job(task: Task, **changes: Any) -> Any:
    """Return the checked prediction job of a task, as its command would make it."""
    from eval.predict.job import PredictConfig, prepare

    return prepare(build_config(PredictConfig, [task.settings, changes]))


def _predict_state(task: Task) -> State:
    if not (task.folder / PREDICTIONS).is_file():
        run = _manifest(task.folder)
        return State(kind="missing") if run is None else _unfinished(run)
    if not any((Path(task.settings["checkpoint"]) / name).is_file() for name in ("config.json", "adapter_config.json")):
        return State(kind="partly", detail="its checkpoint is not there")
    try:
        job = predict_job(task)
    except ConfigError as error:
        return State(kind="changed" if "made otherwise" in str(error) else "failed", detail=first_line(error))
    scenes = dict(zip(job.stories.ids, job.stories.num_scenes, strict=True))
    rows = dict(collections.Counter(scenes[name] for name in job.done if name in scenes))
    if job.finished and set(job.chosen.ids) <= job.done.keys() | job.skipped:
        return State(kind="done", rows=rows, detail=f"{len(job.skipped)} skipped" if job.skipped else "")
    run = _manifest(task.folder) or {}
    return dataclasses.replace(_unfinished(run), rows=rows)


def mementos_job(task: Task, **changes: Any) -> Any:
    """Return the checked job of a prediction on Mementos, as its command would make it."""
    from eval.mementos.predict import MementosConfig, prepare

    return prepare(build_config(MementosConfig, [task.settings, changes]))


def _mementos_state(task: Task) -> State:
    run = _manifest(task.folder)
    if run is None or not (task.folder / PREDICTIONS).is_file():
        return State(kind="missing") if run is None else _unfinished(run)
    try:
        job = mementos_job(task)
    except ConfigError as error:
        return State(kind="changed" if "made otherwise" in str(error) else "failed", detail=first_line(error))
    if run.get("status") == "success" and not job.described:
        return State(kind="done")
    return _unfinished(run)


def _judge_state(task: Task, judge: Judge) -> State:
    if not (task.folder / PREDICTIONS).is_file():
        return State(kind="missing")
    found = read_run(task.folder)
    path = task.folder / "judgments.jsonl"
    keys = {row.get("id"): row.get("key") for row in (read_jsonl(path) if path.is_file() else [])}
    good = [
        judged.row
        for judged in found.rows
        if judged.verdict and keys.get(judged.row.story_id) == judge.key(judged.row.reference, judged.row.prediction)
    ]
    rows = dict(collections.Counter(row.num_scenes for row in good))
    if len(good) == len(found.rows):
        return State(kind="done", rows=rows)
    if not good:
        return State(kind="missing")
    return State(kind="partly", detail=f"{len(found.rows) - len(good)} of {len(found.rows)} unscored", rows=rows)


def _result_state(task: Task) -> State:
    path = task.folder / RESULT_FILES[task.name.removeprefix("results/")]
    runs = [Path(run) for run in task.settings["runs"]]
    marks = [file for run in runs for name in ("judgments.jsonl", "keywords.jsonl") if (file := run / name).is_file()]
    if not path.is_file():
        return State(kind="missing")
    older = any(mark.stat().st_mtime > path.stat().st_mtime for mark in marks)
    return State(kind="partly", detail="older than its runs") if older else State(kind="done")
