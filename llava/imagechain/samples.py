"""Lists of samples in LLaVA's JSON: which files `data_path` names, and which of their samples are taken."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import torch

from llava.imagechain.config import nearest, read_yaml
from llava.imagechain.files import read_json, read_jsonl, sha256_json

MIXTURE_KEYS = ("json_path", "sampling_strategy")


class Samples(list[Any]):
    """Samples with the face that stories show to a run."""

    @property
    def ids(self) -> list[str]:
        """Their ids."""
        return [str(sample.get("id")) if isinstance(sample, dict) else "" for sample in self]

    def texts(self) -> list[Any]:
        """All that they say."""
        return list(self)

    def sha256(self) -> dict[str, str]:
        """Return the hash that tells these samples from others."""
        return {"stories_sha256": sha256_json([self.ids, self.texts()])}


def read_samples(data_path: str, seed: int = 0) -> Samples:
    """Read the samples that `data_path` names.

    Args:
        data_path: A .json list or .jsonl file, a brace pattern such as "part_{a,b}.json", or a .yaml file whose
            `datasets` have a `json_path` and a `sampling_strategy` ("all", "first:N", "end:N", "random:N"; N may be a
            percentage).
        seed: Chooses the samples of "random".

    Raises:
        ValueError: A file is missing or is not such a file.
    """
    if data_path.endswith((".yaml", ".yml")):
        return Samples(_read_mixture(Path(data_path), seed))
    return Samples(sample for path in expand_braces(data_path) for sample in _read_file(Path(path)))


def expand_braces(pattern: str) -> list[str]:
    """Return the paths of a pattern such as "base{a,b}.json"; a path without braces is itself."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [piece.split(",") if number % 2 else [piece] for number, piece in enumerate(pieces)]
    return ["".join(choice).strip() for choice in itertools.product(*choices)]


def _read_file(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"data_path: {path} is not a file")
    samples = _read_lines(path) if path.suffix == ".jsonl" else read_json(path)
    if not isinstance(samples, list):
        raise ValueError(f"data_path: a list of samples was wanted in {path}, found {type(samples).__name__}")
    return samples


def _read_lines(path: Path) -> list[Any]:
    samples = read_jsonl(path)
    with path.open("rb") as file:
        if sum(bool(line.strip()) for line in file) != len(samples):
            raise ValueError(f"data_path: the last line of {path} is cut off; copy the file again")
    return samples


def _read_mixture(path: Path, seed: int) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"data_path: {path} is not a file")
    entries = read_yaml(str(path)).get("datasets")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "json_path" in entry for entry in entries):
        raise ValueError(f"data_path: {path} has no list `datasets` of entries with a json_path")
    samples: list[Any] = []
    for number, entry in enumerate(entries):
        if unknown := [str(key) for key in entry if key not in MIXTURE_KEYS]:
            raise ValueError(f"data_path: {path} has an unknown key {unknown[0]!r}{nearest(unknown[0], MIXTURE_KEYS)}")
        found = [sample for file in expand_braces(str(entry["json_path"])) for sample in _read_file(Path(file))]
        samples += _choose(found, str(entry.get("sampling_strategy", "all")), seed + number)
    return samples


def _choose(samples: list[Any], strategy: str, seed: int) -> list[Any]:
    kind, _, amount = strategy.partition(":")
    if kind == "all" and not amount:
        return samples
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", amount.strip())
    if kind not in ("first", "end", "random") or match is None:
        raise ValueError(f"sampling_strategy: all, first:N, end:N or random:N (N or N%) was wanted, found {strategy!r}")
    share = float(match[1])
    count = min(-int(-share * len(samples) // 100) if match[2] else int(share), len(samples))
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return [samples[i] for i in torch.randperm(len(samples), generator=generator)[:count].tolist()]
    return samples[:count] if kind == "first" else samples[len(samples) - count :]
