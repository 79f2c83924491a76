"""Figure 5 of the paper from judged runs: SimRate by training context, one line per fine-tuned variant.

Launch: python -m eval.tables.figure5 --runs RUN [RUN ...] --output-dir OUT [--paper]

Writes figure5.png, figure5.svg and figure5.json (every number drawn). The large panel is tested on C2-6, the small ones
on each number of scenes. A bar is the 95 % Wilson interval over the stories; several runs of one variant are its
training seeds: small dots, with their mean as the marker and the bar around the mean.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.runs import RunFolder, by_cell, column_title, read_runs, refuse_run_folder
from eval.stats import wilson
from eval.tables.cells import count, load_paper, rounded, spread
from eval.tables.files import plain
from eval.tables.table1 import run_names, run_notes, seed_text
from llava.imagechain.command import run_command
from llava.imagechain.config import option, to_json
from llava.imagechain.files import atomic_path, write_json
from llava.imagechain.manifest import run_manifest
from llava.imagechain.story import HUB_DATASET
from llava.imagechain.variants import VARIANTS

TRAINED_ON = ("c2", "c3", "c4_7")
MAIN, SMALL = "c2_6", ("c2", "c3", "c4", "c5", "c6", "c4_6")
# Close to the palette of Okabe and Ito, told apart with every kind of colour vision, and by marker and line in print.
LOOKS: dict[str, dict[str, Any]] = {
    "mllm_ft": {"color": "#0072B2", "marker": "s", "linestyle": (0, (5, 2))},
    "visual_context": {"color": "#009E73", "marker": "^", "linestyle": (0, (1, 1.5))},
    "final_scene": {"color": "#C8709F", "marker": "D", "linestyle": (0, (4, 1.5, 1, 1.5))},
    "imagechain": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
}
FEW_STORIES = 50  # an interval of fewer stories may go on beyond the scale
INK, QUIET, LINE = "#222222", "#555555", "#D9D9D9"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure5Config:
    """Settings of eval.tables.figure5."""

    runs: list[Path] = option(help="run folders with predictions.jsonl and judgments.jsonl")
    output_dir: Path = option(help="folder for figure5.png, figure5.svg and figure5.json")
    paper: bool = option(False, help="the stories are StoryFrames: show the points that the paper's text quotes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One variant, trained on one context, tested on one; rates in percent."""

    variant: str
    train_context: str
    test: str
    percent: float  # mean over seeds
    low: float  # 95 % Wilson interval of that rate over the stories of one seed
    high: float
    n: int  # scored stories (of the seed with the fewest)
    seeds: tuple[float, ...]  # the rate of each seed

    def to_json(self) -> dict[str, Any]:
        """Return the point as JSON values."""
        numbers = {name: rounded(getattr(self, name)) for name in ("percent", "low", "high")}
        return dataclasses.asdict(self) | numbers | {"seeds": [rounded(rate) for rate in self.seeds]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure5:
    """What is drawn and what has to be said about it."""

    points: tuple[Point, ...]
    paper: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def at(self, variant: str, test: str) -> list[Point]:
        """Return the points of one line, in the order of the training contexts."""
        found = {point.train_context: point for point in self.points if (point.variant, point.test) == (variant, test)}
        return [found[context] for context in TRAINED_ON if context in found]


def build_figure(runs: Sequence[RunFolder], *, paper: bool = False) -> Figure5:
    """Take the figure's numbers from judged runs.

    Raises:
        ValueError: No run belongs into the figure, none is judged, or two runs fill one place.
    """
    used = [r for r in runs if r.variant in LOOKS and r.control is None and r.train_context in TRAINED_ON]
    found = by_cell(used, lambda run: (run.variant, run.train_context))
    points = [
        point
        for (variant, context), some in found.items()
        for test in (MAIN, *SMALL)
        if (point := _point(variant, context, test, some))
    ]
    if not points:
        wanted = f"judged runs of {', '.join(LOOKS)} trained on {', '.join(map(column_title, TRAINED_ON))} were wanted"
        raise ValueError(f"{wanted}, found {'none that is judged' if used else run_names(runs) or 'none'}")
    paper = paper or all(run.stories == HUB_DATASET for run in runs)
    printed = load_paper()["figure5"] if paper else []
    return Figure5(points=tuple(points), paper=tuple(printed), notes=tuple(_notes(runs, used, found, bool(printed))))


def _point(variant: str, context: str, test: str, runs: Sequence[RunFolder]) -> Point | None:
    cells = [cell for run in runs if (cell := count(run.rows, test)).scored]
    seeds = spread(cells)
    if seeds is None:
        return None
    n = min(seeds.stories)
    low, high = wilson(seeds.mean / 100 * n, n)
    rates = tuple(cell.percent for cell in cells if cell.percent is not None)
    return Point(
        variant=variant, train_context=context, test=test, percent=seeds.mean, low=100 * low, high=100 * high, n=n,
        seeds=rates,
    )  # fmt: skip


def _notes(
    runs: Sequence[RunFolder], used: Sequence[RunFolder], found: dict[tuple[str, str], list[RunFolder]], paper: bool
) -> list[str]:
    judges = sorted({run.judge or "none" for run in used})
    notes = [f"Judge: {', '.join(judges)}. An unparsed answer counts as No; an unscored story is in no count."]
    if len(judges) > 1:
        notes.append("The runs were judged by different judges: their numbers cannot be compared.")
    places = [(variant, context) for variant in LOOKS for context in TRAINED_ON]
    if missing := [f"{VARIANTS[v].title} {column_title(c)}" for v, c in places if (v, c) not in found]:
        notes.append(f"No run was given for {', '.join(missing)}.")
    titles = [
        (f"{VARIANTS[run.variant].title} {column_title(str(run.train_context))}" + seed_text(run), run) for run in used
    ]
    notes += run_notes(titles)
    if left_out := [run for run in runs if run not in used]:
        notes.append(f"Left out, no place in Figure 5: {run_names(left_out)}.")
    return [*notes, *(load_paper()["notes"]["figure5"] if paper else [])]


def draw(figure: Figure5, output_dir: Path) -> list[Path]:
    """Draw the figure; the same numbers give the same bytes.

    Returns:
        The paths of the PNG and the SVG file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "figure5", "svg.fonttype": "path",
        "axes.edgecolor": QUIET, "axes.linewidth": 0.8, "text.color": INK, "axes.labelcolor": INK,
        "xtick.color": INK, "ytick.color": INK,
    }  # fmt: skip
    paths = [output_dir / "figure5.png", output_dir / "figure5.svg"]
    with matplotlib.rc_context(settings):
        page = Figure(figsize=(11, 5.4), layout="constrained")
        halves: Any = page.subfigures(1, 2, width_ratios=(1.0, 1.25))
        panels = halves[1].subplots(2, 3, sharex=True, sharey=True)
        top = _top(figure, SMALL)
        cut = [_panel(place, figure, test, top, large=False) for place, test in zip(panels.flat, SMALL, strict=True)]
        main = halves[0].subplots()
        _panel(main, figure, MAIN, _top(figure, (MAIN,)), large=True)
        for axes in (main, *panels[:, 0]):
            axes.set_ylabel("SimRate, %")
        for half in halves:
            half.supxlabel("trained on", fontsize=9)
        _legend(page, figure, cut=any(cut))
        for path, metadata in zip(paths, ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
            with atomic_path(path) as temporary:
                page.savefig(temporary, dpi=200, metadata=metadata)
    return paths


def _top(figure: Figure5, tests: Sequence[str]) -> float:
    """Return the upper end of the scale: every rate fits, and so do the intervals except those of very few stories."""
    points = [point for point in figure.points if point.test in tests]
    printed = [float(one["simrate"]) for one in figure.paper if one["test"] in tests]
    wide = [point.high for point in points if point.n >= FEW_STORIES] or [point.high for point in points]
    rates = [rate for point in points for rate in point.seeds]
    return 1.06 * max([*wide, *rates, *printed, 1.0])


def _panel(axes: Any, figure: Figure5, test: str, top: float, *, large: bool) -> bool:
    """Draw one test context: lines with markers, interval bars, seeds, the paper's points hollow.

    Returns:
        Whether an interval goes on beyond the scale.
    """
    from matplotlib.ticker import MaxNLocator

    shown = [name for name in LOOKS if figure.at(name, test)]
    for number, variant in enumerate(shown):
        shift = (0.09 if large else 0.13) * (number - (len(shown) - 1) / 2)
        _line(axes, figure.at(variant, test), shift, top, large=large)
    for printed in figure.paper:
        if printed["test"] == test:
            look = LOOKS[printed["variant"]]
            axes.plot(
                TRAINED_ON.index(printed["train_context"]) + 0.36, printed["simrate"], look["marker"], zorder=5,
                markerfacecolor="white", markeredgecolor=look["color"], markeredgewidth=1.4,
                markersize=8 if large else 5.5,
            )  # fmt: skip
    points = [point for point in figure.points if point.test == test]
    stories = sorted({point.n for point in points})
    number_text = " to ".join(f"{n:,}" for n in dict.fromkeys((stories[0], stories[-1]))) if stories else "0"
    axes.set_title(
        f"tested on {column_title(test)}  (n = {number_text})", fontsize=10 if large else 9, loc="left", pad=8
    )
    axes.set_xticks(range(len(TRAINED_ON)), [column_title(context) for context in TRAINED_ON])
    axes.set_xlim(-0.45, len(TRAINED_ON) - 0.55)
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7 if large else 5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return any(point.high > top for point in points)


def _line(axes: Any, points: Sequence[Point], shift: float, top: float, *, large: bool) -> None:
    """Draw one variant, moved sideways by `shift` so that its bars stand beside the others'."""
    look = LOOKS[points[0].variant]
    xs = [TRAINED_ON.index(point.train_context) + shift for point in points]
    axes.plot(
        xs, [point.percent for point in points], color=look["color"], linestyle=look["linestyle"],
        linewidth=1.6 if large else 1.0, marker=look["marker"], markersize=7 if large else 4.5,
        markeredgecolor="white", markeredgewidth=0.6, zorder=4 + (points[0].variant == "imagechain"), clip_on=False,
    )  # fmt: skip
    for x, point in zip(xs, points, strict=True):
        axes.plot([x, x], [point.low, min(point.high, top)], color=look["color"], linewidth=1.2, alpha=0.7, zorder=3)
        if point.high > top:
            axes.plot(
                x, 0.985 * top, "^", color=look["color"], markersize=3.5, markeredgewidth=0, clip_on=False, zorder=3
            )
        if len(point.seeds) > 1:
            axes.plot(
                [x] * len(point.seeds), point.seeds, "_", color=look["color"], markersize=8 if large else 5,
                markeredgewidth=1.2, zorder=3, clip_on=False,
            )  # fmt: skip


def _legend(page: Any, figure: Figure5, *, cut: bool) -> None:
    from matplotlib.lines import Line2D

    drawn = [name for name in LOOKS if any(point.variant == name for point in figure.points)]
    handles = [
        Line2D([], [], label=VARIANTS[name].title, markersize=7, markeredgecolor="white", linewidth=1.6, **LOOKS[name])
        for name in reversed(drawn)
    ]
    handles.append(
        Line2D([], [], color=QUIET, marker="|", linestyle="", markersize=11, markeredgewidth=1.2,
               label="95 % interval" + (" (▲ goes on)" if cut else ""))
    )  # fmt: skip
    if any(len(point.seeds) > 1 for point in figure.points):
        handles.append(
            Line2D([], [], color=QUIET, marker="_", linestyle="", markersize=8, markeredgewidth=1.2, label="one seed")
        )
    if figure.paper:
        handles.append(
            Line2D([], [], linestyle="", marker="o", markersize=7, markerfacecolor="white", markeredgecolor=QUIET,
                   label="quoted in the paper (hollow)")
        )  # fmt: skip
    page.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)


def make_figure(config: Figure5Config) -> None:
    """Draw the figure and write its numbers."""
    refuse_run_folder(config.output_dir)
    runs = read_runs(config.runs)
    figure = build_figure(runs, paper=config.paper)
    inputs = [path for run in runs for path in run.files]
    with run_manifest(config.output_dir, config=to_json(config), inputs=inputs, name="figure5_run.json"):
        paths = draw(figure, config.output_dir)
        data = {"points": [point.to_json() for point in figure.points], "paper": figure.paper, "notes": figure.notes}
        write_json(config.output_dir / "figure5.json", data)
    print("\n".join(f"- {plain(note)}" for note in figure.notes))
    print(f"-> {' and '.join(map(str, paths))} (numbers: {config.output_dir / 'figure5.json'})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        Figure5Config, make_figure, argv, program="python -m eval.tables.figure5", description=__doc__ or ""
    )


if __name__ == "__main__":
    sys.exit(main())
