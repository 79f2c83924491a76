"""The CLIP vision tower: built from its config, filled afterwards, run once for all frames of a batch.

Shape letters: F frames, N tokens per frame, D feature size.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.imagechain.compat import clip_layer_masks, gathered, is_distributed, load_image_processor
from llava.imagechain.files import read_json
from llava.imagechain.weights import local_folder, read_tensors, shortened

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


def tower_source(name: str, checkpoint_dir: str | Path | None) -> str:
    """Return where a vision tower lies: a relative name is looked up beside the checkpoint's own files first.

    Args:
        name: `mm_vision_tower` of a config: a path, a path relative to the checkpoint folder, or a hub name.
        checkpoint_dir: The folder the config came from.
    """
    if checkpoint_dir and not Path(name).is_absolute() and (beside := Path(checkpoint_dir) / name).is_dir():
        return str(beside)
    return name


def portable_tower_name(name: str, checkpoint_dir: str | Path | None, output_dir: str | Path) -> str:
    """Return a tower's name for a config.json in another folder: a relative one keeps pointing at the same folder."""
    source = tower_source(name, checkpoint_dir)
    return name if source == name else os.path.relpath(Path(source).resolve(), Path(output_dir).resolve())


class CLIPVisionTower(nn.Module):
    """A CLIP vision model with LLaVA's tower interface; frozen unless its parameters are set to train.

    The model is built from its config (so that it can be built inside a checkpoint load, on the meta device). Weights
    come from the checkpoint, or from the tower's own folder through `load_model`.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        """Build the tower.

        Args:
            vision_tower: Folder or hub name of the tower.
            args: Gives `mm_vision_select_layer` and `mm_vision_select_feature`.
            delay_load: Kept for callers of LLaVA; weights always arrive after the build.
        """
        super().__init__()
        self.vision_tower_name = vision_tower
        self.select_layer = int(getattr(args, "mm_vision_select_layer", -2))
        self.select_feature = getattr(args, "mm_vision_select_feature", None) or "patch"
        self.frames_per_call: int | None = None
        self.is_loaded = False
        self._image_processor: Any = None
        try:
            # Named, so that a config.json cannot name a kernel of the hub, which is code.
            config = CLIPVisionConfig.from_pretrained(vision_tower, attn_implementation="sdpa")
        except OSError as error:
            raise FileNotFoundError(
                f"The config of the vision tower {vision_tower!r} was not found: {str(error).splitlines()[0]} Set "
                "mm_vision_tower in config.json to a CLIP folder (absolute, or relative to the checkpoint folder)."
            ) from error
        self.vision_tower = CLIPVisionModel(config)
        self.vision_tower.requires_grad_(False)

    def load_model(self, device_map: Any = None) -> None:
        """Fill the tower from its own folder, unless its weights are there already."""
        if not self.is_loaded:
            self.fill()

    def fill(self, names: Collection[str] | None = None) -> None:
        """Copy tensors of the tower folder into the model.

        Args:
            names: Names inside the CLIP model to fill; None fills all.

        Raises:
            FileNotFoundError: The tower folder holds no weights.
            ValueError: Tensors are missing there or have another shape; the message names them.
        """
        parameters = {_plain(name): parameter for name, parameter in self.vision_tower.named_parameters()}
        wanted = set(parameters) if names is None else {_plain(name) for name in names} & set(parameters)
        folder = local_folder(self.vision_tower_name)
        found = {_plain(name): tensor for name, tensor in read_tensors(folder, lambda n: _plain(n) in wanted).items()}
        if absent := sorted(wanted - set(found)):
            raise ValueError(
                f"Vision weights missing in the checkpoint and in the tower folder {folder}: {shortened(absent)}."
            )
        wrong = sorted(
            n for n in wanted if not hasattr(parameters[n], "ds_id") and found[n].shape != parameters[n].shape
        )
        if wrong:
            raise ValueError(f"Vision weights of another shape in the tower folder {folder}: {shortened(wrong)}.")
        with gathered(parameters.values()), torch.no_grad():
            for name in wanted:
                if parameters[name].is_meta:
                    raise ValueError(
                        f"Vision tensor {name} is still on the meta device; load the model with its weights."
                    )
                parameters[name].copy_(found[name])
        self.is_loaded = True

    def train(self, mode: bool = True) -> CLIPVisionTower:
        """Set training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def forward(self, images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Encode images (F, 3, H, W) to the chosen features (F, N, D) in the images' dtype; a list gives a list."""
        if isinstance(images, list):
            return [self._encode(image[None]) for image in images]
        return self._encode(images)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(trains):
            return self._features(images.to(device=self.device, dtype=self.dtype)).to(images.dtype)

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        core = getattr(self.vision_tower, "vision_model", self.vision_tower)
        wanted = self._hidden_state_indices()
        hidden = core.pre_layrnorm(core.embeddings(pixels))
        kept = {0: hidden}
        # Layers above the last wanted one are not run (LLaVA reads the second to last hidden state).
        for index, layer in enumerate(core.encoder.layers[: max(wanted)], start=1):
            hidden = layer(hidden, *clip_layer_masks(layer))
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            if index in wanted:
                kept[index] = hidden
        features = torch.cat([kept[index] for index in wanted], dim=-1) if len(wanted) > 1 else kept[wanted[0]]
        return features if self.select_feature.endswith("cls_patch") else features[:, 1:]

    def _hidden_state_indices(self) -> list[int]:
        count = self.config.num_hidden_layers + 1
        if self.select_feature.startswith("slicefour_"):
            step = count // 4
            return [index % count for index in range(step + self.select_layer, count, step)]
        if self.select_feature.startswith("slice_m25811_f6_"):
            return [index % count for index in (-2, -5, -8, -11, 6)]
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"mm_vision_select_feature: patch or cls_patch was wanted, found {self.select_feature!r}.")
        return [self.select_layer % count]

    @property
    def image_processor(self) -> Any:
        """The image processor of the tower folder."""
        if self._image_processor is None:
            self._image_processor = load_image_processor(self.vision_tower_name)
        return self._image_processor

    @property
    def dummy_feature(self) -> torch.Tensor:
        """One feature of zeros (1, D)."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.vision_tower.device

    @property
    def config(self) -> Any:
        """The CLIP config."""
        return self.vision_tower.config

    @property
    def hidden_size(self) -> int:
        """Feature size D."""
        return self.config.hidden_size * len(self._hidden_state_indices())

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one side of an image."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """Tokens per image N."""
        return self.num_patches_per_side**2 + self.select_feature.endswith("cls_patch")

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.config.image_size


def build_vision_tower(config: Any, **kwargs: Any) -> nn.Module:
    """Build the tower that a config names: CLIP here, any other kind by the builder of a LLaVA-NeXT checkout.

    Raises:
        ValueError: No tower is named, or it is not CLIP and there is no checkout under this package.
    """
    name = getattr(config, "mm_vision_tower", None) or getattr(config, "vision_tower", None)
    if not name:
        raise ValueError("mm_vision_tower is empty; a CLIP folder or hub name was wanted.")
    folder = getattr(config, "checkpoint_dir", None) or getattr(config, "_name_or_path", None)
    source = tower_source(name, folder)
    if _is_clip(source) and not getattr(config, "s2", False):
        return CLIPVisionTower(source, config, **kwargs)
    try:
        from llava.model.multimodal_encoder.builder import build_vision_tower as build_in_checkout

        return build_in_checkout(config, **kwargs)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"mm_vision_tower {name!r} was found; a folder with a CLIP vision model, or an openai/ or laion/ hub name, "
            f"was wanted (other towers need a LLaVA-NeXT checkout under this package): {error}"
        ) from error


def complete_vision_tower(model: Any, missing_keys: Collection[str]) -> list[str]:
    """After a checkpoint load: fill the vision weights that it did not hold from the tower's own folder.

    Args:
        model: A LLaVA model.
        missing_keys: Parameter names that the load did not find.

    Returns:
        The missing names that are not the tower's.
    """
    tower = model.get_vision_tower()
    prefix = "model.vision_tower.vision_tower."
    missing = [name.removeprefix(prefix) for name in missing_keys if name.startswith(prefix)]
    if isinstance(tower, CLIPVisionTower):
        if missing:
            logger.info("%d vision tensors are filled from %s.", len(missing), tower.vision_tower_name)
            tower.fill(missing)
        tower.is_loaded = True
        tower.requires_grad_(False)  # transformers 5 makes new parameters while it loads
    elif tower is not None and missing:
        tower.is_loaded = False
        tower.load_model()
    return [name for name in missing_keys if not name.startswith(prefix)]


def in_step(module: nn.Module) -> bool:
    """Say whether the processes have to run a module equally often: in training, and wherever ZeRO-3 spreads it.

    Processes that predict each for itself must not wait for each other.
    """
    return is_distributed() and (module.training or any(hasattr(p, "ds_id") for p in module.parameters()))


def encode_frames(
    tower: Any, frames: torch.Tensor, frames_per_call: int | None = None, *, in_step: bool = False
) -> torch.Tensor:
    """Run the tower over all frames of a batch.

    With ZeRO-3 each call gathers parameters from all processes, so a process that makes fewer calls would hang the
    others.

    Args:
        tower: Maps (F, 3, H, W) to (F, N, D).
        frames: All frames (F, 3, H, W); F may be 0.
        frames_per_call: Most frames in one call; None sends all at once.
        in_step: Every process makes as many calls as the one with most; one that has run out sends a frame of zeros.

    Returns:
        Features (F, N, D).
    """
    limit = frames_per_call or max(len(frames), 1)
    calls = math.ceil(len(frames) / limit)
    if in_step:
        shared = torch.tensor(calls, device=tower.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        calls = int(shared)
    outputs = []
    for number in range(calls):
        chunk = frames[number * limit : (number + 1) * limit]
        if len(chunk):
            outputs.append(tower(chunk))
        else:
            outputs.append(tower(frames.new_zeros(1, 3, tower.image_size, tower.image_size))[:0])
    if not outputs:
        return frames.new_zeros(0, tower.num_patches, tower.hidden_size)
    return torch.cat(outputs)


def process_scene_frames(frames: list[Image.Image], image_processor: Any, scene_aspect: str = "crop") -> torch.Tensor:
    """Turn the frames of a scene into pixels, one square image a frame.

    Args:
        frames: Images of any size and mode.
        image_processor: The tower's image processor.
        scene_aspect: "crop": CLIP's resize and centre crop; "pad": padded to a square with the mean colour first.

    Returns:
        Pixels (F, 3, H, W), float32.
    """
    from llava.mm_utils import expand2square

    images = [frame.convert("RGB") for frame in frames]
    if scene_aspect == "pad":
        background = tuple(int(value * 255) for value in image_processor.image_mean)
        images = [expand2square(image, background) for image in images]
    elif scene_aspect != "crop":
        raise ValueError(f"imagechain_scene_aspect: crop or pad was wanted, found {scene_aspect!r}.")
    return torch.as_tensor(image_processor.preprocess(images, return_tensors="pt")["pixel_values"])


def _plain(name: str) -> str:
    """Return a CLIP tensor name without the level that only some library versions and files have."""
    return name.removeprefix("vision_model.")


def _is_clip(source: str) -> bool:
    if (config := Path(source) / "config.json").is_file():
        return str(read_json(config).get("model_type", "")).startswith("clip")
    return source.startswith(("openai", "laion")) or "ShareGPT4V" in source
