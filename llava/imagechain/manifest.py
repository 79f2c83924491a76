"""run.json: what a run was given, with what it ran, how it ended."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llava.imagechain.files import read_json, sha256_file, sha256_model, write_json

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "av",
    "vllm",
    "openai",
    "numpy",
    "pillow",
)
SECRET_WORDS = ("key", "token", "secret", "password")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_revision() -> str | None:
    """Return this source tree's commit (with "-dirty" when it has changes), or None outside a git checkout."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def describe_input(path: Path | str) -> dict[str, Any]:
    """Return path, size, SHA-256 and (for JSONL) row count of an input file; a folder is named only."""
    path = Path(path)
    if not path.is_file():
        return {"path": str(path)}
    entry: dict[str, Any] = {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            entry["rows"] = sum(1 for line in file if line.strip())
    return entry


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process and its largest finished child, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return unit * max(usage)


def redact(command: Sequence[str]) -> list[str]:
    """Return a command line with the values of key-like options blanked, for logs and run.json."""
    shown: list[str] = []
    hide_next = False
    for word in command:
        if hide_next and not word.startswith("-"):
            shown.append("***")
            hide_next = False
            continue
        name, equals, _ = word.partition("=")
        secret = name.startswith("-") and any(
            part in SECRET_WORDS for part in name.strip("-").replace("-", "_").split("_")
        )
        hide_next = secret and not equals
        shown.append(f"{name}=***" if secret and equals else word)
    return shown


def training_manifest(checkpoint: Path | str) -> Path | None:
    """Return the run.json of the training that a folder is from; that of a checkpoint-N lies in the folder above."""
    checkpoint = Path(checkpoint)
    folders = [checkpoint, *([checkpoint.parent] if checkpoint.name.startswith("checkpoint-") else [])]
    return next((file for folder in folders if (file := folder / "run.json").is_file()), None)


def other_base(checkpoint: Path | str, base: Path | str) -> str | None:
    """Say that a base model is not the one an adapter was trained on; None when it is, or nothing is recorded.

    Shapes cannot tell: an adapter fits every model of its base's size. Compared is `sha256_model`, some megabytes.
    """
    manifest = training_manifest(checkpoint)
    recorded = read_json(manifest) if manifest else None
    made_from = recorded.get("made_from") if isinstance(recorded, dict) else None
    wanted = made_from.get("model_sha256") if isinstance(made_from, dict) else None
    if wanted is None or (found := sha256_model(base)) == wanted:
        return None
    return (
        f"{base} is not the base that {checkpoint} was trained on: SHA-256 {found[:12]} of its files was found, "
        f"{str(wanted)[:12]} wanted (model_sha256 in {manifest})"
    )


class Run:
    """The state behind a run.json; `record` adds facts while the run goes on."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.facts = facts
        write_json(path, facts)

    def record(self, **facts: Any) -> None:
        """Add or replace top-level facts and write the file."""
        self.facts.update(facts)
        write_json(self.path, self.facts)


@contextlib.contextmanager
def run_manifest(
    output_dir: Path | str, *, config: dict[str, Any], inputs: Sequence[Path | str] = (), name: str = "run.json"
) -> Iterator[Run]:
    """Write run.json with status "started", then "success", "interrupted" or "error" with times and peak memory.

    Args:
        output_dir: Folder of the run.
        config: The resolved settings, JSON values only.
        inputs: Input files to hash.
        name: File name, when a folder holds several stages.

    Yields:
        A `Run` to record further facts on.
    """
    started = time.time()
    facts: dict[str, Any] = {
        "status": "started",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": redact([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": config,
        "git_revision": git_revision(),
        "packages": package_versions(),
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
        "inputs": [describe_input(path) for path in inputs],
    }
    run = Run(Path(output_dir) / name, facts)
    status: dict[str, Any] = {"status": "success"}
    try:
        yield run
    except KeyboardInterrupt:
        status = {"status": "interrupted"}
        raise
    except BaseException as error:
        status = {"status": "error", "error": "".join(traceback.format_exception_only(error)).strip()}
        raise
    finally:
        run.record(**status, seconds=round(time.time() - started, 2), peak_memory_bytes=peak_memory_bytes())
