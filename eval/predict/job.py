"""What a prediction run is asked to do, checked before any weight is loaded."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

from eval.predict.controls import CONTROLS, check_control
from eval.predict.ranks import SHARDS, Shard, find_shard, select_shard, shard_folders
from eval.predict.vllm_backend import find_problems
from eval.runs import PREDICTIONS
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.estimate import DEFAULT_TFLOPS
from llava.imagechain.files import read_json, read_jsonl, sha256_model
from llava.imagechain.story import CONTEXTS, SPLIT_FOLDERS, StoryFrames, load_stories
from llava.imagechain.variants import VARIANTS, Variant, get_variant

# Settings that may change between a run and its resumption: they do not decide the texts.
FREE = {"batch_size", "num_workers", "frames_per_call", "limit", "output_dir", "resume", "overwrite", "dry_run",
        "feature_cache", "max_skipped", "device", "checkpoint", "base", "stories", "tflops", "num_shards", "shard",
        "engine_dir", "tensor_parallel_size", "gpu_memory", "enforce_eager"}  # fmt: skip
BACKENDS = ("hf", "vllm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of eval.predict."""

    checkpoint: Path = option(help="model folder, LoRA folder, or checkpoint-N of a run")
    base: Path | None = option(None, help="base model of a LoRA folder; by default the one it names")
    variant: str = option(help="how a story is shown", choices=list(VARIANTS))
    variant_set: list[str] = option([], help="changes to the variant, such as earlier_parts=image")
    stories: Path = option(help="StoryFrames folder, or the published dataset's name")
    split: str = option("validation", help="split of the stories", choices=list(SPLIT_FOLDERS))
    context: str = option("c2_7", help="numbers of scenes", choices=list(CONTEXTS))
    output_dir: Path = option(help="folder for predictions.jsonl, skipped.jsonl and run.json")
    control: str = option("none", help="spoil the stories on purpose, see eval/predict/controls.py", choices=CONTROLS)
    batch_size: int = option(8, help="stories per batch")
    max_new_tokens: int = option(128, help="most tokens of an answer")
    max_length: int | None = option(
        None, help="most positions of prompt and answer; by default what the model takes", minimum=1
    )
    overlength: str = option("drop_oldest", help="longer stories", choices=("drop_oldest", "skip"))
    conversation: str = option("vicuna_v1", help="conversation template of the model")
    imagechain_last_scene: str | None = option(
        None, help="frames of the last scene; by default the checkpoint's", choices=("mean", "last_frame")
    )
    imagechain_pooling: str | None = option(
        None,
        help="where frames are averaged; by default the checkpoint's",
        choices=("after_projector", "before_projector"),
    )
    imagechain_scene_aspect: str | None = option(
        None, help="frame preprocessing; by default the checkpoint's", choices=("crop", "pad")
    )
    imagechain_prompt: str | None = option(
        None, help="prompt format; by default the checkpoint's", choices=("figure3", "template")
    )
    max_frames_per_scene: int | None = option(
        None, help="show at most N evenly spaced frames of a scene, 0: all; by default as the checkpoint", minimum=0
    )
    device: str | None = option(None, help="such as cpu or cuda:0; by default a GPU when there is one")
    dtype: str | None = option(
        None, help="by default bfloat16 on a GPU, float32 else", choices=("float32", "bfloat16", "float16")
    )
    frames_per_call: int | None = option(
        None, help="most frames in one call of the vision tower; by default all", minimum=1
    )
    backend: str = option("hf", help="what runs the language model", choices=BACKENDS)
    engine_dir: Path | None = option(
        None, help="vllm: folder of the exported model, made when missing; by default CHECKPOINT.hf-DTYPE beside it"
    )
    tensor_parallel_size: int = option(1, help="vllm: GPUs that share one language model", minimum=1)
    gpu_memory: float = option(0.85, help="vllm: share of each GPU's memory that it takes for itself")
    enforce_eager: bool = option(False, help="vllm: do not compile; starts faster, runs slower")
    num_shards: int | None = option(
        None, help="processes that share the split; by default those of torchrun or srun", minimum=1
    )
    shard: int | None = option(None, help="which of them this is, from 0; by default the launcher's", minimum=0)
    feature_cache: Path | None = option(None, help="folder of per-frame features, shared with training")
    num_workers: int = option(0, help="processes that decode frames ahead", minimum=0)
    max_skipped: float = option(0.05, help="largest share of stories that may be left out", minimum=0)
    seed: int = option(0, help="chooses demonstrations and what the controls do")
    limit: int | None = option(None, help="only the first N stories", minimum=1)
    resume: bool = option(True, help="keep the predictions that are already there")
    overwrite: bool = option(False, help="drop the predictions that are already there")
    dry_run: bool = option(False, help="say what would be done and needed, and stop; no weight is loaded")
    tflops: float = option(
        DEFAULT_TFLOPS, help="useful TFLOP/s of the GPU, for the time that --dry-run expects", minimum=0.001
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be predicted, checked before any weight is loaded."""

    config: PredictConfig
    variant: Variant
    stories: StoryFrames
    demonstrations: StoryFrames | None
    trained: dict[str, Any]  # variant, context and seed of the training run, empty for a base model
    identity: dict[str, Any]  # everything that decides the texts
    done: dict[str, Any]  # rows of an earlier run by story id
    skipped: set[str]  # stories that an earlier, finished run had to leave out
    finished: bool  # the earlier run came to its end
    shard: Shard | None = None  # the part of the split that is this process's
    dtype: str | None = None  # of the earlier run; None where it does not say

    @functools.cached_property
    def chosen(self) -> StoryFrames:
        """The stories within the limit that are this process's."""
        return select_shard(self.stories, self.shard, self.config.limit)

    @property
    def num_wanted(self) -> int:
        """Stories within the limit, of all processes together."""
        return min(len(self.stories), self.config.limit or len(self.stories))

    @property
    def folder(self) -> Path:
        """Where this process writes."""
        return self.shard.folder(self.config.output_dir) if self.shard else self.config.output_dir

    @property
    def path(self) -> Path:
        """The predictions file of this process."""
        return self.folder / PREDICTIONS

    @property
    def train_context(self) -> str | None:
        """Training context of the checkpoint."""
        return str(self.trained["context"]) if self.trained.get("context") else None


def prepare(config: PredictConfig) -> Job:
    """Check everything that can be checked without loading weights.

    Raises:
        ConfigError: With all problems in one message.
    """
    problems: list[str] = []
    stories = demonstrations = None
    variant = VARIANTS[config.variant]
    try:
        variant = get_variant(config.variant, config.variant_set)
        check_control(config.control, variant)
    except ConfigError as error:
        problems.append(str(error))
    try:
        stories = load_stories(config.stories, config.split, config.context)
        if variant.demonstrations:
            demonstrations = load_stories(config.stories, "train", config.context)
    except (OSError, ValueError) as error:
        problems.append(f"stories: {error}")
    problems += model_problems(config.checkpoint, config.base)
    problems += [
        f"{name}: at least 1 was wanted, found {getattr(config, name)}"
        for name in ("batch_size", "max_new_tokens")
        if getattr(config, name) < 1
    ]
    problems += length_problems(config.checkpoint, config.base, config.max_length, config.max_new_tokens)
    shard = None
    try:
        shard = find_shard(config.num_shards, config.shard, os.environ)
    except ConfigError as error:
        problems.append(str(error))
    if config.backend == "vllm":
        problems += find_problems(config.checkpoint)
        if not 0 < config.gpu_memory <= 1:
            problems.append(f"gpu_memory: a share above 0 and up to 1 was wanted, found {config.gpu_memory}")
    if problems or stories is None:
        raise ConfigError("\n  - ".join(["nothing was predicted:", *problems]) if len(problems) > 1 else problems[0])
    base = config.base or named_base(config.checkpoint)
    identity = {
        **{name: value for name, value in to_json(config).items() if name not in FREE},
        "backend": None if config.backend == "hf" else config.backend,  # None, as in runs from before there were two
        "checkpoint_sha256": sha256_model(config.checkpoint),
        "base_sha256": sha256_model(base) if base else None,
        **stories.sha256(),
    }
    job = Job(
        config=config, variant=variant, stories=stories, demonstrations=demonstrations, identity=identity,
        trained=trained_with(config.checkpoint), done={}, skipped=set(), finished=False, shard=shard,
    )  # fmt: skip
    return with_earlier_rows(job)


def model_problems(checkpoint: Path, base: Path | None) -> list[str]:
    """Say which of the two is no model folder."""
    return [
        f"{name}: {folder} is not a model folder (no config.json or adapter_config.json)"
        for name, folder in (("checkpoint", checkpoint), ("base", base))
        if folder and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))
    ]


def length_problems(checkpoint: Path, base: Path | None, max_length: int | None, max_new_tokens: int) -> list[str]:
    """Say that the answer alone would take all positions, as far as the model folder tells how many there are."""
    folders = [checkpoint, base or named_base(checkpoint)]
    file = next((folder / "config.json" for folder in folders if folder and (folder / "config.json").is_file()), None)
    model = read_json(file) if file else {}
    model = model if isinstance(model, dict) else {}
    positions = model.get("max_sequence_length") or model.get("max_position_embeddings")
    limits = [n for n in (max_length, positions, model.get("tokenizer_model_max_length")) if isinstance(n, int) and n]
    if not limits or max_new_tokens < min(limits):
        return []
    return [
        f"max_new_tokens: fewer than the {min(limits):,} positions of prompt and answer together were wanted, found "
        f"{max_new_tokens:,}"
    ]


def named_base(checkpoint: Path) -> Path | None:
    """Return the base folder that an adapter names, where it is one."""
    if not (checkpoint / "adapter_config.json").is_file():
        return None
    name = str(read_json(checkpoint / "adapter_config.json").get("base_model_name_or_path"))
    return next((path for path in (checkpoint / name, Path(name)) if path.is_dir()), None)


def trained_with(checkpoint: Path) -> dict[str, Any]:
    """Return variant, context and seed from the run.json of a training run, or of the run that a checkpoint-N is of.

    A run.json with a seed alone is not one of a training run (a base model has such a one): nothing is taken from it.
    """
    folders = [checkpoint, *([checkpoint.parent] if checkpoint.name.startswith("checkpoint-") else [])]
    for folder in folders:
        if (folder / "run.json").is_file():
            config = read_json(folder / "run.json").get("config")
            config = config if isinstance(config, dict) else {}
            found = {name: config[name] for name in ("variant", "context", "seed") if config.get(name) is not None}
            return found if found.keys() != {"seed"} else {}
    return {}


def usable_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a predictions file by story id; of several rows of a story the first counts."""
    rows: dict[str, dict[str, Any]] = {}
    for row in read_jsonl(path):
        if is_usable(row):
            rows.setdefault(row["id"], row)
    return rows


def is_usable(row: dict[str, Any]) -> bool:
    """Tell whether a row of predictions.jsonl names a story and holds a text."""
    return isinstance(row.get("id"), str) and isinstance(row.get("prediction"), str)


def with_earlier_rows(job: Job) -> Job:
    """Add what earlier runs left in the folder.

    Raises:
        ConfigError: They were made with other settings or cut otherwise, or nothing tells with which.
    """
    output_dir, shard = job.config.output_dir, job.shard
    cuts = {part.of for part in shard_folders(output_dir)}
    whole = earlier_rows(dataclasses.replace(job, shard=None))
    done = whole.finished and set(job.chosen.ids) <= whole.done.keys() | whole.skipped
    parts = f"{output_dir / SHARDS} holds parts of a run by {' or '.join(map(str, sorted(cuts)))} processes"
    if shard is None:
        if cuts and not done and not job.config.overwrite:
            raise ConfigError(
                f"{parts}; go on with --num-shards, merge them with python -m eval.predict.shards --output-dir "
                f"{output_dir}, or drop them with --overwrite"
            )
        return whole
    if cuts - {shard.of}:
        raise ConfigError(f"{parts}, found --num-shards {shard.of}; give the same number, or remove that folder")
    if done:
        return dataclasses.replace(whole, shard=shard)
    if whole.done and not cuts:
        raise ConfigError(
            f"{output_dir} was begun by one process; go on without --num-shards, use --overwrite or another folder"
        )
    return earlier_rows(job)


def earlier_rows(job: Job) -> Job:
    """Add what an earlier run left in the job's folder: its rows, what it had to skip, and whether it finished.

    Raises:
        ConfigError: They were made with other settings, nothing tells with which, or the folder is another command's.
    """
    path, manifest = job.path, job.folder / "run.json"
    run = read_json(manifest) if manifest.is_file() else {}
    run = run if isinstance(run, dict) else {}
    if not path.is_file() and run.get("status") == "success" and "identity" not in run:
        raise ConfigError(
            f"{job.folder} holds the result of another command (run.json says which); take another folder"
        )
    if not path.is_file() or job.config.overwrite:
        return job
    if not job.config.resume:
        raise ConfigError(f"{path} exists; --overwrite drops it, --resume goes on with it")
    before = run.get("identity")
    if not isinstance(before, dict):
        raise ConfigError(f"{path} exists, but no run.json says how it was made; use --overwrite or another folder")
    # Which dtype a device takes by itself is found out when the model is loaded; older runs have no hash of frames.
    frames = job.identity.get("frames_sha256")
    before = {"frames_sha256": frames, **before, "dtype": run.get("dtype") or before.get("dtype")}
    changes = [
        f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in job.identity.items()
        if before.get(name) != value and not (name == "dtype" and value is None)
    ]
    if changes:
        raise ConfigError(
            f"{job.folder} holds predictions made otherwise ({'; '.join(changes)}); use --overwrite or another folder"
        )
    file = job.folder / "skipped.jsonl"
    finished = run.get("status") == "success" and file.is_file()
    skipped = {str(row.get("id")) for row in read_jsonl(file)} if finished else set()
    return dataclasses.replace(job, done=usable_rows(path), skipped=skipped, finished=finished, dtype=before["dtype"])
