"""What a measurement needs of the machine: its description, the time when work is done, peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import time
from pathlib import Path
from typing import Any

from llava.imagechain.manifest import git_revision, package_versions


def resident(name: str) -> int | None:
    """Return a line of /proc/self/status in bytes: VmRSS now, VmHWM the peak; None on systems without it."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:")), None)


def start_memory(device: Any) -> int | None:
    """Forget earlier peaks; return the resident memory now, which `peak_memory` takes off."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier rows have freed
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
    return resident("VmRSS")


def peak_memory(device: Any, before: int | None) -> int | None:
    """Return the most bytes since `start_memory`: allocated on the GPU, or resident beyond what was there before."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resident("VmHWM")
    return None if peak is None or before is None else peak - before


def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """Return a batch with its tensors on the device."""
    moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
    return {**moved, "images": [[scene.to(device) for scene in scenes] for scenes in batch["images"]]}


def clock(device: Any) -> float:
    """Return the time when the device has done its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine_facts(device: Any) -> dict[str, Any]:
    """Return the device's name, the threads, the commit and the versions that speed depends on."""
    import torch

    versions = package_versions()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "threads": torch.get_num_threads(), "commit": git_revision(),
        **{name: versions[name] for name in ("python", "torch", "transformers", "peft") if name in versions},
    }  # fmt: skip
