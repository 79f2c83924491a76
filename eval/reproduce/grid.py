"""The grid: its settings, and the cells that follow from them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from eval.reproduce.published import MODELS, known_model
from eval.runs import CONTROLS
from llava.imagechain.config import ConfigError, all_problems, nearest, option
from llava.imagechain.estimate import DEFAULT_TFLOPS
from llava.imagechain.story import CONTEXTS, HUB_DATASET
from llava.imagechain.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ("table1", "table2", "table3", "figure5", "report", "ablations")
FULL_CONTEXT = "c2_7"  # Table 1: trained on the full range of context lengths
SHORT_CONTEXTS = ("c2", "c3", "c4_7")  # Table 2 and Figure 5: trained on one range
TEST_CONTEXTS = ("c2", "c3", "c4", "c5", "c6", "c7")  # what a prediction run over C2-7 consists of


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Settings of python -m eval.reproduce; a grid file holds most of them."""

    results: list[str] = option(["table1", "table2", "table3", "figure5"], help="what to make", choices=RESULTS)
    output_dir: Path = option(help="folder of everything that is made; the same folder goes on where it stopped")
    model: Path | None = option(None, help="folder of the LLaVA model to start from")
    stories: str | None = option(None, help="StoryFrames folder, or the published dataset's name")
    other_split: str | None = option(None, help="the same stories split the other way, for the ablation of the split")
    mementos: Path | None = option(None, help="folder of the Mementos benchmark, for Table 3")
    world: bool = option(False, help="make model, stories and Mementos-format data from the story world")
    world_videos: int = option(1300, help="videos of the story world", minimum=1)
    world_base: list[Path] = option([], help="YAML files of stories.world.base")
    world_seed: int = option(0, help="seed of the story world and its base model", minimum=0)
    variants: list[str] = option(list(VARIANTS), help="rows of Table 1", choices=list(VARIANTS))
    mementos_variants: list[str] = option(
        ["mllm", "mllm_ft", "visual_context", "final_scene", "imagechain"], help="rows of Table 3",
        choices=list(VARIANTS),
    )  # fmt: skip
    contexts: list[str] = option([FULL_CONTEXT, *SHORT_CONTEXTS], help="training contexts", choices=list(CONTEXTS))
    controls: list[str] = option([], help="controls of ImageChain under Table 1", choices=list(CONTROLS))
    seeds: list[int] = option([0], help="one training of every trained variant and context for each")
    train_config: list[Path] = option(
        [], help="YAML files of training that follow configs/train/{base,VARIANT,CONTEXT}.yaml"
    )
    train: dict[str, Any] = option({}, help="further settings of training (YAML only)")
    predict: dict[str, Any] = option({}, help="further settings of prediction (YAML only)")
    judge: Path = option(help="YAML file of eval.simrate, such as configs/judge/world.yaml")
    mementos_predict: dict[str, Any] = option({}, help="further settings of eval.mementos.predict (YAML only)")
    keywords: dict[str, Any] = option({}, help="settings of eval.mementos.keywords (YAML only)")
    ablations: list[dict[str, Any]] = option([], help="settings changed one at a time (YAML only)")
    ablation_context: str = option(
        FULL_CONTEXT, help="training context of the ablations and of the default that they are compared with",
        choices=list(CONTEXTS),
    )  # fmt: skip
    feature_cache: bool = option(False, help="compute frame features once, shared by all cells")
    paper: bool = option(False, help="the stories are StoryFrames: the paper's numbers stand beside ours")
    gpus: list[str] = option([], help="GPUs to use, by number; by default all that nvidia-smi lists")
    gpus_per_training: int = option(8, help="most GPUs of one training", minimum=1)
    tflops: float = option(DEFAULT_TFLOPS, help="useful TFLOP/s of a device, for the expected hours", minimum=0.001)
    only: list[str] = option([], help="run these tasks alone, by name")
    slurm: bool = option(False, help="submit job arrays instead of working here; with --dry-run print the sbatch lines")
    slurm_flags: list[str] = option([], help="flags for every sbatch, such as --slurm-flags=--partition=gpu")
    redo_changed: bool = option(False, help="make anew what the output folder holds with other settings")
    dry_run: bool = option(False, help="print the plan and stop; loads no weight, writes nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """One setting changed.

    Attributes:
        name: Part of folder names.
        title: The setting in words.
        train: Settings of training.
        predict: Settings of prediction.
        other_split: Train and test on the stories split the other way (by story instead of by video, or back).
        optional: Left out, with the reason, where training does not know a setting.
    """

    name: str
    title: str
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    predict: dict[str, Any] = dataclasses.field(default_factory=dict)
    other_split: bool = False
    optional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One prediction run of the grid; by number of scenes it is cut into the cells of the tables.

    Attributes:
        variant: Row of the variant table.
        context: Training context; None with the base model.
        seed: Training seed; None with the base model.
        control: "none" or how the stories are spoilt.
        ablation: The changed setting, if any.
    """

    variant: str
    context: str | None = None
    seed: int | None = None
    control: str = "none"
    ablation: Ablation | None = None

    @property
    def training(self) -> str | None:
        """Name of the training whose checkpoint is used; None for the base model."""
        if self.context is None:
            return None
        changed = f"-{self.ablation.name}" if self.ablation else ""
        return f"{VARIANTS[self.variant].trained_as}-{self.context}-seed{self.seed}{changed}"

    @property
    def name(self) -> str:
        """Name of the prediction run."""
        control = "" if self.control == "none" else f"-{self.control}"
        return (self.training or self.variant) + control


def cells_of(config: GridConfig, result: str) -> list[Cell]:
    """Return the prediction runs that a table or figure is made of.

    Args:
        config: The grid.
        result: One of `RESULTS`; Table 3 has its runs on other data and lists them by the same cells.
    """
    trained = [name for name in config.variants if VARIANTS[name].trained_as]
    full = config.contexts if FULL_CONTEXT in config.contexts else config.contexts[:1]
    if result in ("table1", "report"):
        cells = [cell for name in config.variants for cell in _cells(config, name, full[0])]
        spoilt = [dataclasses.replace(c, control=name) for name in config.controls for c in cells
                  if c.variant == "imagechain"]  # fmt: skip
        return cells + spoilt
    if result == "table3":
        return [cell for name in config.mementos_variants for cell in _cells(config, name, full[0])]
    if result == "table2":
        return [cell for context in config.contexts for cell in _cells(config, "imagechain", context)]
    if result == "figure5":
        contexts = [context for context in config.contexts if context in SHORT_CONTEXTS]
        return [cell for name in trained for context in contexts for cell in _cells(config, name, context)]
    default = _cells(config, "imagechain", config.ablation_context)
    return default + [dataclasses.replace(c, ablation=a) for a in ablations_of(config) for c in default]


def _cells(config: GridConfig, variant: str, context: str) -> list[Cell]:
    if VARIANTS[variant].trained_as is None:
        return [Cell(variant=variant)]
    return [Cell(variant=variant, context=context, seed=seed) for seed in config.seeds]


def ablations_of(config: GridConfig) -> list[Ablation]:
    """Return the checked ablations.

    Raises:
        ConfigError: An entry has unknown keys, or no usable name and title.
    """
    known = [field.name for field in dataclasses.fields(Ablation)]
    found = []
    for entry in config.ablations:
        if not isinstance(entry, dict) or not {"name", "title"} <= set(entry):
            raise ConfigError(f"ablations: entries with name and title were wanted, found {entry!r}")
        if unknown := [str(key) for key in entry if key not in known]:
            raise ConfigError(f"ablations, {entry['name']}: unknown key {unknown[0]!r}{nearest(unknown[0], known)}")
        found.append(Ablation(**entry))
    names = [ablation.name for ablation in found]
    wrong = [name for name in names if not re.fullmatch(r"[a-z0-9_]+", str(name)) or names.count(name) > 1]
    if wrong:
        raise ConfigError(f"ablations: different names of a-z, 0-9 and _ were wanted, found {wrong[0]!r}")
    return found


def check(config: GridConfig) -> None:
    """Check what the settings alone can tell.

    Raises:
        ConfigError: With all problems in one message.
    """
    problems: list[str] = _made_by_the_world(config) if config.world else _missing_inputs(config)
    output = config.output_dir.expanduser().resolve()
    there = next(path for path in (output, *output.parents) if path.exists())
    if not there.is_dir():
        problems.append(f"output_dir: a folder was wanted, {there} is a file")
    if config.only and config.slurm:
        problems.append("only: --slurm submits everything that is missing; leave one of the two out")
    problems += [
        f"{name}: settings (name: value) were wanted, found {getattr(config, name)!r}"
        for name in ("train", "predict", "mementos_predict", "keywords")
        if not isinstance(getattr(config, name), dict)
    ]
    files = {"train_config": config.train_config, "world_base": config.world_base, "judge": [config.judge]}
    problems += [
        f"{name}: a YAML file was wanted, {path} is none"
        for name, paths in files.items()
        for path in paths
        if not in_repository(path).is_file()
    ]
    if len(set(config.seeds)) < len(config.seeds) or min(config.seeds, default=-1) < 0:
        problems.append(f"seeds: different numbers of at least 0 were wanted, found {config.seeds}")
    missing = {"table2": [FULL_CONTEXT, *SHORT_CONTEXTS], "figure5": list(SHORT_CONTEXTS)}
    problems += [
        f"{result}: the training contexts {', '.join(missing[result])} were wanted, found {', '.join(config.contexts)}"
        for result in config.results
        if not set(missing.get(result, ())) <= set(config.contexts)
    ]
    try:
        changed = ablations_of(config)
        if "ablations" in config.results and not changed:
            problems.append("ablations: none is given; configs/reproduce/ablations.yaml holds some")
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(all_problems("nothing was done", problems))


def _made_by_the_world(config: GridConfig) -> list[str]:
    """Say what was given although the story world makes it."""
    return [
        f"{name}: the story world makes its own; leave --{name.replace('_', '-')} or --world out"
        for name in ("model", "stories", "other_split", "mementos")
        if getattr(config, name)
    ]


def _missing_inputs(config: GridConfig) -> list[str]:
    """Say what the grid starts from and is not there; for a plan, what was published need not be."""
    needed: dict[str, tuple[Any, str]] = {
        "model": (config.model, "the folder of the LLaVA model to start from"),
        "stories": (config.stories, f"a StoryFrames folder (scripts/storyframes/build.sh), or {HUB_DATASET}"),
    }
    if "table3" in config.results:
        needed["mementos"] = (config.mementos, "the benchmark's folder; or leave table3 out")
    problems = [f"--{name} is required: {what}" for name, (value, what) in needed.items() if not value]
    if config.model and not (config.model / "config.json").is_file():
        known = known_model(config.model)
        if not known:
            problems.append(
                f"model: {config.model} is not a model folder (no config.json in it); --dry-run knows "
                f"{', '.join(MODELS)} without their files"
            )
        elif not config.dry_run:
            problems.append(f"model: {config.model} is not there; download {known} into it")
    folders: dict[str, Any] = {name: value for name, (value, _) in needed.items() if name != "model"}
    problems += [
        f"{name}: {folder} is not a folder" + (f"; {HUB_DATASET} is the published one" if name == "stories" else "")
        for name, folder in (folders | {"other_split": config.other_split}).items()
        if folder and folder != HUB_DATASET and not Path(folder).is_dir() and not (config.dry_run and config.paper)
    ]
    return problems


def in_repository(path: Path) -> Path:
    """Return a settings file: as it is when it is there, else below the repository's root."""
    return path if path.is_absolute() or path.is_file() else ROOT / path
