"""Keep two processes from writing one folder at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from llava.imagechain.config import ConfigError

logger = logging.getLogger("llava.locks")


@contextlib.contextmanager
def only_one(path: Path, *, wait: bool = False, work: str = "writing") -> Iterator[None]:
    """Hold a lock file; it ends with the process.

    Args:
        path: The lock file; its folder is made when missing.
        wait: Wait for another process that holds it, in place of raising.
        work: What the processes do to the folder.

    Raises:
        ConfigError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is {work} {path.parent}; wait for it, or give another folder") from None
        except OSError as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s): let one process at a time write there.", path, error.strerror)
        yield
