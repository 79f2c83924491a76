"""Decoding without a padded prefill gives what the library's generate gives."""

import pytest
import torch
from transformers import AutoTokenizer

from eval.predict.decoding import AlignedCache, common_length, greedy
from eval.predict.generation import end_tokens
from llava.imagechain.data import ExampleSettings
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM


@pytest.fixture(scope="module")
def model(tiny_llava):
    return LlavaLlamaForCausalLM.from_pretrained(tiny_llava.full, attn_implementation="sdpa").eval()


START = [1, 40, 41, 42, 43, 44, 45]
ROWS = [[*START, 50, 51, 52], [*START, 50, 60], START, [1, 99], [*START, 50, 60, 61, 62, 63, 64, 65, 66]]


def prompts(model):
    return [model.get_model().embed_tokens(torch.tensor(row)).detach() for row in ROWS]


def library(model, row, tokens, end):
    found = model.generate(
        torch.tensor([row]), do_sample=False, max_new_tokens=tokens, pad_token_id=0, eos_token_id=end
    )
    return found[0].tolist()


def test_rows_of_unequal_length_get_what_generate_gives_them_alone(model):
    found = greedy(model, prompts(model), end_tokens=[], max_new_tokens=12)
    assert found == [library(model, row, 12, None) for row in ROWS]


def test_rows_end_at_their_end_token_and_the_others_go_on(model):
    long = greedy(model, prompts(model), end_tokens=[], max_new_tokens=12)
    assert greedy(model, prompts(model), end_tokens=[-1, long[0][0]], max_new_tokens=12)[0] == long[0][:1]
    for end in {row[3] for row in long}:
        found = greedy(model, prompts(model), end_tokens=[end], max_new_tokens=12)
        wanted = [row[: row.index(end) + 1] if end in row else row for row in long]
        assert found == wanted
        assert len({len(row) for row in found}) > 1


def test_a_single_new_token(model):
    assert greedy(model, prompts(model)[:2], end_tokens=[], max_new_tokens=1) == [
        library(model, row, 1, None) for row in ROWS[:2]
    ]


@pytest.mark.parametrize(
    ("prompt_format", "conversation", "marks"),
    [
        ("figure3", "llava_llama_3", ["</s>"]),
        ("template", "vicuna_v1", ["</s>"]),
        ("template", "plain", ["</s>"]),
        ("template", "llava_llama_3", ["</s>", "<|eot_id|>"]),
        ("template", "qwen_1_5", ["</s>", "<|im_end|>"]),
        ("template", "gemma_instruct", ["</s>"]),  # its mark is no token here
    ],
)
def test_an_answer_ends_with_the_tokenizers_mark_or_the_templates(tiny_llava, prompt_format, conversation, marks):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava.full)
    tokenizer.add_tokens(["<|eot_id|>", "<|im_end|>"], special_tokens=True)
    settings = ExampleSettings(tokens_per_scene=1, prompt_format=prompt_format, conversation_name=conversation)
    assert tokenizer.convert_ids_to_tokens(end_tokens(tokenizer, settings)) == marks


def test_what_prompts_share_is_computed_once(model, monkeypatch):
    lengths = []
    body = model.get_model()
    forward = body.forward
    monkeypatch.setattr(body, "forward", lambda **k: lengths.append(k["inputs_embeds"].shape[1]) or forward(**k))
    greedy(model, prompts(model), end_tokens=[], max_new_tokens=1)
    assert lengths == [10, 1, 1, 1, 14]  # the last position is always computed; rows 3 and 4 share their first token


def test_common_length_never_counts_the_last_position():
    rows = torch.eye(5)
    assert common_length(rows, rows) == 4
    assert common_length(rows, rows[:3]) == 2
    assert common_length(rows, torch.cat([rows[:2], rows[4:]])) == 2
    assert common_length(rows, rows.flip(0)) == 0
    assert common_length(rows[:1], rows) == 0


def test_the_cache_shows_attention_only_what_was_written_for_its_rows():
    cache = AlignedCache(2, 6)
    first, second = torch.arange(6.0).view(1, 1, 3, 2), torch.arange(10.0, 14.0).view(1, 1, 2, 2)
    for row, states in enumerate((first, second)):
        cache.rows, cache.start, cache.stop = slice(row, row + 1), 4 - states.shape[2], 4
        keys, values = cache.update(states, -states, 0)
        assert torch.equal(keys, states) and torch.equal(values, -states)
    cache.rows, cache.start, cache.stop = slice(0, 2), 0, 5
    keys, _ = cache.update(torch.full((2, 1, 1, 2), 9.0), torch.zeros(2, 1, 1, 2), 0)
    assert keys[1, 0, :, 0].tolist() == [0, 0, 10, 12, 9] and keys[0, 0, :, 0].tolist() == [0, 0, 2, 4, 9]
    cache.keep(torch.tensor([1]))
    keys, _ = cache.update(torch.full((1, 1, 1, 2), 8.0), torch.zeros(1, 1, 1, 2), 0)
    assert keys[0, 0, :, 0].tolist() == [0, 0, 10, 12, 8]
