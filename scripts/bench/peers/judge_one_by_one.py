"""The other side of scripts/bench/judge.sh: judging as a plain loop over the openai client, one row after the other."""

from __future__ import annotations

from openai import OpenAI

from eval.judge import Judge


def judge_one_by_one(judge: Judge, pairs: list[tuple[str, str]], key: str) -> list[str]:
    """Return the answer to each (reference, prediction)."""
    settings = judge.settings
    answers = []
    with OpenAI(base_url=settings.base_url, api_key=key) as client:
        for reference, prediction in pairs:
            reply = client.chat.completions.create(
                model=settings.model,
                messages=judge.messages(reference, prediction),  # type: ignore[arg-type]
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
            )
            answers.append(reply.choices[0].message.content or "")
    return answers
