"""The other side of scripts/bench/train.sh: what the authors' training does in a step, lever by lever.

Their model runs the vision tower and the projector once per scene with all hidden states kept, their script turns
gradient checkpointing on for all layers, batches are drawn in random order, and the loss takes the logits of every
position. Weights, data, dtype, threads and optimizer are the caller's, the same as on our side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def random_order(count: int, seed: int) -> list[int]:
    """Return the examples in random order, whatever their lengths."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


@contextlib.contextmanager
def one_tower_call_per_scene(model: Any) -> Iterator[None]:
    """Make a LLaVA model encode and project one scene after the other."""
    whole_batch, project = model._encode_blocks, model._project_blocks
    tower = model.get_vision_tower()

    def encode(frames: torch.Tensor) -> torch.Tensor:
        outputs = tower.vision_tower(frames.to(tower.device, tower.dtype), output_hidden_states=True)
        return outputs.hidden_states[tower.select_layer][:, 1:].to(frames.dtype)

    model._encode_blocks = lambda blocks, *_: [encode(frames) for _, frames in blocks]
    model._project_blocks = lambda blocks, is_scene: [
        project([block], [scene])[0] for block, scene in zip(blocks, is_scene, strict=True)
    ]
    try:
        yield
    finally:
        model._encode_blocks, model._project_blocks = whole_batch, project


@contextlib.contextmanager
def full_checkpointing(model: Any) -> Iterator[None]:
    """Compute the activations of every layer of the language model again in the backward pass."""
    model.gradient_checkpointing_enable()
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def loss_of_all_positions(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the loss by way of the logits of every position."""
    return model(**batch, return_logits=True).loss
