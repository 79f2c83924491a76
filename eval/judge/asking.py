"""Ask a server for what is not known yet: what eval.simrate and eval.mementos.keywords have in common."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.judge.base import Judge
from eval.judge.cache import AnswerCache
from eval.judge.client import Reply, Request, ask_all
from eval.judge.cost import Spending
from llava.imagechain.files import JsonlAppender


@dataclasses.dataclass(kw_only=True)
class Sheet:
    """The rows of one predictions file, and what is known about them.

    Attributes:
        rows: Those within --limit, each with a `reference` and a `prediction`.
        target: The JSONL file that the answers go to.
        answers: Raw answers by request key.
        errors: By request key, why there is no answer.
        leaving: Rows of `target` on these texts whose answers are another judge's (eval/judge/kept.py).
    """

    rows: Sequence[Any]
    target: Path
    answers: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    leaving: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def written(self, judge: Judge, row: Any) -> dict[str, Any]:
        """Return the row of `target`, read from the raw answer."""
        raise NotImplementedError


def pending_rows(judge: Judge, sheets: Sequence[Sheet]) -> dict[str, Any]:
    """Return what has to be asked by its request's key; equal comparisons are asked once."""
    pending: dict[str, Any] = {}
    for sheet in sheets:
        for row in sheet.rows:
            key = judge.key(row.reference, row.prediction)
            if key not in sheet.answers:
                pending.setdefault(key, row)
    return pending


def requests_of(judge: Judge, pending: Mapping[str, Any]) -> list[Request]:
    """Return the requests of pending rows."""
    return [Request(key=key, body=judge.request(row.reference, row.prediction)) for key, row in pending.items()]


def why_unanswered(sheets: Sequence[Sheet], stopped: str | None) -> str:
    """Return why rows have no answer, for the end of a sentence: why asking stopped, or the most frequent error."""
    if stopped:
        return f" after {stopped}"
    errors = collections.Counter(error for sheet in sheets for error in sheet.errors.values())
    return f" (most often: {errors.most_common(1)[0][0]})" if errors else ""


def ask_pending(
    judge: Judge, sheets: Sequence[Sheet], requests: Sequence[Request], cache: AnswerCache, spending: Spending,
    is_parsed: Callable[[dict[str, Any]], bool],
) -> str | None:  # fmt: skip
    """Ask the server, writing each answer down as it arrives.

    Args:
        is_parsed: Tells whether the answer in a written row could be read.

    Returns:
        None, or why asking stopped early.
    """
    from tqdm import tqdm

    if not requests:
        return None
    places: dict[str, list[tuple[int, Any]]] = {}
    for number, sheet in enumerate(sheets):
        for row in sheet.rows:
            places.setdefault(judge.key(row.reference, row.prediction), []).append((number, row))
    interval_s = 0.2 if sys.stderr.isatty() else 60
    counts = {"failed": 0, "unparsed": 0}
    title = sheets[0].target.stem
    with (
        contextlib.ExitStack() as stack,
        tqdm(total=len(requests), unit="call", desc=title, mininterval=interval_s, maxinterval=interval_s) as progress,
    ):
        logs = [stack.enter_context(JsonlAppender(sheet.target)) for sheet in sheets]

        def take(reply: Reply) -> str | None:
            for number, row in places[reply.key]:
                kind = sheets[number].errors if reply.answer is None else sheets[number].answers
                kind[reply.key] = str(reply.error if reply.answer is None else reply.answer)
                logs[number].write(written := sheets[number].written(judge, row))
            counts["failed"] += reply.answer is None
            counts["unparsed"] += reply.answer is not None and not is_parsed(written)
            progress.set_postfix(counts, refresh=False)
            progress.update()
            return spending.add(reply)

        return ask_all(judge, requests, cache, take)
