"""Whole model folders, written at once or not at all, and the check that what was written computes the same.

Shape letters: L positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.imagechain.config import ConfigError, option
from llava.imagechain.files import atomic_path, follow_umask, inside, read_json, read_object, write_json
from llava.imagechain.manifest import other_base, training_manifest

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("llava.saving")

# Largest difference of logits, relative to the largest logit, between two ways of computing the same model.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
PROBE_TEXT = ("A chat. USER: What is happening in the first scene? ", "\nA man opens a door. ", "\nAnd now? ASSISTANT:")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Settings of a command that makes a whole model folder of a checkpoint."""

    checkpoint: Path = option(help="model folder, LoRA folder, or checkpoint-N of a run")
    base: Path | None = option(None, help="base model of a LoRA folder; by default the one it names")
    other_base: bool = option(False, help="take a base whose files are not those that the adapter was trained on")
    output_dir: Path = option(help="folder of the whole model")
    dtype: str | None = option(None, help="type of the weights; by default the model's", choices=tuple(TOLERANCE))
    device: str = option("cpu", help="where the model is held meanwhile, such as cuda:0")
    tolerance: float | None = option(
        None, help="largest difference of logits, relative to the largest; by default 1e-4 in float32, more in 16 bit"
    )
    overwrite: bool = option(False, help="replace the output folder")
    dry_run: bool = option(False, help="check everything that needs no weights, say what would be done, and stop")


def check_folders(config: FolderConfig, base: Path, model: Path) -> str:
    """Return the type of the weights, after the checks of the output folder.

    Args:
        config: The command's settings.
        base: The base model's folder; the checkpoint's own for a whole model.
        model: The folder whose config.json says the type: one of the two.

    Raises:
        ConfigError: The output folder is one of the others or would be overwritten, or the type is none of `TOLERANCE`.
    """
    from llava.imagechain.vision import tower_source

    named = str(read_json(config.checkpoint / "config.json").get("mm_vision_tower") or "")
    tower = Path(tower_source(named, config.checkpoint))
    for name, folder in (("checkpoint", config.checkpoint), ("base", base), ("vision tower", tower)):
        if folder.is_dir() and folder.resolve().is_relative_to(config.output_dir.resolve()):  # would be deleted with it
            raise ConfigError(f"output_dir is or holds the {name}'s folder {folder}; give another one")
    refuse_existing(config.output_dir, overwrite=config.overwrite)
    settings = read_json(model / "config.json")
    dtype = config.dtype or str(settings.get("dtype") or settings.get("torch_dtype") or "float16")
    if dtype not in TOLERANCE:
        raise ConfigError(f"{model} is of type {dtype!r}; choose one of {', '.join(TOLERANCE)} with --dtype")
    return dtype


def compare_logits(found: torch.Tensor, wanted: torch.Tensor, config: FolderConfig, dtype: str) -> dict[str, float]:
    """Return by how much the written model's logits (L, V) differ from those wanted, and how much is allowed.

    Raises:
        ValueError: They differ by more.
    """
    difference = relative_difference(found, wanted)
    tolerance = TOLERANCE[dtype] if config.tolerance is None else config.tolerance
    if not difference <= tolerance:
        raise ValueError(
            f"the logits of the new folder differ from the checkpoint's by {difference:.2g} of the largest, allowed "
            f"are {tolerance:.2g}; nothing was written. Try --dtype float32."
        )
    logger.info("logits: largest relative difference %.2g, allowed %.2g", difference, tolerance)
    return {"logits_relative_difference": difference, "tolerance": tolerance}


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place on success and is removed on error.

    Raises:
        ConfigError: The folder exists, is not empty and may not be overwritten.
    """
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:40]}-"))
    old = temporary.with_name(temporary.name + "-old")
    try:
        temporary.chmod(0o755)
        yield temporary
        follow_umask(temporary)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise a ConfigError when a folder that holds something would be replaced without having been told to."""
    if path.is_file() or (path.is_dir() and not overwrite and any(path.iterdir())):
        raise ConfigError(f"{path} exists; --overwrite replaces it, or give another folder")


def find_base(checkpoint: Path, base: Path | None, advice: str = "give its folder with --base") -> Path:
    """Return the base model's folder of a LoRA folder: the given one, or the one the adapter names.

    Args:
        checkpoint: The LoRA folder.
        base: The given one.
        advice: What to do when it is not there.

    Raises:
        ConfigError: It is not there, or not a whole model.
    """
    named = str(read_object(checkpoint / "adapter_config.json").get("base_model_name_or_path") or "")
    tried = [base] if base else [checkpoint / named, Path(named)] if named else []
    found = next((folder for folder in tried if (folder / "config.json").is_file()), None)
    if found is None:
        raise ConfigError(
            f"the base model of {checkpoint} is missing ({', '.join(map(str, tried)) or 'the adapter names none'}); "
            f"{advice}"
        )
    if (found / "adapter_config.json").is_file():
        raise ConfigError(f"the base {found} is an adapter itself; merge that one first, then give the merged folder")
    return found.resolve()


def trained_base(config: FolderConfig) -> Path:
    """Return the base model's folder of the checkpoint, a LoRA folder.

    Raises:
        ConfigError: It is not there, not a whole model, or another one than the adapter was trained on.
    """
    base = find_base(config.checkpoint, config.base)
    if not config.other_base and (problem := other_base(config.checkpoint, base)):
        raise ConfigError(f"{problem}; give that one with --base, or take this one with --other-base")
    return base


def copy_training_manifest(checkpoint: Path, output_dir: Path) -> None:
    """Copy the training run's run.json; predictions read the variant there."""
    if source := training_manifest(checkpoint):
        shutil.copyfile(source, inside(output_dir, "run.json"))


def save_tower(model: Any, folder: Path) -> None:
    """Write a CLIP vision model's weights and config as every library version reads them.

    transformers 5 saves the names without the level `vision_model.`; 4.x would leave the tower at random values.
    """
    from safetensors.torch import save_file

    from llava.imagechain.compat import with_old_config_keys

    tensors = {
        f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in model.state_dict().items()
    }
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata={"format": "pt"})
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
    config.setdefault("dtype", str(model.dtype).removeprefix("torch."))
    write_json(folder / "config.json", with_old_config_keys(config))


def probe_pixels(tower: Any) -> torch.Tensor:
    """Return two images (2, 3, H, W) of random pixels in the range of the image processor's output."""
    import torch

    return torch.randn(2, 3, tower.image_size, tower.image_size, generator=torch.Generator().manual_seed(0))


def probe_ids(tokenizer: Any) -> torch.Tensor:
    """Return a prompt (1, L) with two image marks."""
    from llava.mm_utils import tokenizer_image_token

    return tokenizer_image_token("<image>".join(PROBE_TEXT), tokenizer, return_tensors="pt")[None]


def probe_logits(model: Any, tokenizer: Any) -> torch.Tensor:
    """Return a LLaVA model's logits (L, V) in float32 on the probe: two scenes of one frame each."""
    import torch

    tower = model.get_vision_tower()
    pixels = probe_pixels(tower).to(tower.device, tower.dtype)
    scenes = [list(pixels.unsqueeze(1))]
    with torch.inference_mode():
        ids = probe_ids(tokenizer).to(model.device)
        return model(input_ids=ids, images=scenes, modalities=["video-seq"]).logits[0].float().cpu()


def relative_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference of logits (L, V), relative to the largest wanted one; infinite for NaN.

    Raises:
        ValueError: The shapes differ.
    """
    if found.shape != wanted.shape:
        raise ValueError(f"Logits of shape {tuple(found.shape)} were found, {tuple(wanted.shape)} wanted.")
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    return difference if difference == difference else float("inf")
