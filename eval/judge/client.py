"""Ask a language-model judge behind any OpenAI-compatible server: bounded, retried, never twice for the same request.

The openai client repeats a request after 408, 409, 429, 5xx, a timeout or a lost connection, with exponential backoff,
jitter and the server's Retry-After.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import urllib.parse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eval.judge.base import Judge, JudgeSettings
from eval.judge.cache import AnswerCache

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger("eval.judge")
CHECK_TIMEOUT_S = 15.0
LONGEST_BACKOFF_S = 120.0
# A server that fails this often in a row is down: the rest is left for the next run instead of being retried for hours.
FAILURES_IN_A_ROW = 20


class ServerError(RuntimeError):
    """The judge's server cannot be used at all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One comparison to be asked for; `key` is the hash of `body`."""

    key: str
    body: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer, or the reason why there is none."""

    key: str
    answer: str | None = None
    error: str | None = None


def check_url(base_url: str) -> None:
    """Refuse an address that is no web server, or that carries a secret (run.json and logs name the address).

    Raises:
        ServerError: With what is wrong.
    """
    parts = urllib.parse.urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServerError(f"base_url: an address like http://127.0.0.1:8000/v1 was wanted, found {base_url!r}")
    if parts.username or parts.password or parts.query:
        raise ServerError(
            "base_url: an address without user, password or query was wanted; "
            "put the key into the environment variable named by api_key_env"
        )


def check_server(judge: Judge, probe: Request) -> None:
    """Make sure that the judge's server answers, before anything is asked or written.

    The list of models is asked for; where a server has none to give, `probe` is asked instead.
    A model that the server does not list is a warning only: several servers accept names that they do not list.

    Raises:
        ServerError: It does not answer, fails, or refuses the key.
    """
    check_url(judge.settings.base_url)
    asyncio.run(_check_server(judge.settings, probe))


def ask_all(
    judge: Judge, requests: Sequence[Request], cache: AnswerCache, on_reply: Callable[[Reply], None]
) -> str | None:
    """Ask all requests, at most `concurrency` at the same time; each reply is cached, then handed on as it arrives.

    Args:
        judge: Whose server and settings to use.
        requests: Distinct requests.
        cache: Where answers are kept.
        on_reply: Called in this thread for every request that was asked.

    Returns:
        None, or why asking stopped early; the remaining requests were not asked.
    """
    return asyncio.run(_ask_all(judge.settings, requests, cache, on_reply))


async def _ask_all(
    settings: JudgeSettings, requests: Sequence[Request], cache: AnswerCache, on_reply: Callable[[Reply], None]
) -> str | None:
    secret = _secret(settings)
    failures = 0
    stopped: str | None = None
    waiting = iter(requests)

    async def work() -> None:
        nonlocal failures, stopped
        while not stopped and (request := next(waiting, None)) is not None:
            reply = await _ask(client, settings, request, secret=secret)
            if reply.answer is None:
                failures += 1
            else:
                failures = 0
                reply = dataclasses.replace(reply, answer=cache.put(request.key, reply.answer, settings.model))
            if failures >= FAILURES_IN_A_ROW:
                stopped = f"{failures} calls failed in a row, the last with {reply.error}"
            on_reply(reply)

    async with _client(settings, timeout_s=settings.timeout_s, max_retries=settings.max_retries) as client:
        await asyncio.gather(*(work() for _ in range(min(settings.concurrency, len(requests)))))
    return stopped


def _secret(settings: JudgeSettings) -> str:
    return os.environ.get(settings.api_key_env, "")


def _client(settings: JudgeSettings, *, timeout_s: float, max_retries: int) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        base_url=settings.base_url, api_key=_secret(settings) or "none", timeout=timeout_s, max_retries=max_retries
    )


async def _ask(client: AsyncOpenAI, settings: JudgeSettings, request: Request, *, secret: str) -> Reply:
    from openai import OpenAIError

    create: Any = (client.completions if "prompt" in request.body else client.chat.completions).with_raw_response.create
    # The client's timeout bounds the silence between two bytes; this one bounds the request with all its retries.
    limit_s = (settings.timeout_s + LONGEST_BACKOFF_S) * (settings.max_retries + 1)
    try:
        response = await asyncio.wait_for(create(**request.body), limit_s)
        answer = _text_of(json.loads(response.text))
    except (OpenAIError, ValueError, asyncio.TimeoutError) as error:
        return Reply(key=request.key, error=_describe(error, secret))
    return Reply(key=request.key, answer=_clean(answer, secret))


def _text_of(body: Any) -> str:
    """Return the answer text of a (chat) completion.

    Raises:
        ValueError: The body has none.
    """
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"the server's reply holds no answer text: {json.dumps(body)[:200]}")
    return text


async def _check_server(settings: JudgeSettings, probe: Request) -> None:
    from openai import APIStatusError, OpenAIError

    secret = _secret(settings)
    where = f"judge server {settings.base_url}"
    try:
        async with _client(settings, timeout_s=CHECK_TIMEOUT_S, max_retries=1) as client:
            try:
                response = await client.models.with_raw_response.list()
            except APIStatusError as error:
                if error.status_code in (401, 403):
                    raise
                reply = await _ask(client, settings, probe, secret=secret)
                if reply.error is None:
                    return
                raise ServerError(f"{where} answers {reply.error}; wait until it is healthy") from None
        models = [model["id"] for model in json.loads(response.text)["data"]]
    except APIStatusError:
        raise ServerError(
            f"{where} refuses the key: set the environment variable {settings.api_key_env} (it is "
            f"{'set' if secret else 'not set'})"
        ) from None
    except OpenAIError as error:
        raise ServerError(
            f"{where} does not answer ({_describe(error, secret)}): start it (for example `vllm serve "
            f"{settings.model or 'MODEL'}`) or pass --base-url"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"{where} answers, but not as an OpenAI-compatible server; check --base-url") from None
    if models and settings.model not in models:
        served = ", ".join(map(str, models[:5]))
        logger.warning("%s lists %s and not %r; if every call fails, pass --model", where, served, settings.model)


def _describe(error: Exception, secret: str) -> str:
    """Return the error with what lies behind it: the server's own words, or the lost connection."""
    response = getattr(error, "response", None)
    behind = response.text if response is not None else error.__cause__
    said = f"{type(error).__name__}: {error}"
    return _clean(" ".join(f"{said} ({behind})".split())[:400] if behind and str(behind) not in said else said, secret)


def _clean(text: str, secret: str) -> str:
    """Return text that can be stored: no half characters, and no key that a server echoed."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace(secret, "***") if secret else text
