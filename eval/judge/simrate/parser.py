"""The first word of the answer decides; anything but Yes or No is an unparsed No."""

from __future__ import annotations

import re

from eval.judge.base import Verdict

# The word may stand behind quotes, brackets, marks of emphasis or blanks; "Yesterday" and "None" are other words.
FIRST_WORD = re.compile(r"[\W_]*(yes|no)(?![^\W_])", re.IGNORECASE)


def parse(answer: str, reference: str) -> Verdict:
    """Read a language model's answer.

    Args:
        answer: The raw answer.
        reference: The reference description; not needed here.
    """
    found = FIRST_WORD.match(answer)
    if found is None:
        return Verdict(verdict="no", parsed=False, answer=answer)
    return Verdict(verdict="yes" if found[1].lower() == "yes" else "no", parsed=True, answer=answer)
