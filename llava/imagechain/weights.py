"""Reading tensors from files that are not trusted: safetensors first, `.bin` files by PyTorch's weights-only loader."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from llava.imagechain.files import inside, read_json

# In the order of preference; an index names the shards beside it.
_LAYOUTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


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
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
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
