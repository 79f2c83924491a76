"""Features of one image, image tiles or video to the tokens that stand for it, by LLaVA-NeXT's rules.

Shape letters: T tiles (the first is the whole image), F frames, N = side x side tokens, D embedding size.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import torch
from torch.nn import functional

from llava.mm_utils import get_anyres_image_grid_shape

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeRules:
    """What the merging of a model's image features depends on.

    Attributes:
        config: The model's config.
        side: Tokens along one side of an image.
        image_size: Side of a tile in pixels.
        newline: The learned line end (D), or None.
    """

    config: Any
    side: int
    image_size: int
    newline: torch.Tensor | None

    @property
    def merge_type(self) -> str:
        """`mm_patch_merge_type`: "flat", or "spatial" with "unpad", "maxpool2x2", "nobase" in its name."""
        kind = getattr(self.config, "mm_patch_merge_type", None) or "flat"
        if kind != "flat" and not kind.startswith("spatial"):
            raise ValueError(f"mm_patch_merge_type: flat or spatial... was wanted, found {kind!r}.")
        return kind

    def line_end(self, like: torch.Tensor) -> torch.Tensor:
        """Return the line end on the device and in the dtype of some features.

        Raises:
            ValueError: The checkpoint has none.
        """
        if self.newline is None:
            raise ValueError("image_newline is needed for this image layout, but the checkpoint has none.")
        return self.newline.to(device=like.device, dtype=like.dtype)


def image_tokens(features_TND: torch.Tensor, size: Size | None, rules: MergeRules) -> torch.Tensor:
    """Return the tokens (n, D) of an image given as one tile or as anyres tiles.

    Args:
        features_TND: Projected features.
        size: (width, height) of the original image in pixels; needed for anyres tiles.
        rules: The model's merging rules.
    """
    if rules.merge_type == "flat":
        return features_TND.flatten(0, 1)
    if len(features_TND) > 1:
        return _tile_tokens(features_TND, size, rules)
    return end_line(features_TND[0], rules)


def end_line(tokens_ND: torch.Tensor, rules: MergeRules) -> torch.Tensor:
    """Return tokens with one line end behind them where the layout has one."""
    if "unpad" not in rules.merge_type:
        return tokens_ND
    return torch.cat([tokens_ND, rules.line_end(tokens_ND)[None]])


def video_tokens(features_FND: torch.Tensor, rules: MergeRules) -> torch.Tensor:
    """Return the tokens (n, D) of a video: each frame pooled 2 x 2, line ends where `mm_newline_position` says."""
    if getattr(rules.config, "add_faster_video", False):
        raise NotImplementedError("add_faster_video (slow and fast frames) is not supported; set it to false.")
    pooled = pool_frames(features_FND, rules)
    if rules.merge_type == "flat":
        return pooled.flatten(0, 1)
    position = getattr(rules.config, "mm_newline_position", None) or "one_token"
    if position == "grid":
        side = math.isqrt(pooled.shape[1])
        return _with_line_ends(pooled.unflatten(1, (side, side)).flatten(0, 1), rules)
    if position == "frame":
        return _with_line_ends(pooled, rules)
    if position == "one_token":
        return end_line(pooled.flatten(0, 1), rules)
    if position == "no_token":
        return pooled.flatten(0, 1)
    raise ValueError(f"mm_newline_position: grid, frame, one_token or no_token was wanted, found {position!r}.")


def pool_frames(features_FND: torch.Tensor, rules: MergeRules, stride: int = 2) -> torch.Tensor:
    """Return frames (F, n, D) pooled over squares of `stride` tokens, as `mm_spatial_pool_mode` says."""
    plane = features_FND.unflatten(1, (rules.side, rules.side)).permute(0, 3, 1, 2)
    mode = getattr(rules.config, "mm_spatial_pool_mode", None) or "bilinear"
    if mode == "average":
        plane = functional.avg_pool2d(plane, stride)
    elif mode == "max":
        plane = functional.max_pool2d(plane, stride)
    elif mode == "bilinear":
        shape = [math.ceil(rules.side / stride)] * 2
        plane = functional.interpolate(plane, size=shape, mode="bilinear")
    else:
        raise ValueError(f"mm_spatial_pool_mode: average, max or bilinear was wanted, found {mode!r}.")
    return plane.flatten(2).transpose(1, 2)


def unpad_image(tensor: torch.Tensor, original_size: Size) -> torch.Tensor:
    """Cut away the rows or columns of a feature plane (D, H, W) that came from padding.

    Args:
        tensor: The plane of a padded image.
        original_size: (width, height) of the image before padding.
    """
    width, height = original_size
    plane_height, plane_width = tensor.shape[1:]
    if width / height > plane_width / plane_height:
        cut = (plane_height - int(height * (plane_width / width))) // 2
        return tensor[:, cut : plane_height - cut, :]
    cut = (plane_width - int(width * (plane_height / height))) // 2
    return tensor[:, :, cut : plane_width - cut]


def _with_line_ends(rows_RND: torch.Tensor, rules: MergeRules) -> torch.Tensor:
    """Return rows of tokens (R, n, D) with a line end behind each, flattened to (R (n + 1), D)."""
    ends = rules.line_end(rows_RND).expand(len(rows_RND), 1, -1)
    return torch.cat([rows_RND, ends], dim=1).flatten(0, 1)


def _tile_tokens(features_TND: torch.Tensor, size: Size | None, rules: MergeRules) -> torch.Tensor:
    base, tiles = features_TND[0], features_TND[1:]
    aspect = getattr(rules.config, "image_aspect_ratio", None) or "square"
    columns, rows = _grid(len(tiles), size, aspect, rules)
    if columns * rows != len(tiles) or rules.side**2 != tiles.shape[1]:
        raise ValueError(
            f"{len(tiles)} tiles of {tiles.shape[1]} tokens were found, {columns} x {rows} of {rules.side**2} were "
            "wanted for this image size: image_sizes and image_grid_pinpoints must be those of its processing."
        )
    grid = tiles.view(rows, columns, rules.side, rules.side, -1)
    if "maxpool2x2" in rules.merge_type:
        merged = functional.max_pool2d(_plane(grid), 2).flatten(1).transpose(0, 1)
    elif "unpad" in rules.merge_type:
        if size is None:
            raise ValueError(
                "image_sizes is needed to cut the padding off anyres tiles; pass (width, height) per image."
            )
        plane = _shrink(unpad_image(_plane(grid), size), aspect, rules)
        merged = _with_line_ends(plane.permute(1, 2, 0), rules)
    else:
        merged = grid.transpose(1, 2).flatten(0, 3)
    return merged if "nobase" in rules.merge_type else torch.cat([base, merged])


def _grid(num_tiles: int, size: Size | None, aspect: str, rules: MergeRules) -> Size:
    if aspect.startswith("anyres") and size is not None:
        return get_anyres_image_grid_shape(size, rules.config.image_grid_pinpoints, rules.image_size)
    side = math.isqrt(num_tiles)
    return side, side


def _plane(grid: torch.Tensor) -> torch.Tensor:
    """Return a grid of tiles (rows, columns, side, side, D) as one plane (D, H, W)."""
    return grid.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)


def _shrink(plane: torch.Tensor, aspect: str, rules: MergeRules) -> torch.Tensor:
    """With "anyres_max_N", scale a plane (D, H, W) that is over the area of N tiles by more than a tenth per side."""
    match = re.match(r"anyres_max_(\d+)", aspect)
    if match is None:
        return plane
    height, width = plane.shape[1:]
    times = math.sqrt(height * width / (int(match[1]) * rules.side**2))
    if times <= 1.1:
        return plane
    return functional.interpolate(plane[None], [int(height // times), int(width // times)], mode="bilinear")[0]
