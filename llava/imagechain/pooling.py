"""Frames of a scene to scene tokens: which frames enter, and their mean (paper section 3.2)."""

from __future__ import annotations

from typing import Any

import torch

from llava.imagechain.decisions import decision

# Policy of a scene -> the frames that enter its mean. Every scene but the last one uses "mean".
POOLING: dict[str, slice] = {"mean": slice(None), "last_frame": slice(-1, None)}


def evenly_spaced(count: int, most: int | None) -> list[int]:
    """Return which frames of a scene are kept: at most `most`, evenly spaced, both ends included.

    Of one the middle is kept (of two middle ones the earlier): the first shows a scene before anything has happened,
    the last is next to the following scene.

    Args:
        count: Frames of the scene.
        most: Frames to keep; None or 0 keeps all.
    """
    if not most or count <= most:
        return list(range(count))
    if most == 1:
        return [(count - 1) // 2]
    gaps = most - 1
    return [(2 * number * (count - 1) + gaps) // (2 * gaps) for number in range(most)]


def needed_frames(scenes: list[torch.Tensor], config: Any) -> list[torch.Tensor]:
    """Return of each scene the frames that enter its vector, along dimension 0.

    DEVIATION: the paper averages every scene; the authors' code takes the last frame of the last scene. The config key
    `imagechain_last_scene` chooses.

    Args:
        scenes: One tensor (F, ...) a scene.
        config: The model's config.
    """
    last = POOLING[decision(config, "imagechain_last_scene")]
    return [*scenes[:-1], scenes[-1][last]]


def mean_over_frames(features_FND: torch.Tensor) -> torch.Tensor:
    """Return the mean over frames (N, D), taken in float32 and given back in the input's dtype."""
    return features_FND.float().mean(dim=0).to(features_FND.dtype)
