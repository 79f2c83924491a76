"""Label masks of the conversation formats against masks written by hand: what stands between « and » carries loss."""

import re

import pytest

from llava.conversation import conv_templates
from llava.imagechain.labels import make_labels
from llava.imagechain.messages import render_messages, with_image_first
from llava.imagechain.prompts import IMAGE_MARK, IMAGE_TOKEN_INDEX, encode

TURNS = [("What is it? <image>", "A man runs."), ("And then?", "He sits, and the dog - barks.")]
Q1 = "<image>\nWhat is it?"
SYSTEM = {name: conv_templates[name].system for name in conv_templates}

GOLDEN = {
    "plain": "<image>«A man runs.\n»«He sits, and the dog - barks.\n»",
    "vicuna_v1": (
        f"{SYSTEM['vicuna_v1']} USER: {Q1} ASSISTANT: «A man runs.</s>»USER: And then? ASSISTANT: "
        "«He sits, and the dog - barks.</s>»"
    ),
    "llama_2": (
        f"[INST] <<SYS>>\n{SYSTEM['llama_2']}\n<</SYS>>\n\n{Q1} [/INST] «A man runs. </s>»<s>[INST] And then? [/INST] "
        "«He sits, and the dog - barks. </s>»"
    ),
    "llava_llama_3": (
        f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM['llava_llama_3']}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{Q1}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«A man runs.<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd then?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«He sits, and the dog - barks.<|eot_id|>»"
    ),
    "mpt": (
        f"{SYSTEM['mpt']}<|im_end|><|im_start|>user\n{Q1}<|im_end|><|im_start|>assistant\n«A man runs.<|im_end|>»"
        "<|im_start|>user\nAnd then?<|im_end|><|im_start|>assistant\n«He sits, and the dog - barks.<|im_end|>»"
    ),
    "qwen_1_5": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{Q1}<|im_end|>\n<|im_start|>assistant\n«A man runs.<|im_end|>»\n"
        "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n«He sits, and the dog - barks.<|im_end|>»\n"
    ),
    "gemma_instruct": (
        f"<start_of_turn>user\n{Q1}<end_of_turn>\n<start_of_turn>model\n«A man runs.<end_of_turn>»\n"
        "<start_of_turn>user\nAnd then?<end_of_turn>\n<start_of_turn>model\n"
        "«He sits, and the dog - barks.<end_of_turn>»\n"
    ),
}
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
         "<end_of_turn>"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer with the formats' special tokens; each byte a token, so that nothing can hide."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in ["<s>", "</s>", *MARKS]])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token=None)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_mask_of_a_format_is_the_one_written_by_hand(name, tokenizer):
    encoded = encode(render_messages(with_image_first(TURNS), tokenizer, name), tokenizer)
    labels = make_labels(encoded, "answers")
    shown = ""
    for token, label in zip(encoded.input_ids, labels, strict=True):
        piece = IMAGE_MARK if token == IMAGE_TOKEN_INDEX else tokenizer.decode([token], skip_special_tokens=False)
        assert label in (-100, token)
        shown += f"«{piece}»" if label != -100 else piece
    # The space before an answer is the model's to write: it carries loss where the template puts one.
    golden = re.sub(r"(ASSISTANT:|\[/INST\]) «", r"\1« ", GOLDEN[name])
    assert shown.replace("»«", "") == golden.replace("»«", "")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_format_gives_the_ids_that_llava_itself_makes_of_the_text(name, tokenizer):
    from llava.mm_utils import tokenizer_image_token

    spans = render_messages(with_image_first(TURNS), tokenizer, name)
    text = "".join(span.text for span in spans)
    assert encode(spans, tokenizer).input_ids == tokenizer_image_token(text, tokenizer, IMAGE_TOKEN_INDEX)
