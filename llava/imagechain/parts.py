"""What trains: the projector, the vision tower, the language model or adapters in it, each with its learning rate."""

from __future__ import annotations

from typing import Any

import torch

from llava.imagechain.checkpoint import LORA_TARGETS, plain_name
from llava.imagechain.config import ConfigError, nearest
from llava.imagechain.quantized import num_values

# LLaVA's names of the parts -> ours.
TUNABLE = {
    "mm_mlp_adapter": "projector", "mm_vision_tower": "vision tower", "mm_language_model": "language model"
}  # fmt: skip
TOWER_LORA_TARGETS = r".*vision_tower.*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


def trained_parts(settings: Any) -> set[str]:
    """Return the parts that train.

    Args:
        settings: `ModelArguments`.

    Raises:
        ConfigError: The settings contradict each other, or name no part.
    """
    if settings.mm_tunable_parts:
        names = [name.strip() for name in settings.mm_tunable_parts.split(",") if name.strip()]
        if unknown := [name for name in names if name not in TUNABLE]:
            raise ConfigError(f"mm_tunable_parts: unknown part {unknown[0]!r}{nearest(unknown[0], list(TUNABLE))}")
        parts = {TUNABLE[name] for name in names}
        if "language model" in parts and not settings.lora_enable:
            parts.add("line end")  # LLaVA counts it there; sequences of square frames have none
    elif settings.tune_mm_mlp_adapter:
        parts = {"projector"}
    else:
        parts = {"language model"} | ({"vision tower"} if settings.unfreeze_mm_vision_tower else set())
        parts |= set() if settings.freeze_mm_mlp_adapter else {"projector"}
    if settings.lora_enable:
        parts = (parts - {"language model"}) | {"LoRA"}
    if settings.lora_vision_tower and not settings.lora_enable:
        raise ConfigError("lora_vision_tower: adapters in the tower were wanted, but lora_enable is off")
    if not parts:
        raise ConfigError(f"mm_tunable_parts: nothing would train; one of {', '.join(TUNABLE)} was wanted")
    return parts


def prepare_model(model: Any, settings: Any) -> Any:
    """Freeze the model, then let train what the settings say; what trains is held in float32.

    ZeRO-3 wants it all in the type of its own pieces, and keeps the float32 copies itself.

    Args:
        model: A LLaVA model, or one in peft's whose adapter trains on.
        settings: `ModelArguments`.

    Returns:
        The model, inside peft's when LoRA is on.
    """
    parts = trained_parts(settings)
    model.requires_grad_(False)
    model.config.use_cache = False
    if settings.lora_enable and not hasattr(model, "peft_config"):
        from peft import LoraConfig, get_peft_model

        # Paper section 5.3: r 128, alpha 256. The tower gets adapters only when asked (full-name pattern).
        targets = f"({LORA_TARGETS}|{TOWER_LORA_TARGETS})" if settings.lora_vision_tower else LORA_TARGETS
        lora = LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
    pieces = (parameter.ds_tensor.dtype for parameter in model.parameters() if hasattr(parameter, "ds_tensor"))
    dtype = next(pieces, torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


def part_of(name: str) -> str:
    """Return which part of the model a parameter belongs to."""
    if "lora_" in name:
        return "LoRA"
    for key, part in (("vision_tower", "vision tower"), ("mm_projector", "projector"), ("image_newline", "line end")):
        if key in plain_name(name):
            return part
    return "language model"


def trainable_table(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return, part by part, how many parameters there are and how many of them train."""
    rows: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        row = rows.setdefault(part_of(name), {"part": part_of(name), "parameters": 0, "trained": 0})
        count = num_values(parameter)
        row["parameters"] += count
        row["trained"] += count * parameter.requires_grad
    return list(rows.values())


def parameter_groups(
    model: torch.nn.Module, decayed: set[str], weight_decay: float, rates: dict[str, float | None], rate: float
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: by learning rate of the part, and by weight decay.

    Args:
        model: The prepared model.
        decayed: Names of the parameters with weight decay.
        weight_decay: Theirs.
        rates: Learning rate by part; None and other parts have `rate`.
        rate: Learning rate of the rest.
    """
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rates.get(part_of(name)) or rate, name in decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": own, "weight_decay": weight_decay * decays}
        for (own, decays), parameters in groups.items()
    ]
