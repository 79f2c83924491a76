"""Ask a language-model judge behind any OpenAI-compatible server: bounded, retried, never twice for the same request.

The openai client repeats a request after 408, 409, 429, 5xx, a timeout or a lost connection, with exponential backoff,
jitter and the server's Retry-After.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import email.utils
import json
import logging
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
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
# Characters; a token has a few. A server that sends more than this for each token asked for has ignored max_tokens.
LONGEST_TOKEN = 100
# A model loaded from the Hugging Face cache is listed under a path that ends in its commit.
SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/?$")


class ServerError(RuntimeError):
    """The judge's server cannot be used at all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One comparison to be asked for; `key` is the hash of `body`."""

    key: str
    body: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer, or the reason why there is none.

    Attributes:
        key: The request's.
        answer: The raw answer.
        error: Why there is none.
        hopeless: Every further call would fail as this one did: the key or the model is refused.
        limited: Too many calls at a time (429): it may be answered when its turn comes again.
        usage: Tokens read and written, where the server says so.
        fingerprint: What the server calls its present state, where it says so.
    """

    key: str
    answer: str | None = None
    error: str | None = None
    hopeless: bool = False
    limited: bool = False
    usage: tuple[int, int] | None = None
    fingerprint: str | None = None


def quiet_libraries() -> None:
    """Keep the client's libraries from logging a line for every request."""
    for name in ("httpx", "httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)


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


def check_server(judge: Judge, probe: Request) -> dict[str, str]:
    """Make sure that the judge's server answers, before anything is asked or written.

    The list of models is asked for; where a server has none to give, or does not list the judge's model, `probe` is
    asked. A model that is not listed but answers is a warning only: several servers accept such names.

    Returns:
        What the server says about its model: `revision`, `root` and `owned_by`, as far as it does.

    Raises:
        ServerError: It does not answer, fails, or refuses the key or the model.
    """
    check_url(judge.settings.base_url)
    return asyncio.run(_check_server(judge.settings, probe))


def ask_all(
    judge: Judge, requests: Sequence[Request], cache: AnswerCache, on_reply: Callable[[Reply], str | None]
) -> str | None:
    """Ask all requests, at most `concurrency` at the same time; each reply is cached, then handed on as it arrives.

    Args:
        judge: Whose server and settings to use.
        requests: Distinct requests.
        cache: Where answers are kept.
        on_reply: Called in this thread for every request that was asked; a text that it returns is a reason to stop.

    Returns:
        None, or why asking stopped early; the remaining requests were not asked.
    """
    return asyncio.run(_ask_all(judge.settings, requests, cache, on_reply))


async def _ask_all(
    settings: JudgeSettings, requests: Sequence[Request], cache: AnswerCache, on_reply: Callable[[Reply], str | None]
) -> str | None:
    secret = _secret(settings)
    answered = failures = 0
    stopped: str | None = None
    too_long = False
    longest = LONGEST_TOKEN * settings.max_tokens
    waiting = collections.deque(requests)

    async def work() -> None:
        nonlocal answered, failures, stopped, too_long
        while waiting and not stopped:
            request, before = waiting.popleft(), answered
            reply = await _ask(client, settings, request, secret=secret)
            if reply.limited and answered > before:
                waiting.append(request)  # others were served meanwhile
                continue
            if reply.answer is None:
                failures += 1
            else:
                failures = 0
                answered += 1
                if len(reply.answer) > longest and not too_long:
                    too_long = True
                    logger.warning(
                        "an answer of %d characters to max_tokens %d: the server ignores it; of such answers the first "
                        "%d are kept", len(reply.answer), settings.max_tokens, longest,
                    )  # fmt: skip
                kept = cache.put(request.key, reply.answer[:longest], settings.model)
                reply = dataclasses.replace(reply, answer=kept)
            reason = on_reply(reply)
            if reply.hopeless:
                reason = f"a call was refused: {reply.error}; {_to_check(settings)}"
            elif failures >= FAILURES_IN_A_ROW:
                reason = f"{failures} calls failed in a row, the last with {reply.error}"
            stopped = stopped or reason

    async with _client(settings, timeout_s=settings.timeout_s, max_retries=settings.max_retries) as client:
        await asyncio.gather(*(work() for _ in range(min(settings.concurrency, len(requests)))))
    return stopped


def _secret(settings: JudgeSettings) -> str:
    return os.environ.get(settings.api_key_env, "")


def _to_check(settings: JudgeSettings) -> str:
    """Say which settings can be behind a refusal."""
    return f"check --base-url (mostly it ends in /v1), --model and the key in {settings.api_key_env}"


def _client(settings: JudgeSettings, *, timeout_s: float, max_retries: int) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    quiet_libraries()
    return AsyncOpenAI(
        base_url=settings.base_url, api_key=_secret(settings) or "none", timeout=timeout_s, max_retries=max_retries
    )


async def _ask(client: AsyncOpenAI, settings: JudgeSettings, request: Request, *, secret: str) -> Reply:
    from openai import AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError, RateLimitError

    path = "/completions" if "prompt" in request.body else "/chat/completions"
    # The client's timeout bounds the silence between two bytes; this one bounds the request with all its retries.
    limit_s = (settings.timeout_s + LONGEST_BACKOFF_S) * (settings.max_retries + 1)
    try:
        # `create` would check our own body and build objects of the reply: more than half of the time of a call.
        body: Any = await asyncio.wait_for(client.post(path, body=request.body, cast_to=object), limit_s)
        body = json.loads(body) if isinstance(body, str) else body  # sent under another content type
        answer = _text_of(body)
    except json.JSONDecodeError as error:
        return Reply(key=request.key, error=f"the server's reply is no JSON ({error})")
    except (OpenAIError, ValueError, RecursionError, asyncio.TimeoutError) as error:
        refused = isinstance(error, (AuthenticationError, PermissionDeniedError, NotFoundError))
        limited = isinstance(error, RateLimitError) and (_wait_s(error.response.headers) or 0) <= LONGEST_BACKOFF_S
        return Reply(key=request.key, error=_describe(error, secret), hopeless=refused, limited=limited)
    fingerprint = body.get("system_fingerprint")
    return Reply(
        key=request.key,
        answer=_clean(answer, secret),
        usage=_usage_of(body),
        fingerprint=_clean(fingerprint[:200], secret) if isinstance(fingerprint, str) else None,
    )


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


def _usage_of(body: dict[str, Any]) -> tuple[int, int] | None:
    usage = body.get("usage")
    read, written = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (0, 0)
    if type(read) is not int or type(written) is not int or read <= 0 or written < 0:
        return None
    return read, written


async def _check_server(settings: JudgeSettings, probe: Request) -> dict[str, str]:
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
                    return {}
                what_to_do = _to_check(settings) if reply.hopeless else "wait until it is healthy"
                raise ServerError(f"{where} answers {reply.error}; {what_to_do}") from None
            cards = {card["id"]: card for card in json.loads(response.text)["data"]}
            if cards and settings.model not in cards:
                served = ", ".join(map(str, list(cards)[:5]))
                reply = await _ask(client, settings, probe, secret=secret)
                if reply.hopeless:
                    raise ServerError(
                        f"{where} lists {served} and refuses {settings.model!r} ({reply.error}); {_to_check(settings)}"
                    )
                logger.warning(
                    "%s lists %s and not %r; if every call fails, pass --model", where, served, settings.model
                )
    except APIStatusError:
        raise ServerError(
            f"{where} refuses the key: set the environment variable {settings.api_key_env} (it is "
            f"{'set' if secret else 'not set'})"
        ) from None
    except OpenAIError as error:
        reason = _describe(error, secret)
        plain = "; a server without TLS has an address with http://" if "SSL" in reason else ""
        raise ServerError(
            f"{where} does not answer ({reason}): start it (scripts/eval/serve_judge.sh "
            f"starts one with vLLM) or pass --base-url{plain}"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ServerError(f"{where} answers, but not as an OpenAI-compatible server; check --base-url") from None
    said = {
        name: _clean(value[:500], secret)
        for name in ("revision", "root", "owned_by")
        if isinstance(value := cards.get(settings.model, {}).get(name), str)
    }
    if "revision" not in said and (commit := SNAPSHOT.search(said.get("root", ""))):
        said["revision"] = commit[1]
    return said


def _describe(error: Exception, secret: str) -> str:
    """Return the error with what lies behind it: the server's own words, or the lost connection."""
    response = getattr(error, "response", None)
    behind = response.text if response is not None else error.__cause__
    said = f"{type(error).__name__}: {error}"
    if behind and str(behind) not in said:
        said = " ".join(f"{said} ({behind})".split())[:400]
    if response is not None and (wait_s := _wait_s(response.headers)):
        said += f"; {_until(wait_s)}"
    return _clean(said, secret)


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """Return for how many seconds a server asks to be left alone; None where Retry-After says nothing of use."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds()
    return seconds if seconds > 0 else None


def _until(wait_s: float) -> str:
    try:
        end = datetime.now(timezone.utc) + timedelta(seconds=wait_s)
    except OverflowError:
        return "the server asks to wait for ever"
    return f"the server asks to wait {wait_s:,.0f} s, until {end:%Y-%m-%d %H:%M} UTC"


def _clean(text: str, secret: str) -> str:
    """Return text that can be stored: no half characters, and no key that a server echoed."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace(secret, "***") if secret else text
