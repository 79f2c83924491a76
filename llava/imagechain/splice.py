"""Image tokens into the places of their marks, and rows of unequal length into one padded batch.

Shape letters: B rows, L positions, D embedding size, n tokens of one image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spliced:
    """A batch ready for the language model: embeddings (B, L, D), mask, positions and labels (B, L)."""

    embeddings: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor | None


def text_positions(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return which positions (B, L) hold text or marks and not padding."""
    return torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()


def splice_row(
    ids: torch.Tensor, embeddings: torch.Tensor, labels: torch.Tensor, images: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put image tokens at the marks of one row.

    Args:
        ids: Token ids (L) with marks.
        embeddings: Their embeddings (L, D); those at marks are not used.
        labels: Labels (L).
        images: Tokens (n, D) of each image, as many as there are marks.

    Returns:
        Embeddings and labels of the longer row; image positions carry no loss.
    """
    parts, label_parts, start = [], [], 0
    for mark, image in zip(torch.where(ids == IMAGE_TOKEN_INDEX)[0].tolist(), images, strict=True):
        parts += [embeddings[start:mark], image.to(device=embeddings.device, dtype=embeddings.dtype)]
        label_parts += [labels[start:mark], labels.new_full((len(image),), IGNORE_INDEX)]
        start = mark + 1
    return torch.cat([*parts, embeddings[start:]]), torch.cat([*label_parts, labels[start:]])


def pad_rows(
    rows: Sequence[torch.Tensor], labels: Sequence[torch.Tensor] | None, *, side: str, max_length: int | None = None
) -> Spliced:
    """Cut rows to a length and pad them to one batch.

    Args:
        rows: Embeddings (L, D) of each row.
        labels: Labels (L) of each row, or None.
        side: Where padding goes, "left" or "right".
        max_length: Positions that are kept from the start of a row; None keeps all.
    """
    rows = [row[:max_length] for row in rows]
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=rows[0].device)
    positions = torch.zeros(len(rows), longest, dtype=torch.long, device=rows[0].device)
    padded_labels = None
    if labels is not None:
        padded_labels = labels[0].new_full((len(rows), longest), IGNORE_INDEX)
    filled = []
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        padding = (0, 0, longest - length, 0) if side == "left" else (0, 0, 0, longest - length)
        filled.append(torch.nn.functional.pad(row, padding))
        place = slice(longest - length, longest) if side == "left" else slice(0, length)
        mask[number, place] = True
        positions[number, place] = torch.arange(length, device=positions.device)
        if padded_labels is not None and labels is not None:
            padded_labels[number, place] = labels[number][:max_length]
    return Spliced(embeddings=torch.stack(filled), attention_mask=mask, position_ids=positions, labels=padded_labels)
