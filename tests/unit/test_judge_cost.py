"""What judging will cost: tokens with and without the judge's tokenizer, prices, rows that do not exist yet."""

import subprocess
import sys

import pytest

from eval.judge import load_judge
from eval.judge.cost import TYPICAL_PAIR, check_cost, estimate, find_tokenizer
from eval.judge.prompt import render_raw
from llava.imagechain.config import ConfigError

MODEL = "meta-llama/Meta-Llama-3-70B-Instruct"


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """The paper's judge, with no tokenizer on this machine."""
    monkeypatch.setattr("eval.judge.cost.find_tokenizer", lambda name: None)
    return load_judge("simrate")


@pytest.fixture
def word_tokenizer(tmp_path):
    """A folder whose tokenizer.json makes one token of each run of non-blank characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_calls_are_counted_and_longer_texts_cost_more(judge):
    short, long = estimate(judge, [("a", "b")] * 3), estimate(judge, [("a" * 400, "b" * 400)] * 3)
    assert (short.calls, long.calls, short.counted) == (3, 3, False)
    assert long.prompt_tokens - short.prompt_tokens == pytest.approx(3 * 798 / 4, abs=3)
    assert short.new_tokens == 6
    # The paper's prompt has 1,906 characters, which Llama 3's tokenizer makes about 430 tokens of.
    assert 430 < short.prompt_tokens / 3 < 560


def test_an_unknown_price_is_none_and_a_known_one_is_used(judge):
    assert estimate(judge, [("a", "b")]).usd is None
    priced = judge.with_settings(prices={MODEL: [0.5, 1000.0], "other": None})
    cost = estimate(priced, [("a", "b")] * 1000)
    assert cost.usd == pytest.approx(cost.prompt_tokens * 0.5e-6 + cost.new_tokens * 1e-3)
    assert estimate(priced.with_settings(model="other"), [("a", "b")]).usd is None
    assert "price unknown" in str(estimate(judge, [("a", "b")])) and "$2.2" in str(cost)


def test_planned_rows_count_with_the_mean_length(judge):
    known = [("a" * 100, "b" * 100), ("a" * 300, "b" * 300)]
    both = estimate(judge, known, planned=2)
    assert both.calls == 4
    assert both.prompt_tokens == pytest.approx(2 * estimate(judge, known).prompt_tokens, abs=1)
    assert estimate(judge, planned=7).prompt_tokens == estimate(judge, [TYPICAL_PAIR] * 7).prompt_tokens


@pytest.mark.parametrize("name", ["world", "mock"])
def test_a_judge_without_a_server_costs_nothing(name):
    cost = estimate(load_judge(name), [("a", "b")], planned=100)
    assert (cost.calls, cost.prompt_tokens, cost.usd) == (0, 0, 0.0)
    assert str(cost) == "0 calls, nothing to pay"


def test_the_judge_s_own_tokenizer_counts_when_it_is_here(word_tokenizer):
    judge = load_judge("simrate").with_settings(tokenizer=str(word_tokenizer))
    messages = judge.messages("one two three", "four")
    cost = estimate(judge, [("one two three", "four")])
    words = sum(len(message["content"].split()) for message in messages)
    assert cost.counted and cost.prompt_tokens == words + 5 * 6 + 5
    raw = estimate(judge.with_settings(rendering="raw"), [("one two three", "four")])
    assert raw.prompt_tokens == len(render_raw(messages).split()) + 1
    assert not estimate(judge, planned=1).counted


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no model", "", "/no/such/folder", "a/b/c"])
def test_a_tokenizer_that_is_not_here_is_none_and_nothing_is_downloaded(name):
    assert find_tokenizer(name) is None


def test_a_broken_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is no tokenizer that can be read"):
        find_tokenizer(str(tmp_path))


@pytest.mark.parametrize("price", [[1], [1, -1], "1 2", [1, None], [True, 1], [float("nan"), 1], 3])
def test_a_wrong_price_is_refused(price):
    with pytest.raises(ConfigError, match="two numbers from 0 on"):
        load_judge("simrate").with_settings(prices={"m": price})


def test_a_limit_needs_a_price_and_stops_above_it(judge):
    priced = judge.with_settings(prices={MODEL: [1.0, 1.0]})
    cost = estimate(priced, [("a", "b")] * 100)
    check_cost(priced, cost, cost.usd)
    check_cost(judge, estimate(judge, [("a", "b")]), None)
    with pytest.raises(ConfigError, match="nothing was asked"):
        check_cost(priced, cost, cost.usd * 0.99)
    with pytest.raises(ConfigError, match=r"price of .* is unknown"):
        check_cost(judge, estimate(judge, [("a", "b")]), 5.0)
    check_cost(load_judge("world"), estimate(load_judge("world"), planned=9), 0.0)


def test_counting_loads_no_torch():
    code = (
        "import sys\nfrom eval.judge import load_judge\nfrom eval.judge.cost import estimate\n"
        "estimate(load_judge('simrate'), planned=3)\n"
        "assert not {'torch', 'transformers', 'openai'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
