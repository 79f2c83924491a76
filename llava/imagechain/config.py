"""One dataclass per stage: YAML files first, command-line flags override, all problems in one message."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

Config = TypeVar("Config")


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    choices: Sequence[Any] | None = None,
    flag: str | None = None,
    minimum: float | None = None,
) -> Any:
    """Declare one setting of a config dataclass.

    Args:
        default: Default value; left out, the setting is required. Lists are copied.
        help: One line with the unit.
        choices: The allowed values.
        flag: Another command-line name, without dashes (`output_dir` is `--output-dir` by itself).
        minimum: The least allowed number, also of each in a list.

    Returns:
        A dataclass field.
    """
    metadata = {"help": help, "choices": tuple(choices) if choices else None, "flag": flag, "minimum": minimum}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class ConfigError(ValueError):
    """A setting is unknown, missing or has a wrong value."""


def all_problems(heading: str, problems: Sequence[str]) -> str:
    """Return the message of an error that tells everything wrong at once; a single problem needs no heading."""
    return problems[0] if len(problems) == 1 else "\n  - ".join([f"{heading}:", *problems])


def nearest(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean X?)" when a known name is close, else the list of the known ones."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known))})"


def parse_config(config_class: type[Config], argv: Sequence[str] | None, *, program: str, description: str) -> Config:
    """Build a config from `--config FILE ...` and flags; print every problem at once and leave with status 2.

    Args:
        config_class: A dataclass whose fields are declared with `option`.
        argv: The arguments without the program name; None reads sys.argv.
        program: Shown as the command in help and errors.
        description: Shown at the head of the help.

    Returns:
        The config.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(config_class, program, description)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [f"--{_flag(field)}" for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
        first = next((word for word in unknown if word.startswith("--")), "").partition("=")[0].replace("_", "-")
        hint = f" (did you mean {close[0]}?)" if (close := difflib.get_close_matches(first, flags, n=1)) else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    values = vars(parsed)
    files = values.pop("config", None) or []
    try:
        return build_config(config_class, [*[read_yaml(path) for path in files], values], parse_text=True)
    except ConfigError as error:
        parser.exit(2, f"{program}: {error}\n")


def build_config(config_class: type[Config], layers: Sequence[dict[str, Any]], *, parse_text: bool = False) -> Config:
    """Build a config from layers of settings, later ones winning.

    Raises:
        ConfigError: With all unknown, missing and wrong settings.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(config_class)
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, value in (item for layer in layers for item in layer.items()):
        name = key.replace("-", "_")
        if name not in fields:
            problems.append(f"unknown setting {key!r}{nearest(name, list(fields))}")
            continue
        try:
            values[name] = _convert(value, hints[name], parse_text)
            _check_choices(values[name], fields[name].metadata.get("choices"))
            _check_minimum(values[name], fields[name].metadata.get("minimum"))
        except ValueError as error:
            problems.append(f"{name}: {error}")
            values.setdefault(name, None)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"--{_flag(field)} is required: {field.metadata.get('help', '')}")
    if problems:
        raise ConfigError(all_problems("several settings are wrong", problems))
    return config_class(**values)


def to_json(config: Any) -> dict[str, Any]:
    """Return a config dataclass as JSON values (paths become text)."""
    return {key: _json_value(value) for key, value in dataclasses.asdict(config).items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check_choices(value: Any, choices: Sequence[Any] | None) -> None:
    for item in value if isinstance(value, list) else [value]:
        if choices and item is not None and item not in choices:
            raise ValueError(f"unknown value {item!r}{nearest(str(item), [str(choice) for choice in choices])}")


def _check_minimum(value: Any, minimum: float | None) -> None:
    for item in value if isinstance(value, list) else [value]:
        if minimum is not None and item is not None and item < minimum:
            raise ValueError(f"at least {minimum:g} was wanted, found {item}")


def _flag(field: dataclasses.Field[Any]) -> str:
    return field.metadata.get("flag") or field.name.replace("_", "-")


def _parser(config_class: type, program: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--config", nargs="+", metavar="FILE", help="YAML files of settings, later ones win; flags win over all"
    )
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, is_list, _ = _unwrap(hints[field.name])
        help_text = field.metadata.get("help", "")
        if choices := field.metadata.get("choices"):
            help_text += f" ({', '.join(map(str, choices))})"
        if field.default is not dataclasses.MISSING and field.default is not None and field.default != "":
            help_text += f" [{field.default}]"
        settings: dict[str, Any] = {"dest": field.name}
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["metavar"] = {"Path": "PATH", "int": "N", "float": "X"}.get(kind.__name__, "TEXT")
            if is_list:
                settings["nargs"] = "+"
        parser.add_argument(f"--{_flag(field)}", help=help_text.replace("%", "%%"), **settings)
        if "_" in field.name:  # LLaVA's spelling works too
            parser.add_argument(f"--{field.name}", help=argparse.SUPPRESS, **settings)
    return parser


def _unwrap(hint: Any) -> tuple[type, bool, bool]:
    """Return (element type, is a list, may be None) of a field annotation."""
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        optional = len(inner) < len(typing.get_args(hint))
        hint = inner[0]
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True, optional
    if typing.get_origin(hint) is typing.Literal:
        return str, False, optional
    return hint, False, optional


def _convert(value: Any, hint: Any, parse_text: bool) -> Any:
    kind, is_list, optional = _unwrap(hint)
    unset = parse_text and value == "none" and kind is not str  # a text can be that word
    if value is None or (optional and unset):
        if optional:
            return None
        raise ValueError("a value is needed, found nothing")
    if is_list:
        return [_convert_one(item, kind) for item in (value if isinstance(value, (list, tuple)) else [value])]
    return _convert_one(value, kind)


def _convert_one(value: Any, kind: type) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"true or false was wanted, found {value!r}")
    if kind in (int, float):
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        if number is None or not math.isfinite(number) or (kind is int and number != int(number)):
            raise ValueError(f"{'a whole number' if kind is int else 'a number'} was wanted, found {value!r}")
        return int(number) if kind is int else number
    if kind is Path:
        if not isinstance(value, (str, Path)) or value == "":
            raise ValueError(f"a path was wanted, found {value!r}")
        return Path(value).expanduser()
    if kind is str:
        if isinstance(value, (dict, list)):
            raise ValueError(f"text was wanted, found {value!r}")
        return str(value)
    return value


def read_yaml(path: str) -> dict[str, Any]:
    """Read settings from a YAML file.

    Raises:
        ConfigError: The file cannot be read or holds no settings.
    """
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"config file {path}: settings (name: value) were wanted, found {type(loaded).__name__}")
    return loaded
