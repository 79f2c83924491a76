"""A judge is a folder: settings.yaml, a prompt file where it asks a model, and parser.py.

`parser.py` defines one function, `parse(answer, reference) -> Verdict`. What `answer` is depends on `answers_from`:

- `server`: the raw answer of a language model that was asked with the prompt;
- `prediction`: the predicted description itself (an exact judge needs no model);
- `script`: the entry of a script file (tests).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from eval.judge.prompt import PLACEHOLDER, fill, render_raw
from llava.imagechain.config import ConfigError, build_config, option
from llava.imagechain.files import sha256_json

BUILT_IN = ("world", "simrate", "mock")
JUDGE_DIR = Path(__file__).resolve().parent
# What scripts/eval/serve_judge.sh hands on; a command-line flag or a config file says more.
ENVIRONMENT = {"base_url": "JUDGE_BASE_URL", "model": "JUDGE_MODEL", "revision": "JUDGE_REVISION"}
# What a command's settings replace, as far as it has settings of these names.
CONNECTION = ("base_url", "model", "revision", "api_key_env", "rendering", "max_tokens", "concurrency", "timeout_s",
              "max_retries")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge says about one prediction.

    Attributes:
        verdict: "yes" or "no"; an answer that cannot be read is "no".
        parsed: False when the answer could not be read.
        answer: The raw answer the verdict was read from.
    """

    verdict: Literal["yes", "no"]
    parsed: bool
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """settings.yaml of a judge folder; the connection settings can be overridden for a run."""

    name: str = option(help="name written into every judgment")
    description: str = option("", help="one line for people")
    answers_from: str = option(help="where answers come from", choices=("server", "prediction", "script"))
    prompt: str | None = option(None, help="prompt file in the folder (a YAML list of role and content)")
    script: str | None = option(None, help="script file in the folder, for answers_from: script")
    rendering: str = option("chat", help="chat messages, or the printed Llama 3 string", choices=("chat", "raw"))
    base_url: str = option("http://127.0.0.1:8000/v1", help="OpenAI-compatible server")
    model: str = option("", help="model name on the server")
    revision: str = option(
        "", help="which version of the model answers (commit, quantization); part of the cache's key"
    )
    tokenizer: str = option("", help="model or folder whose tokenizer.json counts tokens; by default the model's")
    prices: dict[str, Any] = option(
        {}, help="model: [US dollars per million tokens read, per million written], null where unknown"
    )
    api_key_env: str = option("JUDGE_API_KEY", help="name of the environment variable that holds the key")
    temperature: float = option(0.0, help="sampling temperature; 0 is greedy")
    max_tokens: int = option(8, help="longest answer in tokens", minimum=1)
    concurrency: int = option(32, help="requests at the same time", minimum=1)
    timeout_s: float = option(120.0, help="seconds for one request", minimum=0.1)
    max_retries: int = option(6, help="further tries after 429, 5xx, a timeout or a lost connection", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """A loaded judge folder."""

    settings: JudgeSettings
    folder: Path
    prompt: tuple[dict[str, str], ...]
    parse: Callable[[str, str], Verdict]

    def messages(self, reference: str, prediction: str) -> list[dict[str, str]]:
        """Return the chat messages of one comparison, both texts made harmless."""
        return fill(self.prompt, reference=reference, prediction=prediction)

    def request(self, reference: str, prediction: str) -> dict[str, Any]:
        """Return everything that decides the answer: prompt or messages, model and decoding settings."""
        settings, messages = self.settings, self.messages(reference, prediction)
        asked: dict[str, Any] = (
            {"prompt": render_raw(messages), "stop": ["<|eot_id|>"]}
            if settings.rendering == "raw"
            else {"messages": messages}
        )
        return {
            **asked,
            "model": settings.model,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
        }

    def request_key(self, reference: str, prediction: str) -> str:
        """Return the SHA-256 of this comparison's request, whichever revision of the model answers."""
        if self.settings.answers_from == "server":
            return sha256_json(self.request(reference, prediction))
        return sha256_json({"judge": self.settings.name, "reference": reference, "prediction": prediction})

    def key(self, reference: str, prediction: str) -> str:
        """Return the SHA-256 under which the answer to this comparison is kept."""
        request, revision = self.request_key(reference, prediction), self.settings.revision
        return sha256_json([request, revision]) if revision else request

    def local_answer(self, reference: str, prediction: str) -> str:
        """Return the answer of a judge that asks no server."""
        if self.settings.answers_from == "prediction":
            return prediction
        script = self._script
        rule = script.get("otherwise", "same_text")
        same = " ".join(prediction.split()).casefold() == " ".join(reference.split()).casefold()
        return str(
            script.get("answers", {}).get(prediction, ("Yes" if same else "No") if rule == "same_text" else rule)
        )

    @functools.cached_property
    def _script(self) -> dict[str, Any]:
        return _load_yaml(self.folder / (self.settings.script or "answers.yaml"), dict)

    def with_environment(self) -> Judge:
        """Return the judge with the server, model and revision that the environment names (see ENVIRONMENT)."""
        return self.with_settings(**{name: os.environ.get(variable) or None for name, variable in ENVIRONMENT.items()})

    def with_connection(self, config: object) -> Judge:
        """Return the judge with the connection settings that a command was given (see CONNECTION)."""
        return self.with_settings(**{name: getattr(config, name, None) for name in CONNECTION})

    def with_settings(self, **changes: Any) -> Judge:
        """Return the judge with some settings replaced; a value of None keeps the folder's.

        Raises:
            ConfigError: A value is wrong.
        """
        kept = {name: value for name, value in changes.items() if value is not None}
        settings = dataclasses.replace(self.settings, **kept)
        if wrong := _wrong_settings(settings):
            raise ConfigError(wrong)
        return dataclasses.replace(self, settings=settings)


def load_judge(name_or_path: str | Path) -> Judge:
    """Load a built-in judge by name, or a judge folder of the user's by path. Loading a path RUNS its parser.py.

    Raises:
        ConfigError: No such judge, or its folder is incomplete or wrong.
    """
    name = str(name_or_path)
    folder = JUDGE_DIR / name if name in BUILT_IN else Path(name).expanduser()
    if not (folder / "settings.yaml").is_file() or not (folder / "parser.py").is_file():
        raise ConfigError(
            f"judge {name!r}: one of {', '.join(BUILT_IN)} or a folder with settings.yaml and parser.py was wanted"
        )
    try:
        settings: JudgeSettings = build_config(JudgeSettings, [_load_yaml(folder / "settings.yaml", dict)])
    except ConfigError as error:
        raise ConfigError(f"{folder / 'settings.yaml'}: {error}") from error
    if wrong := _wrong_settings(settings):
        raise ConfigError(f"{folder / 'settings.yaml'}: {wrong}")
    prompt = _load_prompt(folder / settings.prompt) if settings.prompt else []
    if settings.answers_from == "server" and not prompt:
        raise ConfigError(f"{folder / 'settings.yaml'}: a judge that asks a server needs a prompt file")
    return Judge(settings=settings, folder=folder, prompt=tuple(prompt), parse=_parser_of(folder, name in BUILT_IN))


def _load_prompt(path: Path) -> list[dict[str, str]]:
    prompt = _load_yaml(path, list)
    for message in prompt:
        if not isinstance(message, dict) or not all(isinstance(message.get(n), str) for n in ("role", "content")):
            raise ConfigError(f"{path}: messages with role and content as texts were wanted, found {message!r}")
    if not any("prediction" in PLACEHOLDER.findall(message["content"]) for message in prompt):
        raise ConfigError(
            f"{path}: {{prediction}} was wanted in a message, and {{reference}} where it is to be compared"
        )
    return prompt


def _wrong_settings(settings: JudgeSettings) -> str | None:
    # A key put where its variable's name belongs would be written into judge_run.json.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", settings.api_key_env):
        return "api_key_env: the NAME of an environment variable was wanted, in capitals, such as JUDGE_API_KEY"
    if not isinstance(settings.prices, dict):
        return f"prices: model names with two numbers each were wanted, found {settings.prices!r}"
    for model, price in settings.prices.items():
        if price is not None and not _is_price(price):
            return f"prices, {model}: two numbers from 0 on (or null) were wanted, found {price!r}"
    return None


def _is_price(price: Any) -> bool:
    return (
        isinstance(price, list)
        and len(price) == 2
        and all(
            isinstance(part, (int, float)) and not isinstance(part, bool) and 0 <= part < math.inf for part in price
        )
    )


def _parser_of(folder: Path, built_in: bool) -> Callable[[str, str], Verdict]:
    if built_in:
        module = importlib.import_module(f"eval.judge.{folder.name}.parser")
    else:
        spec = importlib.util.spec_from_file_location("user_judge_parser", folder / "parser.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    if not callable(getattr(module, "parse", None)):
        raise ConfigError(f"{folder / 'parser.py'}: a function parse(answer, reference) -> Verdict was wanted")
    return module.parse


def _load_yaml(path: Path, kind: type) -> Any:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, kind):
        raise ConfigError(f"{path}: a YAML {kind.__name__} was wanted, found {type(loaded).__name__}")
    return loaded
