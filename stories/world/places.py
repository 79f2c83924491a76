"""The places of the story world, as backgrounds."""

from __future__ import annotations

import functools
from collections.abc import Callable

from PIL import Image, ImageDraw

HORIZON = 0.62  # where ground and sky or wall meet, as a share of the height


class _Brush:
    """ImageDraw without edges, in shares of the width."""

    def __init__(self, draw: ImageDraw.ImageDraw, width: int) -> None:
        self._draw, self._width = draw, width

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: str) -> None:
        w = self._width
        self._draw.rectangle([x0 * w, y0 * w, x1 * w, y1 * w], fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: str) -> None:
        w = self._width
        self._draw.ellipse([(x - rx) * w, (y - ry) * w, (x + rx) * w, (y + ry) * w], fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: str) -> None:
        self._draw.polygon([(x * self._width, y * self._width) for x, y in points], fill=fill)


@functools.lru_cache(maxsize=32)
def background(place: str, width: int) -> Image.Image:
    """Return the empty place as an RGB image of width x width pixels; the result is shared, copy before drawing."""
    image = Image.new("RGB", (width, width))
    PLACES[place](_Brush(ImageDraw.Draw(image), width))
    return image


def _park(brush: _Brush) -> None:
    brush.box(0, 0, 1, HORIZON, "#bfe6ff")
    brush.box(0, HORIZON, 1, 1, "#8fd16a")
    for x in (0.08, 0.5, 0.93):
        brush.box(x - 0.02, 0.4, x + 0.02, HORIZON + 0.03, "#7a5230")
        brush.ellipse(x, 0.33, 0.11, 0.14, "#3f9a4c")


def _beach(brush: _Brush) -> None:
    brush.box(0, 0, 1, 0.42, "#d9f2ff")
    brush.ellipse(0.5, 0.15, 0.09, 0.09, "#ffe27a")
    brush.box(0, 0.42, 1, HORIZON, "#49b6e0")
    brush.box(0, HORIZON, 1, 1, "#f6dfa4")
    for x in (0.15, 0.55, 0.85):
        brush.ellipse(x, 0.52, 0.08, 0.012, "#ffffff")


def _kitchen(brush: _Brush) -> None:
    brush.box(0, 0, 1, HORIZON, "#fdeccb")
    for x in (0.03, 0.36, 0.69):
        brush.box(x, 0.04, x + 0.28, 0.22, "#c98f5a")
        brush.box(x + 0.12, 0.16, x + 0.16, 0.19, "#fff6e5")
    brush.box(0, 0.5, 1, HORIZON, "#d7a878")
    brush.box(0, 0.48, 1, 0.51, "#fff6e5")
    for row in range(4):
        for column in range(10):
            shade = "#e9e4dc" if (row + column) % 2 else "#c9d3d6"
            brush.box(column / 10, HORIZON + row / 10, (column + 1) / 10, HORIZON + (row + 1) / 10, shade)


def _street(brush: _Brush) -> None:
    brush.box(0, 0, 1, HORIZON, "#dfe6ee")
    for x, top, shade in (
        (0.0, 0.12, "#c9746b"),
        (0.26, 0.26, "#9aa7c7"),
        (0.5, 0.08, "#d9b36c"),
        (0.78, 0.2, "#8fae9b"),
    ):
        brush.box(x, top, x + 0.22, HORIZON, shade)
        for row in range(3):
            for column in range(2):
                left, upper = x + 0.04 + 0.09 * column, top + 0.05 + 0.13 * row
                brush.box(left, upper, left + 0.05, upper + 0.07, "#fdf6d8")
    brush.box(0, HORIZON, 1, 1, "#8b8d94")
    for x in (0.05, 0.38, 0.71):
        brush.box(x, 0.79, x + 0.2, 0.81, "#f4f4f4")


def _snow(brush: _Brush) -> None:
    brush.box(0, 0, 1, HORIZON, "#aac4dd")
    for x in (0.2, 0.55, 0.9):
        brush.polygon([(x - 0.28, HORIZON), (x, 0.2), (x + 0.28, HORIZON)], "#7f97b5")
        brush.polygon([(x - 0.09, 0.335), (x, 0.2), (x + 0.09, 0.335)], "#ffffff")
    brush.box(0, HORIZON, 1, 1, "#f7fbff")


def _desert(brush: _Brush) -> None:
    brush.box(0, 0, 1, HORIZON, "#ffd9a0")
    brush.ellipse(0.78, 0.16, 0.1, 0.1, "#ff9d5c")
    brush.ellipse(0.25, HORIZON + 0.06, 0.4, 0.16, "#e0a25a")
    brush.box(0, HORIZON, 1, 1, "#d08a45")
    brush.box(0.48, 0.34, 0.53, HORIZON, "#4f8a4a")
    brush.box(0.42, 0.42, 0.45, 0.52, "#4f8a4a")
    brush.box(0.42, 0.5, 0.5, 0.53, "#4f8a4a")


PLACES: dict[str, Callable[[_Brush], None]] = {
    "park": _park,
    "beach": _beach,
    "kitchen": _kitchen,
    "street": _street,
    "snow": _snow,
    "desert": _desert,
}
