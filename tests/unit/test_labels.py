"""Loss masks: which text carries loss, found on the final ids."""

import pytest

from llava.imagechain.labels import IGNORE_INDEX, LOSS_ON, loss_mask, make_labels
from llava.imagechain.prompts import encode, render
from llava.imagechain.story import Scene, Story
from llava.imagechain.variants import VARIANTS, build_dialogue

FIRST, NEXT = "What is happening in this image?", "What is happening in the next image?"


@pytest.fixture(scope="module")
def tokenizer(tiny_llava):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llava.full, use_fast=False)


def encoded_story(tokenizer, name="imagechain", prompt_format="figure3", conversation="vicuna_v1"):
    texts = ("A man in red walks, slowly.", "He's at the café.", "He sits.")
    scenes = tuple(Scene(description=t, start_s=0.0, end_s=1.0, frame_times_s=(), frames=()) for t in texts)
    dialogue = build_dialogue(
        Story(story_id="s", video_name="v", background="", scenes=scenes), VARIANTS[name], ()
    )  # fmt: skip
    return encode(render(dialogue, prompt_format, tokenizer, conversation), tokenizer)


def runs(encoded, labels, tokenizer):
    """Return the text of each unbroken run of labelled positions."""
    found = [[]]
    for token, label in zip(encoded.input_ids, labels, strict=True):
        assert label in (IGNORE_INDEX, token)
        if label == IGNORE_INDEX:
            found.append([])
        else:
            found[-1].append(token)
    return [tokenizer.decode(ids) for ids in found if ids]


A1, A2, A3 = "A man in red walks, slowly.</s>", "He's at the café.</s>", "He sits.</s>"


@pytest.mark.parametrize("prompt_format", ["figure3", "template"])
@pytest.mark.parametrize(
    ("name", "loss_on", "expected"),
    [
        ("imagechain", "all_text", [FIRST, A1, NEXT, A2, NEXT, A3]),
        ("imagechain", "answers", [A1, A2, A3]),
        ("imagechain", "last_answer", [A3]),
        ("mllm_ft", "answers", [A3]),
        ("mllm_ft", "last_answer", [A3]),
        ("visual_context", "answers", [A3]),
        ("final_scene", "all_text", [FIRST, A3]),
    ],
)
def test_loss_falls_on_exactly_this_text(name, loss_on, expected, prompt_format, tokenizer):
    encoded = encoded_story(tokenizer, name, prompt_format)
    assert runs(encoded, make_labels(encoded, loss_on), tokenizer) == expected


def test_all_text_of_a_single_turn_includes_the_earlier_descriptions(tokenizer):
    encoded = encoded_story(tokenizer, "mllm_ft")
    text = "".join(runs(encoded, make_labels(encoded, "all_text"), tokenizer))
    assert text == f"A man in red walks, slowly.He's at the café. {NEXT}{A3}"


@pytest.mark.parametrize("conversation", ["vicuna_v1", "llava_v1", "chatml_direct", "llama_2", "mpt", "v0"])
@pytest.mark.parametrize("loss_on", LOSS_ON)
def test_system_text_role_marks_and_images_never_carry_loss_and_the_end_mark_always(conversation, loss_on, tokenizer):
    encoded = encoded_story(tokenizer, prompt_format="template", conversation=conversation)
    labels = make_labels(encoded, loss_on)
    carrying = {kind for kind, label in zip(encoded.kinds, labels, strict=True) if label != IGNORE_INDEX}
    assert not carrying & {"bos", "system", "role", "mark", "image"}
    last_end = max(i for i, kind in enumerate(encoded.kinds) if kind == "end")
    assert labels[last_end] != IGNORE_INDEX
    if loss_on != "last_answer":
        assert all(label != IGNORE_INDEX for label, kind in zip(labels, encoded.kinds, strict=True) if kind == "end")


def test_the_first_position_never_carries_loss(tokenizer):
    for name in VARIANTS:
        for loss_on in LOSS_ON:
            if not VARIANTS[name].demonstrations:
                assert make_labels(encoded_story(tokenizer, name), loss_on)[0] == IGNORE_INDEX


def test_last_answer_stops_before_text_that_the_template_puts_behind_it():
    assert loss_mask(["role", "answer", "end", "role", "answer", "end", "role"], "last_answer") == [
        False, False, False, False, True, True, False,
    ]  # fmt: skip


def test_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="all_text, answers, last_answer was wanted, found 'answer'"):
        loss_mask(["answer"], "answer")
