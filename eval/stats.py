"""How sure a rate is."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927, without continuity correction).

    Args:
        successes: k, between 0 and n.
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
