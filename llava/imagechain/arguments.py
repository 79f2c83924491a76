"""The settings of training: three groups, read from YAML files and flags, all problems reported at once."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers

from llava.conversation import conv_templates
from llava.imagechain.checkpoint import is_adapter
from llava.imagechain.config import ConfigError, all_problems, nearest, read_yaml
from llava.imagechain.data import OVERLENGTH
from llava.imagechain.decisions import DECISIONS
from llava.imagechain.distributed import (
    deepspeed_problems,
    has_bfloat16,
    spare_deepspeed_a_guess,
    start_deepspeed_on_cpu,
    take_one_gpu,
)
from llava.imagechain.estimate import DEFAULT_TFLOPS
from llava.imagechain.features import DTYPES
from llava.imagechain.files import read_object
from llava.imagechain.labels import LOSS_ON
from llava.imagechain.limits import number_problems
from llava.imagechain.llava_json import json_problems
from llava.imagechain.parts import trained_parts
from llava.imagechain.quantized import bits_problems
from llava.imagechain.reporting import reporting_problems
from llava.imagechain.start import check_adapter
from llava.imagechain.story import CONTEXTS, HUB_DATASET
from llava.imagechain.upstream_flags import NOT_SUPPORTED, VERSIONS, refusal
from llava.imagechain.variants import get_variant

logger = logging.getLogger(__name__)
# Settings with a fixed set of values.
ALLOWED: dict[str, tuple[str, ...]] = {
    **DECISIONS,
    "context": tuple(CONTEXTS),
    "loss_on": tuple(LOSS_ON),
    "overlength": OVERLENGTH,
    "feature_dtype": tuple(DTYPES),
    "attn_implementation": ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"),
}


def _setting(default: Any, help: str) -> Any:
    metadata = {"help": help.replace("%", "%%")}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str | None = _setting(None, "folder of the LLaVA model, or of the adapter, to start from")
    version: str = _setting("vicuna_v1", "conversation template of the model")
    attn_implementation: str | None = _setting(None, "sdpa, eager or flash_attention_2; the best there is by default")
    lora_enable: bool = _setting(False, "train LoRA adapters in the language model instead of its weights")
    lora_r: int = _setting(128, "rank of the adapters")
    lora_alpha: int = _setting(256, "scale of the adapters")
    lora_dropout: float = _setting(0.05, "dropout before the adapters, a share")
    freeze_mm_mlp_adapter: bool = _setting(False, "leave the projector as it is")
    tune_mm_mlp_adapter: bool = _setting(False, "train the projector only")
    unfreeze_mm_vision_tower: bool = _setting(False, "train the vision tower, too")
    mm_tunable_parts: str | None = _setting(None, "what trains: mm_mlp_adapter, mm_vision_tower, mm_language_model")
    bits: int = _setting(16, "of the frozen language model's weights: 4 and 8 by bitsandbytes, with lora_enable")
    quant_type: str = _setting("nf4", "of 4 bits: nf4 or fp4")
    double_quant: bool = _setting(True, "of 4 bits: quantize the scales, too")
    lora_vision_tower: bool = _setting(False, "adapters in the vision tower, too")
    vision_tower: str | None = _setting(None, "CLIP folder or hub name, to start from a plain language model")
    pretrain_mm_mlp_adapter: str | None = _setting(None, "mm_projector.bin of a first stage, to start from")
    mm_projector_type: str | None = _setting(None, "linear, mlp2x_gelu, ...; the model's own by default")
    mm_vision_select_layer: int | None = _setting(None, "hidden state of the tower; the model's own by default")
    mm_vision_select_feature: str | None = _setting(None, "patch or cls_patch; the model's own by default")
    mm_patch_merge_type: str | None = _setting(None, "flat or spatial_unpad; the model's own by default")
    mm_newline_position: str | None = _setting(None, "line ends in videos: grid, frame, one_token or no_token")
    mm_spatial_pool_mode: str | None = _setting(None, "pooling of video frames: average, max or bilinear")
    mm_vision_tower_lr: float | None = _setting(None, "learning rate of the vision tower; that of the rest by default")
    mm_projector_lr: float | None = _setting(None, "learning rate of the projector; that of the rest by default")
    frames_per_call: int | None = _setting(None, "most frames in one call of the vision tower; all by default")
    imagechain_last_scene: str | None = _setting(None, "frames of the last scene")
    imagechain_pooling: str | None = _setting(None, "where frames are averaged")
    imagechain_scene_aspect: str | None = _setting(None, "frames to squares")
    imagechain_prompt: str | None = _setting(None, "prompt format")
    max_frames_per_scene: int | None = _setting(
        None, "show at most N evenly spaced frames of a scene, of one the middle; all by default, or 0"
    )


@dataclasses.dataclass
class DataArguments:
    """What it is trained on."""

    stories: str | None = _setting(None, f"StoryFrames folder, or {HUB_DATASET}")
    data_path: str | None = _setting(None, "LLaVA's data instead: .json, .jsonl, base{a,b}.json or a .yaml mixture")
    image_folder: str | None = _setting(None, "where the images of data_path lie")
    video_folder: str | None = _setting(None, "where the videos of data_path lie")
    image_aspect_ratio: str | None = _setting(None, "square, pad, anyres or anyres_max_N; the model's own by default")
    image_grid_pinpoints: str | None = _setting(None, "resolutions of anyres; the model's own by default")
    video_fps: int = _setting(1, "frames taken of a second of video")
    frames_upbound: int = _setting(0, "most frames of a video; 0 is no bound")
    force_sample: bool = _setting(False, "take frames_upbound frames of every video")
    add_time_instruction: bool = _setting(False, "tell a video's length and the times of its frames in the question")
    variant: str | None = _setting(None, "a trained variant of the table in llava/imagechain/variants.py")
    variant_set: list[str] = _setting([], "changes to the variant, such as earlier_parts=image")  # noqa: RUF009
    context: str = _setting("c2_7", "numbers of scenes trained on")
    loss_on: str | None = _setting(None, "which text carries loss; the variant's choice by default")
    overlength: str = _setting("drop_oldest", "stories longer than the model takes (model_max_length)")
    feature_cache: str | None = _setting(None, "folder for per-frame features computed once; needs a frozen tower")
    feature_dtype: str = _setting("float16", "type of the cached features")
    limit: int | None = _setting(None, "train on the first N stories only")
    eval_limit: int | None = _setting(None, "at most N validation stories per number of scenes")
    max_skipped: float = _setting(0.05, "stop when more than this share of the stories has to be skipped")


@dataclasses.dataclass
class TrainArguments(transformers.TrainingArguments):
    """How it is trained: the library's settings and ours."""

    report_to: str = _setting("none", "wandb, tensorboard, ... or none")
    remove_unused_columns: bool = _setting(False, "has to stay off: batches are made here")
    model_max_length: int = _setting(4096, "most positions of an example, visual tokens included")
    global_batch_size: int = _setting(32, "examples per optimizer step over all devices; sets the accumulation")
    length_group_batches: int = _setting(8, "global batches sorted by length together; 0 turns grouping off")
    group_by_modality_length: bool = _setting(False, "global batches of one kind: with images, or text only")
    resume: bool = _setting(True, "go on from the last checkpoint of the output folder")
    overwrite: bool = _setting(False, "start anew, deleting the checkpoints of the output folder")
    dry_run: bool = _setting(False, "check everything, print the plan, and stop before weights are loaded")
    tflops: float = _setting(DEFAULT_TFLOPS, "useful TFLOP/s of a GPU, for the time that dry_run expects")


Groups = tuple[ModelArguments, DataArguments, TrainArguments]
CLASSES = (ModelArguments, DataArguments, TrainArguments)
CANNOT_START = "training cannot start"
# Names that other library versions use; translated where the installed one does not know them.
TRANSLATED = {"warmup_ratio": "warmup_steps", "evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu"}
# Names of the library that stand for a setting here, whether or not the installed version knows them.
OURS = {"overwrite_output_dir": "overwrite"}


class _Parser(transformers.HfArgumentParser):
    """Raises what argparse would print."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse_arguments(argv: Sequence[str]) -> tuple[Groups, dict[str, Any]]:
    """Read `--config FILE ...` and flags, the flags winning.

    Args:
        argv: Arguments without the program's name.

    Returns:
        The three groups, and the settings that were given explicitly.

    Raises:
        ConfigError: With all unknown names, wrong values and contradictions.
    """
    parser = _Parser(CLASSES, prog="python -m llava.train.train", allow_abbrev=False)
    parser.add_argument("--config", nargs="+", metavar="FILE", help="YAML files of settings, later ones win")
    if {"-h", "--help"}.intersection(argv):
        parser.parse_args(["--help"])
    given = _split_flags(argv)
    files = given.pop("config", [])
    merged, problems = _merge([read_yaml(file) for file in files] + [dict(given)])
    for key, words in list(merged.items()):
        try:
            surplus = parser.parse_known_args(["--output_dir", "", f"--{key}", *words])[1]  # required up to 4.56
            if surplus:
                problems.append(f"{key}: one value was wanted, found {' '.join(words)}")
                del merged[key]
        except (ConfigError, argparse.ArgumentError) as error:
            problems.append(str(error).replace("argument ", ""))
            del merged[key]
    _fit_machine(merged)
    spare_deepspeed_a_guess()
    if missing := [name for name in ("accelerate", "peft") if importlib.util.find_spec(name) is None]:
        problems.append(f"{', '.join(missing)}: not installed; bash scripts/setup.sh train")
        raise ConfigError(all_problems(CANNOT_START, problems))
    if merged.get("deepspeed") and not problems:
        problems += deepspeed_problems(merged["deepspeed"][0])
        if problems:  # the other processes stop for the same reason
            raise ConfigError(all_problems(CANNOT_START, problems))
        start_deepspeed_on_cpu()
    words = [word for key, value in merged.items() for word in (f"--{key}", *value)]
    try:
        values = parser.parse_args_into_dataclasses(words if "output_dir" in merged else ["--output_dir", "", *words])
    except (ConfigError, ValueError, ImportError) as error:
        raise ConfigError(all_problems(CANNOT_START, [*problems, str(error)])) from error
    groups: Groups = (values[0], values[1], values[2])
    values[2].dataloader_persistent_workers = values[2].dataloader_num_workers > 0
    if values[2].gradient_checkpointing and not values[2].gradient_checkpointing_kwargs:
        # The other kind, transformers 4's default, trains nothing where no input of a layer has a gradient.
        values[2].gradient_checkpointing_kwargs = {"use_reentrant": False}
    take_one_gpu(values[2])
    problems += _check(groups, set(merged))
    if problems:
        raise ConfigError(all_problems(CANNOT_START, problems))
    return groups, merged


def _merge(layers: Sequence[dict[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the settings of all layers under today's names, as command-line words, and what is wrong with them."""
    known = {field.name for group in CLASSES for field in dataclasses.fields(group) if field.init}
    merged: dict[str, list[str]] = {}
    problems: list[str] = []
    for layer in layers:
        for name, value in layer.items():
            key = name.replace("-", "_")
            key = OURS.get(key, TRANSLATED.get(key, key) if key not in known else key)
            if key == "logging_dir" and key not in known and (folder := _words(value)):
                os.environ["TENSORBOARD_LOGGING_DIR"] = folder[0]  # its name in transformers 5
                continue
            if key == "group_by_length":  # batches are grouped by length unless this is off
                key, value = "length_group_batches", None if _words(value) in ([], ["true"], ["True"], None) else 0
            if key in NOT_SUPPORTED:
                problems += [problem] if (problem := refusal(key, _words(value))) else []
                continue
            if key.startswith("no_") and key[3:] in known and not value:
                key, value = key[3:], False
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                problems.append(
                    f"unknown setting {name!r} ({f'did you mean {close[0]!r}?' if close else 'see --help'})"
                )
            elif (words := _words(value)) is not None:
                merged[key] = words
    return merged, problems


def _fit_machine(merged: dict[str, list[str]]) -> None:
    """Put what this machine cannot do out of the settings: bfloat16 without hardware for it, a GPU without one."""
    if merged.get("bf16") in (["true"], ["True"], []) and not has_bfloat16():
        merged["bf16"] = ["false"]
        level = logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.DEBUG
        logger.log(level, "bf16: this machine's processors have no bfloat16; the run is in float32")
    if not torch.cuda.is_available():
        merged.setdefault("use_cpu", ["true"])
        merged.setdefault("dataloader_pin_memory", ["false"])


def _split_flags(argv: Sequence[str]) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            current = flags.setdefault(key, [])
            if key != "config":  # several --config add up, of other flags the last one counts
                current.clear()
            current += [value] if equals else []
        elif current is None:
            raise ConfigError(f"a flag was wanted, found {word!r}")
        else:
            current.append(word)
    return flags


def _words(value: Any) -> list[str] | None:
    """Return a YAML value as command-line words; None (nothing given) leaves the default."""
    if value is None:
        return None
    if isinstance(value, dict):
        return [json.dumps(value)]
    return (
        [str(item).lower() if isinstance(item, bool) else str(item) for item in value]
        if isinstance(value, (list, tuple))
        else _words([value])
    )


def _check(groups: Groups, given: set[str]) -> list[str]:
    model, data, train = groups
    problems = []
    model.version = VERSIONS.get(model.version, model.version)
    problems += json_problems(groups) if data.data_path else []
    problems += bits_problems(model, train)
    problems += reporting_problems(train.report_to)
    needed = [("model_name_or_path", model)] + ([] if data.data_path else [("stories", data), ("variant", data)])
    for name, what in needed:
        if not getattr(what, name):
            problems.append(f"--{name} is required: {type(what).__dataclass_fields__[name].metadata['help']}")
    if "output_dir" not in given or not train.output_dir:
        problems.append("--output_dir is required: folder of the run")
    for name, allowed in ALLOWED.items():
        value = getattr(data if hasattr(data, name) else model, name)
        if value is not None and value not in allowed:
            problems.append(f"{name}: unknown value {value!r}{nearest(str(value), allowed)}")
    if model.model_name_or_path:
        problems += _check_model(Path(model.model_name_or_path), model)
    try:
        trains = "vision tower" in trained_parts(model) or model.lora_vision_tower
        if data.feature_cache and trains:
            problems.append("feature_cache: the vision tower would train, but cached features bypass it; leave one out")
    except ConfigError as error:
        problems.append(str(error))
    problems += number_problems(groups)
    if model.version not in conv_templates:
        problems.append(f"version: unknown value {model.version!r}{nearest(model.version, tuple(conv_templates))}")
    problems += [
        f"output_dir: {folder} is the folder of {name}, whose files the run would replace; give another one"
        for name, folder in (("model_name_or_path", model.model_name_or_path), ("stories", data.stories))
        if folder and train.output_dir and os.path.realpath(folder) == os.path.realpath(train.output_dir)
    ]
    problems += [
        f"{name}: a folder was wanted, {file} is a file"
        for name, folder in (("output_dir", train.output_dir), ("feature_cache", data.feature_cache))
        if folder and (file := next((path for path in (Path(folder), *Path(folder).parents) if path.is_file()), None))
    ]
    if data.stories and data.stories != HUB_DATASET and not Path(data.stories).is_dir():
        problems.append(f"stories: {data.stories} is not a folder; build one with scripts/storyframes/build.sh")
    if data.variant:
        try:
            if get_variant(data.variant, data.variant_set).trained_as is None:
                problems.append(f"variant: {data.variant} is not trained; it is the base model with another prompt")
        except ConfigError as error:
            problems.append(str(error))
    batches_make_sense = min(train.per_device_train_batch_size, train.global_batch_size) > 0
    return problems + (_settle_batches(train, given) if batches_make_sense else [])


def _check_model(folder: Path, model: ModelArguments) -> list[str]:
    if not (folder / "config.json").is_file():
        return [f"model_name_or_path: {folder} is not a model folder (no config.json in it)"]
    try:
        config = read_object(folder / "config.json")
        if is_adapter(folder):
            check_adapter(folder, model)
    except (ValueError, FileNotFoundError) as error:
        return [f"model_name_or_path: {error}"]
    if not config.get("mm_vision_tower"):
        if model.vision_tower:
            return []  # a language model that gets its tower now
        return [
            f"model_name_or_path: {folder} is no LLaVA model (its config.json names no mm_vision_tower); "
            "--vision_tower makes one of a language model"
        ]
    if model.vision_tower and Path(model.vision_tower).name != Path(config["mm_vision_tower"]).name:
        return [f"vision_tower: {model.vision_tower}, but the model was made with {config['mm_vision_tower']}"]
    names = ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature")
    return [
        f"{name}: {wanted}, but the model was made with {config[name]}"
        for name in names
        if (wanted := getattr(model, name)) is not None and config.get(name, wanted) != wanted
    ]


def _settle_batches(train: TrainArguments, given: set[str]) -> list[str]:
    """Keep the global batch by computing the accumulation (paper section 5.3: 8 GPUs x 4 x 1)."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    per_step = world_size * train.per_device_train_batch_size
    if "gradient_accumulation_steps" in given and "global_batch_size" not in given:
        train.global_batch_size = per_step * train.gradient_accumulation_steps
    steps, rest = divmod(train.global_batch_size, per_step)
    if rest or not steps:
        return [
            f"global_batch_size: {train.global_batch_size} cannot be made of {world_size} devices x "
            f"{train.per_device_train_batch_size} examples; choose per_device_train_batch_size so that it divides"
        ]
    if "gradient_accumulation_steps" in given and train.gradient_accumulation_steps != steps:
        return [f"gradient_accumulation_steps: {steps} follows from global_batch_size; leave it out"]
    train.gradient_accumulation_steps = steps
    return []


def as_json(groups: Groups) -> dict[str, Any]:
    """Return all settings as JSON values, for run.json; tokens and keys are left out."""
    merged: dict[str, Any] = {**dataclasses.asdict(groups[0]), **dataclasses.asdict(groups[1]), **groups[2].to_dict()}
    return {key: value for key, value in json.loads(json.dumps(merged, default=str)).items() if "token" not in key}
