"""Judge folders: loading, errors, and how answers are read."""

import shutil

import pytest

from eval.judge import BUILT_IN, load_judge
from eval.judge.base import JUDGE_DIR
from eval.judge.simrate.parser import parse
from llava.imagechain.config import ConfigError


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_judge_loads_under_its_own_name(name):
    assert load_judge(name).settings.name == name


@pytest.mark.parametrize(
    ("answer", "verdict", "parsed"),
    [
        ("Yes", "yes", True),
        ("YES.", "yes", True),
        (' "yes"', "yes", True),
        ("**Yes**, they are similar", "yes", True),
        ("\n(No)", "no", True),
        ("no, because Yes would be wrong", "no", True),
        ("None", "no", False),
        ("Yesterday", "no", False),
        ("The answer is Yes", "no", False),
        ("Oui", "no", False),
        ("はい", "no", False),
        ("", "no", False),
    ],
)
def test_the_first_word_decides_and_anything_else_is_an_unparsed_no(answer, verdict, parsed):
    found = parse(answer, "any reference")
    assert (found.verdict, found.parsed, found.answer) == (verdict, parsed, answer)


def test_a_folder_of_the_users_is_loaded_and_its_parser_used(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(JUDGE_DIR / "mock", folder)
    (folder / "settings.yaml").write_text("name: mine\nanswers_from: prediction\n")
    (folder / "parser.py").write_text(
        "from eval.judge import Verdict\n\n\ndef parse(answer, reference):\n"
        "    return Verdict(verdict='yes' if answer[0] == reference[0] else 'no', parsed=True, answer=answer)\n"
    )
    judge = load_judge(folder)
    assert judge.settings.name == "mine"
    assert judge.parse(judge.local_answer("abc", "axx"), "abc").verdict == "yes"


def test_an_unknown_judge_names_the_known_ones():
    with pytest.raises(ConfigError, match="world, simrate, mock"):
        load_judge("simrat")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("name: x\nanswers_from: server\n", "needs a prompt file"),
        ("name: x\nanswers_from: server\nprompt: none.yaml\n", "none.yaml cannot be read"),
        ("name: x\nanswers_from: mind\n", "unknown value 'mind'"),
        ("name: x\nanswers_from: script\ntemprature: 1\n", "did you mean 'temperature'"),
        ("name: x\nanswers_from: script\nprices: 3\n", "model names with two numbers each"),
        ("name: x\nanswers_from: script\nprices: {m: [1, two]}\n", "prices, m: two numbers from 0 on"),
        ("name: x\nanswers_from: script\napi_key_env: sk-123\n", "the NAME of an environment variable"),
        ("name: x\nanswers_from: script\nconcurrency: 0\n", "concurrency: at least 1 was wanted, found 0"),
        ("- a\n- b\n", "a YAML dict was wanted"),
        ("name: [\n", "cannot be read"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, message):
    (tmp_path / "settings.yaml").write_text(settings)
    (tmp_path / "parser.py").write_text("from eval.judge.simrate.parser import parse\n")
    with pytest.raises(ConfigError, match=message):
        load_judge(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("- {role: user, content: '{reference}'}", r"prompt.yaml: \{prediction\} was wanted in a message"),
        ("- {role: user, contents: '{reference} {prediction}'}", "role and content as texts were wanted"),
        ("- '{reference} {prediction}'", "role and content as texts were wanted"),
    ],
)
def test_a_prompt_that_cannot_ask_is_named(tmp_path, prompt, message):
    (tmp_path / "settings.yaml").write_text("name: x\nanswers_from: server\nprompt: prompt.yaml\n")
    (tmp_path / "parser.py").write_text("from eval.judge.simrate.parser import parse\n")
    (tmp_path / "prompt.yaml").write_text(prompt)
    with pytest.raises(ConfigError, match=message):
        load_judge(tmp_path)


def test_a_parser_without_its_function_is_an_error(tmp_path):
    (tmp_path / "settings.yaml").write_text("name: x\nanswers_from: script\n")
    (tmp_path / "parser.py").write_text("read = 1\n")
    with pytest.raises(ConfigError, match="a function parse"):
        load_judge(tmp_path)


def test_the_mock_judge_follows_its_script(tmp_path):
    shutil.copytree(JUDGE_DIR / "mock", tmp_path / "m")
    (tmp_path / "m" / "answers.yaml").write_text("answers: {a cat: 'Yes, sure', a dog: garbage}\notherwise: 'No'\n")
    judge = load_judge(tmp_path / "m")
    assert [judge.local_answer("r", text) for text in ("a cat", "a dog", "r")] == ["Yes, sure", "garbage", "No"]
    assert load_judge("mock").local_answer("A  cat", "a cat") == "Yes"
