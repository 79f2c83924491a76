"""Which predictions people are shown, what each of them stands for, and the key that maps rows back to predictions."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.runs import RunFolder
from llava.imagechain.files import read_jsonl, sha256_json

Item = tuple[str, str]  # story id, hash of reference and prediction: what a verdict is about
# Letters only and no vowels: a spreadsheet takes none of these for a number or a date, and no word comes out.
LETTERS = "bcdfghjkmnpqrstvwxz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A distinct prediction of a story; `copies` runs made it, one of them (drawn) names its stratum."""

    run: str
    verdict: str | None
    story_id: str
    num_scenes: int
    reference: str
    prediction: str
    pair_sha256: str
    copies: int

    @property
    def stratum(self) -> tuple[str, str]:
        """Run and verdict."""
        return self.run, self.verdict or "not judged"


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyRow:
    """What one row of labels.csv is about. The key holds no verdict: opening it spoils no labelling."""

    row: str
    run: str
    story_id: str
    video_name: str
    pair_sha256: str
    texts_sha256: str
    weight: float  # how many predictions of all runs the row stands for

    @property
    def item(self) -> Item:
        """Story and texts."""
        return self.story_id, self.pair_sha256


def candidates(runs: Sequence[RunFolder], rng: random.Random) -> list[Candidate]:
    """Return the distinct predictions of all runs; what several runs said word for word is shown once."""
    found: dict[Item, list[tuple[str, Any]]] = defaultdict(list)
    for run in runs:
        for judged in run.rows:
            found[judged.row.story_id, judged.row.pair_sha256].append((str(run.path.resolve()), judged))
    result = []
    for (story_id, pair_sha256), copies in found.items():
        run_path, judged = rng.choice(copies)
        result.append(
            Candidate(
                run=run_path,
                verdict=judged.verdict,
                story_id=story_id,
                num_scenes=judged.row.num_scenes,
                reference=judged.row.reference,
                prediction=judged.row.prediction,
                pair_sha256=pair_sha256,
                copies=len(copies),
            )
        )
    return result


def by_stratum(items: Sequence[Candidate]) -> dict[tuple[str, str], list[Candidate]]:
    """Group by run and verdict, in a fixed order."""
    groups: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for item in items:
        groups[item.stratum].append(item)
    return {stratum: groups[stratum] for stratum in sorted(groups)}


def allocate(sizes: Sequence[int], total: int) -> list[int]:
    """Share out `total` rows as evenly as the sizes allow; what a small stratum cannot give goes to the others."""
    shares, left = [0] * len(sizes), total
    for place, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = min(sizes[i], left // (len(sizes) - place))
        left -= shares[i]
    return shares


def draw(items: Sequence[Candidate], num: int, rng: random.Random) -> list[Candidate]:
    """Draw `num` items, evenly over the strata, and shuffle them."""
    groups = by_stratum(items)
    shares = allocate([len(group) for group in groups.values()], num)
    drawn = [item for group, share in zip(groups.values(), shares, strict=True) for item in rng.sample(group, share)]
    rng.shuffle(drawn)
    return drawn


def weights(items: Sequence[Candidate], drawn: Sequence[Candidate]) -> list[float]:
    """Return how many predictions each drawn item stands for: its copies, times stratum size over stratum sample."""
    sizes = {stratum: len(group) for stratum, group in by_stratum(items).items()}
    sample = {stratum: len(group) for stratum, group in by_stratum(drawn).items()}
    return [item.copies * sizes[item.stratum] / sample[item.stratum] for item in drawn]


def row_names(count: int, rng: random.Random) -> list[str]:
    """Return distinct opaque names of six letters."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(LETTERS, k=6))] = None
    return list(names)


def texts_sha256(reference: str, prediction: str) -> str:
    """Hash the ASCII letters and digits of both texts: what survives any spreadsheet's quotes, blanks and encoding."""
    return sha256_json([re.sub(r"[^a-z0-9]", "", text.lower()) for text in (reference, prediction)])


def read_key(path: Path) -> dict[str, KeyRow]:
    """Read key.jsonl.

    Raises:
        ValueError: No file, or a row that eval.agreement export did not write.
    """
    if not path.is_file():
        raise ValueError(f"{path}: the key/key.jsonl of an export was wanted, found no such file")
    rows: dict[str, KeyRow] = {}
    fields = {field.name for field in dataclasses.fields(KeyRow)}
    for number, raw in enumerate(read_jsonl(path), start=1):
        texts = all(isinstance(raw.get(name), str) for name in fields - {"weight"})
        weight = raw.get("weight")
        if set(raw) != fields or not texts or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise ValueError(
                f"{path}, line {number}: not a row of the key.jsonl that eval.agreement export writes; found the "
                f"fields {', '.join(sorted(raw))}. Give the key of this very export."
            )
        rows[raw["row"]] = KeyRow(**raw)
    if not rows:
        raise ValueError(f"{path}: the key of an export was wanted, found no row")
    return rows
