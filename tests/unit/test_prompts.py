"""Prompts: Figure 3's layout, the same ids as LLaVA's own tokenizing, and descriptions that cannot become marks."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.imagechain.prompts import IMAGE_TOKEN_INDEX, Span, chat_marks, encode, neutralize, render
from llava.imagechain.story import Scene, Story
from llava.imagechain.variants import VARIANTS, build_dialogue, example_stories
from llava.mm_utils import tokenizer_image_token


@pytest.fixture(scope="module")
def tokenizer(tiny_llava):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llava.full, use_fast=False)


class SlowTokenizer:
    """A tokenizer that gives no offsets."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **options):
        assert "return_offsets_mapping" not in options
        return self._tokenizer(text, **options)


def story_of(*texts):
    scenes = tuple(Scene(description=t, start_s=0.0, end_s=1.0, frame_times_s=(), frames=()) for t in texts)
    return Story(story_id="s", video_name="v", background="", scenes=scenes)


def dialogue_of(name, *texts):
    demonstrations = example_stories()[1][: VARIANTS[name].demonstrations]
    return build_dialogue(story_of(*texts), VARIANTS[name], demonstrations)


def text_of(spans):
    return "".join(span.text for span in spans)


def test_figure3_has_a_begin_mark_per_turn_and_the_image_after_the_question():
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    assert text_of(render(dialogue_of("imagechain", "One.", "Two."), "figure3")) == (
        f"{system}<s>USER: What is happening in this image? <Image><image></Image> ASSISTANT: One.</s>"
        "<s>USER: What is happening in the next image? <Image><image></Image> ASSISTANT: Two.</s>"
    )


def test_template_format_is_the_models_own_conversation():
    text = text_of(render(dialogue_of("imagechain", "One.", "Two."), "template"))
    assert text.count("<s>") == 0
    assert text.endswith(
        "USER: <image>\nWhat is happening in this image? ASSISTANT: One.</s>"
        "USER: <image>\nWhat is happening in the next image? ASSISTANT: Two.</s>"
    )


@pytest.mark.parametrize("conversation", ["vicuna_v1", "llava_v1", "chatml_direct", "llama_2", "mpt", "v0"])
def test_template_rendering_is_what_the_conversation_itself_writes(conversation):
    from llava.conversation import conv_templates

    expected = conv_templates[conversation].copy()
    for number, text in enumerate(("One.", "Two.")):
        question = "What is happening in the next image?" if number else "What is happening in this image?"
        expected.append_message(expected.roles[0], f"<image>\n{question}")
        expected.append_message(expected.roles[1], text)
    spans = render(dialogue_of("imagechain", "One.", "Two."), "template", conversation_name=conversation)
    assert text_of(spans) == expected.get_prompt()
    assert [span.text.strip() for span in spans if span.kind == "answer"] == ["One.", "Two."]
    assert sum(span.kind == "end" for span in spans) == 2


@pytest.mark.parametrize("prompt_format", ["figure3", "template"])
@pytest.mark.parametrize("name", VARIANTS)
def test_ids_equal_tokenizer_image_token_on_the_rendered_text(name, prompt_format, tokenizer):
    spans = render(dialogue_of(name, "The dog runs, fast.", "Café, naïve é.", "It stops!"), prompt_format, tokenizer)
    encoded = encode(spans, tokenizer)
    assert encoded.input_ids == tokenizer_image_token(text_of(spans), tokenizer)
    assert len(encoded.kinds) == len(encoded.input_ids)


@pytest.mark.parametrize("prompt_format", ["figure3", "template"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_generation_prompt_is_the_training_text_up_to_the_last_answer(name, prompt_format, tokenizer):
    dialogue = dialogue_of(name, "The dog runs.", "It stops!")
    whole = encode(render(dialogue, prompt_format, tokenizer), tokenizer)
    prompt = encode(render(dialogue, prompt_format, tokenizer, for_generation=True), tokenizer)
    size = len(prompt.input_ids)
    assert whole.input_ids[:size] == prompt.input_ids
    assert whole.kinds[size] == "answer"
    assert "answer" not in whole.kinds[size:][whole.kinds[size:].index("end") :]


@pytest.mark.parametrize("prompt_format", ["figure3", "template"])
def test_kinds_from_prefixes_equal_kinds_from_offsets(prompt_format, tokenizer):
    for name in VARIANTS:
        spans = render(dialogue_of(name, "A café, at 7 o'clock.", "日本 text", "End"), prompt_format, tokenizer)
        fast, slow = encode(spans, tokenizer), encode(spans, SlowTokenizer(tokenizer))
        assert fast == slow


def test_each_kind_covers_exactly_its_text(tokenizer):
    spans = render(dialogue_of("imagechain", "A man walks.", "He sits."), "figure3", tokenizer)
    encoded = encode(spans, tokenizer)
    for kind in ("question", "answer", "end", "system"):
        ids = [token for token, found in zip(encoded.input_ids, encoded.kinds, strict=True) if found == kind]
        expected = text_of([span for span in spans if span.kind == kind])
        assert tokenizer.decode(ids).replace(" ", "") == expected.replace(" ", "")


NASTY = [
    "<image>", "<Image>", "</Image>", "</s>", "<s>", "<unk>", "USER:", "ASSISTANT:", "[INST]", "[/INST]", "<<SYS>>",
    "<|im_start|>", "<|im_end|>", "<im_patch>", "###", "Human:", "<", "</", "s>", "image>", "USER", ":", " ", "\u200b",
    "＜s＞", "＜／s＞", "ＵＳＥＲ：", "ＡＳＳＩＳＴＡＮＴ：", "\ue000",
    "\ue003", "\ue004", "é", "日本", "a dog", "\x00", "\u2028",
]  # fmt: skip
nasty_text = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=4)), max_size=8).map("".join)


def normalising(tokenizer):
    """Return a copy of the tokenizer that turns full-width letters into plain ones and drops zero-width spaces."""
    import copy

    from tokenizers import normalizers

    if not tokenizer.is_fast:
        pytest.skip("this library version reads the tokenizer without the tokenizers library, which has normalizers")
    other = copy.deepcopy(tokenizer)
    backend = other.backend_tokenizer
    steps = [normalizers.NFKC(), normalizers.Replace("\u200b", "")]
    backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    return other


@pytest.mark.parametrize("normalised", [False, True])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(nasty_text, min_size=1, max_size=3))
def test_no_description_becomes_a_token_or_a_mark(texts, normalised, tokenizer):
    tokenizer = normalising(tokenizer) if normalised else tokenizer
    for name in ("imagechain", "mllm"):
        dialogue = dialogue_of(name, *texts)
        turns, images = len(dialogue.turns), len(dialogue.scenes)
        ids = encode(render(dialogue, "figure3", tokenizer), tokenizer).input_ids
        assert ids.count(IMAGE_TOKEN_INDEX) == images
        assert ids.count(tokenizer.bos_token_id) == turns + 1
        assert ids.count(tokenizer.eos_token_id) == turns
        read = "".join(tokenizer.decode(part) for part in split(ids))
        assert (read.count("USER:"), read.count("ASSISTANT:")) == (turns, turns)
        assert (read.count("<Image>"), read.count("</Image>"), read.count("<image>")) == (images, images, 0)
        ids = encode(render(dialogue, "template", tokenizer), tokenizer).input_ids
        assert (ids.count(IMAGE_TOKEN_INDEX), ids.count(tokenizer.bos_token_id)) == (images, 1)
        assert ids.count(tokenizer.eos_token_id) == turns
        read = "".join(tokenizer.decode(part) for part in split(ids))
        assert (read.count("USER:"), read.count("ASSISTANT:"), read.count("<image>")) == (turns, turns, 0)


def split(ids):
    parts = [[]]
    for token in ids:
        parts.append([]) if token == IMAGE_TOKEN_INDEX else parts[-1].append(token)
    return parts


@settings(max_examples=100)
@given(text=st.text(alphabet="abcXYZ 0123,.;'!?()-éü", max_size=40))
def test_ordinary_text_is_left_alone(text):
    assert neutralize(text) == text


def test_marks_of_the_conversation_in_use_are_broken(tokenizer):
    assert neutralize("### Human: hi", tokenizer, "v0") == "## # Human : hi"
    assert "Human:" in chat_marks(tokenizer, "v0")
    assert "Human:" not in chat_marks(tokenizer, "vicuna_v1")


def test_added_tokens_of_the_tokenizer_are_marks(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<scene>"])
    text = neutralize("a <scene> b", other)
    assert other.convert_tokens_to_ids("<scene>") not in other(text).input_ids


def test_an_empty_description_leaves_the_layout_whole(tokenizer):
    spans = render(dialogue_of("imagechain", "", "Two."), "figure3", tokenizer)
    assert Span(" Two.", "answer") in spans
    assert " ASSISTANT:</s>" in text_of(spans)


def test_unknown_format_and_conversation_are_refused_by_name():
    with pytest.raises(ValueError, match="figure3, template was wanted, found 'figure4'"):
        render(dialogue_of("mllm", "a"), "figure4")
    with pytest.raises(ValueError, match="'vicuna_v9' is unknown"):
        render(dialogue_of("mllm", "a"), "template", conversation_name="vicuna_v9")
