"""The exact judge: Yes when a prediction means what the reference means."""

from __future__ import annotations

from eval.judge.base import Verdict
from eval.judge.world import grammar


def parse(answer: str, reference: str) -> Verdict:
    """Compare who does what to what and where.

    Args:
        answer: The prediction, any text; unparsed (and No) when it is no sentence of the world's language.
        reference: A sentence of the world's language.

    Raises:
        ValueError: The reference is no sentence of the language, so the story is not one of the world's.
    """
    wanted, found = grammar.parse(reference), grammar.parse(answer)
    if wanted is None:
        raise ValueError(
            f"The reference {reference!r} is not a sentence of the story world, whose exact judge cannot score it. "
            "Use the simrate judge for other data."
        )
    return Verdict(verdict="yes" if found == wanted else "no", parsed=found is not None, answer=answer)
