"""The decisions that live in a model's config.json: what training chose, prediction must follow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

# Allowed values, the default first (docs/fidelity.md gives the reasons).
DECISIONS: dict[str, tuple[str, ...]] = {
    "imagechain_last_scene": ("mean", "last_frame"),
    "imagechain_pooling": ("after_projector", "before_projector"),
    "imagechain_scene_aspect": ("crop", "pad"),
    "imagechain_prompt": ("figure3", "template"),
}


def decision(config: Any, name: str) -> str:
    """Return a decision from a model config, or its default when the config does not carry it.

    Raises:
        ValueError: The config holds a value that is not one of the allowed ones.
    """
    value = getattr(config, name, None)
    value = DECISIONS[name][0] if value is None else value
    if value not in DECISIONS[name]:
        raise ValueError(f"{name} is {value!r} in the model's config; one of {', '.join(DECISIONS[name])} was wanted.")
    return value


def settle_decisions(config: Any, wanted: Mapping[str, str | None], *, trained: bool) -> dict[str, str]:
    """Bring a model config and the settings of a run together and write the result into the config.

    Args:
        config: The model's config; it is changed in place.
        wanted: What the run asks for; None or a missing name leaves the choice to the config.
        trained: The checkpoint was trained on sequences, so that what it carries is binding. A base model carries
            nothing and takes what the run asks for.

    Returns:
        The four decisions in force.

    Raises:
        ValueError: A trained checkpoint carries another value than the run asks for.
    """
    carried = {name: getattr(config, name, None) for name in DECISIONS}
    asked = {name: wanted.get(name) for name in DECISIONS}
    problems = [
        f"{name}: the checkpoint was trained with {carried[name]!r}, the run asks for {asked[name]!r}"
        for name in DECISIONS
        if trained and None not in (asked[name], carried[name]) and asked[name] != carried[name]
    ]
    if problems:
        raise ValueError("; ".join(problems) + ". Leave the setting out, or use another checkpoint.")
    for name, value in asked.items():
        if value is not None:
            setattr(config, name, value)
    settled = {name: decision(config, name) for name in DECISIONS}
    for name, value in settled.items():
        setattr(config, name, value)
    missing = [name for name in DECISIONS if carried[name] is None and asked[name] is None]
    if trained and missing:
        logger.warning(
            "The checkpoint does not say %s; %s is assumed. The authors' own checkpoints were trained with "
            "imagechain_last_scene=last_frame: ask for it when this is one of them.",
            ", ".join(missing), ", ".join(f"{name}={settled[name]}" for name in missing),
        )  # fmt: skip
    return settled
