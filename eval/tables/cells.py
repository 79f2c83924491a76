"""What one cell of a SimRate table holds: counts, rate and interval of one run, or the spread over seeds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from eval.runs import Judged
from eval.stats import mean_and_range, wilson
from llava.imagechain.story import CONTEXTS

COLUMNS = ("c2", "c3", "c4", "c5", "c6", "c4_6", "c2_6")
PAPER_PATH = Path(__file__).resolve().parent / "paper.yaml"


@functools.cache
def load_paper() -> dict[str, Any]:
    """Return the numbers printed in the paper (eval/tables/paper.yaml)."""
    return yaml.safe_load(PAPER_PATH.read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Counts over the stories of one column."""

    yes: int
    scored: int
    unparsed: int
    unscored: int
    shortened: int  # stories that lost their oldest scenes to fit the model's context
    paper: float | None = None  # the paper's percentage

    @property
    def percent(self) -> float | None:
        """SimRate in percent; None without a scored story."""
        return 100 * self.yes / self.scored if self.scored else None

    @property
    def percent_parsed(self) -> float | None:
        """SimRate in percent of the stories whose answer could be read; None without one."""
        parsed = self.scored - self.unparsed
        return 100 * self.yes / parsed if parsed else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval in percent."""
        if not self.scored:
            return None
        low, high = wilson(self.yes, self.scored)
        return 100 * low, 100 * high

    def rate_text(self) -> str:
        """Return "18.30 (95/519)", or "-" without a scored story."""
        return f"{self.percent:.2f} ({self.yes}/{self.scored})" if self.scored else "-"

    def interval_text(self) -> str:
        """Return "15.2 to 21.9", or nothing without a scored story."""
        return f"{self.interval[0]:.1f} to {self.interval[1]:.1f}" if self.interval else ""

    def parsed_text(self) -> str:
        """Return "50.89 (57/112)", the rate without unparsed answers, or "-" where no answer could be read."""
        if self.percent_parsed is None:
            return "-"
        return f"{self.percent_parsed:.2f} ({self.yes}/{self.scored - self.unparsed})"

    def to_json(self) -> dict[str, Any]:
        """Return counts, rates and interval as JSON values."""
        low, high = self.interval or (None, None)
        return {
            "yes": self.yes,
            "n": self.scored,
            "percent": rounded(self.percent),
            "low_95": rounded(low),
            "high_95": rounded(high),
            "unparsed": self.unparsed,
            "percent_parsed": rounded(self.percent_parsed),
            "unscored": self.unscored,
            "shortened": self.shortened,
            "paper": self.paper,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and range in percent over the seeds of one training. Seeds answer the same stories: nothing is pooled."""

    seeds: int
    mean: float
    low: float
    high: float
    stories: tuple[int, ...]  # scored stories of each seed

    def rate_text(self) -> str:
        """Return "18.30 (n 519)", with each seed's n where they differ."""
        return f"{self.mean:.2f} (n {', '.join(map(str, dict.fromkeys(self.stories)))})"

    def range_text(self) -> str:
        """Return "17.15 to 19.08"."""
        return f"{self.low:.2f} to {self.high:.2f}"

    def to_json(self) -> dict[str, Any]:
        """Return the spread as JSON values."""
        return {
            "seeds": self.seeds,
            "n": list(self.stories),
            "mean_percent": rounded(self.mean),
            "lowest": rounded(self.low),
            "highest": rounded(self.high),
        }


def count(rows: Iterable[Judged], context: str, paper: float | None = None) -> Cell:
    """Count the verdicts over the stories of one context."""
    low, high = CONTEXTS[context]
    inside = [judged for judged in rows if low <= judged.row.num_scenes <= high]
    scored = [judged for judged in inside if judged.verdict is not None]
    return Cell(
        yes=sum(judged.verdict == "yes" for judged in scored),
        scored=len(scored),
        unparsed=sum(not judged.parsed for judged in scored),
        unscored=len(inside) - len(scored),
        shortened=sum(judged.row.dropped_scenes > 0 for judged in inside),
        paper=paper,
    )


def spread(cells: Iterable[Cell]) -> Spread | None:
    """Summarise one column over seeds; a seed without a scored story is left out, None when all are."""
    used = [(cell.percent, cell.scored) for cell in cells if cell.percent is not None]
    if not used:
        return None
    mean, low, high = mean_and_range([percent for percent, _ in used])
    return Spread(seeds=len(used), mean=mean, low=low, high=high, stories=tuple(scored for _, scored in used))


def rounded(value: float | None) -> float | None:
    """Round to the two decimals that the paper prints."""
    return None if value is None else round(value, 2)
