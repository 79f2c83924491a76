"""The report's comparison of every two runs: who is right where the other is wrong, and how sure that is."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from eval.runs import RunFolder
from eval.stats import holm
from eval.tables.compare import Comparison, compare, p_text, verdict

SURE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairView:
    """The first run against the second; `sign` is what a cell of the matrix is coloured by."""

    difference: str
    p_value: str
    counts: str
    sentence: str
    sign: str  # "better", "worse" or "" where Holm's correction leaves no difference


def pair_views(runs: Mapping[str, RunFolder]) -> tuple[dict[tuple[str, str], PairView], list[str]]:
    """Compare every two runs on C2-6.

    Args:
        runs: By the key that the page gives them.

    Returns:
        Views by (first, second) in both directions, and why some pairs have none.
    """
    found: dict[tuple[str, str], tuple[Comparison, Comparison]] = {}
    problems: list[str] = []
    for first, second in itertools.combinations(runs, 2):
        try:
            one, two = runs[first], runs[second]
            found[first, second] = compare(one, two), compare(two, one)
        except ValueError as error:
            problems.append(str(error))
    corrected = holm([forth.p_value for forth, _ in found.values()])
    views: dict[tuple[str, str], PairView] = {}
    for ((first, second), (forth, back)), p_value in zip(found.items(), corrected, strict=True):
        views[first, second] = _view(forth, p_value)
        views[second, first] = _view(back, p_value)
    return views, problems


def _view(comparison: Comparison, p_value: float) -> PairView:
    difference = round(comparison.difference, 1)
    return PairView(
        difference=f"{difference:+.1f}" if difference else "0.0",
        p_value=p_text(p_value),
        counts=f"{comparison.only_a} : {comparison.only_b}",
        sentence=verdict(comparison),
        sign="" if p_value >= SURE or not difference else "better" if difference > 0 else "worse",
    )
