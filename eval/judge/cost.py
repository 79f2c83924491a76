"""What judging costs before it is done: calls, tokens, dollars.

Tokens are counted with the judge's tokenizer.json where that lies on this machine, else estimated from characters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from eval.judge.base import Judge
from eval.judge.client import Reply
from eval.judge.prompt import render_raw
from llava.imagechain.config import ConfigError

# Mean length in characters of the 8,900 last descriptions in StoryBench: the pair of a story that is not predicted yet.
TYPICAL_PAIR = ("w" * 97, "w" * 97)
# English under Llama 3's tokenizer has more than 4 characters to a token, so that the estimate is rather high.
CHARACTERS_PER_TOKEN = 4.0
# A Llama 3 turn is <|start_header_id|>, its role, <|end_header_id|>, a blank line, the text, <|eot_id|>; before all of
# them <|begin_of_text|>, after all of them the four tokens that open the answer.
TOKENS_PER_TURN, TOKENS_AROUND = 5, 5
# One word and its end mark; max_tokens is reached by an unparsed answer only.
TOKENS_OF_AN_ANSWER = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a number of comparisons costs.

    Attributes:
        calls: Requests to the server, retries not counted.
        prompt_tokens: Tokens that the server reads.
        new_tokens: Tokens that it writes.
        usd: US dollars; None when the judge's price table has no price for its model.
        counted: The prompts were counted with the judge's tokenizer, not estimated from characters.
    """

    calls: int
    prompt_tokens: int
    new_tokens: int
    usd: float | None
    counted: bool

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} tokens read and {self.new_tokens:,} written"
        how = "counted" if self.counted else "estimated, not counted by the judge's tokenizer"
        price = "price unknown" if self.usd is None else f"${self.usd:,.2f}"
        return f"{self.calls:,} calls, {tokens} ({how}), {price}" if self.calls else "0 calls, nothing to pay"


def estimate(judge: Judge, pairs: Iterable[tuple[str, str]] = (), *, planned: int = 0) -> Cost:
    """Say what it costs to ask a judge.

    Args:
        judge: The judge; one that asks no server costs nothing.
        pairs: (reference, prediction) of each comparison; whether some are equal is the caller's affair.
        planned: Further comparisons whose texts do not exist yet. They count with the mean length of `pairs`, or,
            where there are none, with the mean length of StoryBench's descriptions.
    """
    pairs = list(pairs)
    calls = len(pairs) + planned
    if judge.settings.answers_from != "server" or not calls:
        return Cost(calls=0, prompt_tokens=0, new_tokens=0, usd=0.0, counted=True)
    tokenizer = find_tokenizer(judge.settings.tokenizer or judge.settings.model)
    measured = [_prompt_tokens(judge, pair, tokenizer) for pair in pairs or [TYPICAL_PAIR]]
    prompt_tokens = round(sum(measured) / len(measured) * calls)
    new_tokens = calls * min(TOKENS_OF_AN_ANSWER, judge.settings.max_tokens)
    return Cost(
        calls=calls,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        usd=price_of(judge, prompt_tokens, new_tokens),
        counted=tokenizer is not None and not planned,
    )


def price_of(judge: Judge, prompt_tokens: int, new_tokens: int) -> float | None:
    """Return the US dollars of so many tokens, or None when the judge's price table does not know its model."""
    price = judge.settings.prices.get(judge.settings.model)
    return None if price is None else (prompt_tokens * price[0] + new_tokens * price[1]) / 1e6


def check_cost(judge: Judge, cost: Cost, limit_usd: float | None) -> None:
    """Make sure that an estimate is within a limit.

    Raises:
        ConfigError: It is over it, or there is no price to compare.
    """
    if limit_usd is None:
        return
    if cost.usd is None:
        raise ConfigError(
            f"max_cost: the price of {judge.settings.model!r} is unknown; pass --price READ WRITTEN (US dollars per "
            f"million tokens), or put it under prices in {judge.folder / 'settings.yaml'}"
        )
    if cost.usd > limit_usd:
        raise ConfigError(
            f"max_cost: this takes about ${cost.usd:.4f}, more than ${limit_usd:g}; nothing was asked. Pass --limit N, "
            "or a higher --max-cost"
        )


class Spending:
    """What the calls of this run cost so far, by what the server reports, else by the estimate."""

    def __init__(self, judge: Judge, expected: Cost, limit_usd: float | None) -> None:
        self.judge, self.expected, self.limit_usd = judge, expected, limit_usd
        self.replies = self.prompt_tokens = self.new_tokens = self.reported = 0
        self.usd = 0.0
        self.fingerprints: set[str] = set()

    def add(self, reply: Reply) -> str | None:
        """Count a reply; return why no further call may be made, or None."""
        self.replies += 1
        per_call = (self.expected.usd or 0.0) / max(1, self.expected.calls)
        if reply.usage:
            self.reported += 1
            self.prompt_tokens += reply.usage[0]
            self.new_tokens += reply.usage[1]
            self.usd += price_of(self.judge, *reply.usage) or 0.0
        elif reply.answer is not None:
            self.usd += per_call
        if reply.fingerprint and len(self.fingerprints) < 20:
            self.fingerprints.add(reply.fingerprint)
        # Calls that are under way will be paid too.
        open_calls = min(self.judge.settings.concurrency, self.expected.calls - self.replies)
        most = self.usd + open_calls * max(per_call, self.usd / self.replies)
        if self.limit_usd is None or not open_calls or most <= self.limit_usd + 1e-9:
            return None
        return f"${self.usd:.4f} of --max-cost ${self.limit_usd:g} were spent and the calls under way may need the rest"

    def facts(self) -> dict[str, Any]:
        """Return what judge_run.json says of it."""
        return {
            "replies": self.replies,
            "usage_reported": self.reported,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "usd": None if self.expected.usd is None else round(self.usd, 6),
            "fingerprints": sorted(self.fingerprints),
        }


@functools.cache
def find_tokenizer(name: str) -> Callable[[str], int] | None:
    """Return a function that counts the tokens of a text, or None when no tokenizer.json is on this machine.

    Args:
        name: A folder, or a model whose files may lie in the Hugging Face cache. Nothing is downloaded.

    Raises:
        ConfigError: The file is broken.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
        from tokenizers import Tokenizer
    except ImportError:
        return None
    path: object = Path(name).expanduser() / "tokenizer.json"
    if not Path(str(path)).is_file():
        try:
            path = try_to_load_from_cache(name, "tokenizer.json")
        except HFValidationError:
            return None
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no narrower one
        raise ConfigError(f"{path} is no tokenizer that can be read: {error}") from error
    # The first five of six messages are the same in every call.
    return functools.lru_cache(maxsize=256)(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids))


def _prompt_tokens(judge: Judge, pair: tuple[str, str], tokenizer: Callable[[str], int] | None) -> float:
    messages = judge.messages(*pair)
    if tokenizer is None:
        turns = TOKENS_PER_TURN * len(messages) + TOKENS_AROUND
        return sum(len(message["content"]) for message in messages) / CHARACTERS_PER_TOKEN + turns
    if judge.settings.rendering == "raw":
        return tokenizer(render_raw(messages)) + 1
    return sum(tokenizer(message["content"]) + TOKENS_PER_TURN for message in messages) + TOKENS_AROUND
