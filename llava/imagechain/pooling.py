"""Frames of a scene to scene tokens: which frames enter, and their mean (paper section 3.2)."""

from __future__ import annotations

from typing import Any

import torch

from llava.imagechain.decisions import decision

# Policy of a scene -> the frames that enter its mean. Every scene but the last one uses "mean".
POOLING: dict[str, slice] = {"mean": slice(None), "last_frame": slice(-1, None)}


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
