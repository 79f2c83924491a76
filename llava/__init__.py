"""The LLaVA overlay with ImageChain; classes are imported on first use, so that `import llava` stays light."""

from __future__ import annotations

from typing import Any

_FROM_MODEL = ("LlavaLlamaForCausalLM",)


def __getattr__(name: str) -> Any:
    if name in _FROM_MODEL:
        import llava.model

        return getattr(llava.model, name)
    raise AttributeError(f"module 'llava' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FROM_MODEL])
