"""Bootstrap intervals of any statistic that follows from sums over rows; whole clusters (videos) are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

REPLICATES = 10_000
LARGEST_DRAW = 1_000_000  # clusters drawn at a time, so that the draws of many clusters fit in memory
Statistic = Callable[[np.ndarray], np.ndarray]  # maps (..., K) sums to (...) values, NaN where it is not defined


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


def sum_clusters(sums: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Add up the (rows, K) sums of each cluster, in the order in which the clusters first appear."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    by_cluster = np.zeros((len(numbers), sums.shape[1]))
    np.add.at(by_cluster, [numbers[name] for name in clusters], sums)
    return by_cluster


def resample(by_cluster: np.ndarray, statistic: Statistic, seed: int) -> np.ndarray:
    """Return the statistic of resamples: clusters drawn with replacement, as many as there are.

    Davison and Hinkley (1997), section 3.8: rows of one video are no independent evidence.

    Args:
        by_cluster: (clusters, K) from `sum_clusters`.
        statistic: Of the sums of a resample.
        seed: The same seed gives the same draws.
    """
    generator, count = np.random.default_rng(seed), len(by_cluster)
    size = max(1, LARGEST_DRAW // count)
    sizes = [min(size, REPLICATES - start) for start in range(0, REPLICATES, size)]
    found = []
    for size in sizes:
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        found.append(statistic(times @ by_cluster))
    return np.concatenate(found)


def clustered_interval(values: Sequence[float], clusters: Sequence[Hashable], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean whose values come in clusters.

    Args:
        values: One value for each story, such as verdict difference -1, 0 or 1.
        clusters: The cluster of each value.
        seed: The same seed gives the same interval.

    Raises:
        ValueError: No value, or another number of clusters than of values.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(f"one cluster for each of at least 1 value wanted; found {len(values)}, {len(clusters)}")
    sums = np.column_stack([values, np.ones(len(values))])
    means = resample(sum_clusters(sums, clusters), lambda drawn: drawn[:, 0] / drawn[:, 1], seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def estimate(
    sums: np.ndarray, clusters: Sequence[Hashable], statistic: Statistic, *, undefined: str, seed: int = 0
) -> Estimate:
    """Return a statistic of the column sums with its percentile bootstrap interval.

    Args:
        sums: (rows, K) what each row adds to the K sums.
        clusters: The cluster of each row.
        statistic: Of the sums.
        undefined: Why the statistic has no value when it has none.
        seed: The same seed gives the same interval.
    """
    value = float(statistic(sums.sum(axis=0))) if len(sums) else float("nan")
    if not np.isfinite(value):
        return Estimate(value=None, remark=undefined if len(sums) else "not defined: there is no row")
    by_cluster = sum_clusters(sums, clusters)
    if len(by_cluster) < 2:
        return Estimate(value=value, remark="no interval: all rows are of one video")
    drawn = resample(by_cluster, statistic, seed)
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
