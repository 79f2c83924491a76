"""report.html: Table 1, its controls, runs against each other, and one card a story with pictures, texts and verdicts.

Launch: python -m eval.report --runs RUN [RUN ...] --stories STORYFRAMES --output OUT/report.html

The page is one file that loads nothing: pictures are small JPEGs inside it. All texts are untrusted and escaped; a
content security policy allows the page's own script and style only, by their hashes.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report.behaviours import available, mark_behaviours
from eval.report.pairs import pair_views
from eval.runs import Judged, column_title, read_runs
from eval.tables.cells import COLUMNS
from eval.tables.files import plain
from eval.tables.table1 import Row, Table, build_table, by_training
from llava.imagechain.command import run_command
from llava.imagechain.config import option, to_json
from llava.imagechain.files import write_text
from llava.imagechain.manifest import run_manifest
from llava.imagechain.story import CONTEXTS, SPLIT_FOLDERS, Story, StoryFrames, load_stories

PAGE_DIR = Path(__file__).resolve().parent
LARGEST_FRAME_PIXELS = 64_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of eval.report."""

    runs: list[Path] = option(help="run folders with predictions.jsonl and judgments.jsonl")
    stories: str = option(help="StoryFrames folder, or the published dataset's name, that the predictions are about")
    output: Path = option(help="the page to write, for example OUT/report.html")
    split: str = option("validation", help="split of the stories", choices=list(SPLIT_FOLDERS))
    train_context: str = option("c2_7", help="training context of the trained variants", choices=list(CONTEXTS))
    paper: bool = option(False, help="the stories are StoryFrames: show the paper's numbers beside ours")
    max_stories: int = option(200, help="most stories shown, spread evenly over the numbers of scenes", minimum=1)
    max_frames: int = option(4, help="most frames shown of a scene, spread evenly", minimum=1)
    frame_size: int = option(192, help="longest side of a picture in pixels", minimum=16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneView:
    """One scene of a card; a frame is a data URI, or None when it cannot be read."""

    text: list[tuple[str, bool]]  # pieces, each with whether it is a behaviour word
    times: str
    frames: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutcomeView:
    """What one run said about a story."""

    key: str
    title: str
    control: bool
    kinds: str  # what the verdict filter matches, space-separated
    badge: str
    label: str
    text: list[tuple[str, bool]]
    remark: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardView:
    """One story."""

    story_id: str
    video_name: str
    num_scenes: int
    scenes: tuple[SceneView, ...]
    outcomes: tuple[OutcomeView, ...]


def thumbnail(frame: bytes, size: int) -> str | None:
    """Re-encode an untrusted frame as a small JPEG data URI; None when it is no readable picture of sane size."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > LARGEST_FRAME_PIXELS:
                return None
            image.draft("RGB", (size, size))
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((size, size))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` items, evenly spread, first and last kept."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def scene_views(story: Story, config: ReportConfig) -> tuple[SceneView, ...]:
    """Return the scenes of a story with a few small pictures each."""
    return tuple(
        SceneView(
            text=mark_behaviours(scene.description),
            times=f"{scene.start_s:.1f}–{scene.end_s:.1f} s",
            frames=tuple(thumbnail(frame, config.frame_size) for frame in spread(scene.frames, config.max_frames)),
        )
        for scene in story.scenes
    )


def outcome_view(row: Row, judged: Judged) -> OutcomeView:
    """Return what a run said about a story and how it was judged."""
    if judged.verdict is None:
        badge, label, kinds = "unscored", "unscored", "unscored"
    elif not judged.parsed:
        badge, label, kinds = "unparsed", "No, unparsed", "no unparsed"
    else:
        badge, label = judged.verdict, "Yes" if judged.verdict == "yes" else "No"
        kinds = badge
    remarks = []
    if judged.verdict is None and judged.error:
        remarks.append(judged.error)
    if not judged.parsed and judged.answer is not None and judged.answer != judged.row.prediction:
        remarks.append(f"judge's answer: {judged.answer[:200]}")
    if judged.row.dropped_scenes:
        remarks.append(f"predicted without the oldest {judged.row.dropped_scenes} scenes, to fit the model's context")
    return OutcomeView(
        key=row.key,
        title=row.title,
        control=row.control is not None,
        kinds=kinds,
        badge=badge,
        label=label,
        text=mark_behaviours(judged.row.prediction),
        remark="; ".join(remarks),
    )


def build_cards(rows: Sequence[Row], stories: StoryFrames, config: ReportConfig) -> tuple[list[CardView], list[str]]:
    """Return the cards to show, ordered by number of scenes, and what the reader has to know about them.

    Raises:
        ValueError: The stories are not those of the predictions.
    """
    # Another dataset may use the same ids: a story is the predicted one only when its last text is the reference.
    judged = {row.key: {(one.row.story_id, one.row.reference): one for one in row.run.rows} for row in rows if row.run}
    predicted = set().union(*judged.values())
    index = {
        (story_id, texts[-1]): (len(texts), story_id, number)
        for number, (story_id, texts) in enumerate(zip(stories.ids, stories.texts(), strict=True))
        if texts and (story_id, texts[-1]) in predicted
    }
    if not index:
        raise ValueError(
            f"{config.stories} ({config.split}) holds none of the {len(predicted)} predicted stories; "
            "give the --stories and --split that eval.predict was run on"
        )
    known = sorted(index, key=lambda pair: index[pair])
    cards = []
    for pair in spread(known, config.max_stories):
        num_scenes, story_id, number = index[pair]
        story = stories[number]
        outcomes = [outcome_view(row, found) for row in rows if (found := judged[row.key].get(pair))]
        cards.append(
            CardView(
                story_id=story_id,
                video_name=story.video_name,
                num_scenes=num_scenes,
                scenes=scene_views(story, config),
                outcomes=tuple(outcomes),
            )
        )
    notes = []
    if len(known) > len(cards):
        notes.append(
            f"{len(cards)} of {len(known)} stories are shown, spread evenly over the numbers of scenes; the table "
            "counts all (--max-stories shows more)."
        )
    if missing := len(predicted) - len(known):
        notes.append(f"{missing} predicted stories are not in {config.stories} ({config.split}) and have no card.")
    if broken := sum(frame is None for card in cards for scene in card.scenes for frame in scene.frames):
        notes.append(f"{broken} frames cannot be read.")
    return cards, notes


def render_page(table: Table, cards: Sequence[CardView], notes: Sequence[str]) -> str:
    """Return the whole page as HTML; every text is escaped by the template."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE_DIR), autoescape=True, undefined=jinja2.StrictUndefined
    )
    style, script = ((PAGE_DIR / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    rows = [row for row in (*table.rows, *table.controls) if row.run]
    pairs, uncompared = pair_views(table)
    return environment.get_template("page.html.j2").render(
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        tables=[
            (heading, caption, by_training(some, table.means))
            for heading, caption, some in (
                ("Table 1", "SimRate, %", table.rows),
                ("Controls", "Control, %", table.controls),
            )
            if some
        ],
        table_notes=table.notes,
        has_means=bool(table.means),
        scale=bar_scale(rows),
        columns=COLUMNS,
        column_title=column_title,
        runs=[{"key": row.key, "title": row.title} for row in rows],
        contexts=sorted({card.num_scenes for card in cards}),
        num_stories=len({story_id for row in rows if row.run for story_id in row.run.by_id()}),
        pairs=pairs,
        uncompared=uncompared,
        behaviours_marked=available(),
        cards=cards,
        notes=notes,
    )


def bar_scale(rows: Sequence[Row]) -> int:
    """Return the percentage at which the bars of the intervals end: a round one that none goes beyond."""
    highest = max((cell.interval[1] for row in rows for cell in row.cells.values() if cell.interval), default=100.0)
    return next(end for end in (10, 20, 30, 40, 50, 100) if highest <= end)


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def make_report(config: ReportConfig) -> None:
    """Write the page."""
    if config.output.is_dir():
        raise ValueError(f"--output: a file such as {config.output / 'report.html'} was wanted, found a folder")
    runs = read_runs(config.runs)
    table = build_table(runs, train_context=config.train_context, paper=config.paper)
    stories = load_stories(config.stories, config.split)
    rows = [row for row in (*table.rows, *table.controls) if row.run]
    inputs = [path for run in runs for path in run.files]
    with run_manifest(config.output.parent, config=to_json(config), inputs=inputs, name="report_run.json"):
        cards, notes = build_cards(rows, stories, config)
        write_text(config.output, render_page(table, cards, notes))
    for note in (*table.notes, *notes):
        print(f"- {plain(note)}")
    size = config.output.stat().st_size / 1e6
    print(f"{len(cards)} stories, {size:.1f} MB -> {config.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(ReportConfig, make_report, argv, program="python -m eval.report", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
