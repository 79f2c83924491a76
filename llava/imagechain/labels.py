"""Which tokens carry loss, decided on the final token ids (paper equation 2 and its alternatives)."""

from __future__ import annotations

from llava.constants import IGNORE_INDEX
from llava.imagechain.prompts import Encoded

# Kinds of prompts.Span that carry loss. System text, role marks, turn marks and image positions never do.
LOSS_ON: dict[str, frozenset[str]] = {
    "all_text": frozenset({"question", "description", "answer", "end"}),  # eq. 2: every text token of the context
    "answers": frozenset({"answer", "end"}),
    "last_answer": frozenset({"answer", "end"}),
}


def loss_mask(kinds: list[str], loss_on: str) -> list[bool]:
    """Return for each position whether it carries loss.

    Args:
        kinds: Kind of each token (`Encoded.kinds`) or span.
        loss_on: "all_text", "answers" or "last_answer".

    Raises:
        ValueError: Unknown `loss_on`.
    """
    if loss_on not in LOSS_ON:
        raise ValueError(f"loss_on: one of {', '.join(LOSS_ON)} was wanted, found {loss_on!r}.")
    mask = [kind in LOSS_ON[loss_on] for kind in kinds]
    if loss_on == "last_answer":
        end = max((i for i, carries in enumerate(mask) if carries), default=-1)
        start = max((i for i, carries in enumerate(mask[: max(end, 0)]) if not carries), default=-1)
        mask = [start < i <= end for i in range(len(mask))]
    return mask


def make_labels(encoded: Encoded, loss_on: str) -> list[int]:
    """Return the label of each position: its id where it carries loss, else -100.

    Args:
        encoded: Final ids with the kind of each.
        loss_on: "all_text", "answers" or "last_answer".

    Returns:
        One label per id of `encoded.input_ids`.
    """
    mask = loss_mask(encoded.kinds, loss_on)
    return [token if carries else IGNORE_INDEX for token, carries in zip(encoded.input_ids, mask, strict=True)]
