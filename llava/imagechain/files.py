"""Files that are whole or absent: atomic writes, JSONL that survives an interruption, hashes, safe paths."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MODEL_SUFFIXES = (".safetensors", ".bin", ".model", ".json")


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed onto it, on error it is removed.

    Args:
        path: The file to be written. Its folder is made when missing.

    Yields:
        The path to write to, with the same suffix (so that libraries which look at it still work).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def follow_umask(folder: Path | str) -> None:
    """Let the user's umask say who may read a folder's weights: safetensors keeps its files to their owner."""
    for file in Path(folder).glob("*.safetensors"):
        file.chmod(0o666 & ~_umask())


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file atomically, indented, with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Write all rows of a JSONL file atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not JSON; the message names the file, line and column.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Fix or regenerate the file.") from error


def read_object(path: Path | str) -> dict[str, Any]:
    """Read a JSON file that holds settings.

    Raises:
        ValueError: The file is not valid JSON, or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: settings were wanted, found a {type(found).__name__}.")
    return found


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read a JSONL file that a run may have been interrupted in.

    A last line without its newline was cut off while being written and is left out; any other line that is not a JSON
    object is an error.

    Raises:
        ValueError: A complete line is not a JSON object.
    """
    rows = []
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if not line.endswith(b"\n"):
                with contextlib.suppress(ValueError):
                    if isinstance(row := json.loads(line), dict):
                        rows.append(row)
                break
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error}). Fix or remove the line.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a JSON object was expected, found {type(row).__name__}.")
            rows.append(row)
    return rows


class JsonlAppender:
    """Append rows to a JSONL file, flushed row by row, after repairing a line that an interruption cut off."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and (data := self.path.read_bytes()) and not data.endswith(b"\n"):
            write_jsonl(self.path, read_jsonl(self.path))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row and hand it to the operating system."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()  # JSON can hold half a character


def sha256_model(folder: Path | str) -> str:
    """Return the SHA-256 of a model folder: names, sizes, and the first and last megabyte of each file.

    Subfolders (a vision tower) count; the checkpoints of a training run, and runs in folders of their own, do not.
    """
    folder = Path(folder)
    subfolders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("checkpoint-")]
    subfolders = [path for path in subfolders if not (path / "run.json").is_file()]
    digest = hashlib.sha256()
    for path in sorted(file for part in (folder, *subfolders) for file in part.iterdir()):
        if path.suffix not in MODEL_SUFFIXES or path.name in ("run.json", "trainer_state.json"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size};".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()


def inside(root: Path | str, name: str) -> Path:
    """Join an untrusted name to a root folder.

    Raises:
        ValueError: The name is empty, absolute, a URL, or leaves the root.
    """
    if not name or "\0" in name:
        raise ValueError(f"{name!r} is not a file name.")
    if "://" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(
            f"{name!r} was found where a path inside {root} was wanted; absolute paths, '..' and URLs are refused."
        )
    return Path(root) / name
