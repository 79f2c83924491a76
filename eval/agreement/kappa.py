"""How far two raters agree: raw agreement, Cohen's kappa, confusion; intervals clustered by video."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from eval.agreement.sample import Item
from eval.resampling import Estimate, estimate

CELLS = ("both_yes", "first_only", "second_only", "both_no")
UNDEFINED_KAPPA = "not defined: both gave one and the same label to every row"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rater:
    """A person or a judge with the labels given; True = yes."""

    name: str
    kind: Literal["person", "judge"]
    labels: Mapping[Item, bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two raters on the predictions that both labelled."""

    first: Rater
    second: Rater
    n: int
    videos: int
    counts: dict[str, int]  # the confusion, by the names in CELLS
    shares: dict[str, Estimate]  # the same as shares of n
    agreement: Estimate
    kappa: Estimate
    weighted_agreement: Estimate | None  # over all predictions that the sample was drawn from
    weighted_kappa: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        facts = dataclasses.asdict(self)
        for place in ("first", "second"):
            facts[place] = {"name": facts[place]["name"], "kind": facts[place]["kind"]}
        return facts


def kappa(cells: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa (Cohen 1960) of (..., 4) confusions in the order of CELLS; NaN where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = cells / cells.sum(axis=-1, keepdims=True)
        first, second = shares[..., 0] + shares[..., 1], shares[..., 0] + shares[..., 2]
        by_chance = first * second + (1 - first) * (1 - second)
        value = (shares[..., 0] + shares[..., 3] - by_chance) / (1 - by_chance)
    return np.where(np.isclose(by_chance, 1, rtol=0, atol=1e-12), np.nan, value)


def share(*cells: int) -> Any:
    """Return the statistic "share of these cells" of (..., 4) confusions."""

    def statistic(sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[..., list(cells)].sum(axis=-1) / sums.sum(axis=-1))

    return statistic


def compare(
    first: Rater,
    second: Rater,
    videos: Mapping[Item, str],
    weights: Mapping[Item, float] | None = None,
    seed: int = 0,
) -> Agreement:
    """Compare two raters on what both labelled.

    Args:
        first: Rows of the confusion.
        second: Columns of the confusion.
        videos: The cluster of each prediction; one without an entry is its own cluster by story.
        weights: How many predictions each labelled one stands for; None computes no weighted figures.
        seed: Source of chance of the intervals.
    """
    shared = sorted(first.labels.keys() & second.labels.keys())
    cells = np.zeros((len(shared), 4))
    for i, item in enumerate(shared):
        cells[i, 2 * (not first.labels[item]) + (not second.labels[item])] = 1
    clusters = [videos.get(item, item[0]) for item in shared]
    factors = np.array([weights[item] for item in shared]) if weights is not None else None
    weighted = cells * factors[:, None] if factors is not None and len(shared) else None

    def of(sums: np.ndarray | None, statistic: Any, undefined: str) -> Estimate:
        return estimate(cells if sums is None else sums, clusters, statistic, undefined=undefined, seed=seed)

    return Agreement(
        first=first,
        second=second,
        n=len(shared),
        videos=len(set(clusters)),
        counts={name: int(cells[:, i].sum()) for i, name in enumerate(CELLS)},
        shares={name: of(None, share(i), "no row") for i, name in enumerate(CELLS)},
        agreement=of(None, share(0, 3), "no row"),
        kappa=of(None, kappa, UNDEFINED_KAPPA),
        weighted_agreement=None if weighted is None else of(weighted, share(0, 3), "no row"),
        weighted_kappa=None if weighted is None else of(weighted, kappa, UNDEFINED_KAPPA),
    )
