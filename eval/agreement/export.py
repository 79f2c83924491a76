"""Write a blind sample of predictions for people to label.

Launch: python -m eval.agreement export --runs RUN [RUN ...] --stories STORYFRAMES --output-dir OUT [--num 200]

OUT/for_labellers holds all that a labeller gets: labels.csv (without variants and verdicts), pictures of the last
scenes, INSTRUCTIONS.txt. OUT/key stays with you: key.jsonl maps the rows back to runs and stories; it holds no verdict.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.agreement.sample import Candidate, KeyRow, by_stratum, candidates, draw, row_names, texts_sha256, weights
from eval.runs import read_runs
from llava.imagechain.command import run_command
from llava.imagechain.config import option, to_json
from llava.imagechain.files import atomic_path, sha256_json, write_jsonl, write_text
from llava.imagechain.manifest import run_manifest
from llava.imagechain.story import SPLIT_FOLDERS, Story, StoryFrames, clean_text, load_stories

COLUMNS = ("row", "picture", "reference", "prediction", "label")
# At the start of a cell, and after a semicolon (which separates cells where a comma is the decimal mark). White space
# is collapsed before, so no tab, carriage return or line break is left to start a cell.
FORMULA = re.compile(r"(^|;)(\s*)(?=[=+\-@＝＋－＠])")
LARGEST_FRAME_PIXELS = 64_000_000
GAP = 6
INSTRUCTIONS = """\
What to do
----------
Open labels.csv in a spreadsheet (or a text editor). Each row holds two sentences about the same moment of a video:

  reference    what a person wrote about it
  prediction   what a program wrote about it

Question for each row: does the prediction convey a similar meaning to the reference? Write yes or no into the column
"label". Different words are fine as long as the meaning is similar.

- Decide from the two sentences. pictures/ROW.jpg shows the moment (time runs from left to right); it is there for when
  a sentence is hard to understand, not for finding out what else the sentences could have said.
- Where you really cannot decide, leave the cell empty. Empty cells are counted and left out.
- Change no other column, and do not sort a single column by itself. Sorting whole rows is fine.
- Label alone. Do not talk about the rows with other labellers before all are done.
- Save as CSV (comma or semicolon), with your name in the file name, for example labels_anna.csv.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of eval.agreement export."""

    runs: list[Path] = option(help="run folders with predictions.jsonl and, for the strata, judgments.jsonl")
    stories: str = option(help="StoryFrames folder, or the published dataset's name, that the predictions are about")
    output_dir: Path = option(help="folder for for_labellers/ and key/")
    split: str = option("validation", help="split of the stories", choices=list(SPLIT_FOLDERS))
    num: int = option(200, help="rows to label, drawn evenly over runs and verdicts", minimum=1)
    seed: int = option(0, help="source of chance: which rows, their names and their order", minimum=0)
    max_frames: int = option(4, help="most frames in a picture, evenly spaced", minimum=1)
    frame_height: int = option(240, help="height of a picture in pixels", minimum=16)
    overwrite: bool = option(False, help="replace an export that is already there, filled labels included")
    dry_run: bool = option(False, help="say what would be drawn, write nothing")


def safe_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: one line, an apostrophe before = + - @ at its start."""
    printable = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    return FORMULA.sub(r"\1\2'", clean_text(printable))


def picture(frames: Sequence[bytes], *, most: int, height: int) -> bytes | None:
    """Return evenly spaced frames side by side as one JPEG without metadata; None when one of them cannot be read."""
    from PIL import Image

    count = min(most, len(frames))
    chosen = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
    images = []
    for data in chosen:
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
                if image.width * image.height > LARGEST_FRAME_PIXELS:
                    return None
                width = min(4 * height, max(1, round(image.width * height / image.height)))
                images.append(image.convert("RGB").resize((width, height)))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
    strip = Image.new("RGB", (sum(part.width + GAP for part in images) - GAP, height), "white")
    left = 0
    for part in images:
        strip.paste(part, (left, 0))
        left += part.width + GAP
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=85)
    return file.getvalue()


def find_stories(
    items: Sequence[Candidate], stories: StoryFrames, where: str
) -> tuple[list[Candidate], dict[str, int], list[dict[str, Any]]]:
    """Return the items whose story is there (same id, same last text), where each story stands, and the others.

    Raises:
        ValueError: None is there.
    """
    last = {
        story_id: (number, texts[-1])
        for number, (story_id, texts) in enumerate(zip(stories.ids, stories.texts(), strict=True))
        if texts
    }
    known: list[Candidate] = []
    lost: list[dict[str, Any]] = []
    for item in items:
        _, text = last.get(item.story_id, (None, None))
        if text == clean_text(item.reference):
            known.append(item)
            continue
        reason = f"its story is not in {where}"
        if text is not None:
            reason = f"its reference is {item.reference[:100]!r}, but the story in {where} ends with {text[:100]!r}"
        lost.append({"id": item.story_id, "run": item.run, "reason": reason})
    if not known:
        raise ValueError(
            f"{where} holds none of the {len(items)} predicted stories with these references (first {lost[0]['id']}: "
            f"{lost[0]['reason']}); give the --stories and --split that eval.predict was run on"
        )
    return known, {item.story_id: last[item.story_id][0] for item in known}, lost


def labels_csv(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return the file to fill in; `rows` are (row name, reference, prediction)."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for name, reference, prediction in rows:
        writer.writerow([name, f"pictures/{name}.jpg", safe_cell(reference), safe_cell(prediction), ""])
    return "\ufeff" + text.getvalue()  # with the mark, spreadsheets read it as UTF-8


def write_export(
    config: ExportConfig, items: Sequence[Candidate], drawn: Sequence[Candidate], stories: Any,
    left_out: Sequence[dict[str, Any]],
) -> str:  # fmt: skip
    """Write both folders; labels.csv comes last.

    Args:
        config: The settings.
        items: The whole population.
        drawn: The sample, in the order of the rows.
        stories: The StoryFrames and the index of each story in them.
        left_out: Predictions whose story is not among them, for skipped.jsonl.

    Returns:
        The last line to print.
    """
    from tqdm import tqdm

    frames, index = stories
    for_labellers, key_dir = config.output_dir / "for_labellers", config.output_dir / "key"
    for old in (for_labellers / "labels.csv", *(for_labellers / "pictures").glob("*.jpg")):
        old.unlink(missing_ok=True)
    shown: list[tuple[str, Candidate, Story]] = []
    lost = list(left_out)
    # Another sample gets other names, so that its labels are never taken for this one's.
    sample_sha256 = sha256_json([(item.story_id, item.pair_sha256) for item in drawn])
    names = row_names(len(drawn), random.Random(f"{config.seed} {sample_sha256}"))
    for name, item in zip(names, tqdm(drawn, unit="picture", disable=None), strict=True):
        story: Story = frames[index[item.story_id]]
        data = picture(story.scenes[-1].frames, most=config.max_frames, height=config.frame_height)
        if data is None:
            lost.append({"id": item.story_id, "run": item.run, "reason": "a frame of its last scene cannot be read"})
            continue
        shown.append((name, item, story))
        with atomic_path(for_labellers / "pictures" / f"{name}.jpg") as temporary:
            temporary.write_bytes(data)
    if not shown:
        raise ValueError(f"none of the {len(drawn)} drawn stories has readable frames; see {config.stories}")
    key = [
        KeyRow(
            row=name,
            run=item.run,
            story_id=item.story_id,
            video_name=story.video_name,
            pair_sha256=item.pair_sha256,
            texts_sha256=texts_sha256(safe_cell(item.reference), safe_cell(item.prediction)),
            weight=weight,
        )
        for (name, item, story), weight in zip(shown, weights(items, [item for _, item, _ in shown]), strict=True)
    ]
    write_jsonl(key_dir / "key.jsonl", map(dataclasses.asdict, sorted(key, key=lambda row: row.row)))
    write_jsonl(key_dir / "skipped.jsonl", lost)
    write_text(for_labellers / "INSTRUCTIONS.txt", INSTRUCTIONS)
    with atomic_path(for_labellers / "labels.csv") as temporary:
        temporary.write_bytes(labels_csv([(name, item.reference, item.prediction) for name, item, _ in shown]).encode())
    return f"{len(shown)} rows -> {for_labellers} (for the labellers); {key_dir / 'key.jsonl'} stays with you"


def check_target(config: ExportConfig) -> None:
    """Refuse to write over an export, which somebody may have filled in.

    Raises:
        ValueError: One is there and --overwrite was not given.
    """
    path = config.output_dir / "for_labellers" / "labels.csv"
    if path.exists() and not config.overwrite:
        raise ValueError(f"{path} is there already; choose another --output-dir, or --overwrite to replace it")


def describe(items: Sequence[Candidate], drawn: Sequence[Candidate]) -> str:
    """Return one line for each stratum."""
    sample = by_stratum(drawn)
    lines = [
        f"  {Path(run).name}, {verdict}: {len(sample.get((run, verdict), []))} of {len(group)}"
        for (run, verdict), group in by_stratum(items).items()
    ]
    if empty := len(lines) - len(sample):
        lines.append(f"  {empty} strata have no row: weighted figures leave them out; a larger --num covers them")
    return "\n".join(["distinct predictions drawn, by run and verdict:", *lines])


def export(config: ExportConfig) -> None:
    """Draw the sample and write both folders."""
    check_target(config)
    runs = read_runs(config.runs)
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ValueError("--runs: one of the folders is given twice")
    rng = random.Random(config.seed)
    stories = load_stories(config.stories, config.split)
    everything = candidates(runs, rng)
    items, index, lost = find_stories(everything, stories, f"{config.stories} ({config.split})")
    drawn = draw(items, config.num, rng)
    print(describe(items, drawn))
    if lost:
        print(f"{len(lost)} predictions are left out; {lost[0]['id']}: {lost[0]['reason']}")
    if config.dry_run:
        print("nothing was written")
        return
    inputs = [path for run in runs for path in run.files]
    with run_manifest(config.output_dir / "key", config=to_json(config), inputs=inputs) as run:
        run.record(left_out=len(lost), rows=len(drawn))
        print(write_export(config, items, drawn, (stories, index), lost))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(ExportConfig, export, argv, program="python -m eval.agreement export", description=__doc__ or "")
