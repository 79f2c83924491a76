"""What training starts from: a LLaVA folder, an adapter over one, or a language model that gets its tower now."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.imagechain.checkpoint import ADAPTER_CONFIG, is_adapter, read_non_lora
from llava.imagechain.config import ConfigError
from llava.imagechain.decisions import asked_of, settle_decisions
from llava.imagechain.files import read_json, read_object, sha256_model
from llava.imagechain.parts import part_of, trained_parts
from llava.imagechain.quantized import quantization_config

# Settings that are keys of the model's config, and what LLaVA takes where a plain language model has none.
LAYOUT = {
    "image_aspect_ratio": "square", "image_grid_pinpoints": None, "mm_patch_merge_type": "flat",
    "mm_newline_position": "grid", "mm_spatial_pool_mode": "bilinear",
}  # fmt: skip
MODULES = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}


def load_model(groups: Any) -> Any:
    """Load the model to start from and settle the decisions and layout it will carry."""
    import torch

    from llava.imagechain.checkpoint import load_checkpoint

    model_arguments, data, settings = groups
    half = torch.bfloat16 if settings.bf16 else torch.float16 if settings.fp16 else torch.float32
    dtype = torch.float32 if settings.device.type == "cpu" else half
    folder = str(model_arguments.model_name_or_path)
    if is_language_model(folder):
        loaded = _from_language_model(groups, dtype)
    else:
        loaded = load_checkpoint(
            folder,
            device=settings.device,
            dtype=dtype,
            attn_implementation=model_arguments.attn_implementation,
            merge_adapter=False,
            quantization_config=quantization_config(
                model_arguments.bits, dtype,
                quant_type=model_arguments.quant_type, double_quant=model_arguments.double_quant,
            ),
        )  # fmt: skip
        if model_arguments.bits != 16:  # what is saved is an adapter for the base as it is
            del loaded.model.config.quantization_config
        set_layout(loaded.model.config, model_arguments, data)
        if model_arguments.pretrain_mm_mlp_adapter:
            body = loaded.model.get_model()
            body.load_adapter(model_arguments.pretrain_mm_mlp_adapter, body.vision_resampler)
    settle_decisions(loaded.model.config, asked_of(model_arguments), trained=False)
    loaded.model.get_vision_tower().frames_per_call = model_arguments.frames_per_call
    return loaded


def is_language_model(folder: str) -> bool:
    """Say whether a model folder has no vision tower yet."""
    return not read_json(Path(folder) / "config.json").get("mm_vision_tower")


def check_adapter(folder: Path, model_arguments: Any) -> None:
    """Check that a LoRA folder can train on: its base is there, it keeps its shape, and all it holds goes on training.

    Raises:
        ConfigError: With everything that is wrong.
    """
    from llava.imagechain.saving import find_base

    find_base(folder, None, advice="put it there, or train on from the two merged (scripts/merge_lora.sh)")
    adapter = read_object(folder / ADAPTER_CONFIG)
    problems = []
    if not model_arguments.lora_enable:
        problems.append("lora_enable: false, but an adapter can only train on as one; scripts/merge_lora.sh merges it")
    for name, key in (("lora_r", "r"), ("lora_alpha", "lora_alpha"), ("lora_dropout", "lora_dropout")):
        if (wanted := getattr(model_arguments, name)) != adapter.get(key):
            problems.append(f"{name}: {wanted}, but the adapter was made with {adapter.get(key)}")
    if model_arguments.lora_vision_tower and "vision_tower" not in str(adapter.get("target_modules")):
        problems.append("lora_vision_tower: the adapter has none in the tower")
    still = {part_of(name) for name in read_non_lora(folder)} - trained_parts(model_arguments)
    if still:
        problems.append(f"{', '.join(sorted(still))}: trained with the adapter, but would be frozen now and be lost")
    if problems:
        raise ConfigError(f"{folder} is a LoRA folder; " + "; ".join(problems))


def base_folder(folder: str) -> str:
    """Return the whole model that a folder stands for: itself, or a LoRA folder's base."""
    from llava.imagechain.saving import find_base

    if not is_adapter(folder):
        return folder
    found = find_base(Path(folder), None)
    return str(found) if Path(folder).is_absolute() else os.path.relpath(found)


def identity(folder: str) -> dict[str, str]:
    """Return the hashes of what a run starts from: the whole model, and the adapter when there is one."""
    hashes = {"model_sha256": sha256_model(base_folder(folder))}
    return hashes | ({"adapter_sha256": sha256_model(folder)} if is_adapter(folder) else {})


def planned_config(model_arguments: Any, data: Any) -> Any:
    """Return the config of the model that a run would train; no weight is read."""
    from llava.model.language_model.llava_llama import LlavaConfig

    folder = str(model_arguments.model_name_or_path)
    config = LlavaConfig.from_pretrained(folder)
    if is_language_model(folder):
        vision = {"mm_vision_tower": model_arguments.vision_tower, **LAYOUT, **MODULES}
        for name, value in vision.items():
            given = getattr(model_arguments, name, None)
            setattr(config, name, value if given is None else given)
        config.mm_hidden_size = vision_config(config, folder).hidden_size
    set_layout(config, model_arguments, data)
    settle_decisions(config, asked_of(model_arguments), trained=False)
    return config


def set_layout(config: Any, model_arguments: Any, data: Any) -> None:
    """Put the image layout that was asked for into a model's config; what was not stays as the model has it."""
    for name in LAYOUT:
        wanted = getattr(data if hasattr(data, name) else model_arguments, name)
        if wanted is not None:
            setattr(config, name, wanted)


def _from_language_model(groups: Any, dtype: Any) -> Any:
    from llava.imagechain.checkpoint import LoadedModel
    from llava.imagechain.compat import DTYPE_KEYWORD, attention_implementation
    from llava.imagechain.weights import check_weights
    from llava.model.builder import load_tokenizer, model_classes, refuse_missing

    model_arguments, data, settings = groups
    folder = str(model_arguments.model_name_or_path)
    check_weights(folder)
    model_class, config_class = model_classes(folder, Path(folder).name)
    model, info = model_class.from_pretrained(
        folder,
        config=config_class.from_pretrained(folder),
        attn_implementation=attention_implementation(model_arguments.attn_implementation),
        output_loading_info=True,
        **{DTYPE_KEYWORD: dtype},
    )
    refuse_missing(info["missing_keys"], folder)
    for name, default in LAYOUT.items():
        setattr(model.config, name, default)
    set_layout(model.config, model_arguments, data)
    model.config.tokenizer_padding_side = "right"
    model.config.tokenizer_model_max_length = settings.model_max_length
    model.config.mm_use_im_start_end = model.config.mm_use_im_patch_token = False
    given = {name: value for name, value in dataclasses.asdict(model_arguments).items() if value is not None}
    model.get_model().initialize_vision_modules(
        SimpleNamespace(**{"pretrain_mm_mlp_adapter": None, **LAYOUT, **MODULES, **given})
    )
    model.to(device=settings.device, dtype=dtype)
    return LoadedModel(
        tokenizer=load_tokenizer(folder),
        model=model.eval(),
        image_processor=model.get_vision_tower().image_processor,
        context_length=settings.model_max_length,
    )


def vision_config(config: Any, folder: str) -> Any:
    """Return the config of a model's vision tower."""
    from transformers import CLIPVisionConfig

    from llava.imagechain.vision import tower_source

    return CLIPVisionConfig.from_pretrained(tower_source(config.mm_vision_tower, folder))


def tokens_per_scene(config: Any, folder: str) -> int:
    """Return the visual tokens of a scene, from the config of the vision tower."""
    vision = vision_config(config, folder)
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches + str(getattr(config, "mm_vision_select_feature", None)).endswith("cls_patch")
