"""Draw one frame of the story world: a place and two people, each doing something with an object of its own.

All lengths are shares of the picture's width; y grows downwards; a person's pose is given relative to its feet, in
shares of the person's height, for a person who faces right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from eval.judge.world.grammar import Meaning
from stories.world.places import background

OVERSAMPLING = 2  # drawn larger, then reduced: smooth edges
SKIN = "#f2c9a1"
OUTLINE = "#2b2b33"
TROUSERS = "#4a5568"
CLOTHES_RGB = {
    "red": "#e02b2b",
    "blue": "#2458e6",
    "green": "#12a150",
    "yellow": "#ffd21f",
    "purple": "#a035d8",
    "black": "#1c1c22",
}
HEIGHT = {"man": 0.51, "woman": 0.49, "boy": 0.38, "girl": 0.38}
OBJECT_RADIUS = 0.08
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the parts of a body are, and its object's centre; see the module's text for the units."""

    hip: Point = (0.0, -0.42)
    neck: Point = (0.0, -0.76)
    hands: tuple[Point, Point] = ((-0.2, -0.45), (0.2, -0.45))
    knees: tuple[Point, Point] | None = None
    feet: tuple[Point, Point] = ((-0.09, 0.0), (0.09, 0.0))
    object: Point = (0.0, 0.0)
    object_at: Literal["ground", "hands", "below"] = (
        "ground"  # ground: only x counts; below: y is from the object's top
    )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One person of a frame: what it does, where it stands (share of the width), where it looks (1 right, -1 left)."""

    meaning: Meaning
    x: float
    facing: int
    idle: bool = False  # only stands there, without an object


def draw_frame(place: str, figures: Sequence[Figure], phase: float, size: int) -> Image.Image:
    """Draw a frame.

    Args:
        place: One of the grammar's places.
        figures: The people, drawn in this order.
        phase: Position in the repeating movement, 0 to 1.
        size: Width and height in pixels.

    Returns:
        An RGB image of size x size pixels.
    """
    canvas = background(place, size * OVERSAMPLING).copy()
    pen = Pen(canvas)
    for figure in figures:
        draw_figure(pen, figure, phase)
    return canvas.reduce(OVERSAMPLING)


class Pen:
    """ImageDraw in shares of the width."""

    def __init__(self, canvas: Image.Image) -> None:
        self.width = canvas.width
        self.draw = ImageDraw.Draw(canvas)

    def polygon(self, points: Sequence[Point], fill: str, outline: str | None = OUTLINE) -> None:
        """Fill a polygon and draw its edge."""
        pixels = [(x * self.width, y * self.width) for x, y in points]
        self.draw.polygon(pixels, fill=fill)
        if outline:
            self.draw.line([*pixels, pixels[0]], fill=outline, width=round(0.008 * self.width), joint="curve")

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: str, outline: str | None = OUTLINE) -> None:
        """Fill an upright rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, outline)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: str, outline: str | None = OUTLINE) -> None:
        """Fill an ellipse around (x, y)."""
        w = self.width
        edge = round(0.008 * w) if outline else 0
        self.draw.ellipse([(x - rx) * w, (y - ry) * w, (x + rx) * w, (y + ry) * w], fill, outline, edge)

    def limb(self, points: Sequence[Point], fill: str, thickness: float) -> None:
        """Draw a line with round ends and an edge."""
        pixels = [(x * self.width, y * self.width) for x, y in points]
        for extra, colour in ((0.012, OUTLINE), (0.0, fill)):
            width = (thickness + extra) * self.width
            self.draw.line(pixels, fill=colour, width=round(width), joint="curve")
            for x, y in (pixels[0], pixels[-1]):
                r = width / 2
                self.draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)


# --- people -----------------------------------------------------------------------------------------------------------


def pose_of(action: str, phase: float) -> Pose:
    """Return the pose of an action at a phase of its movement; "idle" only stands."""
    swing = math.sin(2 * math.pi * phase)
    return POSES[action](swing)


def _kick(swing: float) -> Pose:
    return Pose(
        hip=(-0.16, -0.42),
        neck=(-0.26, -0.75),
        hands=((-0.46, -0.6), (0.02, -0.5)),
        feet=((-0.2, 0.0), (0.12, -0.22 + 0.03 * swing)),
        object=(0.31 + 0.04 * swing, 0.0),
    )


def _lift(swing: float) -> Pose:
    up = 0.03 * swing
    return Pose(hands=((-0.15, -1.18 - up), (0.15, -1.18 - up)), object=(0.0, -1.31 - up), object_at="hands")


def _carry(swing: float) -> Pose:
    step = 0.06 * swing
    return Pose(
        hip=(-0.1, -0.42),
        neck=(-0.1, -0.76),
        hands=((0.2, -0.46), (0.2, -0.62)),
        feet=((-0.22 - step, 0.0), (0.02 + step, 0.0)),
        object=(0.22, -0.54 + 0.015 * swing),
        object_at="hands",
    )


def _sit(swing: float) -> Pose:
    return Pose(
        hip=(-0.06, -0.04),
        neck=(-0.08 + 0.02 * swing, -0.4),
        hands=((0.08, -0.12), (0.14, -0.12)),
        knees=((0.2, -0.05), (0.24, -0.03)),
        feet=((0.22, 0.27), (0.31, 0.27)),
        object_at="below",
    )


def _jump(swing: float) -> Pose:
    up = 0.1 + 0.04 * swing
    return Pose(
        hip=(0.0, -0.24 - up),
        neck=(0.04, -0.58 - up),
        hands=((-0.26, -0.8 - up), (0.32, -0.8 - up)),
        feet=((-0.34, 0.0 - up), (0.34, 0.0 - up)),
        object_at="below",
    )


def _push(swing: float) -> Pose:
    return Pose(
        hip=(-0.24, -0.38),
        neck=(-0.06, -0.66),
        hands=((0.2, -0.28), (0.2, -0.38)),
        feet=((-0.46, 0.0), (-0.26 + 0.04 * swing, 0.0)),
        object=(0.34 + 0.03 * swing, 0.0),
    )


def _idle(swing: float) -> Pose:
    return Pose(neck=(0.0, -0.76 + 0.01 * swing))


POSES: dict[str, Callable[[float], Pose]] = {
    "kick": _kick,
    "lift": _lift,
    "carry": _carry,
    "sit": _sit,
    "jump": _jump,
    "push": _push,
    "idle": _idle,
}
GROUND = 0.93


def draw_figure(pen: Pen, figure: Figure, phase: float) -> None:
    """Draw a person and its object."""
    meaning = figure.meaning
    height = HEIGHT[meaning.person]
    pose = pose_of("idle" if figure.idle else meaning.action, phase)

    floor = GROUND - (2 * OBJECT_RADIUS if pose.object_at == "below" else 0.0)

    def at(point: Point) -> Point:
        return figure.x + figure.facing * point[0] * height, floor + point[1] * height

    object_x, object_y = at(pose.object)
    if pose.object_at != "hands":
        object_y = GROUND - OBJECT_RADIUS
    if not figure.idle and pose.object_at != "hands":
        DRAW_OBJECT[meaning.object](pen, object_x, object_y)
    _body(pen, meaning, pose, at, height)
    if not figure.idle and pose.object_at == "hands":
        DRAW_OBJECT[meaning.object](pen, object_x, object_y)


def _body(pen: Pen, meaning: Meaning, pose: Pose, at: Callable[[Point], Point], height: float) -> None:
    person, colour = meaning.person, CLOTHES_RGB[meaning.colour]
    hip, neck = pose.hip, pose.neck
    limb, legs = 0.075 * height, SKIN if person in ("woman", "girl") else TROUSERS
    sleeves = SKIN if person == "woman" else "#ffffff" if person == "girl" else colour
    head = (neck[0] + 0.02, neck[1] - 0.13)
    if person == "woman":
        _long_hair(pen, at(head), height)
    pen.limb([at(neck), at(pose.hands[0])], sleeves, limb)
    for index, foot in enumerate(pose.feet):
        knee = [at(pose.knees[index])] if pose.knees else []
        pen.limb([at(hip), *knee, at(foot)], legs, limb * 1.15)
    torso = 0.13
    top = [at((neck[0] - torso, neck[1])), at((neck[0] + torso, neck[1]))]
    hem = {"man": 0.12, "boy": 0.13, "woman": 0.26, "girl": 0.3}[person]
    low = 0.14 if person in ("woman", "girl") and not pose.knees else 0.03
    bottom = [at((hip[0] + hem, hip[1] + low)), at((hip[0] - hem, hip[1] + low))]
    if person == "girl":
        waist = ((neck[0] + hip[0]) / 2, (neck[1] + hip[1]) / 2 + 0.02)
        pen.polygon([*top, at((waist[0] + 0.11, waist[1])), at((waist[0] - 0.11, waist[1]))], "#ffffff")
        pen.polygon([at((waist[0] - 0.12, waist[1])), at((waist[0] + 0.12, waist[1])), *bottom], colour)
    else:
        pen.polygon([*top, *bottom], colour)
    pen.limb([at(neck), at(pose.hands[1])], sleeves, limb)
    _head(pen, person, at(head), height)


def _long_hair(pen: Pen, head: Point, height: float) -> None:
    x, y = head
    r = 0.12 * height
    pen.polygon(
        [(x - 1.35 * r, y - 0.4 * r), (x + 1.35 * r, y - 0.4 * r), (x + 1.6 * r, y + 2 * r), (x - 1.6 * r, y + 2 * r)],
        "#8a4b1f",
    )


def _head(pen: Pen, person: str, head: Point, height: float) -> None:
    x, y = head
    r = (0.12 if person in ("man", "woman") else 0.15) * height
    if person == "girl":
        for side in (-1, 1):
            pen.ellipse(x + side * 1.35 * r, y - 0.2 * r, 0.5 * r, 0.6 * r, "#e8862e")
    pen.ellipse(x, y, r, r, SKIN)
    hair = {"man": "#3a2a20", "woman": "#8a4b1f", "boy": "#3fc1d9", "girl": "#e8862e"}[person]
    w = pen.width
    box = [(x - r) * w, (y - 1.08 * r) * w, (x + r) * w, (y + r) * w]
    pen.draw.chord(
        box,
        195 if person == "man" else 185,
        345 if person == "man" else 355,
        fill=hair,
        outline=OUTLINE,
        width=round(0.006 * w),
    )
    if person == "boy":  # a cap with a peak
        pen.box(x - 1.5 * r, y - 0.25 * r, x + 1.5 * r, y - 0.02 * r, hair)
    if person == "man":  # a beard
        pen.draw.chord([(x - r) * w, (y - r) * w, (x + r) * w, (y + r) * w], 35, 145, fill=hair)
    else:  # a smile
        mouth = [(x - 0.4 * r) * w, (y + 0.05 * r) * w, (x + 0.4 * r) * w, (y + 0.65 * r) * w]
        pen.draw.arc(mouth, 20, 160, fill="#b5483a", width=max(1, round(0.006 * w)))
    for side in (-1, 1):
        pen.ellipse(x + side * 0.4 * r, y + 0.05 * r, 0.13 * r, 0.13 * r, OUTLINE, None)


# --- objects ----------------------------------------------------------------------------------------------------------


def _ball(pen: Pen, x: float, y: float) -> None:
    r = OBJECT_RADIUS
    pen.ellipse(x, y, r, r, "#ff8c1a")
    pen.limb([(x - 0.9 * r, y), (x + 0.9 * r, y)], "#ffffff", 0.012)


def _box(pen: Pen, x: float, y: float) -> None:
    r = OBJECT_RADIUS
    pen.box(x - r, y - r, x + r, y + r, "#a8703a")
    pen.box(x - r, y - 0.25 * r, x + r, y + 0.25 * r, "#e3c08a", None)


def _drum(pen: Pen, x: float, y: float) -> None:
    r = OBJECT_RADIUS
    pen.box(x - 1.05 * r, y - 0.8 * r, x + 1.05 * r, y + r, "#ffffff")
    for shift in (-0.7, 0.0, 0.7):
        pen.box(x + (shift - 0.15) * r, y - 0.6 * r, x + (shift + 0.15) * r, y + r, "#d81b60", None)
    pen.ellipse(x, y - 0.75 * r, 1.05 * r, 0.3 * r, "#fff4d6")


def _bucket(pen: Pen, x: float, y: float) -> None:
    r = OBJECT_RADIUS
    pen.polygon([(x - 1.05 * r, y - r), (x + 1.05 * r, y - r), (x + 0.65 * r, y + r), (x - 0.65 * r, y + r)], "#9fb3c8")
    pen.ellipse(x, y - r, 1.05 * r, 0.3 * r, "#54677d")


def _pillow(pen: Pen, x: float, y: float) -> None:
    r = OBJECT_RADIUS
    pen.polygon(
        [
            (x - 1.35 * r, y - 0.55 * r),
            (x, y - 0.4 * r),
            (x + 1.35 * r, y - 0.55 * r),
            (x + 1.15 * r, y + 0.3 * r),
            (x + 1.35 * r, y + r),
            (x, y + 0.9 * r),
            (x - 1.35 * r, y + r),
            (x - 1.15 * r, y + 0.3 * r),
        ],
        "#ff9ec7",
    )


def _book(pen: Pen, x: float, y: float) -> None:
    r = OBJECT_RADIUS
    pen.polygon([(x - 1.3 * r, y - 0.7 * r), (x, y - 0.2 * r), (x, y + r), (x - 1.3 * r, y + 0.5 * r)], "#17b8a6")
    pen.polygon([(x + 1.3 * r, y - 0.7 * r), (x, y - 0.2 * r), (x, y + r), (x + 1.3 * r, y + 0.5 * r)], "#ffffff")


DRAW_OBJECT: dict[str, Callable[[Pen, float, float], None]] = {
    "ball": _ball,
    "box": _box,
    "drum": _drum,
    "bucket": _bucket,
    "pillow": _pillow,
    "book": _book,
}
