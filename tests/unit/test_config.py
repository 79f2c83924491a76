"""Settings: YAML files, flags, and errors that name everything that is wrong."""

import dataclasses
from pathlib import Path

import pytest

from llava.imagechain.config import ConfigError, all_problems, build_config, option, parse_config, to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    stories: Path = option(help="folder")
    rate: float = option(2e-5, help="learning rate")
    epochs: int = option(3, help="passes")
    variant: str = option("imagechain", help="variant", choices=("imagechain", "final_scene"))
    roots: list[Path] = option([], help="folders")
    limit: int | None = option(None, help="stories", minimum=1)
    resume: bool = option(True, help="continue")
    counts: list[int] = option([2, 3], help="numbers", minimum=1)
    note: str | None = option(None, help="text")


def parse(*argv):
    return parse_config(Settings, argv, program="demo", description="demo")


def test_flags_win_over_later_files_which_win_over_earlier_files(tmp_path):
    (tmp_path / "a.yaml").write_text("stories: here\nrate: 1.0e-3\nepochs: 5\n")
    (tmp_path / "b.yaml").write_text("rate: 0.01\n")
    settings = parse("--config", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--epochs", "7")
    assert (settings.stories, settings.rate, settings.epochs) == (Path("here"), 0.01, 7)


def test_scientific_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("stories: here\nrate: 2e-5\n")
    assert parse("--config", str(tmp_path / "a.yaml")).rate == 2e-5


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"unknown setting 'epoch'.*'epochs'"):
        build_config(Settings, [{"stories": "x", "epoch": 3}])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
        (["--no_resum=x"], "(did you mean --resume?)"),
        (["stray", "--stories", "s"], "unrecognized arguments: stray\n"),
    ],
)
def test_an_unknown_flag_names_the_nearest_known_one(capsys, argv, message):
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_the_help_keeps_the_lines_of_its_description(capsys):
    with pytest.raises(SystemExit):
        parse_config(
            Settings, ["--help"], program="demo", description="What it does.\n\nLaunch: demo A\n        demo B"
        )
    assert "\nWhat it does.\n\nLaunch: demo A\n        demo B\n" in capsys.readouterr().out


def test_all_problems_are_in_one_message(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("--epochs", "2.5", "--variant", "imagechian")
    message = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert "--stories is required" in message
    assert "epochs: a whole number was wanted, found '2.5'" in message
    assert "did you mean 'imagechain'" in message


def test_lists_booleans_and_none_are_read_from_flags():
    settings = parse("--stories", "s", "--roots", "a", "b", "--no-resume", "--limit", "none")
    assert settings.roots == [Path("a"), Path("b")]
    assert settings.resume is False
    assert settings.limit is None


def test_a_text_can_be_the_word_none():
    assert parse("--stories", "s", "--note", "none").note == "none"


def test_one_problem_stands_alone_and_several_are_a_list():
    assert all_problems("nothing was done", ["a is missing"]) == "a is missing"
    assert all_problems("nothing was done", ["a", "b"]) == "nothing was done:\n  - a\n  - b"


def test_a_config_becomes_json_values():
    assert to_json(parse("--stories", "s", "--roots", "a"))["roots"] == ["a"]


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n"])
def test_a_broken_config_file_is_named(tmp_path, capsys, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse("--config", str(tmp_path / "bad.yaml"))
    assert "bad.yaml" in capsys.readouterr().err


def test_a_binary_config_file_is_named(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_bytes(b"\xc7\xff\x00")
    with pytest.raises(SystemExit):
        parse("--config", str(tmp_path / "bad.yaml"))
    assert "bad.yaml is not valid YAML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("limit", "0", "at least 1 was wanted, found 0"),
        ("limit", "-1", "at least 1 was wanted, found -1"),
        ("counts", [2, 0], "counts: at least 1 was wanted, found 0"),
        ("epochs", "inf", "a whole number was wanted, found 'inf'"),
        ("rate", "nan", "a number was wanted, found 'nan'"),
        ("stories", "", "a path was wanted, found ''"),  # an unset shell variable must not mean the working folder
        ("stories", ["a"], "a path was wanted"),
        ("variant", ["imagechain"], "text was wanted"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(setting, value, message):
    with pytest.raises(ConfigError, match=message):
        build_config(Settings, [{"stories": "x", setting: value}])
