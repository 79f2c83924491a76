"""Several processes on one model: DeepSpeed's start on machines without a GPU, whole tensors from partitioned ones."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch

logger = logging.getLogger(__name__)


def deepspeed_problems(config: str) -> list[str]:
    """Return what keeps a DeepSpeed run from starting, told before the processes wait for each other.

    Args:
        config: Path of the DeepSpeed config.
    """
    problems = []
    if importlib.util.find_spec("deepspeed") is None:
        problems.append("deepspeed: the package is not installed; bash scripts/setup.sh train deepspeed")
    if "RANK" not in os.environ:
        problems.append(
            "deepspeed: started without a launcher; use NUM_GPUS=1 bash scripts/train/imagechain.sh or "
            "python -m torch.distributed.run --nproc_per_node 1 -m llava.train.train ..."
        )
    if not Path(config).is_file():
        problems.append(f"deepspeed: {config} is not a file; configs/deepspeed holds three to choose from")
    return problems


def has_bfloat16() -> bool:
    """Say whether the GPU, or without one the processor, computes in bfloat16 by itself; others crawl or fail."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) is not None


def take_one_gpu(settings: Any) -> None:
    """Keep a process that was started without a launcher to one GPU.

    The library would give each GPU it sees a part of the batch: a larger global batch, and lists of scenes cut in two.

    Args:
        settings: `TrainArguments`; changed in place.
    """
    if (found := settings.n_gpu) > 1:
        logger.warning("%d GPUs are there and one trains; NUM_GPUS=%d bash scripts/train/imagechain.sh", found, found)
        settings._n_gpu = 1


def spare_deepspeed_a_guess() -> None:
    """Name the accelerator where there is no GPU; DeepSpeed, which other libraries import, warns when it guesses."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start_deepspeed_on_cpu() -> None:
    """Start DeepSpeed's process group where there is no GPU; with one, the library does it.

    Has to come before TrainingArguments: they start torch's group alone, and DeepSpeed would see one process.
    """
    if torch.cuda.is_available():
        return
    spare_deepspeed_a_guess()
    import deepspeed

    # Compiled on first use (a minute, and for ever behind the lock of a killed run); only inference calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def leave_group() -> None:
    """Wait for all processes and end the process group: one that ends by itself can abort a neighbour's threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """End this process; one of several does so without taking the interpreter down.

    The threads of the process group outlive `destroy_process_group` where something still refers to the group, as
    DeepSpeed's parameters do. One of them that lets go of a tensor while the interpreter goes down wants its lock, is
    ended inside C++ code that may not be left so, and the process aborts ("terminate called without an active
    exception") although training is complete. multiprocessing ends its workers in the same way.
    """
    if "RANK" not in os.environ:
        sys.exit(status)
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def zero3_is_on() -> bool:
    """Say whether parameters are partitioned over the processes (TrainingArguments with a ZeRO-3 config exist)."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return bool(is_deepspeed_zero3_enabled())
