"""Images and prompts to tensors: tiling, padding, tokenizing around image marks, stopping on words."""

from __future__ import annotations

import ast
import base64
import math
import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX

Size = tuple[int, int]
_TILE_SIZES = (224, 336, 384, 448, 512)


def resize_and_center_crop(image: Image.Image, shortest_edge_length: int) -> Image.Image:
    """Scale the shorter side to a length in pixels and cut the square in the middle."""
    ratio = image.width / image.height
    width = int(shortest_edge_length * ratio) if ratio > 1 else shortest_edge_length
    height = shortest_edge_length if ratio > 1 else int(shortest_edge_length / ratio)
    left, top = (width - shortest_edge_length) / 2, (height - shortest_edge_length) / 2
    box = (left, top, left + shortest_edge_length, top + shortest_edge_length)
    return image.resize((width, height), Image.Resampling.LANCZOS).crop(box)


def auto_pad_images(image: Image.Image, grid_params: Sequence[int]) -> Image.Image:
    """Scale into the grid resolution of the nearest shape and pad with black.

    Args:
        image: The image.
        grid_params: Allowed side lengths in pixels; any pair is a resolution.
    """
    ratio = image.width / image.height
    pairs = [(width, height) for width in grid_params for height in grid_params]
    nearest = min(pairs, key=lambda pair: abs(ratio - pair[0] / pair[1]))
    same_shape = [pair for pair in pairs if abs(pair[0] / pair[1] - nearest[0] / nearest[1]) < 1e-3]
    target = min(same_shape, key=lambda pair: abs(max(image.size) / max(pair) - 1))
    wide = image.width > image.height
    size = (target[0], int(target[0] / ratio)) if wide else (int(target[1] * ratio), target[1])
    padded = Image.new("RGB", target)
    padded.paste(image.resize(size, Image.Resampling.LANCZOS), ((target[0] - size[0]) // 2, (target[1] - size[1]) // 2))
    return padded


def extract_patches(image: Image.Image, patch_size: int, overlap_ratio: float) -> list[Image.Image]:
    """Cut an image into squares, row by row, centred when they do not fill it.

    Args:
        image: The image.
        patch_size: Side of a square in pixels.
        overlap_ratio: Share of a side by which neighbours overlap, 0 to below 1.
    """
    if patch_size <= 0 or not 0 <= overlap_ratio < 1:
        raise ValueError(f"patch_size > 0 and 0 <= overlap_ratio < 1 were wanted, found {patch_size}, {overlap_ratio}.")
    stride = int(patch_size * (1 - overlap_ratio))
    counts = [(length - patch_size) // stride + 1 for length in image.size]
    starts = [
        (length - (count - 1) * stride - patch_size) // 2 for length, count in zip(image.size, counts, strict=True)
    ]
    corners = [
        (starts[0] + column * stride, starts[1] + row * stride)
        for row in range(counts[1])
        for column in range(counts[0])
    ]
    return [image.crop((x, y, x + patch_size, y + patch_size)) for x, y in corners]


def process_highres_image_crop_split(image: Image.Image, data_args: Any, processor: Any = None) -> torch.Tensor:
    """Crop to a square of `image_crop_resolution` and cut it into `image_split_resolution` tiles (T, 3, H, W)."""
    square = resize_and_center_crop(image, data_args.image_crop_resolution)
    tiles = extract_patches(square, patch_size=data_args.image_split_resolution, overlap_ratio=0)
    return _pixels(tiles, data_args.image_processor if processor is None else processor)


def process_highres_image(image: Image.Image, processor: Any, grid_pinpoints: str) -> torch.Tensor:
    """Return the whole image and the tiles of its padded square at the largest listed side (1 + T, 3, H, W).

    Args:
        image: The image.
        processor: The tower's image processor.
        grid_pinpoints: Side lengths in pixels, separated by commas.
    """
    side, tile = max(int(text) for text in grid_pinpoints.split(",")), _shortest_edge(processor)
    square = expand2square(image, _mean_colour(processor)).resize((side, side))
    tiles = extract_patches(square, patch_size=tile, overlap_ratio=0)
    return _pixels([image.resize((tile, tile)), *tiles], processor)


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Sequence[int]]) -> Size:
    """Return the resolution that keeps most of an image's pixels, and of equals the one that wastes least.

    Args:
        original_size: (width, height) in pixels.
        possible_resolutions: (width, height) pairs.
    """
    width, height = original_size

    def kept_and_unwasted(resolution: Sequence[int]) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    best = max(possible_resolutions, key=kept_and_unwasted)
    return best[0], best[1]


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Scale an image into a resolution, keeping its shape, and centre it on black."""
    target_width, target_height = target_resolution
    scale_x, scale_y = target_width / image.width, target_height / image.height
    if scale_x < scale_y:
        size = (target_width, min(math.ceil(image.height * scale_x), target_height))
    else:
        size = (min(math.ceil(image.width * scale_y), target_width), target_height)
    padded = Image.new("RGB", (target_width, target_height))
    padded.paste(image.resize(size), ((target_width - size[0]) // 2, (target_height - size[1]) // 2))
    return padded


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cut an image into squares from its top left corner, row by row."""
    corners = [(x, y) for y in range(0, image.height, patch_size) for x in range(0, image.width, patch_size)]
    return [image.crop((x, y, x + patch_size, y + patch_size)) for x, y in corners]


def get_anyres_image_grid_shape(image_size: Size, grid_pinpoints: Any, patch_size: int) -> Size:
    """Return (columns, rows) of the tiles that an image of this size is cut into.

    Args:
        image_size: (width, height) in pixels.
        grid_pinpoints: A list of (width, height), its text, or "(1x1),...,(6x6)" in tiles.
        patch_size: Side of a tile in pixels.
    """
    width, height = select_best_resolution(image_size, _resolutions(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: Any) -> torch.Tensor:
    """Return the whole image, resized to a square, and its tiles (1 + T, 3, H, W).

    Args:
        image: The image.
        processor: The tower's image processor.
        grid_pinpoints: As for `get_anyres_image_grid_shape`.
    """
    edge = _shortest_edge(processor)
    best = select_best_resolution(image.size, _resolutions(grid_pinpoints, edge))
    tiles = divide_to_patches(resize_and_pad_image(image, best), processor.crop_size["height"])
    return _pixels([image.resize((edge, edge)), *tiles], processor)


def load_image_from_base64(image: str) -> Image.Image:
    """Open an image given as base64 text."""
    return Image.open(BytesIO(base64.b64decode(image)))


def expand2square(pil_img: Image.Image, background_color: Any) -> Image.Image:
    """Centre an image on a square of a colour; a square image is given back as it is."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(images: Sequence[Image.Image], image_processor: Any, model_cfg: Any) -> Any:
    """Process images as a model's `image_aspect_ratio` says: one stacked tensor where all shapes agree, else a list."""
    aspect = getattr(model_cfg, "image_aspect_ratio", None) or "square"
    if aspect == "highres":
        tensors = [process_highres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images]
    elif aspect == "anyres" or "anyres_max" in aspect:
        tensors = [process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images]
    elif aspect == "crop_split":
        tensors = [process_highres_image_crop_split(image, model_cfg, image_processor) for image in images]
    elif aspect == "pad":
        colour = _mean_colour(image_processor)
        tensors = [_pixels([expand2square(image, colour)], image_processor)[0] for image in images]
    else:
        return _pixels(list(images), image_processor)
    return torch.stack(tensors) if all(tensor.shape == tensors[0].shape for tensor in tensors) else tensors


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> Any:
    """Tokenize a prompt, one mark of its own for each "<image>" in it.

    Args:
        prompt: Text with "<image>" where an image goes.
        tokenizer: The model's tokenizer.
        image_token_index: The id that marks an image.
        return_tensors: "pt" for a tensor (L), None for a list.

    Raises:
        ValueError: Another kind of tensor is asked for.
    """
    ids: list[int] = []
    for number, piece in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN)):
        piece_ids = list(tokenizer(_kept_space(piece, tokenizer)).input_ids)
        starts_with_bos = piece_ids[:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
        if number:
            ids.append(image_token_index)
            piece_ids = piece_ids[1:] if starts_with_bos else piece_ids
        ids += piece_ids
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise ValueError(f"return_tensors: 'pt' or None was wanted, found {return_tensors!r}.")
    return torch.tensor(ids, dtype=torch.long)


def get_model_name_from_path(model_path: str) -> str:
    """Return the last part of a path; for a checkpoint folder, with the run's name before it."""
    parts = model_path.strip("/").split("/")
    return f"{parts[-2]}_{parts[-1]}" if parts[-1].startswith("checkpoint-") and len(parts) > 1 else parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stop a row once one of the keywords stands at its end, as ids or in its text."""

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: torch.Tensor) -> None:
        """Remember the keywords.

        Args:
            keywords: Words to stop at.
            tokenizer: The model's tokenizer.
            input_ids: The prompt (B, L); its length is not searched where the output repeats it.
        """
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.start_len = input_ids.shape[1]
        self.keyword_ids = []
        for keyword in self.keywords:
            ids = tokenizer(keyword).input_ids
            ids = ids[1:] if len(ids) > 1 and ids[0] == tokenizer.bos_token_id else ids
            self.keyword_ids.append(torch.tensor(ids))
        self._prompt_length: int | None = None

    def __call__(self, output_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Return for each row whether it ends here (B)."""
        if self._prompt_length is None:  # generation from embeddings gives new tokens only
            self._prompt_length = self.start_len if output_ids.shape[1] > self.start_len else 0
        rows = [self._stops(row[self._prompt_length :]) for row in output_ids]
        return torch.tensor(rows, dtype=torch.bool, device=output_ids.device)

    def _stops(self, new_ids: torch.Tensor) -> bool:
        if any(new_ids[-len(ids) :].equal(ids.to(new_ids)) for ids in self.keyword_ids if len(ids)):
            return True
        window = max([3, *(len(ids) + 1 for ids in self.keyword_ids)])
        text = self.tokenizer.decode(new_ids[-window:], skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)


def _pixels(images: list[Image.Image], processor: Any) -> torch.Tensor:
    return torch.as_tensor(processor.preprocess(images, return_tensors="pt")["pixel_values"])


def _mean_colour(processor: Any) -> tuple[int, ...]:
    return tuple(int(value * 255) for value in processor.image_mean)


def _shortest_edge(processor: Any) -> int:
    size = processor.size
    return min(size) if isinstance(size, (tuple, list)) else size["shortest_edge"]


def _resolutions(grid_pinpoints: Any, tile: int) -> list[list[int]]:
    """Return (width, height) pairs from a list, its text, or a range of tile counts such as "(1x1),...,(6x6)"."""
    if not isinstance(grid_pinpoints, str):
        return [list(pair) for pair in grid_pinpoints]
    if "x" not in grid_pinpoints:
        return ast.literal_eval(grid_pinpoints)
    if tile not in _TILE_SIZES:
        raise ValueError(f"image_grid_pinpoints {grid_pinpoints!r} needs tiles of {_TILE_SIZES}, found {tile} pixels.")
    pairs = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", grid_pinpoints)]
    (first_a, first_b), (last_a, last_b) = pairs[0], pairs[-1]
    return [[a * tile, b * tile] for a in range(first_a, last_a + 1) for b in range(first_b, last_b + 1)]


def _kept_space(piece: str, tokenizer: Any) -> str:
    """Double a leading space for tokenizers that swallow the first one, as sentencepiece itself does not.

    transformers 5.x runs Llama's tokenizer on another backend; only text that starts with a space differs.
    """
    if not piece.startswith(" ") or not getattr(tokenizer, "is_fast", False):
        return piece
    swallows = tokenizer(" a", add_special_tokens=False).input_ids == tokenizer("a", add_special_tokens=False).input_ids
    return " " + piece if swallows else piece
