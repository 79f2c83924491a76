"""Read the four keyword lists of an extractor's answer, however a language model dresses them up.

Wanted are four lines `Object list 1: [a, b]`, `Action list 1: [...]`, `Object list 2: [...]`, `Action list 2: [...]`
(1 = the person's text, 2 = the model's).
"""

from __future__ import annotations

import dataclasses
import re

LONGEST = 20_000  # characters of an answer that are read; 1000 tokens have about 4000
_LABEL = re.compile(
    r"\b(object|action|behaviou?r)s?[ _-]*lists?[ _-]*#?([12])\b"
    r"(?:[ \t]*\([^()\n]{0,40}\))?[*_`\"'\]]*[ \t]*[:=：][*_`]*",
    re.IGNORECASE,
)
# List marks before a line's text: "- ", "* ", "3. ", "3) ".
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lists:
    """The words of both texts by kind ("object", "action"), as they were cut at their commas: [] is one empty item."""

    reference: dict[str, tuple[str, ...]]
    prediction: dict[str, tuple[str, ...]]


def parse(answer: str) -> Lists:
    """Read an answer; code fences, numbering, bold marks, the case of labels and text around do not matter.

    Raises:
        ValueError: A list is missing, there twice with other words, or cut off.
    """
    text = answer[:LONGEST]
    labels = list(_LABEL.finditer(text))
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for number, label in enumerate(labels):
        stop = labels[number + 1].start() if number + 1 < len(labels) else len(text)
        key = ("object" if label[1].lower() == "object" else "action", label[2])
        name = f"{key[0].capitalize()} list {key[1]}"
        items = _items(text[label.end() : stop], name)
        if found.setdefault(key, items) != items:
            raise ValueError(f"{name} is there twice with other words")
    if missing := [
        f"{kind.capitalize()} list {side}"
        for side in "12"
        for kind in ("object", "action")
        if (kind, side) not in found
    ]:
        raise ValueError(f"{', '.join(missing)} not found")
    lists = [{kind: found[kind, side] for kind in ("object", "action")} for side in "12"]
    return Lists(reference=lists[0], prediction=lists[1])


def _items(text: str, name: str) -> tuple[str, ...]:
    """Return the items after a label: what is in brackets, else the first line or the list marks below it."""
    opening = text.find("[")
    if opening >= 0 and not text[:opening].strip(" \t\r\n*_`-•"):
        inside = text[opening + 1 : _closing(text, opening, name)]
        return tuple(_clean(item) for item in re.split(r"[,，]\s*|\n", inside.strip()))
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("```")]
    bullets = [_BULLET.sub("", line) for line in lines if _BULLET.match(line)]
    if text.split("\n", 1)[0].strip():
        bullets = lines[:1]
    return tuple(_clean(item) for line in bullets for item in re.split("[,，]", line)) or ("",)


def _closing(text: str, opening: int, name: str) -> int:
    """Return where the bracket ends that begins at `opening`; items may have brackets of their own."""
    depth = 0
    for match in re.finditer(r"[\[\]]", text[opening:]):
        depth += 1 if match[0] == "[" else -1
        if not depth:
            return opening + match.start()
    raise ValueError(f"{name} has no closing bracket; the answer was cut off")


def _clean(item: str) -> str:
    return _BULLET.sub("", item).strip(" \t\r\n\"'`*_“”‘’[]").strip()
