"""What every command line does around its work: log to stderr, read the settings, turn failures into an exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from llava.imagechain.config import parse_config

Config = TypeVar("Config")


def run_command(
    config_class: type[Config],
    work: Callable[[Config], int | None],
    argv: Sequence[str] | None,
    *,
    program: str,
    description: str,
    interrupted: str = "run the same command again",
    errors: tuple[type[Exception], ...] = (),
) -> int:
    """Run a command line.

    Args:
        config_class: Its settings, declared with `option`.
        work: What it does with them; returns the exit status, None for 0.
        argv: The arguments without the program name; None reads sys.argv.
        program: The command as help and errors name it.
        description: Shown at the head of the help.
        interrupted: What to do after Ctrl-C.
        errors: What else than a ValueError or an OSError is told in one line.

    Returns:
        The exit status: 2 when the work cannot be done, 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = parse_config(config_class, argv, program=program, description=description)
    told: tuple[type[Exception], ...] = (ValueError, OSError, *errors)
    try:
        return work(config) or 0
    except told as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return 130
