"""Reading tensors from files that are not trusted: safetensors first, `.bin` files by PyTorch's weights-only loader."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from llava.imagechain.files import inside, read_json

# In the library's order of preference; an index names the shards beside it.
_LAYOUTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def local_folder(source: str) -> str:
    """Return a model's folder; one named on the hub is fetched into the library's cache, `.bin` weights only at need.

    Raises:
        FileNotFoundError: It is neither a folder nor to be had from the hub.
    """
    if Path(source).is_dir():
        return source
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.model", "*.txt", "*.jinja", "mm_projector.bin", "non_lora_trainables.bin"]
    try:
        folder = snapshot_download(source, allow_patterns=[*wanted, "model*.safetensors", "adapter_model.safetensors"])
        if any(Path(folder).glob("*.safetensors")):
            return folder
        return snapshot_download(source, allow_patterns=[*wanted, "pytorch_model*.bin", "adapter_model.bin"])
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{source!r} is neither a folder nor to be had from the model hub: {str(error).splitlines()[0]}"
        ) from error


def read_tensors(path: Path | str, keep: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """Read the named tensors of a file, or of the weight files of a checkpoint folder.

    Args:
        path: A `.safetensors` or `.bin` file, or a folder with one of the library's layouts (single file or shards).
        keep: Says by its name whether a tensor is wanted; others are not read from safetensors files.

    Raises:
        FileNotFoundError: The folder holds no weight file, or a shard is missing.
        ValueError: A `.bin` file holds anything else than named tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in _weight_files(Path(path)):
        if not file.is_file():
            raise FileNotFoundError(f"Weight file {file} is missing; copy the checkpoint folder again.")
        tensors.update(_read_safetensors(file, keep) if file.suffix == ".safetensors" else _read_bin(file, keep))
    return tensors


def name_in_files(name: str) -> str:
    """Return the name under which files keep a tensor of a LLaVA model with a CLIP tower.

    transformers 5 leaves a level of the tower's names out; files with it open in every library version.
    """
    return re.sub(r"\bmodel\.vision_tower\.vision_tower\.(?!vision_model\.)", r"\g<0>vision_model.", name)


def shortened(names: Sequence[str]) -> str:
    """Return names for a message: the first eight, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def check_weights(path: Path | str) -> None:
    """Look at a weight file, or at those of a checkpoint folder, without keeping a tensor in memory.

    Raises:
        FileNotFoundError: The folder holds no weight file, or a shard is missing; all missing ones are named.
        ValueError: A file is damaged, or a `.bin` file holds anything else than named tensors.
    """
    files = _weight_files(Path(path))
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(files)} weight files are missing ({', '.join(missing[:5])}); copy the "
            "checkpoint folder again."
        )
    for file in files:
        if file.suffix == ".safetensors":
            _read_safetensors(file, lambda name: False)
        else:
            _read_bin(file, lambda name: False, mapped=zipfile.is_zipfile(file))


def _weight_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for name in _LAYOUTS:
        if not (path / name).is_file():
            continue
        if not name.endswith(".json"):
            return [path / name]
        index = read_json(path / name)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ValueError(f"{path / name}: a weight_map from tensor names to file names was wanted.")
        return [inside(path, shard) for shard in sorted(set(shards.values()))]
    raise FileNotFoundError(f"{path} holds no weights: one of {', '.join(_LAYOUTS)} was wanted.")


def _read_safetensors(file: Path, keep: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys() if keep(name)}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); copy it again.") from error


def _read_bin(file: Path, keep: Callable[[str], bool], *, mapped: bool = False) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # damaged pickles end in errors of many kinds
        named = re.search(r"Unsupported (?:global: GLOBAL|class|operand) (\S+)", str(error))
        reason = f"it holds {named[1]}" if named else f"{type(error).__name__} while reading"
        raise ValueError(
            f"{file} is refused: it could not be read as tensors only ({reason}). Files with other contents can run "
            "code when opened; ask for a .safetensors file."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(
            f"{file} is refused: named tensors were wanted, found {type(loaded).__name__} with other values."
        )
    return {name: value for name, value in loaded.items() if keep(name)}
