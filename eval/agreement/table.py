"""The agreement table: a line for each two raters, its intervals under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.agreement.kappa import CELLS, Agreement
from eval.resampling import Estimate
from eval.tables.files import CONTINUED, Sheet

HEADINGS = {
    ("person", "judge"): "People and judges",
    ("person", "person"): "People among each other",
    ("judge", "judge"): "Judges among each other",
}
COLUMNS = (
    "Raters", "n", "Videos", "Agreement", "Cohen's κ", "κ, weighted",
    "Both Yes", "Only the first Yes", "Only the second Yes", "Both No",
)  # fmt: skip


def agreement_sheet(
    agreements: Sequence[Agreement], notes: Sequence[str] = (), data: dict[str, Any] | None = None
) -> Sheet:
    """Return the table.

    Args:
        agreements: The pairs of raters.
        notes: What the reader has to know besides.
        data: Further facts for the JSON file.
    """
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for kinds, heading in HEADINGS.items():
        members = [one for one in agreements if (one.first.kind, one.second.kind) == kinds]
        rows += [(heading,)] if members else []
        for one in members:
            rows += _lines(one)
            remarks += _remarks(one)
    weighted = any(one.weighted_kappa for one in agreements)
    about = [
        "n is the number of predictions that both labelled. Intervals are 95 % percentile bootstrap intervals; videos "
        "are drawn, because stories of one video are no independent evidence.",
        *(
            [
                "The sample holds as many Yes as No of each run as there are; weighted figures count each row for the "
                "predictions it stands for, so that they speak of all predictions of the runs. Their intervals leave "
                "out that the sample was drawn by verdict, and are rather too wide."
            ]
            if weighted
            else []
        ),
    ]
    return Sheet(
        title="Agreement of raters on whether a prediction says what its reference says",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=(*about, *remarks, *notes),
        data={"pairs": [one.to_json() for one in agreements], "notes": [*about, *remarks, *notes], **(data or {})},
        records=tuple(_record(one) for one in agreements),
    )


def percent(estimate: Estimate | None) -> str:
    """Return a share in percent, "–" where there is none."""
    return "–" if estimate is None or estimate.value is None else f"{100 * estimate.value:.1f} %"


def percent_interval(estimate: Estimate | None) -> str:
    """Return the interval of a share in percent."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


def _lines(one: Agreement) -> list[tuple[str, ...]]:
    value = (
        f"{one.first.name} / {one.second.name}",
        str(one.n),
        str(one.videos),
        percent(one.agreement),
        _number(one.kappa),
        _number(one.weighted_kappa),
        *(str(one.counts[name]) for name in CELLS),
    )
    interval = (
        CONTINUED + "95 % interval",
        "",
        "",
        percent_interval(one.agreement),
        _number_interval(one.kappa),
        _number_interval(one.weighted_kappa),
        *(f"{percent(made)} ({percent_interval(made)})" if one.n else "–" for made in one.shares.values()),
    )
    return [value, interval]


def _number(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate.value is None else f"{estimate.value:.2f}"


def _number_interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{estimate.low:.2f} to {estimate.high:.2f}"


def _remarks(one: Agreement) -> list[str]:
    who = f"{one.first.name} / {one.second.name}"
    if not one.n:
        return [f"{who}: no prediction has a label of both, so nothing can be computed."]
    made = [one.kappa.footnote(f"{who}: κ"), (one.weighted_kappa or one.kappa).footnote(f"{who}: weighted κ")]
    return [sentence for sentence in made[: 2 if one.weighted_kappa else 1] if sentence]


def _record(one: Agreement) -> dict[str, Any]:
    record: dict[str, Any] = {
        "first": one.first.name,
        "first_kind": one.first.kind,
        "second": one.second.name,
        "second_kind": one.second.kind,
        "n": one.n,
        "videos": one.videos,
        **one.counts,
    }
    named = {f"{name}_share": made for name, made in one.shares.items()}
    named |= {"agreement": one.agreement, "kappa": one.kappa}
    found: dict[str, Estimate | None] = {
        **named, "weighted_agreement": one.weighted_agreement, "weighted_kappa": one.weighted_kappa
    }  # fmt: skip
    for name, made in found.items():
        one_of = (made.value, made.low, made.high) if made else (None, None, None)
        for part, value in zip(("", "_low_95", "_high_95"), one_of, strict=True):
            record[name + part] = None if value is None else round(value, 4)
    return record
