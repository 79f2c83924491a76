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

# A number (M): at most that many evenly spaced frames of a scene; 0 or absent is all of them.
MAX_FRAMES = "max_frames_per_scene"


def asked_of(settings: Any) -> dict[str, Any]:
    """Return what a run's settings ask for, by the names of the decisions; None leaves a choice to the model."""
    return {name: getattr(settings, name, None) for name in (*DECISIONS, MAX_FRAMES)}


def max_frames_per_scene(config: Any) -> int | None:
    """Return the most frames of a scene that a model takes; None takes all.

    Raises:
        ValueError: The config holds something else than a number of at least 0.
    """
    value = getattr(config, MAX_FRAMES, None) or 0
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{MAX_FRAMES} is {value!r} in the model's config; a number of at least 0 was wanted.")
    return value or None


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


def settle_decisions(config: Any, wanted: Mapping[str, Any], *, trained: bool) -> dict[str, Any]:
    """Bring a model config and the settings of a run together and write the result into the config.

    Args:
        config: The model's config; it is changed in place.
        wanted: What the run asks for; None or a missing name leaves the choice to the config.
        trained: The checkpoint was trained on sequences, so that what it carries is binding. A base model carries
            nothing and takes what the run asks for.

    Returns:
        The decisions in force; `max_frames_per_scene` only where it leaves frames out.

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
    most, most_asked = max_frames_per_scene(config), wanted.get(MAX_FRAMES)
    if trained and most_asked is not None and most_asked != (most or 0):
        problems.append(
            f"{MAX_FRAMES}: the checkpoint was trained with {most or 'all frames'}, the run asks for "
            f"{most_asked or 'all frames'}"
        )
    if problems:
        raise ValueError("; ".join(problems) + ". Leave the setting out, or use another checkpoint.")
    for name, value in asked.items():
        if value is not None:
            setattr(config, name, value)
    settled: dict[str, Any] = {name: decision(config, name) for name in DECISIONS}
    for name, value in settled.items():
        setattr(config, name, value)
    if most_asked is not None and most_asked != (most or 0):
        setattr(config, MAX_FRAMES, most_asked)
    if most := max_frames_per_scene(config):
        settled[MAX_FRAMES] = most
    missing = [name for name in DECISIONS if carried[name] is None and asked[name] is None]
    if trained and missing:
        logger.warning(
            "The checkpoint does not say %s; %s is assumed. The authors' own checkpoints were trained with "
            "imagechain_last_scene=last_frame: ask for it when this is one of them.",
            ", ".join(missing), ", ".join(f"{name}={settled[name]}" for name in missing),
        )  # fmt: skip
    return settled
