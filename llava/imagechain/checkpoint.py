"""Checkpoints of a training run, each complete: adapter, projector, config with the decisions, tokenizer files.

A LoRA folder holds adapter_model.safetensors + adapter_config.json, `non_lora_trainables.bin` (the projector),
config.json and the tokenizer's files; a folder without an adapter is a full model. Loading never unpickles anything but
tensors.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from llava.imagechain.compat import gathered
from llava.imagechain.distributed import zero3_is_on
from llava.imagechain.files import atomic_path, follow_umask, read_json, read_object, write_json
from llava.imagechain.weights import name_in_files, read_tensors, shortened

ADAPTER_CONFIG, NON_LORA = "adapter_config.json", "non_lora_trainables.bin"
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
# Linear layers of the language model by full name: the tower's q/k/v have the same short names and stay out.
LORA_TARGETS = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to use, and what belongs to it."""

    tokenizer: Any
    model: Any
    image_processor: Any
    context_length: int


def is_adapter(path: Path | str) -> bool:
    """Tell whether a folder holds a LoRA adapter."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def load_checkpoint(
    path: Path | str,
    *,
    base: Path | str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    merge_adapter: bool = True,
) -> LoadedModel:
    """Load a full model folder, a LoRA folder or a checkpoint-N of a run; an adapter is added to the weights.

    Args:
        path: The folder.
        base: Base model of a LoRA folder; by default the one it names.
        device: Where the model goes; by default the GPU when there is one.
        dtype: Type of the weights; by default float16 on a GPU, float32 else.
        attn_implementation: "sdpa", "eager", "flash_attention_2"; by default what is there.
        quantization_config: The library's, for weights of fewer bits.
        merge_adapter: False leaves an adapter beside the weights, in peft's model.

    Returns:
        The model in evaluation mode, with the checkpoint's decisions in its config.

    Raises:
        FileNotFoundError: The folder or the base is missing.
        ValueError: A file holds something else than it should, or the files do not belong together.
    """
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model

    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{path}: a model folder with config.json was wanted.")
    if is_adapter(path) and (kind := read_object(Path(path) / ADAPTER_CONFIG).get("peft_type")) != "LORA":
        raise ValueError(f"{path}: a LoRA adapter was wanted, found {kind!r}.")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        tokenizer, model, image_processor, context_length = load_pretrained_model(
            str(path),
            str(base) if base and is_adapter(path) else None,
            get_model_name_from_path(str(path)),
            device_map=None if zero3_is_on() else str(target),  # ZeRO-3 spreads the weights while they are read
            torch_dtype=dtype or (torch.float16 if target.type == "cuda" else torch.float32),
            attn_implementation=attn_implementation or "flash_attention_2",
            multimodal=True,
            merge_adapter=merge_adapter,
            **({"quantization_config": quantization_config} if quantization_config else {}),
        )
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # transformers and peft: tensors of other shapes than the config says
        reason = str(error)
        if names := re.findall(r"size mismatch for (\S+):", reason):  # a line of the library for each
            reason = f"{len(names)} tensors are of other shapes: {shortened(names)}"
        raise ValueError(
            f"{path} cannot be loaded; do its weights, its base and its config files belong together? {reason}"
        ) from error
    return LoadedModel(
        tokenizer=tokenizer, model=model, image_processor=image_processor, context_length=int(context_length)
    )


def read_non_lora(path: Path | str) -> dict[str, torch.Tensor]:
    """Return the trained tensors of a LoRA folder that are not LoRA's, under the plain model's names."""
    file = Path(path) / NON_LORA
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: the folder lost its projector. Copy the checkpoint again.")
    return {plain_name(name): tensor for name, tensor in read_tensors(file).items()}


def plain_name(name: str) -> str:
    """Return a parameter's name without what peft puts before it."""
    return re.sub(r"^base_model\.(model\.)?(?=model\.|lm_head\.)", "", name).replace(".modules_to_save.default.", ".")


def load_named(model: torch.nn.Module, tensors: dict[str, torch.Tensor], *, source: Path | str) -> set[str]:
    """Copy tensors into the model's parameters of the same name, whatever peft and the library's version add to it.

    Returns:
        The plain names of what was loaded.

    Raises:
        ValueError: A name is unknown or a shape differs; nothing is changed then.
    """
    tensors = {name_in_files(plain_name(name)): tensor for name, tensor in tensors.items()}
    parameters = {name_in_files(plain_name(name)): parameter for name, parameter in model.named_parameters()}
    if unknown := sorted(set(tensors) - set(parameters)):
        raise ValueError(f"{source} holds tensors that the model does not have: {', '.join(unknown[:5])}.")
    with gathered([parameters[name] for name in tensors]), torch.no_grad():
        for name, tensor in tensors.items():
            if parameters[name].shape != tensor.shape:
                raise ValueError(f"{source}: {name} is {tuple(tensor.shape)}, wanted {tuple(parameters[name].shape)}.")
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    return set(tensors)


def trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained tensors on the CPU, whole; with ZeRO-3 every process has to call it.

    Without LoRA the whole model is saved: tensors that ZeRO-3 has partitioned are then here even when they are frozen.
    """
    adapted = hasattr(model, "peft_config")
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or (hasattr(parameter, "ds_id") and not adapted):
            with gathered([parameter]):
                state[name] = parameter.detach().cpu().clone()
    return state


def save_checkpoint(
    path: Path | str, model: Any, state: dict[str, torch.Tensor], tokenizer: Any, base: Path | str | None
) -> None:
    """Write a complete checkpoint.

    Args:
        path: The folder; made when missing.
        model: The trained model, a peft model or a plain one.
        state: From `trainable_state`.
        tokenizer: Saved when the base folder has no tokenizer files to copy.
        base: The folder training started from.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        lora = {name: tensor for name, tensor in state.items() if "lora_" in name}
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = _from(path, base)
        model.save_pretrained(str(path), state_dict=lora, safe_serialization=True, save_embedding_layers=False)
        _drop_default_settings(path / ADAPTER_CONFIG)
        (path / "README.md").unlink(missing_ok=True)  # peft's empty model card
        with atomic_path(path / NON_LORA) as temporary, temporary.open("wb") as file:
            # Through a file object, the same tensors give the same bytes.
            torch.save({name_in_files(name): tensor for name, tensor in state.items() if "lora_" not in name}, file)
        model.get_base_model().config.save_pretrained(str(path))
    else:
        model.save_pretrained(str(path), state_dict={**model.state_dict(), **state}, safe_serialization=True)
    follow_umask(path)
    copy_tokenizer(path, tokenizer, base)


def _drop_default_settings(file: Path) -> None:
    """Leave settings at their default out of an adapter's config: older peft versions refuse names they do not know."""
    from peft import LoraConfig

    defaults, settings = LoraConfig().to_dict(), read_json(file)
    kept = ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "bias", "fan_in_fan_out", "inference_mode")
    write_json(file, {
        name: value for name, value in settings.items()
        if name in kept or (name != "peft_version" and (name not in defaults or value != defaults[name]))
    })  # fmt: skip


def _from(path: Path, base: Path | str | None) -> str | None:
    """Return how an adapter folder names its base: a folder given relatively is named relative to the adapter."""
    if base and Path(base).is_dir() and not Path(base).is_absolute():
        return os.path.relpath(base, path)
    return str(base) if base else None


def copy_tokenizer(path: Path, tokenizer: Any, base: Path | str | None) -> None:
    """Copy the base's tokenizer files, so that every library version can read them; save them when there are none."""
    found = [Path(base) / name for name in TOKENIZER_FILES if base and (Path(base) / name).is_file()]
    for file in found:
        shutil.copyfile(file, path / file.name)
    if not found:
        tokenizer.save_pretrained(str(path))


def is_complete(path: Path | str) -> bool:
    """Tell whether a checkpoint-N was written to its end; the trainer's state is what is written last."""
    path = Path(path)
    weights: Iterable[str] = (NON_LORA, "adapter_model.safetensors") if is_adapter(path) else ()
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((path / name).is_file() for name in (*weights, "config.json"))


def last_checkpoint(output_dir: Path | str) -> Path | None:
    """Return the newest complete checkpoint-N of a run; broken ones are passed over."""
    steps = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        if (number := folder.name.removeprefix("checkpoint-")).isdigit() and is_complete(folder):
            steps[int(number)] = folder
    return steps[max(steps)] if steps else None
