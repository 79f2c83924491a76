"""The base model's tokenizer: sentencepiece, Llama style, trained so that the world's words are one token each."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from eval.judge.world.grammar import CLOTHES, COLOURS, actor_phrase
from llava.imagechain.files import atomic_path, write_json
from llava.imagechain.variants import FIRST_QUESTION, NEXT_QUESTION
from stories.world.plan import plan_video

VOCABULARY_SIZE = 640
NUM_VIDEOS = 1500  # texts of this many planned videos; nothing is rendered
MAX_LENGTH = 4096


def actor_question(person: str, colour: str) -> str:
    """Return the question about one of the people of a picture."""
    return f"What is {actor_phrase(person, colour)} doing?"


def corpus(seed: int) -> Iterator[str]:
    """Yield the lines the tokenizer is trained on.

    The world's sentences come without punctuation, so that a word is the same token wherever it stands; the fixed texts
    of the prompts come as they are, so that they take few tokens.
    """
    from llava.conversation import conv_templates

    system = conv_templates["vicuna_v1"].system
    questions = [FIRST_QUESTION, NEXT_QUESTION, *(actor_question(p, c) for p in CLOTHES for c in COLOURS)]
    for number in range(NUM_VIDEOS):
        for texts in plan_video(number, seed).texts:
            yield from (text.replace(",", "").removesuffix(".") for text in texts)
        question = questions[number % len(questions)]
        yield f"{system}<s>USER: {question} <Image>"
        yield f"USER: {NEXT_QUESTION} <Image>"
        yield f"{system} USER: "
        yield f"{question} ASSISTANT:"
        yield "</Image> ASSISTANT: a, b."


def train_tokenizer(output_dir: Path, seed: int) -> None:
    """Train the tokenizer and write tokenizer.model, tokenizer_config.json and special_tokens_map.json.

    Args:
        output_dir: The model folder.
        seed: Of the world whose texts are read.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(seed), model_writer=model, model_type="bpe", vocab_size=VOCABULARY_SIZE,
        hard_vocab_limit=False, byte_fallback=True, split_digits=True, split_by_unicode_script=False,
        add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    with atomic_path(output_dir / "tokenizer.model") as temporary:
        temporary.write_bytes(model.getvalue())
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {
        name: {"content": text, **flags}
        for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    write_json(output_dir / "special_tokens_map.json", {**special, "pad_token": "<unk>"})
    write_json(
        output_dir / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": False,  # specs of the library's 5.x: other values tokenise around special tokens differently
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_LENGTH,
            "padding_side": "right",
            "pad_token": "<unk>",
            "sp_model_kwargs": {},
            **{name: {"__type": "AddedToken", **token} for name, token in special.items()},
        },
    )
