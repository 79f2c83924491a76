"""What differs between the library versions that the overlay runs on (transformers 4.45 to 5.x)."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import transformers

logger = logging.getLogger(__name__)
TRANSFORMERS_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
DTYPE_KEYWORD = "dtype" if TRANSFORMERS_VERSION >= (4, 56) else "torch_dtype"


def as_dtype(value: str | torch.dtype) -> torch.dtype | str:
    """Return a torch dtype for a name such as "bfloat16"; "auto" stays as it is.

    Raises:
        ValueError: Not the name of a floating point type.
    """
    if value == "auto" or isinstance(value, torch.dtype):
        return value
    found = getattr(torch, str(value).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"torch_dtype: float32, bfloat16, float16 or auto was wanted, found {value!r}.")
    return found


def attention_implementation(wanted: str | None) -> str:
    """Return the attention to use: what was asked for, or sdpa where flash-attn or a GPU is missing."""
    if wanted is None:
        return "sdpa"
    if wanted == "flash_attention_2" and not (importlib.util.find_spec("flash_attn") and torch.cuda.is_available()):
        logger.debug("flash-attn is not installed or there is no GPU: attention runs on sdpa.")
        return "sdpa"
    return wanted


def accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those arguments that a function takes; all of them when it takes any keyword."""
    if not arguments:
        return arguments
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def with_old_config_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Add to a config's JSON values what transformers 5 renamed: rope_theta, rope_scaling, torch_dtype."""
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_theta") is not None:
        values.setdefault("rope_theta", rope["rope_theta"])
    if rope.get("rope_type", "default") != "default":
        values.setdefault("rope_scaling", {name: value for name, value in rope.items() if name != "rope_theta"})
    if values.get("dtype") is not None:
        values.setdefault("torch_dtype", values["dtype"])
    return values


def load_image_processor(source: str) -> Any:
    """Load the CLIP image processor of a folder or hub name, on its PIL backend (exact and free of torchvision)."""
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    return getattr(transformers, name).from_pretrained(source)


def clip_layer_masks(layer: torch.nn.Module) -> tuple[None, ...]:
    """Return the empty mask arguments that a CLIP encoder layer of this library version wants."""
    return (None, None) if "causal_attention_mask" in inspect.signature(layer.forward).parameters else (None,)


def numpy_state_allowed() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which PyTorch's weights-only reading takes numpy's random state (transformers up to 4.46)."""
    if not hasattr(torch.serialization, "safe_globals"):
        return contextlib.nullcontext()
    import numpy

    core = getattr(numpy, "_core", None) or numpy.core
    kinds = {type(numpy.dtype(kind)) for kind in ("uint32", "int64")}
    return torch.serialization.safe_globals([core.multiarray._reconstruct, numpy.ndarray, numpy.dtype, *kinds])


def gathered(parameters: Iterable[torch.nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which parameters can be written, also when DeepSpeed ZeRO-3 has them partitioned."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0)


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Hold back what the library reports of a load's missing and surplus weights; a load that fails shows it."""
    library = logging.getLogger("transformers.modeling_utils")
    words = ("LOAD REPORT", "newly initialized", "were not used when")
    held: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        if any(word in record.getMessage() for word in words):
            held.append(record)
            return False
        return True

    library.addFilter(keep)
    try:
        yield
    except Exception:
        library.removeFilter(keep)
        for record in held:
            library.handle(record)
        raise
    finally:
        library.removeFilter(keep)


def is_distributed() -> bool:
    """Say whether several processes work on one model."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )
