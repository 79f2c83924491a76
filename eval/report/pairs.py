"""The report's comparison of runs: who is right where the other is wrong, and how sure that is."""

from __future__ import annotations

import dataclasses

from eval.stats import holm
from eval.tables.compare import Comparison, compare, is_sure, p_text, verdict
from eval.tables.table1 import Table, row_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairView:
    """The first run against the second; `sign` is what a cell of the matrix is coloured by."""

    difference: str
    p_value: str
    counts: str
    sentence: str
    sign: str  # "better", "worse" or "" where it is not sure after Holm's correction


def pair_views(table: Table) -> tuple[dict[tuple[str, str], PairView], list[str]]:
    """Compare the rows of the table on C2-6, the same pairs as in table1_pairs, so that both give the same p-values.

    Returns:
        Views by the keys of both rows, in both directions, and why some pairs have none.
    """
    found: dict[tuple[str, str], Comparison] = {}
    problems: list[str] = []
    for first, second in row_pairs(table):
        try:
            assert first.run and second.run
            one = compare(first.run, second.run)
            found[first.key, second.key] = dataclasses.replace(one, a=first.title, b=second.title)
        except ValueError as error:
            problems.append(str(error))
    views: dict[tuple[str, str], PairView] = {}
    for ((first_key, second_key), one), p_value in zip(
        found.items(), holm([one.p_value for one in found.values()]), strict=True
    ):
        views[first_key, second_key] = _view(one, p_value)
        views[second_key, first_key] = _view(turned(one), p_value)
    return views, problems


def turned(c: Comparison) -> Comparison:
    """Return the comparison of B against A."""
    low, high = 0.0 - c.high, 0.0 - c.low  # a bound of 0 gets no sign
    return dataclasses.replace(
        c, a=c.b, b=c.a, yes_a=c.yes_b, yes_b=c.yes_a, only_a=c.only_b, only_b=c.only_a, low=low, high=high
    )


def _view(comparison: Comparison, p_value: float) -> PairView:
    difference = round(comparison.difference, 1)
    return PairView(
        difference=f"{difference:+.1f}" if difference else "0.0",
        p_value=p_text(p_value),
        counts=f"{comparison.only_a} : {comparison.only_b}",
        sentence=verdict(comparison, p_value),
        sign="" if not is_sure(comparison, p_value) else "better" if difference > 0 else "worse",
    )
