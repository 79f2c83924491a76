"""Conversation templates: how turns become one prompt, for the 26 names that LLaVA-NeXT knows."""

from __future__ import annotations

import base64
import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Sequence
from enum import Enum, auto
from io import BytesIO
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN

logger = logging.getLogger(__name__)
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tiff", ".webp"}
_VIDEO_SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".wmv", ".flv", ".mpeg", ".mpg"}


class SeparatorStyle(Enum):
    """How a template joins roles, messages and separators."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    CHATML = auto()
    LLAMA_2 = auto()
    LLAMA_3 = auto()
    QWEN = auto()
    GEMMA = auto()


@functools.cache
def _load_tokenizer(tokenizer_id: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer_id)
    except OSError as error:
        logger.warning("The tokenizer %s is not to be had: %s", tokenizer_id, str(error).splitlines()[0])
        return None


@dataclasses.dataclass
class Conversation:
    """A template and the turns said so far.

    A message is text, None (the turn to be generated) or a tuple (text, image or images, image mode).
    """

    system: str
    roles: Sequence[str]
    messages: list[Any]
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    tokenizer_id: str = ""
    tokenizer: Any = None
    stop_str: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    skip_next: bool = False

    def get_prompt(self, add_roles: bool = True) -> str:
        """Return the turns as one prompt.

        Args:
            add_roles: False gives the bare messages one after another, without system text, roles and separators
                (ImageChain's data files carry them in their text); only style TWO has that form.

        Raises:
            ValueError: The style is unknown, or its rules on turns are broken.
        """
        turns = [(role, _text(message)) for role, message in self._turns()]
        if self.sep_style is SeparatorStyle.TWO and not add_roles:
            return "".join(text or "" for _, text in turns)
        if self.sep_style not in _RENDERERS:
            raise ValueError(f"sep_style: one of {[s.name for s in _RENDERERS]} was wanted, found {self.sep_style}.")
        return _RENDERERS[self.sep_style](self, turns)

    def _turns(self) -> list[Any]:
        """Return the messages, the image mark of a first message with an image put where the version wants it."""
        if not self.messages or not isinstance(self.messages[0][1], tuple):
            return self.messages
        role, text = self.messages[0][0], self.messages[0][1][0]
        rest = self.messages[1:]
        if "mmtag" in self.version:
            tag = [(self.roles[0], f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>"), (self.roles[1], "Received.")]
            return [*tag, (role, text.replace(DEFAULT_IMAGE_TOKEN, "").strip()), *rest]
        if not text.startswith(DEFAULT_IMAGE_TOKEN):
            text = f"{DEFAULT_IMAGE_TOKEN}\n" + text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        return [(role, text), *rest]

    def append_message(self, role: str, message: Any) -> None:
        """Add a turn."""
        self.messages.append([role, message])

    def process_image(
        self, image: Any, image_process_mode: str, return_pil: bool = False, image_format: str = "PNG"
    ) -> Any:
        """Return an image scaled for showing, as base64 text or as an image.

        Args:
            image: An image or the path of one.
            image_process_mode: "Pad" to a square, "Resize" to 336 x 336, "Default" or "Crop" as it is.
            return_pil: Return the image itself.
            image_format: File format of the text.
        """
        from PIL import Image

        from llava.mm_utils import expand2square

        if not isinstance(image, Image.Image):
            image = Image.open(image).convert("RGB")
        if image_process_mode == "Pad":
            image = expand2square(image, (122, 116, 104))
        elif image_process_mode == "Resize":
            image = image.resize((336, 336))
        elif image_process_mode not in ("Default", "Crop"):
            raise ValueError(f"image mode: Pad, Resize, Default or Crop was wanted, found {image_process_mode!r}.")
        ratio = max(image.size) / min(image.size)
        short = int(min(672 / ratio, 448, min(image.size)))
        long = int(short * ratio)
        image = image.resize((short, long) if image.height > image.width else (long, short))
        if return_pil:
            return image
        buffer = BytesIO()
        image.save(buffer, format=image_format)
        return base64.b64encode(buffer.getvalue()).decode()

    def get_images(self, return_pil: bool = False, return_path: bool = False) -> list[Any]:
        """Return the images of the user's turns: base64 text, images, or the paths as they are; videos as paths."""
        found = []
        for _, message in self.messages[self.offset :: 2]:
            if not isinstance(message, tuple):
                continue
            _, images, mode = message
            for image in images if isinstance(images, list) else [images]:
                show = not return_path and (not isinstance(image, str) or self.is_image_file(image))
                found.append(self.process_image(image, mode, return_pil=return_pil) if show else image)
        return found

    def is_image_file(self, filename: str) -> bool:
        """Say whether a file name ends like an image's."""
        return Path(filename).suffix.lower() in _IMAGE_SUFFIXES

    def is_video_file(self, filename: str) -> bool:
        """Say whether a file name ends like a video's."""
        return Path(filename).suffix.lower() in _VIDEO_SUFFIXES

    def to_gradio_chatbot(self) -> list[Any]:
        """Return the turns as gradio's chat pairs, images as inline HTML and videos as files."""
        pairs: list[Any] = []
        for number, (_, message) in enumerate(self.messages[self.offset :]):
            if number % 2:
                pairs[-1][-1] = message
            elif isinstance(message, tuple):
                pairs += self._gradio_user_turn(message)
            else:
                pairs.append([message, None])
        return pairs

    def _gradio_user_turn(self, message: tuple[str, Any, str]) -> list[Any]:
        text, files = message[0], message[1] if isinstance(message[1], list) else [message[1]]
        if len(files) == 1:
            text = f"{DEFAULT_IMAGE_TOKEN}\n" + text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        else:
            text = re.sub(r"(<image>)\n(?=<image>)", r"\1 ", text)
        shown = [self.process_image(f, "Default", image_format="JPEG") for f in files if self.is_image_file(f)]
        style = "max-width: 256px; max-height: 256px; width: auto; height: auto; object-fit: contain;"
        tags = [f'<img src="data:image/jpeg;base64,{data}" style="{style}"/>\n\n' for data in shown]
        text = "".join(tags) + ("\n\n" if tags else "") + text.strip()
        videos = [((f,), None) for f in files if self.is_video_file(f)]
        return [*videos, *([[text, None]] if text else [])]

    def copy(self) -> Conversation:
        """Return a conversation of its own with the same template and turns."""
        kept = ("system", "roles", "offset", "sep_style", "sep", "sep2", "version")
        turns = [[role, message] for role, message in self.messages]
        return Conversation(messages=turns, **{name: getattr(self, name) for name in kept})

    def dict(self) -> dict[str, Any]:
        """Return the conversation as JSON values, images left out."""
        turns = [[role, message[0] if isinstance(message, tuple) else message] for role, message in self.messages]
        kept = ("system", "roles", "offset", "sep", "sep2")
        return {"messages": turns, **{name: getattr(self, name) for name in kept}}


Turns = list[tuple[str, Any]]


def _text(message: Any) -> Any:
    return message[0] if isinstance(message, tuple) else message


def _single(c: Conversation, turns: Turns) -> str:
    said = (f"{role}: {text}{c.sep}" if text else f"{role}:" for role, text in turns)
    return c.system + c.sep + "".join(said)


def _two(c: Conversation, turns: Turns) -> str:
    ends = (c.sep, c.sep2)
    said = (f"{role}: {text}{ends[n % 2]}" if text else f"{role}:" for n, (role, text) in enumerate(turns))
    return c.system + c.sep + "".join(said)


def _mpt(c: Conversation, turns: Turns) -> str:
    return c.system + c.sep + "".join(f"{role}{text}{c.sep}" if text else role for role, text in turns)


def _gemma(c: Conversation, turns: Turns) -> str:
    for number, (role, _) in enumerate(turns):
        if role != c.roles[number % 2]:
            raise ValueError(f"Turn {number}: role {c.roles[number % 2]!r} was wanted, found {role!r}.")
    return "".join(f"{role}{text}{c.sep}" if text else role for role, text in turns)


def _chatml(c: Conversation, turns: Turns) -> str:
    marked = _marked(c, turns)
    start = f"{c.system}{c.sep}\n" if c.system else ""
    return start + "".join(f"{role}\n{text}{c.sep}\n" if text else f"{role}\n" for role, text in marked)


def _llama_2(c: Conversation, turns: Turns) -> str:
    if not turns or not turns[0][1] or turns[0][0] != c.roles[0]:
        raise ValueError("The first message was wanted from the user, with text.")
    prompt = ""
    for number, (_, text) in enumerate(turns):
        if not text:
            continue
        if number == 0 and c.system:
            text = f"<<SYS>>\n{c.system}\n<</SYS>>\n\n{text}"
        prompt += f" {text} {c.sep2}" if number % 2 else f"{c.sep}[INST] {text} [/INST]"
    return prompt.lstrip(c.sep)


def _llama_3(c: Conversation, turns: Turns) -> str:
    tokenizer = c.tokenizer or (_load_tokenizer(c.tokenizer_id) if c.tokenizer_id else None)
    if tokenizer is None:
        raise ValueError(
            "The Llama 3 template needs its tokenizer (access to meta-llama on the model hub); or set `tokenizer`."
        )
    said = [{"role": role, "content": text} for role, text in _marked(c, turns) if text]
    messages = [{"role": "system", "content": c.system}, *said]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _plain(c: Conversation, turns: Turns) -> str:
    ends = (c.sep, c.sep2 or "")
    return c.system + "".join(f"{text}{ends[n % 2]}" for n, (_, text) in enumerate(turns) if text)


def _marked(c: Conversation, turns: Turns) -> Turns:
    """Put an image mark per image before the text of later messages that carry images."""
    marked = []
    skipped = len(turns) - len(c.messages)
    for number, (role, text) in enumerate(turns):
        message = c.messages[number - skipped][1] if number >= skipped else None
        if number > skipped and isinstance(message, tuple):
            images = message[1] if isinstance(message[1], list) else [message[1]]
            text = DEFAULT_IMAGE_TOKEN * len(images) + text
        marked.append((role, text))
    return marked


_RENDERERS: dict[SeparatorStyle, Callable[[Conversation, Turns], str]] = {
    SeparatorStyle.SINGLE: _single,
    SeparatorStyle.TWO: _two,
    SeparatorStyle.MPT: _mpt,
    SeparatorStyle.PLAIN: _plain,
    SeparatorStyle.CHATML: _chatml,
    SeparatorStyle.LLAMA_2: _llama_2,
    SeparatorStyle.LLAMA_3: _llama_3,
    SeparatorStyle.GEMMA: _gemma,
}

# The system texts and the example turn below are what the published models were trained with, to the letter.
_HELPFUL = "The assistant gives helpful, detailed, and polite answers to the {}'s questions."
_CURIOUS = "A chat between a curious {} and an artificial intelligence assistant. "
_VISUAL = (
    "The assistant is able to understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language."
)
_FORMAT = "The visual content will be provided with the following format: <Image>visual content</Image>."
_LLAVA_LLAMA = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
_EXAMPLE_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_EXAMPLE_ANSWER = """\
Renewable energy sources are those that can be replenished naturally in a relatively short amount of time, such as \
solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other hand, are finite and will \
eventually be depleted, such as coal, oil, and natural gas. Here are some key differences between renewable and \
non-renewable energy sources:
1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy sources are finite \
and will eventually run out.
2. Environmental impact: Renewable energy sources have a much lower environmental impact than non-renewable sources, \
which can lead to air and water pollution, greenhouse gas emissions, and other negative effects.
3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have lower operational \
costs than non-renewable sources.
4. Reliability: Renewable energy sources are often more reliable and can be used in more remote locations than \
non-renewable sources.
5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different situations and needs, \
while non-renewable sources are more rigid and inflexible.
6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable sources are \
not, and their depletion can lead to economic and social instability.
"""


def _template(style: SeparatorStyle, system: str, roles: tuple[str, str], **settings: Any) -> Conversation:
    return Conversation(
        system=system, roles=roles, messages=settings.pop("messages", []), offset=settings.pop("offset", 0),
        sep_style=style, **settings,
    )  # fmt: skip


def _v1(system: str, version: str = "v1") -> Conversation:
    return _template(SeparatorStyle.TWO, system, ("USER", "ASSISTANT"), version=version, sep=" ", sep2="</s>")


def _inst(system: str, version: str = "llama_v2", sep: str = "<s>") -> Conversation:
    return _template(SeparatorStyle.LLAMA_2, system, ("USER", "ASSISTANT"), version=version, sep=sep, sep2="</s>")


def _im_roles(style: SeparatorStyle, system: str, version: str, after_role: str) -> Conversation:
    roles = (f"<|im_start|>user{after_role}", f"<|im_start|>assistant{after_role}")
    return _template(style, f"<|im_start|>system\n{system}", roles, version=version, sep="<|im_end|>")


def _v0(system: str, **settings: Any) -> Conversation:
    return _template(SeparatorStyle.SINGLE, system, ("Human", "Assistant"), sep="###", **settings)


conv_vicuna_v0 = _v0(
    _CURIOUS.format("human") + _HELPFUL.format("human"),
    messages=[["Human", _EXAMPLE_QUESTION], ["Assistant", _EXAMPLE_ANSWER]],
    offset=2,
)
conv_llava_v0 = _v0(_CURIOUS.format("human") + _HELPFUL.format("human"))
conv_llava_v0_mmtag = _v0(_CURIOUS.format("user") + _VISUAL + _FORMAT, version="v0_mmtag")
conv_vicuna_v1 = _v1(_CURIOUS.format("user") + _HELPFUL.format("user"))
conv_llava_v1 = _v1(_CURIOUS.format("human") + _HELPFUL.format("human"))
conv_llava_v1_mmtag = _v1(_CURIOUS.format("user") + _VISUAL + _FORMAT, "v1_mmtag")
conv_llama_2 = _inst(_LLAMA_2)
conv_llava_llama_2 = _inst(_LLAVA_LLAMA)
conv_llava_llama_2_simple = _inst("Answer the questions about the visual content that the user provides.")
conv_llava_llama_2_mmtag = _inst(conv_llava_llama_2_simple.system + _FORMAT, "llama_v2_mmtag")
conv_mistral_instruct = _inst("", sep="")
conv_llava_llama_3 = _template(
    SeparatorStyle.LLAMA_3,
    _LLAVA_LLAMA,
    ("user", "assistant"),
    version="llama_v3",
    sep="<|eot_id|>",
    tokenizer_id="meta-llama/Meta-Llama-3-8B-Instruct",
    stop_token_ids=[128009],
)
conv_mpt = _im_roles(
    SeparatorStyle.MPT,
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
    "mpt",
    "\n",
)
conv_mistral_orca = _im_roles(
    SeparatorStyle.MPT,
    "You are MistralOrca, a large language model trained by Alignment Lab AI. Write out your reasoning step-by-step to "
    "be sure you get the right answers!",
    "mpt",
    "\n",
)
conv_mistral_direct = _im_roles(SeparatorStyle.MPT, "Answer the questions.", "mpt", "\n")
conv_chatml_direct = _im_roles(SeparatorStyle.MPT, "Answer the questions.", "mpt", "\n")
conv_qwen = _im_roles(SeparatorStyle.CHATML, "You are a helpful assistant.", "qwen", "")
conv_qwen_2_5 = _im_roles(
    SeparatorStyle.CHATML, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", "qwen", ""
)
conv_mistral_zephyr = _template(
    SeparatorStyle.MPT,
    "<|system|>\nYou are a helpful AI assistant.",
    ("<|user|>\n", "<|assistant|>\n"),
    version="mpt",
    sep="</s>",
)
conv_gemma_instruct = _template(
    SeparatorStyle.GEMMA,
    "",
    ("<start_of_turn>user\n", "<start_of_turn>model\n"),
    version="gemma",
    sep="<end_of_turn>\n",
)
conv_llava_plain = _template(SeparatorStyle.PLAIN, "", ("", ""), sep="\n")

# Set from outside by training code: read it at call time.
default_conversation = conv_vicuna_v0
conv_templates = {
    "default": conv_vicuna_v0,
    "v0": conv_vicuna_v0,
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llama_2": conv_llama_2,
    "mistral_instruct": conv_mistral_instruct,
    "mistral_orca": conv_mistral_orca,
    "mistral_zephyr": conv_mistral_zephyr,
    "mistral_direct": conv_mistral_direct,
    "plain": conv_llava_plain,
    "v0_plain": conv_llava_plain,
    "chatml_direct": conv_chatml_direct,
    "llava_v0": conv_llava_v0,
    "llava_v0_mmtag": conv_llava_v0_mmtag,
    "llava_v1": conv_llava_v1,
    "llava_v1_mmtag": conv_llava_v1_mmtag,
    "llava_llama_2": conv_llava_llama_2,
    "llava_llama_3": conv_llava_llama_3,
    "llava_llama_2_simple": conv_llava_llama_2_simple,
    "llava_llama_2_mmtag": conv_llava_llama_2_mmtag,
    "llava_mistral_instruct": conv_mistral_instruct,
    "mpt": conv_mpt,
    "qwen_1_5": conv_qwen,
    "qwen_2": conv_qwen,
    "qwen_2_5": conv_qwen_2_5,
    "gemma_instruct": conv_gemma_instruct,
}
