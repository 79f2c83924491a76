"""The tasks behind a grid: each is one command of this repository, with what it needs and the folder it fills."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.reproduce.grid import Ablation, Cell, GridConfig, ablations_of, cells_of, in_repository
from llava.imagechain.story import HUB_DATASET
from llava.imagechain.variants import VARIANTS

STAGES = ("prepare", "train", "predict", "judge", "results")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One command.

    Attributes:
        name: Unique, such as "train/imagechain-c2-seed0"; also the name of its log.
        stage: One of `STAGES`.
        kind: Which question tells its state (eval/reproduce/states.py).
        module: The Python module that is run.
        settings: Its settings by name, as its YAML files would have them.
        folder: What it fills.
        needs: Tasks that must have succeeded.
        after: Tasks that must have ended; results are made of the runs that are there.
        gpus: GPUs it can use.
        cell: The prediction run it belongs to.
        ablation: The changed setting of a training.
    """

    name: str
    stage: str
    kind: str
    module: str
    settings: dict[str, Any]
    folder: Path
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    gpus: int = 0
    cell: Cell | None = None
    ablation: Ablation | None = None

    def command(self, gpus: int = 0, *, redo: bool = False) -> list[str]:
        """Return the command line.

        Args:
            gpus: GPUs that it gets; a training on several runs under torchrun with ZeRO-3.
            redo: Drop what is there.
        """
        python = [sys.executable]
        settings = dict(self.settings)
        if self.kind == "train" and gpus > 1:
            python += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
            settings.setdefault("deepspeed", str(in_repository(Path("configs/deepspeed/zero3.json"))))
        if redo:
            settings["overwrite"] = True
        return [*python, "-m", self.module, *flags(settings, underscores=self.kind == "train")]


def flags(settings: dict[str, Any], *, underscores: bool = False) -> list[str]:
    """Return settings as command-line words; None is left out, a bool becomes a switch or, in training, a value."""
    words: list[str] = []
    for name, value in settings.items():
        flag = f"--{name if underscores else name.replace('_', '-')}"
        if value is None:
            continue
        if isinstance(value, bool) and not underscores:
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, (list, tuple)):
            words += [flag, *map(str, value)] if value else []
        else:
            words += [flag, str(value).lower() if isinstance(value, bool) else str(value)]
    return words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where everything lies."""

    output: Path
    model: Path
    stories: str
    other_split: str | None
    mementos: Path | None
    features: Path | None

    def of(self, ablation: Ablation | None) -> str:
        """Return the stories of a cell; nothing when they are not given."""
        return (self.other_split or "") if ablation and ablation.other_split else self.stories

    def training(self, cell: Cell) -> Path:
        """Return the checkpoint that a cell uses."""
        return self.output / "train" / cell.training if cell.training else self.model


def absolute(stories: str) -> str:
    """Return a path that holds from everywhere; the published dataset's name stays."""
    return stories if stories == HUB_DATASET else str(Path(stories).expanduser().resolve())


def places_of(config: GridConfig) -> Places:
    """Return where everything lies."""
    output = config.output_dir.expanduser().resolve()
    features = output / "features" if config.feature_cache else None
    if config.world:
        return Places(
            output=output,
            model=output / "base",
            stories=str(output / "storyframes"),
            other_split=str(output / "storyframes-by-story"),
            mementos=output / "mementos" / "data",
            features=features,
        )
    assert config.model is not None and config.stories is not None
    other = absolute(config.other_split) if config.other_split else None
    mementos = config.mementos.expanduser().resolve() if config.mementos else None
    model, stories = config.model.expanduser().resolve(), absolute(config.stories)
    return Places(output=output, model=model, stories=stories, other_split=other, mementos=mementos, features=features)


def tasks_of(config: GridConfig) -> list[Task]:
    """Return all tasks of a checked grid, each after those it needs."""
    places = places_of(config)
    cells = unique(cell for result in config.results if result != "table3" for cell in cells_of(config, result))
    mementos = cells_of(config, "table3") if "table3" in config.results else []
    first = unique_trainings([*cells, *mementos])
    tasks = [
        *(world_tasks(config, places) if config.world else []),
        *(train_task(config, places, cell) for cell in first),
        *(predict_task(config, places, cell) for cell in cells),
        *(mementos_predict(config, places, cell) for cell in mementos),
        *(judge_task(config, places, cell) for cell in cells),
        *(mementos_keywords(config, places, cell) for cell in mementos),
        *(result_task(config, places, result) for result in config.results),
    ]
    names = {task.name for task in tasks}
    return [dataclasses.replace(task, needs=tuple(name for name in task.needs if name in names)) for task in tasks]


def unique(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells by name, each once."""
    return list({cell.name: cell for cell in cells}.values())


def unique_trainings(cells: Iterable[Cell]) -> list[Cell]:
    """Return one cell for each training; the order is that of the tables."""
    return list({cell.training: cell for cell in cells if cell.training}.values())


def world_tasks(config: GridConfig, places: Places) -> list[Task]:
    """Return what makes videos, StoryFrames, the base model and Mementos-format data."""
    world, seed = places.output / "world", config.world_seed
    annotations = [str(world / "annotations" / name) for name in ("valid.json", "test.json")]

    def build(split_by: str, folder: str) -> Task:
        return Task(
            name=f"prepare/{Path(folder).name}", stage="prepare", kind="made", module="stories.frames.build",
            settings={"annotations": annotations, "videos": [str(world / "videos")], "output": folder,
                      "split_by": split_by, "seed": seed},
            folder=Path(folder), needs=("prepare/world",),
        )  # fmt: skip

    tasks = [
        Task(
            name="prepare/world", stage="prepare", kind="made", module="stories.world.make", folder=world,
            settings={"output_dir": str(world), "num_videos": config.world_videos, "seed": seed},
        ),
        build("video", places.stories),
        Task(
            name="prepare/base", stage="prepare", kind="made", module="stories.world.base", folder=places.model,
            settings={"config": [str(in_repository(path)) for path in config.world_base],
                      "output_dir": str(places.model), "seed": seed},
        ),
    ]  # fmt: skip
    if "table3" in config.results:
        data = places.mementos
        assert data is not None
        tasks.append(
            Task(name="prepare/mementos", stage="prepare", kind="made", module="stories.world.mementos", folder=data,
                 settings={"world": str(world), "output_dir": str(data)}, needs=("prepare/world",))
        )  # fmt: skip
    if "ablations" in config.results and any(ablation.other_split for ablation in ablations_of(config)):
        tasks.append(build("story", str(places.other_split)))
    return tasks


def needed_data(places: Places, ablation: Ablation | None) -> tuple[str, ...]:
    """Return the preparing tasks of a cell; outside the story world there are none by these names."""
    return "prepare/base", f"prepare/{Path(places.of(ablation)).name}"


def train_task(config: GridConfig, places: Places, cell: Cell) -> Task:
    """Return the training of a cell."""
    trained_as = VARIANTS[cell.variant].trained_as
    files = ["base", trained_as, cell.context]
    changes = cell.ablation.train if cell.ablation else {}
    settings: dict[str, Any] = {
        "config": [str(in_repository(Path(f"configs/train/{name}.yaml"))) for name in files]
        + [str(in_repository(path)) for path in config.train_config],
        "model_name_or_path": str(places.model),
        "stories": places.of(cell.ablation),
        "seed": cell.seed,
        "feature_cache": str(places.features) if places.features else None,
        **config.train,
        **changes,
        "output_dir": str(places.training(cell)),
    }
    return Task(
        name=f"train/{cell.training}", stage="train", kind="train", module="llava.train.train", settings=settings,
        folder=places.training(cell), needs=needed_data(places, cell.ablation), gpus=config.gpus_per_training,
        cell=cell, ablation=cell.ablation,
    )  # fmt: skip


def predict_task(config: GridConfig, places: Places, cell: Cell) -> Task:
    """Return the prediction of a cell over all test contexts."""
    folder = places.output / "runs" / cell.name
    settings: dict[str, Any] = {
        "checkpoint": str(places.training(cell)),
        "base": str(places.model) if cell.training else None,
        "variant": cell.variant,
        "control": cell.control,
        "stories": places.of(cell.ablation),
        "split": "validation",
        "context": "c2_7",
        "feature_cache": str(places.features) if places.features else None,
        **config.predict,
        **(cell.ablation.predict if cell.ablation else {}),
        "output_dir": str(folder),
    }
    return Task(
        name=f"predict/{cell.name}", stage="predict", kind="predict", module="eval.predict", settings=settings,
        folder=folder, needs=(*needed_data(places, cell.ablation), f"train/{cell.training}"), cell=cell,
        gpus=int(config.predict.get("tensor_parallel_size", 1)), ablation=cell.ablation,
    )  # fmt: skip


def judge_task(config: GridConfig, places: Places, cell: Cell) -> Task:
    """Return the judging of a cell's predictions."""
    folder = places.output / "runs" / cell.name
    return Task(
        name=f"judge/{cell.name}", stage="judge", kind="judge", module="eval.simrate", folder=folder, cell=cell,
        settings={"config": [str(in_repository(config.judge))], "predictions": [str(folder / "predictions.jsonl")]},
        needs=(f"predict/{cell.name}",),
    )  # fmt: skip


def mementos_predict(config: GridConfig, places: Places, cell: Cell) -> Task:
    """Return the description of Mementos' sequences by a cell's checkpoint."""
    folder = places.output / "mementos" / cell.name
    settings = {
        "checkpoint": str(places.training(cell)),
        "base": str(places.model) if cell.training else None,
        "variant": cell.variant,
        "data": str(places.mementos),
        **config.mementos_predict,
        "output_dir": str(folder),
    }
    return Task(
        name=f"predict/mementos-{cell.name}", stage="predict", kind="mementos", module="eval.mementos.predict",
        settings=settings, folder=folder, gpus=1, cell=cell,
        needs=("prepare/base", "prepare/mementos", f"train/{cell.training}"),
    )  # fmt: skip


def mementos_keywords(config: GridConfig, places: Places, cell: Cell) -> Task:
    """Return the extraction of objects and behaviours from these descriptions."""
    folder = places.output / "mementos" / cell.name
    return Task(
        name=f"judge/mementos-{cell.name}", stage="judge", kind="keywords", module="eval.mementos.keywords",
        settings={"predictions": [str(folder / "predictions.jsonl")], **config.keywords}, folder=folder, cell=cell,
        needs=(f"predict/mementos-{cell.name}",),
    )  # fmt: skip


def result_task(config: GridConfig, places: Places, result: str) -> Task:
    """Return what prints a table, draws the figure or writes the report, from the runs that are there."""
    cells = cells_of(config, result)
    table3 = result == "table3"
    part = "mementos" if table3 else "runs"
    runs = [str(places.output / part / cell.name) for cell in cells]
    out, paper = str(places.output), config.paper or None
    module, settings = {
        "table1": ("eval.tables", {"output_dir": out, "table": 1, "paper": paper}),
        "table2": ("eval.tables", {"output_dir": out, "table": 2, "paper": paper}),
        "table3": ("eval.mementos.score", {"data": str(places.mementos), "output_dir": out, "paper": paper}),
        "figure5": ("eval.tables.figure5", {"output_dir": out, "paper": paper}),
        "report": ("eval.report", {"stories": places.stories, "output": str(places.output / "report.html")}),
        "ablations": ("eval.reproduce.ablations", {"output_dir": out, "titles": _titles(config, cells)}),
    }[result]
    assert isinstance(settings, dict)
    before = "judge/mementos-" if table3 else "judge/"
    return Task(
        name=f"results/{result}", stage="results", kind="result", module=str(module), folder=places.output,
        settings={"runs": runs, **settings}, after=tuple(before + cell.name for cell in cells),
    )  # fmt: skip


def _titles(config: GridConfig, cells: list[Cell]) -> list[str]:
    if "ablations" not in config.results:
        return []
    return [f"{cell.name}={cell.ablation.title if cell.ablation else 'default'}" for cell in cells]
