"""Greedy decoding of a batch of prompts of unequal length, without a padded prefill.

Each prompt is run on its own, over its own positions only, and what it shares with the prompt before it (the system
text, the first scene of a story of the same video) is copied. Then all rows are decoded together. Keys and values are
written into one block of memory that ends at the same column for every row:

    row 0   . . . a a a a | x x x          a prompt, x new tokens, . unused
    row 1   b b b b b b b | y y y

Shape letters: B rows, L positions of a prompt, H heads, W columns, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


class AlignedCache(DynamicCache):
    """Keys and values (B, H, W, d) of each layer; attention sees the columns `start` to `stop` of `rows`."""

    def __init__(self, num_rows: int, num_columns: int) -> None:
        super().__init__()
        self.num_rows, self.num_columns = num_rows, num_columns
        self.rows = slice(0, num_rows)
        self.start = self.stop = 0
        self._store: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the newest positions, which end at column `stop`, and return all that attention may see."""
        if layer_idx not in self._store:
            shape = (self.num_rows, key_states.shape[1], self.num_columns, key_states.shape[3])
            self._store[layer_idx] = (key_states.new_zeros(shape), value_states.new_zeros(shape))
        seen = []
        for store, states in zip(self._store[layer_idx], (key_states, value_states), strict=True):
            store[self.rows, :, self.stop - states.shape[2] : self.stop] = states
            seen.append(store[self.rows, :, self.start : self.stop])
        return seen[0], seen[1]

    def keep(self, rows: torch.Tensor) -> None:
        """Keep some rows only."""
        self._store = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._store.items()}
        self.num_rows = len(rows)
        self.rows = slice(0, len(rows))

    def copy_columns(self, source: tuple[int, int], target: tuple[int, int], count: int) -> None:
        """Copy `count` columns of all layers from one (row, column) to another."""
        for keys, values in self._store.values():
            for store in (keys, values):
                found = store[source[0], :, source[1] : source[1] + count]
                store[target[0], :, target[1] : target[1] + count] = found


@torch.inference_mode()
def greedy(
    model: Any, prompts: Sequence[torch.Tensor], *, end_tokens: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Decode greedily.

    Args:
        model: A LLaVA language model in evaluation mode, on sdpa attention.
        prompts: Embeddings (L, D) of each prompt.
        end_tokens: The tokens that end an answer.
        max_new_tokens: Most tokens of an answer.

    Returns:
        New token ids of each row, the end token included.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    width = int(lengths.max())
    cache = AlignedCache(len(prompts), width + max_new_tokens)
    last = torch.cat([_prefill(model, prompts, row, cache, width) for row in range(len(prompts))])
    cache.rows, cache.start = slice(0, len(prompts)), 0
    columns = torch.arange(width + max_new_tokens, device=lengths.device)
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    active = torch.arange(len(prompts), device=lengths.device)  # the rows that are still being written
    for step in range(1, max_new_tokens + 1):
        tokens = model.lm_head(last).argmax(dim=-1)
        for row, token in zip(active.tolist(), tokens.tolist(), strict=True):
            if not ended[row]:
                answers[row].append(token)
                ended[row] = token in end_tokens
        going = torch.tensor([n for n, row in enumerate(active.tolist()) if not ended[row]])
        if step == max_new_tokens or not len(going):
            break
        if len(going) < 0.75 * len(active):  # ended rows are dropped now and then: dropping copies the cache
            going = going.to(active.device)
            active, tokens, lengths = active[going], tokens[going], lengths[going]
            cache.keep(going)
        cache.stop = width + step
        last = model.get_model()(
            inputs_embeds=model.get_model().embed_tokens(tokens)[:, None],
            attention_mask=(columns[: cache.stop] >= (width - lengths)[:, None])[:, None, None],
            position_ids=(lengths + step - 1)[:, None],
            past_key_values=cache,
            use_cache=True,
        )[0][:, -1]
    return answers


def _prefill(model: Any, prompts: Sequence[torch.Tensor], row: int, cache: AlignedCache, width: int) -> torch.Tensor:
    """Run one prompt, but for what it shares with the one before; returns its last hidden state (1, D)."""
    prompt = prompts[row]
    shared = common_length(prompts[row - 1], prompt) if row else 0
    cache.rows, cache.start, cache.stop = slice(row, row + 1), width - len(prompt), width
    mask = None
    if shared:
        cache.copy_columns((row - 1, width - len(prompts[row - 1])), (row, cache.start), shared)
        mask = torch.ones(len(prompt) - shared, len(prompt), dtype=torch.bool, device=prompt.device).tril(shared)[
            None, None
        ]
    return model.get_model()(
        inputs_embeds=prompt[None, shared:],
        attention_mask=mask,
        position_ids=torch.arange(shared, len(prompt), device=prompt.device)[None],
        past_key_values=cache,
        use_cache=True,
    )[0][:, -1]


def common_length(one: torch.Tensor, other: torch.Tensor) -> int:
    """Return how many positions from the start two prompts (L, D) have in common; the last one is never counted."""
    shortest = min(len(one), len(other)) - 1
    differs = (one[:shortest] != other[:shortest]).any(dim=-1)
    return int(differs.int().argmax()) if bool(differs.any()) else shortest
