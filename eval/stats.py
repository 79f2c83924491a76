"""How sure a rate or a difference of rates is, by formula; by resampling: eval.resampling. All rates are fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

CONFIDENCE, POWER = 0.95, 0.8


def wilson(successes: float, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927, without continuity correction).

    Args:
        successes: k, between 0 and n; a mean over seeds need not be whole.
        trials: n, at least 1.
        confidence: Probability that the interval covers the true rate.

    Returns:
        Lower and upper bound as fractions.

    Raises:
        ValueError: Counts that cannot be.
    """
    if trials < 1 or not 0 <= successes <= trials or not 0 < confidence < 1:
        raise ValueError(
            f"0 <= k <= n, n >= 1 and 0 < confidence < 1 wanted; found {successes}, {trials}, {confidence}"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    # The ends are exact at 0 and n, where rounding would leave 1e-17.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def newcombe(successes: int, trials: int, other_successes: int, other_trials: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two independent proportions, first minus second.

    Newcombe's method 10 (Statistics in Medicine 17, 1998): the Wilson intervals of both, squared and added.
    """
    (low, high), (other_low, other_high) = wilson(successes, trials), wilson(other_successes, other_trials)
    rate, other_rate = successes / trials, other_successes / other_trials
    return (
        rate - other_rate - math.hypot(rate - low, other_high - other_rate),
        rate - other_rate + math.hypot(high - rate, other_rate - other_low),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    Of the stories that only one of two runs describes rightly, each run gets half when they are equally good: the
    binomial test of `only_first` among the discordant pairs. Stories count as independent of each other.

    Args:
        only_first: Stories with a yes in the first run alone.
        only_second: Stories with a yes in the second run alone.
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def _normal_quantiles() -> tuple[float, float]:
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2), NormalDist().inv_cdf(POWER)


def detectable_paired(trials: int, discordant: int) -> float:
    """Return the smallest true difference that McNemar's test at 5 % finds with 80 % probability.

    Solves Connor's sample size (Biometrics 43, 1987), with q the share of discordant pairs and d the difference,

        n = (z_alpha sqrt(q) + z_beta sqrt(q - d^2))^2 / d^2,

    for d. No difference can be larger than q: where too few pairs are discordant, all of them have to point one way,
    and about (z_alpha + z_beta)^2 = 7.85 of them are needed, which is the least value returned. Stories count as
    independent of each other.

    Args:
        trials: n, the stories scored in both runs.
        discordant: Stories with a yes in exactly one of them.
    """
    z_alpha, z_beta = _normal_quantiles()
    if trials < 1 or not 0 <= discordant <= trials:
        raise ValueError(f"0 <= discordant <= n and n >= 1 wanted; found {discordant}, {trials}")
    least = (z_alpha + z_beta) ** 2 / trials
    room = max(0.0, trials + z_beta**2 - z_alpha**2)
    found = math.sqrt(discordant / trials) * (z_alpha * math.sqrt(trials) + z_beta * math.sqrt(room))
    return min(1.0, max(least, found / (trials + z_beta**2)))


def detectable_unpaired(rate: float, trials: int, other_trials: int) -> float:
    """Return the smallest rise above `rate` that two independent samples show (5 %, 80 % power).

    Cohen's (1988, chapter 6) effect size h = (z_alpha + z_beta) sqrt(1/n1 + 1/n2) added to `rate` on the arcsine scale.

    Args:
        rate: Rate of the lower sample.
        trials: Its size.
        other_trials: Size of the other sample.
    """
    effect = sum(_normal_quantiles()) * math.sqrt(1 / trials + 1 / other_trials)
    return math.sin(min(math.pi / 2, math.asin(math.sqrt(rate)) + effect / 2)) ** 2 - rate


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979), in their order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def mean_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, least and largest value: how seeds are reported (a few runs are too few for an interval)."""
    return sum(values) / len(values), min(values), max(values)
