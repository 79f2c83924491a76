"""Which words of a description say what somebody does: key verbs, marked as in the paper's Figure 6."""

from __future__ import annotations

import functools
import re
from typing import Any

_TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
LONGEST_TEXT = 2000  # characters that are tagged; what follows stays unmarked


@functools.cache
def _tagger() -> Any:
    try:
        from HanTa import HanoverTagger
    except ImportError:
        return None
    return HanoverTagger.HanoverTagger("morphmodel_en.pgz")


def available() -> bool:
    """Return whether verbs can be found here (the package HanTa, part of the extra "eval")."""
    return _tagger() is not None


def mark_behaviours(text: str) -> list[tuple[str, bool]]:
    """Cut a text into pieces, each with whether it is a behaviour word.

    Full verbs are behaviour words; forms of be, have and do, modal verbs, and everything that the tagger takes for
    another part of speech are not. The pieces joined are the text.
    """
    tagger = _tagger()
    found = list(_TOKEN.finditer(text[:LONGEST_TEXT]))
    if tagger is None or not found:
        return [(text, False)] if text else []
    tags = [tag for _, _, tag in tagger.tag_sent([match[0] for match in found])]
    pieces: list[tuple[str, bool]] = []
    position = 0
    for match, tag in zip(found, tags, strict=True):
        if tag.startswith("VV"):
            pieces += [(text[position : match.start()], False), (match[0], True)]
            position = match.end()
    return [piece for piece in [*pieces, (text[position:], False)] if piece[0]]
