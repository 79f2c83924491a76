"""A dialogue as text spans of known kind, and the spans as token ids: what the model really reads.

The ids equal those of `llava.mm_utils.tokenizer_image_token` on the rendered string; the kind of each id is found from
the tokenizer's offsets (or growing prefixes), never by counting re-tokenised pieces.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llava.constants import IMAGE_TOKEN_INDEX

if TYPE_CHECKING:
    from llava.imagechain.variants import Dialogue, Turn

IMAGE_MARK = "<image>"

# "bos" opens the text and each turn of figure3, "mark" is the <Image></Image> wrapper, "role" everything else that the
# template adds. "description" is an earlier scene's text inside a user turn.
Kind = Literal["bos", "system", "role", "question", "description", "mark", "image", "answer", "end"]
PromptFormat = Literal["figure3", "template"]


@dataclasses.dataclass(frozen=True)
class Span:
    """A piece of the rendered prompt."""

    text: str
    kind: Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids (one -200 per image mark) and the kind of the span each id belongs to."""

    input_ids: list[int]
    kinds: list[str]

    @property
    def num_images(self) -> int:
        """Number of image marks."""
        return self.input_ids.count(IMAGE_TOKEN_INDEX)


# --- untrusted text ---------------------------------------------------------------------------------------------------

# Marks of the chat formats in use, whatever the tokenizer; special and added tokens of the tokenizer come on top.
COMMON_MARKS = (
    IMAGE_MARK, "<Image>", "</Image>", "<im_patch>", "<im_start>", "<im_end>", "<s>", "</s>", "<unk>", "USER:",
    "ASSISTANT:", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|im_start|>", "<|im_end|>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip


def chat_marks(tokenizer: Any = None, conversation_name: str | None = None) -> list[str]:
    """Return the strings that mean something to the tokenizer or to a conversation template.

    Args:
        tokenizer: Its special and added tokens are marks.
        conversation_name: Key of `llava.conversation.conv_templates`; its roles and separators are marks.
    """
    marks = set(COMMON_MARKS)
    if tokenizer is not None:
        marks.update(map(str, tokenizer.all_special_tokens), map(str, tokenizer.get_added_vocab()))
    if conversation_name is not None:
        conversation = _conversation(conversation_name)
        marks.update(str(separator) for separator in (conversation.sep, conversation.sep2) if separator)
        marks.update(f"{role.strip()}:" if role.strip().isalnum() else role for role in conversation.roles)
    # Longest first, so that a mark inside another is broken together with it.
    return sorted({mark.strip() for mark in marks if len(mark.strip()) > 1}, key=lambda mark: (-len(mark), mark))


def neutralize(
    text: str, tokenizer: Any = None, conversation_name: str | None = None, keep: Collection[str] = ()
) -> str:
    """Make untrusted text harmless: no special token, image mark or chat role can come out of it.

    A space is put before the last character of each mark ("</s >", "USER :"); other text is returned unchanged.

    Args:
        text: A description from a dataset, a prediction, ...
        tokenizer: The tokenizer that will encode it; without one only the common marks are known.
        conversation_name: Conversation template in use.
        keep: Marks that are let through.

    Raises:
        ValueError: The tokenizer makes special tokens out of the text whatever is done.
    """
    marks = [mark for mark in chat_marks(tokenizer, conversation_name) if mark not in keep]
    pattern = re.compile("|".join(map(re.escape, marks)))
    text = _break_marks(_DELIMITERS.sub("", text), pattern)
    if tokenizer is None or (text.isascii() and text.isprintable()):
        return text
    # A tokenizer may normalise (full-width letters, zero-width spaces, ...): look at what the model would read.
    for _ in range(3):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        seen = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - {tokenizer.unk_token_id}
        special -= {tokenizer.convert_tokens_to_ids(mark) for mark in keep}
        if not special.intersection(ids) and not pattern.search(seen):
            return text
        text = _break_marks(seen, pattern).strip()
    raise ValueError("the description turns into special tokens or chat marks; edit or remove it")


def _break_marks(text: str, pattern: re.Pattern[str]) -> str:
    while (broken := pattern.sub(lambda found: f"{found[0][:-1]} {found[0][-1]}", text)) != text:
        text = broken
    return text


# --- rendering --------------------------------------------------------------------------------------------------------


def render(
    dialogue: Dialogue,
    prompt_format: PromptFormat | str,
    tokenizer: Any = None,
    conversation_name: str = "vicuna_v1",
    for_generation: bool = False,
) -> list[Span]:
    """Write a dialogue out as spans; every description in it is made harmless first.

    Args:
        dialogue: From `variants.build_dialogue`.
        prompt_format: "figure3" (paper Figure 3) or "template" (the model's own conversation template).
        tokenizer: Gives the begin and end marks; None uses <s> and </s>.
        conversation_name: Key of `llava.conversation.conv_templates`. Figure 3 always has vicuna_v1's system text.
        for_generation: Leave out the last answer, so that the text ends where the model writes on.

    Returns:
        Spans whose concatenated text is the prompt, without the begin mark that the tokenizer itself adds.

    Raises:
        ValueError: Unknown format, or text that cannot be made harmless.
    """
    if prompt_format not in RENDERERS:
        raise ValueError(f"imagechain_prompt: one of {', '.join(RENDERERS)} was wanted, found {prompt_format!r}.")
    safe = _safe_turns(dialogue.turns, tokenizer, conversation_name)
    spans = RENDERERS[prompt_format](safe, tokenizer, conversation_name)
    if for_generation:
        last_answer = max(i for i, span in enumerate(spans) if span.kind == "answer")
        spans = spans[:last_answer]
    return [span for span in spans if span.text]


def _safe_turns(turns: Sequence[Turn], tokenizer: Any, conversation_name: str) -> list[Turn]:
    def safe(text: str) -> str:
        return neutralize(text, tokenizer, conversation_name)

    return [
        dataclasses.replace(
            turn,
            user=tuple(dataclasses.replace(p, text=safe(p.text)) if p.kind == "description" else p for p in turn.user),
            assistant=safe(turn.assistant),
        )
        for turn in turns
    ]


def _render_figure3(turns: Sequence[Turn], tokenizer: Any, conversation_name: str) -> list[Span]:
    # DEVIATION: the stray </s> that Figure 3 shows after some user turns is a printing error and is dropped.
    begin, end = (
        getattr(tokenizer, name, None) or text for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"))
    )
    spans = [Span(_conversation("vicuna_v1").system, "system")]
    for turn in turns:
        spans += [Span(begin, "bos"), Span("USER:", "role")]
        for part in turn.user:
            if part.kind == "image":
                spans += [Span(" <Image>", "mark"), Span(IMAGE_MARK, "image"), Span("</Image>", "mark")]
            else:
                spans.append(Span(spaced(part.text), part.kind))
        spans += [Span(" ASSISTANT:", "role"), Span(spaced(turn.assistant), "answer"), Span(end, "end")]
    return spans


def spaced(text: str) -> str:
    """Return text with a space before it, and nothing for nothing."""
    return f" {text}" if text else ""


# Private-use characters that delimit the pieces while a conversation template puts its own text around them.
OPEN = {"question": "\ue000", "description": "\ue001", "image": "\ue002", "answer": "\ue003"}
CLOSE = "\ue004"
_PIECE = re.compile("([\ue000-\ue003])([^\ue004]*)\ue004")
_DELIMITERS = re.compile("[\ue000-\ue004]")


def _render_template(turns: Sequence[Turn], tokenizer: Any, conversation_name: str) -> list[Span]:
    return render_marked([("\n".join(_template_pieces(turn)), turn.assistant) for turn in turns], conversation_name)


def render_marked(messages: Sequence[tuple[str, str]], conversation_name: str) -> list[Span]:
    """Render pairs (question with delimited pieces, answer) by the conversation's own rules."""
    conversation = _conversation(conversation_name)
    plain = conversation.sep_style.name == "PLAIN"
    for question, answer in messages:
        # Style PLAIN is for captions: of a question only the image counts.
        question = "".join(m[0] for m in _PIECE.finditer(question) if m[1] == OPEN["image"]) if plain else question
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], f"{OPEN['answer']}{answer}{CLOSE}")
    if conversation.sep_style.name == "LLAMA_3":
        said = [("system", conversation.system), *conversation.messages]
        text = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{t}{conversation.sep}" for role, t in said)
    elif plain:  # training puts the line break behind the caption
        said = conversation.messages
        text = "".join(text + conversation.sep * (number % 2) for number, (_, text) in enumerate(said))
    else:
        text = conversation.get_prompt()
    kinds: dict[str, Kind] = {mark: kind for kind, mark in OPEN.items()}  # type: ignore[misc]
    spans: list[Span] = []
    position = 0
    for found in _PIECE.finditer(text):
        spans += _outside(text[position : found.start()], spans, conversation)
        kind = kinds[found[1]]
        if kind == "answer" and spans and spans[-1].kind == "role" and spans[-1].text.endswith(" "):
            # The space before an answer is the model's to write: the prompt for generation ends without it.
            spans[-1] = Span(spans[-1].text[:-1], "role")
            spans.append(Span(spaced(found[2]), kind))
        else:
            spans.append(Span(found[2], kind))
        position = found.end()
    return spans + _outside(text[position:], spans, conversation)


def _template_pieces(turn: Turn) -> list[str]:
    """Return the marked pieces of a user turn; LLaVA's own habit is the image before its question."""
    pieces: list[str] = []
    for part in turn.user:
        if part.kind == "image":
            piece = f"{OPEN['image']}{IMAGE_MARK}{CLOSE}"
            pieces.insert(len(pieces) - 1 if pieces and pieces[-1][0] == OPEN["question"] else len(pieces), piece)
        elif part.text:
            pieces.append(f"{OPEN[part.kind]}{part.text}{CLOSE}")
    return pieces


def _outside(text: str, before: Sequence[Span], conversation: Any) -> list[Span]:
    """Give kinds to text that the template wrote: system text first, the end mark after an answer, else roles."""
    if not before:
        system = conversation.system if conversation.system and conversation.system in text else ""
        start = text.find(system)
        return [Span(text[:start], "role"), Span(system, "system"), Span(text[start + len(system) :], "role")]
    if before[-1].kind == "answer":
        if conversation.sep_style.name == "PLAIN":
            return [Span(text, "end")]  # its line break
        for separator in (conversation.sep2, conversation.sep):
            mark = (separator or "").strip()
            if mark and mark in text:
                stop = text.index(mark) + len(mark)
                return [Span(text[:stop], "end"), Span(text[stop:], "role")]
    return [Span(text, "role")]


def _conversation(name: str) -> Any:
    from llava.conversation import conv_templates

    if name not in conv_templates:
        raise ValueError(f"Conversation template {name!r} is unknown; one of {', '.join(conv_templates)} was wanted.")
    return conv_templates[name].copy()


RENDERERS = {"figure3": _render_figure3, "template": _render_template}


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode(spans: Iterable[Span], tokenizer: Any) -> Encoded:
    """Turn spans into token ids with the kind of each.

    Args:
        spans: From `render`.
        tokenizer: Fast (offsets are used) or slow (growing prefixes are used).

    Returns:
        The ids `tokenizer_image_token` gives for the concatenated text, and one kind per id.
    """
    ids: list[int] = []
    kinds: list[str] = []
    for number, chunk in enumerate(_chunks(spans)):
        chunk_ids, chunk_kinds = _encode_chunk(chunk, tokenizer)
        if number:
            ids.append(IMAGE_TOKEN_INDEX)
            kinds.append("image")
            repeated = int(bool(chunk_ids) and chunk_ids[0] == tokenizer.bos_token_id)
            chunk_ids, chunk_kinds = chunk_ids[repeated:], chunk_kinds[repeated:]
        ids += chunk_ids
        kinds += chunk_kinds
    return Encoded(input_ids=ids, kinds=kinds)


def _chunks(spans: Iterable[Span]) -> list[list[Span]]:
    chunks: list[list[Span]] = [[]]
    for span in spans:
        if span.kind == "image":
            chunks.append([])
        else:
            chunks[-1].append(span)
    return chunks


def _encode_chunk(spans: list[Span], tokenizer: Any) -> tuple[list[int], list[str]]:
    text = "".join(span.text for span in spans)
    kind_of_character = [span.kind for span in spans for _ in span.text]
    if not getattr(tokenizer, "is_fast", False):
        return _encode_by_prefixes(spans, text, tokenizer)
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)  # what is too long is told by the examples
    ids, kinds = list(encoding["input_ids"]), []
    added = tokenizer.num_special_tokens_to_add()  # the begin mark that the tokenizer itself puts before the text
    for number, (start, stop) in enumerate(encoding["offset_mapping"]):
        # A piece that spans two kinds ("▁A" of ": A") belongs to that of its last character.
        inside = number >= added and kind_of_character
        kinds.append(kind_of_character[min(max(start, stop - 1), len(text) - 1)] if inside else "bos")
    return ids, kinds


def _encode_by_prefixes(spans: list[Span], text: str, tokenizer: Any) -> tuple[list[int], list[str]]:
    """Find the kinds by encoding growing prefixes: a token belongs to the first prefix that settles it."""
    ids = list(tokenizer(text).input_ids)
    kinds = ["bos"] * tokenizer.num_special_tokens_to_add()
    prefix = ""
    for span in spans:
        prefix += span.text
        settled = 0
        for token, other in zip(ids, tokenizer(prefix).input_ids, strict=False):
            if token != other:
                break
            settled += 1
        kinds += [span.kind] * (settled - len(kinds))
    return ids, kinds + [spans[-1].kind] * (len(ids) - len(kinds)) if spans else kinds


# --- display ----------------------------------------------------------------------------------------------------------


def describe_dialogue(
    dialogue: Dialogue, prompt_format: str, tokenizer: Any, conversation_name: str, loss_on: str | None
) -> str:
    """Return a dialogue as text for people, with what carries loss between « and ».

    Args:
        dialogue: From `variants.build_dialogue`.
        prompt_format: "figure3" or "template".
        tokenizer: Shows the final tokens; None shows the text.
        conversation_name: Conversation template.
        loss_on: Where the loss is; None marks nothing.
    """
    from llava.imagechain.labels import loss_mask

    spans = render(dialogue, prompt_format, tokenizer, conversation_name)
    if tokenizer is None:
        pieces, kinds = [span.text for span in spans], [str(span.kind) for span in spans]
    else:
        encoded = encode(spans, tokenizer)
        pieces, kinds = [_piece(token, tokenizer) for token in encoded.input_ids], encoded.kinds
    mask = loss_mask(kinds, loss_on) if loss_on else [False] * len(kinds)
    shown, inside = "", False
    for piece, carries, kind in zip(pieces, mask, kinds, strict=True):
        if inside and not carries:
            shown += "»"
        if kind == "bos" and shown and not shown.endswith("\n"):
            shown += "\n"
        lead = piece[: len(piece) - len(piece.lstrip())]
        shown += lead + "«" + piece[len(lead) :] if carries and not inside else piece
        inside = carries
    shown += "»" * inside
    if tokenizer is None:
        return shown
    return f"{shown}\n({len(pieces)} positions, {kinds.count('image')} image marks, {sum(mask)} carry loss)"


def _piece(token: int, tokenizer: Any) -> str:
    piece = IMAGE_MARK if token == IMAGE_TOKEN_INDEX else str(tokenizer.convert_ids_to_tokens(token))
    return f" {piece}"
