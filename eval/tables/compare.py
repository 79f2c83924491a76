"""Is one run better than another? Both are compared on the stories that both have a verdict for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from eval.resampling import clustered_interval
from eval.runs import Judged, RunFolder, column_title, run_title
from eval.stats import CONFIDENCE, detectable_paired, holm, mcnemar
from eval.tables.files import Sheet
from llava.imagechain.story import CONTEXTS

FEW_VIDEOS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Run A against run B on the same stories."""

    a: str
    b: str
    context: str
    n: int  # stories scored in both
    videos: int  # clusters of the interval
    yes_a: int
    yes_b: int
    only_a: int  # yes in A alone
    only_b: int
    p_value: float  # exact McNemar, two-sided
    low: float  # 95 % interval of the difference in points, bootstrap over videos
    high: float
    detectable: float  # points: the smallest difference found with 80 % probability
    left_out: int  # stories of the context that are missing or unscored in one of the runs
    remarks: tuple[str, ...]

    @property
    def difference(self) -> float:
        """A minus B in points."""
        return 100 * (self.yes_a - self.yes_b) / self.n

    def to_json(self) -> dict[str, Any]:
        """Return everything with the verdict as JSON values."""
        rounded = {name: round(getattr(self, name), 2) for name in ("difference", "low", "high", "detectable")}
        return dataclasses.asdict(self) | rounded | {"remarks": list(self.remarks), "verdict": verdict(self)}


def compare(a: RunFolder, b: RunFolder, context: str = "c2_6", seed: int = 0) -> Comparison:
    """Compare two judged runs on the stories scored in both.

    Args:
        a: One run.
        b: Another run on the same stories.
        context: Only stories with this number of scenes.
        seed: Of the bootstrap.

    Raises:
        ValueError: The runs are of different stories or references, were judged differently, or share no scored story.
    """
    _refuse_different_judges(a, b)
    _refuse_different_stories(a, b)
    low, high = CONTEXTS[context]
    inside_a, inside_b = ({i: j for i, j in r.by_id().items() if low <= j.row.num_scenes <= high} for r in (a, b))
    pairs = [(one, inside_b[name]) for name, one in sorted(inside_a.items()) if name in inside_b]
    scored = [(one, two) for one, two in pairs if one.verdict and two.verdict]
    total = len(inside_a.keys() | inside_b.keys())
    if not scored:
        raise ValueError(
            f"{a.path} and {b.path}: no story of {column_title(context)} is scored in both (A has {len(inside_a)} "
            f"stories there, B has {len(inside_b)}, {len(pairs)} are shared); nothing can be compared"
        )
    yes = [(one.verdict == "yes", two.verdict == "yes") for one, two in scored]
    differences = [float(one) - float(two) for one, two in yes]
    videos = [one.row.video_name or two.row.video_name or f"story {one.row.story_id}" for one, two in scored]
    # One video says nothing about others, whatever its stories agree on.
    bounds = clustered_interval(differences, videos, seed) if len(set(videos)) > 1 else (-1.0, 1.0)
    only_a, only_b = sum(x > y for x, y in yes), sum(x < y for x, y in yes)
    names = [run_title(run) for run in (a, b)]
    if names[0] == names[1]:
        names = [f"{name} ({run.path})" for name, run in zip(names, (a, b), strict=True)]
    return Comparison(
        a=names[0], b=names[1], context=context, n=len(scored), videos=len(set(videos)),
        yes_a=sum(x for x, _ in yes), yes_b=sum(y for _, y in yes), only_a=only_a, only_b=only_b,
        p_value=mcnemar(only_a, only_b), low=100 * bounds[0], high=100 * bounds[1],
        detectable=100 * detectable_paired(len(scored), only_a + only_b), left_out=total - len(scored),
        remarks=tuple(_remarks(a, b, scored, len(set(videos)))),
    )  # fmt: skip


def _refuse_different_judges(a: RunFolder, b: RunFolder) -> None:
    if unjudged := [str(run.path) for run in (a, b) if run.judge is None]:
        raise ValueError(
            f"{' and '.join(unjudged)}: judged runs were wanted, found no judgments; run eval.simrate first"
        )
    if a.judge != b.judge or a.mixed:
        raise ValueError(
            f"runs of one judge were wanted, found {a.judge} in {a.path} and {b.judge} in {b.path}; judge both "
            "with the same judge, model and prompt"
        )


def _refuse_different_stories(a: RunFolder, b: RunFolder) -> None:
    others = b.by_id()
    shared = [(one.row, others[name].row) for name, one in a.by_id().items() if name in others]
    different = [one for one, two in shared if (one.reference, one.num_scenes) != (two.reference, two.num_scenes)]
    if different:
        raise ValueError(
            f"predictions of the same stories were wanted, but {len(different)} of {len(shared)} ids that {a.path} and "
            f"{b.path} share have another reference or number of scenes (first: {different[0].story_id!r}); they were "
            "made from different datasets"
        )


def _remarks(a: RunFolder, b: RunFolder, scored: Sequence[tuple[Judged, Judged]], videos: int) -> list[str]:
    """Say what weakens the comparison."""
    remarks = [
        f"Prediction of {name} did not come to its end, run eval.predict again."
        for name, run in (("A", a), ("B", b))
        if not run.finished
    ]
    remarks += [
        f"{run.unusable} rows of {name} are malformed or repeat an id and are left out."
        for name, run in (("A", a), ("B", b))
        if run.unusable
    ]
    unparsed = [sum(not pair[side].parsed for pair in scored) for side in (0, 1)]
    if any(unparsed):
        remarks.append(f"Unparsed answers count as No: {unparsed[0]} of A, {unparsed[1]} of B.")
    if unknown := sum(one.row.video_name is None and two.row.video_name is None for one, two in scored):
        remarks.append(f"The video of {unknown} stories is unknown; each counts as a video of its own.")
    if videos < FEW_VIDEOS:
        remarks.append(f"An interval from {videos} videos is rough; {FEW_VIDEOS} or more were wanted.")
    return remarks


def p_text(p_value: float) -> str:
    """Return a p-value for people: "0.23", "0.049" or "< 0.0001"."""
    if p_value < 0.0001:
        return "< 0.0001"
    return f"{p_value:.{4 if p_value < 0.01 else 3 if p_value < 0.1 else 2}f}"


def is_sure(comparison: Comparison, p_value: float) -> bool:
    """Return whether the test over stories (McNemar) and the interval over videos both exclude equality."""
    return p_value < 1 - CONFIDENCE and (comparison.low > 0 or comparison.high < 0)


def verdict(comparison: Comparison, p_holm: float | None = None) -> str:
    """Say in one sentence whether A is better than B and how sure that is (`is_sure`).

    Args:
        comparison: A against B.
        p_holm: Where it is one of several comparisons, its p-value corrected for them: that is what counts then.
    """
    c, p_counts = comparison, comparison.p_value if p_holm is None else p_holm
    if c.only_a + c.only_b == 0:
        return f"No story tells {c.a} and {c.b} apart: both have a Yes on the same {c.yes_a} of {c.n} stories."
    p_value = p_text(p_counts)
    corrected = "" if p_holm is None else " after Holm's correction"
    evidence = (
        f"{100 * c.yes_a / c.n:.2f} % against {100 * c.yes_b / c.n:.2f} % of the same {c.n} stories, "
        f"{c.difference:+.1f} points (95 % interval {c.low:+.1f} to {c.high:+.1f}; McNemar p "
        f"{p_value if p_value.startswith('<') else '= ' + p_value}{corrected})"
    )
    word = "better" if c.difference > 0 else "worse"
    if is_sure(c, p_counts):
        return f"{c.a} is {word} than {c.b}: {evidence}."
    if p_counts < 1 - CONFIDENCE or c.low > 0 or c.high < 0:
        return f"{c.a} may be {word} than {c.b}, but the test and the interval disagree: {evidence}."
    return (
        f"Not shown which of {c.a} and {c.b} is better: {evidence}; with this many stories only a "
        f"difference of {c.detectable:.1f} points or more would be likely to show."
    )


def comparison_sheet(comparisons: Sequence[Comparison], title: str, notes: Sequence[str] = ()) -> Sheet:
    """Arrange comparisons as a table, with Holm's correction where there are several."""
    columns = ("A against B", "n (videos)", "A, %", "B, %", "only A", "only B", "A - B, points", "95 % interval", "p")
    adjusted = holm([c.p_value for c in comparisons])
    several = len(comparisons) > 1
    rows = tuple(_sheet_row(c, value, several) for c, value in zip(comparisons, adjusted, strict=True))
    found = [
        {**c.to_json(), "p_holm": value, "verdict": verdict(c, value if several else None)}
        for c, value in zip(comparisons, adjusted, strict=True)
    ]
    method = (
        "n: stories scored in both runs; only A, only B: Yes in one run alone. p: exact McNemar test over stories"
        + (", with Holm's correction for the number of rows beside it" if several else "")
        + ". Interval: bootstrap over videos. Detectable: the smallest true difference in points that the test finds "
        "with 80 % probability at this n and share of discordant stories (Connor 1987)."
    )
    gaps = [f"{c.a} against {c.b}: {c.left_out} stories" for c in comparisons if c.left_out]
    return Sheet(
        title=title,
        columns=(*columns, *(["p (Holm)"] if several else []), "detectable"),
        rows=rows,
        notes=(method, *([f"Missing or unscored in one of the two runs: {'; '.join(gaps)}."] if gaps else []), *notes),
        data={"comparisons": found},
        records=tuple({**one, "remarks": " ".join(one["remarks"])} for one in found),
    )


def _sheet_row(c: Comparison, p_adjusted: float, several: bool) -> tuple[str, ...]:
    return (
        f"{c.a} against {c.b}", f"{c.n} ({c.videos})", f"{100 * c.yes_a / c.n:.2f}", f"{100 * c.yes_b / c.n:.2f}",
        str(c.only_a), str(c.only_b), f"{c.difference:+.2f}",
        f"{c.low:+.1f} to {c.high:+.1f}" if c.only_a + c.only_b else "-",
        p_text(c.p_value), *([p_text(p_adjusted)] if several else []), f"{c.detectable:.1f}",
    )  # fmt: skip
