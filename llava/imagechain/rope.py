"""Room for longer stories: rotary positions squeezed so that the longest one fits (`overlength: rope_scaling`)."""

from __future__ import annotations

import math
from typing import Any

RESERVE = 128  # positions for the answer that prediction asks for
LIMIT = "max_sequence_length"  # LLaVA's key for the length of a model with scaled positions


def scale_positions(config: Any, longest: int, model: Any = None) -> float:
    """Scale a model's rotary positions linearly, when the longest example needs it.

    The factor is rounded up to a quarter, and written into the config under the names of all library versions: a
    checkpoint says with which positions it was trained, and prediction has as much room.

    Args:
        config: The model's config; changed in place.
        longest: Positions of the longest example.
        model: The LLaVA model with this config; None where there is only a config.

    Returns:
        The factor; 1 leaves everything as it is.

    Raises:
        ValueError: The model's positions are scaled already, or are not rotary.
    """
    known = int(config.max_position_embeddings)
    factor = math.ceil(4 * (longest + RESERVE) / known) / 4
    if factor <= 1:
        return 1.0
    now = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if now.get("rope_type", now.get("type", "default")) != "default":
        raise ValueError(f"overlength rope_scaling: the model's positions are scaled already ({now}); use drop_oldest.")
    scaling = {"rope_type": "linear", "factor": factor}
    if getattr(config, "rope_parameters", None):  # transformers 5
        config.rope_parameters = {**config.rope_parameters, **scaling}
    else:
        config.rope_scaling = {**scaling, "type": "linear"}
    room = int(known * factor)
    setattr(config, LIMIT, room)
    config.tokenizer_model_max_length = room
    if model is not None:
        body = model.get_model()
        rotary = getattr(body, "rotary_emb", None)
        if rotary is None:
            raise ValueError(f"overlength rope_scaling: {type(body).__name__} has no rotary positions of its own.")
        body.rotary_emb = type(rotary)(config=config).to(rotary.inv_freq.device)
    return factor
