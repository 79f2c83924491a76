"""The conversations of LLaVA's JSON as prompt spans: turns checked, image marks placed, special tokens harmless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.imagechain.prompts import CLOSE, IMAGE_MARK, OPEN, Span, neutralize, render_marked, spaced


def read_turns(sample: Any) -> list[tuple[str, str]]:
    """Return the turns of a sample as pairs (question, answer).

    Raises:
        ValueError: It is not a conversation in which human and gpt take turns.
    """
    said = sample.get("conversations") if isinstance(sample, dict) else None
    if not isinstance(said, list) or not said:
        raise ValueError("it has no list `conversations`")
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in said):
        raise ValueError("a turn was wanted as {'from', 'value'} with text in both")
    roles = [str(turn.get("from")) for turn in said]
    if roles and roles[0] not in ("human", "user"):
        roles, said = roles[1:], said[1:]  # LLaVA leaves out a first turn that is not the human's
    first, second = set(roles[::2]), set(roles[1::2])
    if not said or len(said) % 2 or first - {"human", "user"} or second - {"gpt", "assistant"}:
        raise ValueError(f"turns of human and gpt in turn were wanted, found {', '.join(roles) or 'none'}")
    values = [turn["value"] for turn in said]
    return list(zip(values[::2], values[1::2], strict=True))


def is_transcript(turns: Sequence[tuple[str, str]]) -> bool:
    """Tell the authors' form: the question carries system text, roles and earlier turns, up to "ASSISTANT:"."""
    return len(turns) == 1 and turns[0][0].rstrip().endswith("ASSISTANT:")


def with_image_first(turns: Sequence[tuple[str, str]], note: str = "") -> list[tuple[str, str]]:
    """Put a turn's only image mark before its text, as LLaVA does, and a note on the video behind the first one."""
    marked = []
    for question, answer in turns:
        if question.count(IMAGE_MARK) == 1:
            text = question.replace(IMAGE_MARK, "").strip()
            question = f"{IMAGE_MARK}\n{note}\n{text}" if note else f"{IMAGE_MARK}\n{text}".strip()
            note = ""
        marked.append((question, answer))
    return marked


def render_messages(
    messages: Sequence[tuple[str, str]], tokenizer: Any, conversation_name: str, *, keep_turn_marks: bool = False
) -> list[Span]:
    """Write the messages of a LLaVA sample out as spans, special tokens in them made harmless.

    Args:
        messages: Pairs (question, answer); "<image>" in a question is an image.
        tokenizer: The model's.
        conversation_name: Key of `llava.conversation.conv_templates`.
        keep_turn_marks: The question is a transcript that holds system text, roles, begin and end marks itself: it is
            taken as it stands, and nothing but the last answer is one.
    """
    roles = ("<Image>", "</Image>", "USER:", "ASSISTANT:")
    ends = (tokenizer.bos_token, tokenizer.eos_token) if keep_turn_marks else ()

    def pieces(question: str) -> list[str]:
        return [neutralize(piece, tokenizer, keep=(*roles, *ends)) for piece in question.split(IMAGE_MARK)]

    if keep_turn_marks:
        ((question, answer),) = messages
        spans = [
            Span(IMAGE_MARK, "image") if n % 2 else Span(p, "role") for n, p in enumerate(_woven(pieces(question)))
        ]
        answer = answer.strip().removesuffix(str(tokenizer.eos_token)).rstrip()
        spans += [Span(spaced(neutralize(answer, tokenizer, keep=roles)), "answer"), Span(tokenizer.eos_token, "end")]
        return [span for span in spans if span.text]
    image = f"{OPEN['image']}{IMAGE_MARK}{CLOSE}"
    marked = []
    for question, answer in messages:
        kinds = [f"{OPEN['question']}{piece}{CLOSE}" if piece else "" for piece in pieces(question)]
        marked.append((image.join(kinds), neutralize(answer, tokenizer, keep=roles).strip()))
    return [span for span in render_marked(marked, conversation_name) if span.text]


def _woven(pieces: Sequence[str]) -> list[str]:
    """Put an image mark between neighbours."""
    return [text for piece in pieces for text in (piece, IMAGE_MARK)][:-1]
