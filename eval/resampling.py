"""Bootstrap intervals of any statistic that follows from sums over rows; whole clusters (videos) are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

REPLICATES = 2_000
CHUNK = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval; None = cannot be computed, and `remark` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    remark: str | None = None

    def footnote(self, what: str) -> str | None:
        """Return the remark as a sentence about `what`; None without a remark."""
        return f"{what}{' is' if self.value is None else ','} {self.remark}." if self.remark else None


def estimate(
    sums: np.ndarray,
    clusters: Sequence[Hashable],
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    undefined: str,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of the column sums with its percentile bootstrap interval.

    Clusters are drawn with replacement, as many as there are (Davison and Hinkley 1997, section 3.8): rows of one video
    are no independent evidence.

    Args:
        sums: (rows, K) what each row adds to the K sums.
        clusters: The cluster of each row.
        statistic: Maps (..., K) sums to (...) values, NaN where it is not defined.
        undefined: Why the statistic has no value when it has none.
        seed: The same seed gives the same interval.
    """
    value = float(statistic(sums.sum(axis=0))) if len(sums) else float("nan")
    if not np.isfinite(value):
        return Estimate(value=None, remark=undefined if len(sums) else "not defined: there is no row")
    _, index = np.unique([repr(cluster) for cluster in clusters], return_inverse=True)
    by_cluster = np.zeros((index.max() + 1, sums.shape[1]))
    np.add.at(by_cluster, index, sums)
    if len(by_cluster) < 2:
        return Estimate(value=value, remark="no interval: all rows are of one video")
    generator, count = np.random.default_rng(seed), len(by_cluster)
    drawn = np.concatenate(
        [
            statistic(generator.multinomial(count, np.full(count, 1 / count), size=CHUNK) @ by_cluster)
            for _ in range(REPLICATES // CHUNK)
        ]
    )
    defined = drawn[np.isfinite(drawn)]
    if not len(defined):
        return Estimate(value=value, remark="no interval: not defined in any resample")
    low, high = np.quantile(defined, [0.025, 0.975])
    remark = None
    if len(defined) < 0.99 * len(drawn):
        remark = (
            f"interval without the {100 - 100 * len(defined) / len(drawn):.0f} % of resamples where it is not defined"
        )
    return Estimate(value=value, low=float(low), high=float(high), remark=remark)
