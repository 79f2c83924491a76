"""Two pictures of a built dataset: the paper's Figure 4 and a contact sheet of a few stories with their texts."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.imagechain.files import atomic_path
from llava.imagechain.story import BUCKETS, bucket_of
from stories.frames.annotations import StoryAnnotation
from stories.frames.store import StoredFrames

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image, ImageFont

SPLIT_COLOURS = ("#2f6690", "#9cc5e0")
SOURCE_COLOURS = ("#e08e45", "#5b8e7d", "#8e5572", "#bc4b51", "#c9a227", "#7a7a7a")
# Contact sheet, in pixels.
FRAME_HEIGHT, SLOT_WIDTH, MAX_FRAMES, TEXT_WIDTH, HEAD_HEIGHT, MARGIN = 120, 172, 6, 440, 58, 24


def draw_figure_4(path: Path, stories: Sequence[StoryAnnotation], split: Mapping[str, str]) -> None:
    """Draw the number of stories by number of scenes, once by split and once by source (paper Figure 4)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    by_split = [(story.num_scenes, split[story.story_id]) for story in stories]
    by_source = [(story.num_scenes, story.source) for story in stories]
    _stacked(left, by_split, ["train", "validation"], SPLIT_COLOURS, "by split")
    sources = [source for source, _ in Counter(source for _, source in by_source).most_common()]
    if len(sources) > len(SOURCE_COLOURS):
        kept = sources[: len(SOURCE_COLOURS) - 1]
        by_source = [(count, source if source in kept else "others") for count, source in by_source]
        sources = [*kept, "others"]
    _stacked(right, by_source, sources, SOURCE_COLOURS, "by source")
    left.set_ylabel("stories")
    figure.suptitle(f"{len(stories):,} stories by number of scenes")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Software": None})


def _stacked(
    axes: Axes, rows: Sequence[tuple[int, str]], names: Sequence[str], colours: Sequence[str], title: str
) -> None:
    counts = Counter(rows)
    lengths = list(range(1, max(length for length, _ in rows) + 1))
    totals = [0] * len(lengths)
    for name, colour in zip(names, colours, strict=False):
        heights = [counts[length, name] for length in lengths]
        axes.bar(lengths, heights, 0.78, bottom=totals, color=colour, label=f"{name} ({sum(heights):,})")
        totals = [total + height for total, height in zip(totals, heights, strict=True)]
    for length, total in zip(lengths, totals, strict=True):
        if total:
            axes.annotate(f"{total:,}", (length, total), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(lengths)
    axes.set_xlabel("scenes in a story")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(0, max(totals) * 1.1)
    axes.legend(frameon=False)


def pick_stories(stories: Sequence[StoryAnnotation], count: int = 5) -> list[StoryAnnotation]:
    """Choose a few stories for the contact sheet: one per bucket (of at most 7 scenes), then further ones in order."""
    order = ("scene_2", "scene_3", "scene_4_7", "scene_1")
    firsts = [next((s for s in stories if bucket_of(s.num_scenes) == name), None) for name in order if name in BUCKETS]
    chosen = [story for story in firsts if story is not None]
    rest = (story for story in stories if story.num_scenes <= 7 and story not in chosen)
    while len(chosen) < count and (story := next(rest, None)) is not None:
        chosen.append(story)
    return sorted(chosen or list(stories[:1]), key=lambda story: story.num_scenes)


def draw_contact_sheet(
    path: Path, stories: Sequence[tuple[StoryAnnotation, StoredFrames]], split: Mapping[str, str]
) -> None:
    """Draw stories below each other: a row per scene with its text and a few of its frames."""
    from PIL import Image, ImageDraw

    title, small = _font(19, bold=True), _font(13)
    parts = [
        (story, [_scene_row(story, stored, number) for number in range(story.num_scenes)]) for story, stored in stories
    ]
    width = MARGIN * 3 + TEXT_WIDTH + MAX_FRAMES * SLOT_WIDTH
    height = MARGIN + sum(HEAD_HEIGHT + sum(row.height for row in rows) + MARGIN for _, rows in parts)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for story, rows in parts:
        draw.text((MARGIN, y), _shortened(story.story_id, 90), fill="#111111", font=title)
        scenes = f"{story.num_scenes} scene{'s' if story.num_scenes > 1 else ''}"
        facts = f"{story.source}, {split[story.story_id]}, {scenes}, video {story.video_name!r}"
        draw.text((MARGIN, y + 27), _shortened(facts, 170), fill="#666666", font=small)
        y += HEAD_HEIGHT
        for row in rows:
            sheet.paste(row, (MARGIN, y))
            y += row.height
        draw.line((MARGIN, y + 4, width - MARGIN, y + 4), fill="#dddddd")
        y += MARGIN
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def _scene_row(story: StoryAnnotation, stored: StoredFrames, number: int) -> Image.Image:
    """Draw one scene: text and times at the left, frames with their time below at the right."""
    from PIL import Image, ImageDraw

    body, small = _font(16), _font(13)
    start_s, end_s = story.intervals[number]
    frames, times_s = stored.frames[number], stored.times_s[number]
    shown = _spread(len(frames), MAX_FRAMES)
    label = f"{number + 1}   {start_s:.2f} to {end_s:.2f} s, {len(frames)} frames"
    label += f", {len(shown)} shown" if len(shown) < len(frames) else ""
    text = _wrapped(story.texts[number], body, TEXT_WIDTH, max_lines=7)
    pictures = [_fitted(frames[index]) for index in shown]
    text_height = 24 + 24 * len(text.splitlines())
    row = Image.new(
        "RGB",
        (MARGIN + TEXT_WIDTH + MAX_FRAMES * SLOT_WIDTH, max(text_height, pictures[0].height + 20) + 14),
        "white",
    )
    draw = ImageDraw.Draw(row)
    draw.text((0, 0), label, fill="#666666", font=small)
    draw.multiline_text((0, 20), text, fill="#111111", font=body, spacing=5)
    for slot, (index, picture) in enumerate(zip(shown, pictures, strict=True)):
        x = MARGIN + TEXT_WIDTH + slot * SLOT_WIDTH
        row.paste(picture, (x, 0))
        draw.text((x, picture.height + 2), f"{times_s[index]:.2f} s", fill="#666666", font=small)
    return row


def _fitted(frame: bytes) -> Image.Image:
    """Scale a frame, up or down, to its slot."""
    from PIL import Image

    picture = Image.open(io.BytesIO(frame)).convert("RGB")
    scale = min((SLOT_WIDTH - 8) / picture.width, FRAME_HEIGHT / picture.height)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def _spread(count: int, limit: int) -> list[int]:
    """Return at most `limit` indices of `count`, evenly spread, with both ends."""
    if count <= limit:
        return list(range(count))
    return [round(number * (count - 1) / (limit - 1)) for number in range(limit)]


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> str:
    lines = [""]
    for word in text.split():
        word = _shortened(word, 40)
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
        if len(lines) > max_lines:
            break
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + " …"]
    return "\n".join(lines)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
