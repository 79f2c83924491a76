"""Loading models: LLaVA folders with and without vision weights, LoRA and projector folders, language models.

Every way in ends with a check that each parameter came from a file: nothing stays at random values.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.imagechain.checkpoint import load_named
from llava.imagechain.compat import DTYPE_KEYWORD, TRANSFORMERS_VERSION, as_dtype, attention_implementation
from llava.imagechain.files import read_object
from llava.imagechain.manifest import other_base
from llava.imagechain.quantized import quantization_config
from llava.imagechain.vision import complete_vision_tower
from llava.imagechain.weights import check_weights, local_folder, name_in_files, read_tensors, shortened

logger = logging.getLogger(__name__)

# Part of config.json's model type or of the model's name -> module and class prefix; Llama where nothing fits.
_FAMILIES = {
    "mixtral": ("llava_mixtral", "LlavaMixtral"),
    "mistral": ("llava_mistral", "LlavaMistral"),
    "zephyr": ("llava_mistral", "LlavaMistral"),
    "qwen_moe": ("llava_qwen_moe", "LlavaQwenMoe"),
    "qwen": ("llava_qwen", "LlavaQwen"),
    "quyen": ("llava_qwen", "LlavaQwen"),
    "gemma": ("llava_gemma", "LlavaGemma"),
}
_LLAMA_WORDS = ("vicuna", "llama", "yi", "nous-hermes", "v1.6-34b", "v1.5")
_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json")


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    torch_dtype: Any = "float16",
    attn_implementation: str | None = "flash_attention_2",
    customized_config: Any = None,
    overwrite_config: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Load a model for use.

    Args:
        model_path: A folder (or hub name): a whole model; an adapter with `non_lora_trainables.bin`; or a projector
            (`mm_projector.bin`).
        model_base: The model under an adapter or projector. None reads it from the adapter's own config.
        model_name: "llava" in it (or in config.json's model type) makes it multimodal; other words name the family.
        load_8bit: Quantise with bitsandbytes.
        load_4bit: Quantise with bitsandbytes.
        device_map: Passed to the library; "auto" on a machine without a GPU is the CPU.
        torch_dtype: "float32", "bfloat16", "float16", "auto", or a torch dtype.
        attn_implementation: flash attention falls back to sdpa where it is not installed.
        customized_config: A config object in place of the folder's.
        overwrite_config: Config keys to set before loading.
        **kwargs: `multimodal` True or False overrides the name; `merge_adapter` False leaves an adapter beside the
            weights, in peft's model; the rest goes to `from_pretrained`.

    Returns:
        (tokenizer, model in evaluation mode, image processor or None, context length).

    Raises:
        ValueError: Weights are missing everywhere (the message names them), or a file is refused.
    """
    model_path = local_folder(model_path)
    settings = _load_settings(load_8bit, load_4bit, device_map, torch_dtype, attn_implementation) | kwargs
    multimodal, merge_adapter = settings.pop("multimodal", None), settings.pop("merge_adapter", True)
    if multimodal is None:
        multimodal = "llava" in model_name.lower() or _model_type(model_path).startswith("llava")
    if not multimodal:
        model, tokenizer = _load_language_model(model_path, model_base and local_folder(model_base), settings)
        return tokenizer, model.eval(), None, _context_length(model.config)

    adapter = _settings(Path(model_path) / "adapter_config.json")
    model_base = _base_folder(model_path, model_base, adapter)
    if model_base is None and "lora" in model_name.lower():
        warnings.warn(
            f"{model_name} has 'lora' in its name, but no model_base and no adapter_config.json.", stacklevel=2
        )
    model_class, config_class = model_classes(model_path, model_name)
    config = customized_config or config_class.from_pretrained(model_path)
    for name, value in (overwrite_config or {}).items():
        setattr(config, name, value)
    if not getattr(config, "mm_vision_tower", None):
        raise ValueError(f"{model_path}: config.json names no mm_vision_tower; a LLaVA model was wanted.")
    tokenizer = _load_tokenizer(model_path, model_base)
    weights = model_base or model_path
    if adapter and model_base and (problem := other_base(model_path, model_base)):
        logger.warning("%s; what it computes is not what was trained", problem)
    _check_files(weights, model_path if adapter else None)
    model, info = model_class.from_pretrained(weights, config=config, output_loading_info=True, **settings)
    missing = set(complete_vision_tower(model, info["missing_keys"]))
    if model_base is not None:
        missing -= load_named(model, _extra_tensors(model_path, adapted=adapter is not None), source=model_path)
        if adapter is not None:
            model = _adapted(model, model_path, merge=merge_adapter)
    refuse_missing(missing, model_path)
    _add_image_tokens(model, tokenizer)
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model(device_map=device_map)
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1  # the library moves each part's inputs to it
    tower.to(dtype=model.dtype) if spread else tower.to(device=model.device, dtype=model.dtype)
    return tokenizer, model.eval(), tower.image_processor, _context_length(model.config)


def _load_settings(
    load_8bit: bool, load_4bit: bool, device_map: Any, dtype: Any, attention: str | None
) -> dict[str, Any]:
    settings: dict[str, Any] = {"attn_implementation": attention_implementation(attention)}
    settings[DTYPE_KEYWORD] = as_dtype(dtype)
    if load_8bit or load_4bit:
        computed = torch.float16 if dtype == "auto" else as_dtype(dtype)
        settings["quantization_config"] = quantization_config(8 if load_8bit else 4, computed)
    if device_map == "auto" and not torch.cuda.is_available():
        return settings
    on_cpu = str(device_map).partition(":")[0] == "cpu"  # "cpu:0", too, as one of several processes names it
    return settings if device_map is None or on_cpu else {**settings, "device_map": device_map}


def _load_language_model(model_path: str, model_base: str | None, settings: dict[str, Any]) -> tuple[Any, Any]:
    _check_files(model_base or model_path, model_path if model_base else None)
    settings = {"trust_remote_code": False, **settings, "output_loading_info": True}
    model, info = AutoModelForCausalLM.from_pretrained(model_base or model_path, **settings)
    refuse_missing(info["missing_keys"], model_base or model_path)
    return (_adapted(model, model_path) if model_base else model), _load_tokenizer(model_path, model_base)


def _adapted(model: Any, adapter_path: str, *, merge: bool = True) -> Any:
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error below, unless only renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # peft asks by its old name
        adapted = PeftModel.from_pretrained(model, adapter_path)
    own = {name_in_files(n): n for n in get_peft_model_state_dict(adapted, save_embedding_layers=False) if "lora_" in n}
    found = {name_in_files(name): tensor for name, tensor in read_tensors(_adapter_file(adapter_path)).items()}
    if wrong := sorted(own.keys() ^ {name for name in found if "lora_" in name}):
        raise ValueError(f"{adapter_path}: adapter and model do not have the same tensors: {shortened(wrong)}.")
    set_peft_model_state_dict(adapted, {own[name]: found[name] for name in own})
    return adapted.merge_and_unload() if merge else adapted


def _adapter_file(folder: str) -> Path:
    names = ("adapter_model.safetensors", "adapter_model.bin")
    found = [file for name in names if (file := Path(folder) / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} holds an adapter's config, but neither {' nor '.join(names)}.")
    return found[0]


def _check_files(weights: str, adapter_path: str | None) -> None:
    """Refuse folders with missing, damaged or harmful weight files before the library opens one."""
    check_weights(weights)
    if adapter_path:
        check_weights(_adapter_file(adapter_path))


def model_classes(model_path: str, model_name: str) -> tuple[Any, Any]:
    """Return the model and config classes; other families than Llama need a LLaVA-NeXT checkout.

    Raises:
        ImportError: They are not there.
        ValueError: The installed library is too new for their configs.
    """
    model_type = _model_type(model_path).removeprefix("llava_")
    words = model_type if model_type in _FAMILIES or model_type == "llama" else model_name.lower()
    llama = model_type == "llama" or any(word in words for word in _LLAMA_WORDS)
    family = next(
        (value for word, value in _FAMILIES.items() if word in words and not (llama and word == "mistral")), None
    )
    if words != model_type and "qwen" in words and ("moe" in words or "a14b" in words):
        family = _FAMILIES["qwen_moe"]
    module, prefix = family or ("llava_llama", "LlavaLlama")
    if TRANSFORMERS_VERSION >= (5, 0) and prefix not in ("LlavaLlama", "LlavaGemma"):
        raise ValueError(
            f"{model_path}: model type or name stand for {prefix}ForCausalLM of LLaVA-NeXT, whose config does not fit "
            "transformers 5; install transformers 4.57.6. If it is a Llama, its config.json has a wrong model_type."
        )
    try:
        loaded = importlib.import_module(f"llava.model.language_model.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(f"{prefix}ForCausalLM needs a LLaVA-NeXT checkout under this package: {error}") from error
    config_name = "LlavaConfig" if prefix == "LlavaLlama" else f"{prefix}Config"
    return getattr(loaded, f"{prefix}ForCausalLM"), getattr(loaded, config_name)


def _model_type(model_path: str) -> str:
    return str((_settings(Path(model_path) / "config.json") or {}).get("model_type", ""))


def _settings(file: Path) -> dict[str, Any] | None:
    """Read a config file of a model folder; None without one."""
    return read_object(file) if file.is_file() else None


def _base_folder(model_path: str, model_base: str | None, adapter: dict[str, Any] | None) -> str | None:
    """Return the base's folder: the given one, or the one an adapter names, relative to its own folder first."""
    if model_base is None and adapter:
        model_base = adapter.get("base_model_name_or_path")
        if model_base and (Path(model_path) / model_base).is_dir():
            return str((Path(model_path) / model_base).resolve())
    if adapter and (not model_base or (model_base.startswith(("/", ".")) and not Path(model_base).is_dir())):
        raise FileNotFoundError(
            f"The base model {model_base!r} of the adapter {model_path} is not there; give its folder."
        )
    return model_base and local_folder(model_base)


def _load_tokenizer(model_path: str, model_base: str | None) -> Any:
    own = any((Path(model_path) / name).is_file() for name in _TOKENIZER_FILES)
    source = model_path if own or model_base is None else model_base
    return load_tokenizer(source)


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer of a model folder or hub name.

    Raises:
        FileNotFoundError: The folder lacks the vocabulary (the library would make a tokenizer without words of it).
        ValueError: The tokenizer's files cannot be read.
    """
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _TOKENIZER_FILES):
        raise FileNotFoundError(
            f"{source} holds none of {', '.join(_TOKENIZER_FILES)}: the tokenizer has no vocabulary. Copy the "
            "tokenizer files of the base model into the folder."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=False, trust_remote_code=False)
        if tokenizer and len(tokenizer) > len(tokenizer.all_special_ids):
            return tokenizer
        raise ValueError("the vocabulary is damaged")  # transformers 4 returns False, 5 makes an empty one
    except (OSError, ImportError):
        raise
    except Exception as error:  # damaged files end in errors of many kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{source}: the tokenizer's files cannot be read ({reason}); copy them again.") from error


def _extra_tensors(model_path: str, *, adapted: bool) -> dict[str, torch.Tensor]:
    """Read what a LoRA or projector folder holds beside the adapter."""
    stem = "non_lora_trainables" if adapted else "mm_projector"
    for suffix in (".safetensors", ".bin"):
        if (file := Path(model_path) / f"{stem}{suffix}").is_file():
            return read_tensors(file)
    raise FileNotFoundError(f"{model_path} was opened over a base, but holds no {stem}.safetensors or {stem}.bin.")


def refuse_missing(missing: Collection[str], model_path: str) -> None:
    """Raise a ValueError that names the parameters for which no file holds weights; nothing when there are none."""
    if missing:
        raise ValueError(
            f"{model_path}: no file holds weights for {shortened(sorted(missing))}. "
            "Give the base model, or a complete folder."
        )


def _add_image_tokens(model: Any, tokenizer: Any) -> None:
    added = 0
    if getattr(model.config, "mm_use_im_patch_token", True):
        added += tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if getattr(model.config, "mm_use_im_start_end", False):
        added += tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if added and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def _context_length(config: Any) -> int:
    for name in ("max_sequence_length", "max_position_embeddings", "tokenizer_model_max_length"):
        if value := getattr(config, name, None):
            return int(value)
    return 2048
