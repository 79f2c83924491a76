"""The projector from vision features to language embeddings, with LLaVA's names and types."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn


class IdentityMap(nn.Module):
    """Pass features through; the projector type "identity" and the absent resampler."""

    def forward(self, features: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return the features unchanged."""
        return features

    @property
    def config(self) -> dict[str, Any]:
        """The config keys that describe an absent resampler."""
        return {"mm_resampler_type": None}


class ResidualBlock(nn.Module):
    """Normalise, two linear layers with GELU between, add the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(width)
        self.proj = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same shape."""
        normal = self.pre_norm(features)
        return normal + self.proj(normal)


def build_vision_projector(config: Any, **kwargs: Any) -> nn.Module:
    """Build the projector that a config names.

    "linear", "mlp2x_gelu" (any depth), "mlp2x_res2x_gelu" and "identity" are built here; any other type is handed to
    the builder of a LLaVA-NeXT checkout.

    Args:
        config: Gives `mm_projector_type`, `mm_hidden_size` and `hidden_size`.
        **kwargs: Handed on to the checkout's builder.

    Raises:
        ValueError: The type is unknown and there is no checkout under this package.
    """
    kind = getattr(config, "mm_projector_type", None) or "linear"
    if kind == "identity":
        return IdentityMap()
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    match = re.fullmatch(r"mlp(\d+)x(?:_res(\d+)x)?_gelu", kind)
    if match is None:
        try:
            from llava.model.multimodal_projector.builder import build_vision_projector as build_in_checkout
        except ImportError as error:
            raise ValueError(
                f"mm_projector_type {kind!r}: linear, mlp<N>x_gelu, mlp<N>x_res<M>x_gelu or identity was wanted; other "
                "types need a LLaVA-NeXT checkout under this package."
            ) from error
        return build_in_checkout(config, **kwargs)
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(int(match[1]) - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    layers += [ResidualBlock(config.hidden_size) for _ in range(int(match[2] or 0))]
    return nn.Sequential(*layers)


def build_vision_resampler(config: Any, **kwargs: Any) -> nn.Module:
    """Return the identity, or the resampler of a LLaVA-NeXT checkout when `mm_resampler_type` names one.

    Raises:
        ValueError: A resampler is named and there is no checkout under this package.
    """
    kind = getattr(config, "mm_resampler_type", None)
    if kind is None:
        return IdentityMap()
    try:
        from llava.model.multimodal_resampler.builder import build_vision_resampler as build_in_checkout
    except ImportError as error:
        raise ValueError(
            f"mm_resampler_type {kind!r} needs a LLaVA-NeXT checkout under this package: {error}"
        ) from error
    return build_in_checkout(config, **kwargs)
