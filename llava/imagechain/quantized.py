"""Frozen weights of 4 or 8 bits under trained adapters (QLoRA), by bitsandbytes.

The linear layers of the language model are quantized while they are read. Head, embeddings, projector, line end and
vision tower keep their type, and what trains is float32 as in every run. The adapter names its 16 bit base, and its
config.json says nothing of quantization: prediction and merging take the base as it is.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path
from typing import Any

from llava.imagechain.files import read_json

# On import it warns of a kernel that could be downloaded for processors; peft imports it wherever it is installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
NOT_QUANTIZED = ["lm_head", "model.embed_tokens", "model.mm_projector", "model.vision_tower", "model.image_newline"]


def bits_problems(model: Any, train: Any) -> list[str]:
    """Return why a run cannot have its weights in 4 or 8 bits.

    Args:
        model: `ModelArguments`.
        train: `TrainArguments`.
    """
    if model.bits == 16:
        return []
    if model.bits not in (4, 8):
        return [f"bits: 4, 8 or 16 was wanted, found {model.bits}"]
    problems = []
    if model.quant_type not in ("nf4", "fp4"):
        problems.append(f"quant_type: nf4 or fp4 was wanted, found {model.quant_type!r}")
    if not model.lora_enable or model.lora_vision_tower or model.unfreeze_mm_vision_tower:
        problems.append(
            f"bits {model.bits}: quantized weights cannot train; set lora_enable, and leave the tower frozen"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append(f"bits {model.bits}: bitsandbytes is not installed; bash scripts/setup.sh train quantization")
    config = Path(train.deepspeed) if isinstance(train.deepspeed, str) else None
    if config and config.is_file() and read_json(config).get("zero_optimization", {}).get("stage") == 3:
        problems.append(
            f"bits {model.bits}: ZeRO-3 cannot spread quantized weights; use zero2.json, or DDP without one"
        )
    if model.model_name_or_path and model.vision_tower:
        problems.append(f"bits {model.bits}: a LLaVA folder was wanted to start from, not a plain language model")
    return problems


def quantization_config(bits: int, dtype: Any, *, quant_type: str = "nf4", double_quant: bool = True) -> Any:
    """Return how the library quantizes the weights it reads, or None for 16 bits.

    Args:
        bits: 4, 8 or 16.
        dtype: Type that quantized layers compute in.
        quant_type: Of 4 bits, "nf4" or "fp4".
        double_quant: Quantize the scales of 4 bits, too.
    """
    if bits == 16:
        return None
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        llm_int8_skip_modules=NOT_QUANTIZED,
    )


def num_values(parameter: Any) -> int:
    """Return the numbers that a parameter holds, however they are stored (ZeRO-3 spreads them, 4 bits pack two)."""
    if state := getattr(parameter, "quant_state", None):
        return math.prod(state.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))
