"""Model classes by name, each imported on first use; an import error is raised with its real cause, never swallowed.

`from llava.model import *` gives the classes whose files can be imported here (a LLaVA-NeXT checkout has more of them
than the overlay alone).
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

_MODULES = {
    "llava_llama": ("LlavaLlamaForCausalLM", "LlavaConfig"),
    "llava_qwen": ("LlavaQwenForCausalLM", "LlavaQwenConfig"),
    "llava_mistral": ("LlavaMistralForCausalLM", "LlavaMistralConfig"),
    "llava_mixtral": ("LlavaMixtralForCausalLM", "LlavaMixtralConfig"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def _importable() -> list[str]:
    names: list[str] = []
    for module, members in _MODULES.items():
        try:
            importlib.import_module(f"llava.model.language_model.{module}")
        except ImportError:
            continue  # shown in full when one of its classes is asked for by name
        names += members
    return names


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _importable()
    if name not in _HOME:
        raise AttributeError(f"module 'llava.model' has no attribute {name!r}")
    module = f"llava.model.language_model.{_HOME[name]}"
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported from {module}: {error}") from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
