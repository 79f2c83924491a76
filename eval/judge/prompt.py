"""Prompts of a judge: untrusted captions made harmless, placeholders filled, the printed Llama 3 string."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

PLACEHOLDER = re.compile(r"\{(reference|prediction)\}")
# Every special token of the chat formats in use starts with one of these: <|eot_id|>, <s>, </s>, <end_of_turn>, [INST].
OPENING = re.compile(r"([<\[＜﹤［])(?=\S)")
HEADING = re.compile(r"[#＃]{2,}")
ROLE = re.compile(r"\b(system|user|assistant|human|model|instruction|response|caption)\s*[:：]", re.IGNORECASE)


@functools.lru_cache(maxsize=1 << 16)  # a comparison's key is wanted several times
def neutralize(text: str) -> str:
    """Make an untrusted caption unable to start a turn, a section or a special token, in any chat format.

    Control characters, line breaks and runs of white space become one space, a space after each opening bracket
    breaks special tokens, section heads lose their marks, role and section names their colon. Ordinary
    captions stay the same.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    text = " ".join(text.split())
    text = HEADING.sub("#", OPENING.sub(r"\1 ", text))
    return ROLE.sub(r"\1 -", text)


def fill(prompt: Sequence[dict[str, str]], *, reference: str, prediction: str) -> list[dict[str, str]]:
    """Return the messages with both captions put in, in one pass: a placeholder inside a caption stays text."""
    captions = {"reference": neutralize(reference), "prediction": neutralize(prediction)}
    return [
        {
            "role": message["role"],
            "content": PLACEHOLDER.sub(lambda found: captions[found[1]], message["content"]),
        }
        for message in prompt
    ]


def render_raw(messages: Sequence[dict[str, str]]) -> str:
    """Return messages as the string that the paper prints (appendix A), open at the assistant's answer.

    One line break after a header where Llama 3's own template has two, and one more after each user turn. The server
    adds <|begin_of_text|>.
    """
    turns = []
    for message in messages:
        turn = f"<|start_header_id|>{message['role']}<|end_header_id|>\n{message['content']}<|eot_id|>"
        turns.append(turn + "\n" if message["role"] == "user" else turn)
    return "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n"
