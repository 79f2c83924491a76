"""Table 1 of the paper: SimRate by variant and number of scenes, with the controls and with every pair of rows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from eval.runs import CONTROLS, RunFolder, by_cell, column_title
from eval.stats import detectable_unpaired, newcombe
from eval.tables.cells import COLUMNS, Cell, Spread, count, load_paper, spread
from eval.tables.compare import Comparison, compare, comparison_sheet
from eval.tables.files import CONTINUED, Sheet
from llava.imagechain.story import HUB_DATASET
from llava.imagechain.variants import VARIANTS

SHOWN_IDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One run of a variant, or one control under the table; `run` is None where no run was given."""

    variant: str
    title: str
    control: str | None
    run: RunFolder | None
    cells: dict[str, Cell]
    seed: int | None = None  # set where several seeds of the variant stand in the table

    @property
    def key(self) -> str:
        """Name the row in filters: imagechain, imagechain+blank_images, imagechain#1 (one of several seeds)."""
        seed = "" if self.seed is None else f"#{self.seed}"
        return self.variant + (f"+{self.control}" if self.control else "") + seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean:
    """Several seeds of one variant: mean and range of their rates by column."""

    variant: str
    title: str
    control: str | None
    cells: dict[str, Spread | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Table 1 with the controls that stand under it."""

    rows: tuple[Row, ...]
    controls: tuple[Row, ...]
    notes: tuple[str, ...]
    paper: bool
    means: tuple[Mean, ...] = ()
    train_context: str = "c2_7"


def build_table(runs: Sequence[RunFolder], *, train_context: str = "c2_7", paper: bool = False) -> Table:
    """Arrange runs as Table 1: the paper's seven rows in its order, controls apart.

    Args:
        runs: Judged runs; several of one variant are its training seeds.
        train_context: Trained variants with another training context are left out and named.
        paper: Put the paper's numbers beside; also done when every run says that its stories are the published dataset.

    Raises:
        ValueError: No run for any row, an unknown variant or control, or two runs for one row.
    """
    paper = paper or all(run.stories == HUB_DATASET for run in runs)
    values = load_paper()["table1"] if paper and train_context == "c2_7" else {}
    used = [run for run in runs if run.train_context in (None, train_context)]
    found = by_cell(used, lambda run: (run.variant, run.control))
    if not used:
        raise ValueError(
            f"runs of base models or trained on {column_title(train_context)} were wanted for Table 1, found "
            f"{run_names(runs)}; --train-context takes another column"
        )
    rows = [row for name in VARIANTS for row in _rows(name, None, found.get((name, None), []), values.get(name, {}))]
    controls = [
        row for name in VARIANTS for control in CONTROLS for row in _rows(name, control, found.get((name, control)), {})
    ]
    means = [
        _mean(name, control, [row for row in (*rows, *controls) if (row.variant, row.control) == (name, control)])
        for name in VARIANTS
        for control in (None, *CONTROLS)
        if len(found.get((name, control), [])) > 1
    ]
    left_out = [run for run in runs if run not in used]
    return Table(
        rows=tuple(rows), controls=tuple(controls), notes=tuple(_notes(rows, controls, left_out, paper)), paper=paper,
        means=tuple(means), train_context=train_context,
    )  # fmt: skip


def _rows(variant: str, control: str | None, runs: Sequence[RunFolder] | None, paper: dict[str, float]) -> list[Row]:
    if runs is None:
        return []
    title = VARIANTS[variant].title + (f", {CONTROLS[control]}" if control else "")
    shown: Sequence[RunFolder | None] = runs or [None]
    return [
        Row(
            variant=variant,
            title=f"{title}, seed {run.seed}" if run and len(runs) > 1 else title,
            control=control,
            run=run,
            cells={name: count(run.rows if run else (), name, paper.get(name)) for name in (*COLUMNS, "c7")},
            seed=run.seed if run and len(runs) > 1 else None,
        )
        for run in shown
    ]


def _mean(variant: str, control: str | None, rows: Sequence[Row]) -> Mean:
    title = VARIANTS[variant].title + (f", {CONTROLS[control]}" if control else "")
    cells = {name: spread(row.cells[name] for row in rows) for name in (*COLUMNS, "c7")}
    return Mean(variant=variant, control=control, title=f"{title}, mean of {len(rows)} seeds", cells=cells)


def _notes(rows: Sequence[Row], controls: Sequence[Row], left_out: Sequence[RunFolder], paper: bool) -> list[str]:
    """Say everything that a reader of the numbers has to know."""
    present = [(row, row.run) for row in (*rows, *controls) if row.run is not None]
    judges = sorted({run.judge for _, run in present if run.judge})
    notes = [
        f"Judge: {', '.join(judges) or 'none'}. SimRate: the share of stories (k/n) whose predicted last scene says "
        "what the reference says. An answer that is neither Yes nor No is unparsed and counts as No; an unscored story "
        "(failed or missing call) is in no count. C4-6 and C2-6 are total yes / total stories."
    ]
    if len(judges) > 1:
        notes.append("The runs were judged by different judges: their numbers cannot be compared.")
    videos = {judged.row.story_id: judged.row.video_name for _, run in present for judged in run.rows}
    if all(videos.values()) and (count_videos := len(set(videos.values()))) < len(videos):
        notes.append(
            f"The intervals take stories as independent; these {len(videos):,} are of {count_videos:,} videos. "
            "Comparisons of two runs draw whole videos."
        )
    if missing := [row.title for row in rows if row.run is None]:
        notes.append(f"No run was given for {', '.join(missing)} (-).")
    notes += run_notes([(row.title, run) for row, run in present])
    if seven := [
        f"{row.title}: {row.cells['c7'].yes}/{row.cells['c7'].scored}" for row, _ in present if row.cells["c7"].scored
    ]:
        notes.append(f"Stories of 7 scenes are in no column of the paper's table: {'; '.join(seven)}.")
    shortened = [f"{row.title} {_shortened(row)}" for row, _ in present if _shortened(row)]
    if shortened:
        notes.append(f"Stories whose oldest scenes were dropped to fit the model's context: {'; '.join(shortened)}.")
    if any(row.control == "shuffled_scenes" for row in controls):
        notes.append(
            "Scenes shuffled: a story of 2 scenes has one earlier scene, hence no other order, and stays as it is."
        )
    if left_out:
        notes.append(f"Left out, trained on another context: {run_names(left_out)}.")
    if paper:
        notes += [*load_paper()["notes"]["table1"], paper_certainty()]
    return notes


def run_notes(runs: Sequence[tuple[str, RunFolder]]) -> list[str]:
    """Say what is wrong with runs that stand in one table: rows without verdict, unfinished runs, different stories."""
    notes = []
    unscored = [(title, [j.row.story_id for j in run.rows if j.verdict is None]) for title, run in runs]
    if any(ids for _, ids in unscored):
        shown = ", ".join(f"{title} {len(ids)} ({_some(ids)})" for title, ids in unscored if ids)
        notes.append(f"Unscored stories, run eval.simrate again: {shown}.")
    if skipped := [f"{title} {run.skipped}" for title, run in runs if run.skipped]:
        notes.append(f"Stories skipped at prediction (skipped.jsonl): {', '.join(skipped)}.")
    if mixed := [f"{title} ({run.judge})" for title, run in runs if run.mixed]:
        notes.append(f"Judged by several judges, run eval.simrate again: {', '.join(mixed)}.")
    if unusable := [f"{title} {run.unusable}" for title, run in runs if run.unusable]:
        notes.append(
            f"Rows of predictions.jsonl that are malformed or repeat an id are left out: {', '.join(unusable)}."
        )
    if unfinished := [title for title, run in runs if not run.finished]:
        notes.append(f"Prediction did not come to its end, run eval.predict again: {', '.join(unfinished)}.")
    stories = [{(j.row.story_id, j.row.reference) for j in run.rows} for _, run in runs]
    union = set().union(*stories)
    if any(own != union for own in stories):
        ids = {name for name, _ in union}
        gaps = [
            f"{title} lacks {len(gap)} ({_some(sorted(gap))})"
            for (title, _), own in zip(runs, stories, strict=True)
            if (gap := ids - {name for name, _ in own})
        ]
        other = len(union) - len(ids)
        gaps += (
            [f"{other} ids have another reference in another run: they come from different datasets"] if other else []
        )
        notes.append(f"The runs do not cover the same stories; compare only where n is equal. {'; '.join(gaps)}.")
    return notes


def run_names(runs: Sequence[RunFolder]) -> str:
    """Name the first few runs with what they are, and count the others."""
    kinds = [(run.variant, run.train_context or "base model", *([run.control] if run.control else [])) for run in runs]
    shown = ", ".join(
        f"{run.path} ({', '.join(kind)})" for run, kind in list(zip(runs, kinds, strict=True))[:SHOWN_IDS]
    )
    return shown + (f" and {len(runs) - SHOWN_IDS} more" if len(runs) > SHOWN_IDS else "")


def seed_text(run: RunFolder) -> str:
    """Return ", seed 1" where the run has a seed."""
    return "" if run.seed is None else f", seed {run.seed}"


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN_IDS]) + (", ..." if len(ids) > SHOWN_IDS else "")


def paper_certainty() -> str:
    """Say how sure the paper's own lead over standard fine-tuning is, from its counts alone."""
    paper = load_paper()
    n = paper["counts"]["c2_6"]
    ours, other = (round(paper["table1"][name]["c2_6"] * n / 100) for name in ("imagechain", "mllm_ft"))
    low, high = (100 * bound for bound in newcombe(ours, n, other, n))
    visible = 100 * detectable_unpaired(other / n, n, n)
    return (
        f"Paper: its C2-6 of ImageChain against MLLM-FT is {ours}/{n} against {other}/{n}, "
        f"{100 * (ours - other) / n:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f} when taken as independent "
        f"(Newcombe 1998; which stories differ is not published); {visible:.1f} points or more would be likely to show "
        "(Cohen 1988)."
    )


def _shortened(row: Row) -> str:
    counts = ((name, row.cells[name].shortened) for name in ("c2", "c3", "c4", "c5", "c6", "c7"))
    return " ".join(f"{column_title(name)}: {number}" for name, number in counts if number)


def to_sheet(table: Table) -> Sheet:
    """Return the table as text: rate (k/n), interval, mean over seeds, and the paper's value where it applies."""
    trained = "" if table.train_context == "c2_7" else f", trained on {column_title(table.train_context)}"
    rows = _block(table.rows, table.means)
    if table.controls:
        rows += [("Controls",), *_block(table.controls, table.means)]
    records = to_records(table)
    runs = [
        {
            "path": str(row.run.path),
            "seed": row.run.seed,
            "judge": row.run.judge,
            "rows": len(row.run.rows),
            "unscored_ids": [judged.row.story_id for judged in row.run.rows if judged.verdict is None],
        }
        for row in (*table.rows, *table.controls)
        if row.run
    ]
    return Sheet(
        title=f"Table 1: SimRate on next-scene description{trained}",
        columns=("SimRate, %", *map(column_title, COLUMNS), "unparsed", "unscored"),
        rows=tuple(rows),
        notes=table.notes,
        data={"cells": records, "means": mean_records(table), "notes": list(table.notes), "runs": runs},
        records=tuple(records),
    )


def _block(rows: Sequence[Row], means: Sequence[Mean]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for seeds, mean in by_training(rows, means):
        lines += [line for row in seeds for line in _row_lines(row)]
        if mean:
            spreads = [mean.cells[name] for name in COLUMNS]
            lines.append((mean.title, *(one.rate_text() if one else "-" for one in spreads), "", ""))
            lines.append((f"{CONTINUED}lowest to highest", *(s.range_text() if s else "" for s in spreads), "", ""))
        values = [seeds[0].cells[name].paper for name in COLUMNS]
        if any(value is not None for value in values):
            lines.append((f"{CONTINUED}paper", *("" if v is None else f"{v:.2f}" for v in values), "", ""))
    return lines


def by_training(rows: Sequence[Row], means: Sequence[Mean]) -> list[tuple[list[Row], Mean | None]]:
    """Return the rows of each variant and control, which are its seeds, with their mean where there are several."""
    by_place = {(mean.variant, mean.control): mean for mean in means}
    groups = itertools.groupby(rows, key=lambda row: (row.variant, row.control))
    return [(list(seeds), by_place.get(place)) for place, seeds in groups]


def _row_lines(row: Row) -> list[tuple[str, ...]]:
    cells = [row.cells[name] for name in COLUMNS]
    overall = row.cells["c2_6"]
    counts = (str(overall.unparsed), str(overall.unscored)) if row.run else ("-", "-")
    lines = [(row.title, *(cell.rate_text() for cell in cells), *counts)]
    if any(cell.scored for cell in cells):
        lines.append((f"{CONTINUED}95 % interval", *(cell.interval_text() for cell in cells), "", ""))
    if overall.unparsed:
        lines.append((f"{CONTINUED}without unparsed", *(cell.parsed_text() for cell in cells), "", ""))
    return lines


def to_records(table: Table) -> list[dict[str, Any]]:
    """Return one flat record for each row and column, as table1.csv has them."""
    return [
        {
            "variant": row.variant,
            "title": row.title,
            "control": row.control,
            "train_context": row.run.train_context if row.run else None,
            "seed": row.run.seed if row.run else None,
            "column": column_title(name),
            **cell.to_json(),
        }
        for row in (*table.rows, *table.controls)
        for name, cell in row.cells.items()
        if name in COLUMNS or cell.scored or cell.unscored
    ]


def mean_records(table: Table) -> list[dict[str, Any]]:
    """Return one record for each variant with several seeds and each column."""
    return [
        {"variant": mean.variant, "title": mean.title, "control": mean.control, "column": column_title(name)}
        | one.to_json()
        for mean in table.means
        for name, one in mean.cells.items()
        if one
    ]


def row_pairs(table: Table) -> list[tuple[Row, Row]]:
    """Return the rows that are compared with each other: the family that Holm's correction is for.

    Seeds are compared with the same seed of the other variant (a base model with each); a control with its own variant.
    """
    present = [row for row in table.rows if row.run]
    place = list(VARIANTS).index
    pairs = [
        (a, b)
        for a in sorted(present, key=lambda row: -place(row.variant))
        for b in present
        if place(b.variant) < place(a.variant) and _same_seed(a, b)
    ]
    return pairs + [(b, a) for a in table.controls for b in present if b.variant == a.variant and _same_seed(a, b)]


def pairs_sheet(table: Table, context: str = "c2_6", seed: int = 0) -> Sheet | None:
    """Compare the rows of the table on the same stories (`row_pairs`); None when there are no two."""
    pairs = row_pairs(table)
    done: list[Comparison] = []
    notes: list[str] = []
    for a, b in pairs:
        try:
            assert a.run and b.run
            done.append(dataclasses.replace(compare(a.run, b.run, context, seed), a=a.title, b=b.title))
        except ValueError as error:
            notes.append(f"{a.title} and {b.title} are not compared: {error}.")
    if not pairs:
        return None
    title = f"Rows of Table 1 compared on the same stories, {column_title(context)}"
    return comparison_sheet(done, title, notes)


def _same_seed(a: Row, b: Row) -> bool:
    return a.seed is None or b.seed is None or a.seed == b.seed
