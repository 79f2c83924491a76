"""The order of the training examples: neighbours of like lengths, and as many for each process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from llava.imagechain.labels import IGNORE_INDEX


class LengthGroupedSampler(Sampler[int]):
    """A random order in which neighbours have like lengths, new each epoch and the same for the same seed.

    The shuffled examples are cut into megabatches, each sorted by length and cut into global batches; the global
    batches of the whole epoch are shuffled. The longest comes first, so that a lack of memory shows at once.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        global_batch_size: int,
        group_batches: int,
        seed: int,
        kinds: Sequence[bool] | None = None,
        multiple: int = 1,
    ) -> None:
        """Choose the order.

        Args:
            lengths: Of the examples.
            global_batch_size: Examples of a step, over all devices.
            group_batches: Global batches sorted by length together; 0 leaves the random order.
            seed: Of all epochs.
            kinds: A global batch holds examples of one kind only (with images or text); what is left over of both
                comes last, together.
            multiple: Of what the number of indices is one; the blank of `FilledExamples` makes it up.
        """
        self.lengths, self.seed, self.epoch, self.kinds = lengths, seed, 0, kinds
        self.global_batch_size, self.group_batches = global_batch_size, group_batches
        self.blanks = -len(lengths) % multiple

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.blanks

    def __iter__(self) -> Iterator[int]:
        return iter(self._order() + [len(self.lengths)] * self.blanks)

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if not self.group_batches and self.kinds is None:
            return order
        batch = self.global_batch_size
        size = batch * max(self.group_batches, 1)
        kinds = self.kinds or [True] * len(order)
        batches: list[list[int]] = []
        for pool in ([i for i in order if kinds[i]], [i for i in order if not kinds[i]]):
            for start in range(0, len(pool), size):
                group = sorted(pool[start : start + size], key=lambda i: -self.lengths[i])
                batches += [group[i : i + batch] for i in range(0, len(group), batch)]
        rest = [i for b in batches if len(b) < batch for i in b]  # incomplete batches can only stand at the end
        last = [rest[i : i + batch] for i in range(0, len(rest), batch)]
        whole = [b for b in batches if len(b) == batch]
        whole = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        longest = max(self.lengths, default=0)
        whole.sort(key=lambda b: max(self.lengths[i] for i in b) < longest)
        return [i for b in whole + last for i in b]


class FilledExamples(Dataset[dict[str, Any]]):
    """Examples, and behind the last one a blank: the shortest of them without labels.

    Several processes take as many examples each. Where an epoch ends with fewer, the library starts over with the first
    ones, which then count twice; the blank in their place lets a step train on what one process would.
    """

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.examples):
            return self.examples[index]
        lengths = self.examples.lengths
        shortest = self.examples[min(range(len(lengths)), key=lengths.__getitem__)]
        return {**shortest, "labels": torch.full_like(shortest["labels"], IGNORE_INDEX)}
