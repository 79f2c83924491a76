"""Paraphrases of references that are not the story world's, from a file or from an OpenAI-compatible server.

Nobody has checked a model's paraphrases: they are written to a file that can be read, corrected and given back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.judge.base import Judge, JudgeSettings, Verdict
from eval.judge.cache import AnswerCache
from eval.judge.client import Reply, Request, ask_all, check_server
from eval.judge.prompt import neutralize
from llava.imagechain.files import read_jsonl, sha256_json
from llava.imagechain.story import clean_text

PROMPT = (
    "Rewrite the sentence below in different words so that it says exactly the same: the same people, the same "
    "actions, the same things, the same places. Add nothing and leave nothing out. Answer with the new sentence alone, "
    "on one line.\n\nSentence: {text}"
)
LONGEST = 3  # a longer answer, in lengths of the reference (and 80 characters), is no paraphrase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """Where to ask."""

    base_url: str
    model: str
    api_key_env: str
    concurrency: int


def read_paraphrases(path: Path) -> dict[str, str]:
    """Read a JSONL file of {"reference", "paraphrase"}.

    Raises:
        ValueError: A row has other fields.
    """
    found: dict[str, str] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        reference, text = row.get("reference"), row.get("paraphrase")
        if not isinstance(reference, str) or not isinstance(text, str) or not text.strip():
            raise ValueError(f"{path}, line {number}: {{reference, paraphrase}} as texts were wanted, found {row}")
        found[clean_text(reference)] = clean_text(text)
    return found


def cleaned(answer: str, reference: str) -> str | None:
    """Return the sentence of an answer; None where it holds none or something else."""
    lines = [line.strip().strip("\"'`“”").strip() for line in answer.strip().splitlines() if line.strip()]
    if len(lines) != 1 or not lines[0] or len(lines[0]) > LONGEST * len(reference) + 80:
        return None
    return clean_text(lines[0])


def _judge(server: Server) -> Judge:
    """Dress the server up as a judge, which is what the client asks for."""
    settings = JudgeSettings(
        name="paraphrase",
        answers_from="server",
        base_url=server.base_url,
        model=server.model,
        api_key_env=server.api_key_env,
        concurrency=server.concurrency,
    )
    judge = Judge(
        settings=settings,
        folder=Path(),
        prompt=(),
        parse=lambda answer, reference: Verdict(verdict="no", parsed=False, answer=answer),
    )
    return judge.with_settings(api_key_env=server.api_key_env)  # checks that it is a name


def ask_paraphrases(
    references: Sequence[str], server: Server, cache_path: Path | None
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Ask for a paraphrase of each reference.

    Returns:
        The paraphrases, and the references without one as {"reference", "reason"}.

    Raises:
        ServerError: The server cannot be used.
    """
    from tqdm import tqdm

    judge = _judge(server)
    bodies = {
        reference: {
            "messages": [{"role": "user", "content": PROMPT.format(text=neutralize(reference))}],
            "model": server.model,
            "temperature": 0.0,
            "max_tokens": 200,
        }
        for reference in references
    }
    requests = {sha256_json(body): (reference, body) for reference, body in bodies.items()}
    failed: dict[str, str] = {}
    with contextlib.closing(AnswerCache(cache_path)) as cache:
        answers = cache.get_many(requests)
        pending = [Request(key=key, body=body) for key, (_, body) in requests.items() if key not in answers]
        if pending:
            check_server(judge, pending[0])
        with tqdm(total=len(pending), unit="call", desc="paraphrase", disable=not sys.stderr.isatty()) as progress:

            def take(reply: Reply) -> None:
                if reply.answer is None:
                    failed[reply.key] = str(reply.error)
                else:
                    answers[reply.key] = reply.answer
                progress.update()

            if pending:
                ask_all(judge, pending, cache, take)
    found: dict[str, str] = {}
    without: list[dict[str, Any]] = []
    for key, (reference, _) in requests.items():
        text = cleaned(answers[key], reference) if key in answers else None
        if text is None:
            reason = failed.get(key, "not asked") if key not in answers else "the answer is not one sentence"
            without.append({"reference": reference, "reason": reason})
        else:
            found[reference] = text
    return found, without
