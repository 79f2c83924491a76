"""Answers of language-model judges, kept for ever under the hash of everything that decides them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from llava.imagechain.config import ConfigError

# A write-ahead log is shared memory, which processes of one machine alone have; these file systems are of one machine.
LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "apfs"}
MOUNTS = Path("/proc/mounts")


def cache_path(setting: str) -> Path | None:
    """Return the file that --cache names: auto is the user's, shared by all runs; off is none."""
    if setting == "off":
        return None
    if setting != "auto":
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imagechain" / "judge.sqlite"


def is_shared(folder: Path) -> bool:
    """Tell whether other machines may see a folder; where nothing says so, they may not."""
    if not MOUNTS.is_file():
        return False
    kinds = {}
    for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        _, mounted, kind = line.split(" ", 3)[:3]
        kinds[mounted.replace("\\040", " ")] = kind
    folder = folder.resolve()
    return next((kinds[str(one)] for one in (folder, *folder.parents) if str(one) in kinds), None) not in LOCAL


class AnswerCache:
    """Raw answers by request hash in one SQLite file; several processes may use it at once.

    On one machine they share a write-ahead log. Over a network that would damage the file; there each answer is
    committed with a rollback journal, which costs some milliseconds.

    Args:
        path: The file; None keeps nothing.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(self, path: Path | str | None) -> None:
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(str(path or ":memory:"), timeout=60, isolation_level=None)
            shared = path is not None and is_shared(Path(path).parent)
            self._database.execute(f"PRAGMA journal_mode={'DELETE' if shared else 'WAL'}")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers"
                " (key TEXT PRIMARY KEY, answer TEXT NOT NULL, model TEXT NOT NULL, asked_at TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cache {path} cannot be used ({error}); pass --cache with another file, or --cache off"
            ) from error

    def get_many(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the answers that are known."""
        found = {}
        for key in keys:
            row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = row[0]
        return found

    def put(self, key: str, answer: str, model: str) -> str:
        """Keep an answer and return the one that counts: where another process was faster, its answer."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (key, answer, model, now))
        return self.get_many([key])[key]

    def close(self) -> None:
        """Close the file."""
        self._database.close()
