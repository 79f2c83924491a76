"""Settings every test runs under: no network, few threads, no screen, the same examples every time."""

import os
import signal
import sys
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# What the user has exported for the scripts, a job's numbers and a proxy are not for the tests, nor is another Python.
SETTINGS = """
    BACKEND BASE BATCH_SIZE CDPATH CONFIG CONTEXT CONTROL DEEPSPEED DRY_RUN EXTRACTOR FEATURE_CACHE GRID JUDGE
    LOCAL_RANK MASTER_ADDR MASTER_PORT MAX_MODEL_LEN MEMENTOS MODEL NAME NNODES NODE_RANK NUM_GPUS OUTPUT OUTPUT_DIR
    PAPER PORT QUANTIZATION RANK REVISION SEED SPLIT STATE_DIR STORIES TABLE TIMEOUT_S VARIANT VLLM_FLAGS WORLD_SIZE
"""
for name in list(os.environ):
    if name in SETTINGS.split() or name.startswith(("JUDGE_", "SLURM_")) or name.lower().endswith("_proxy"):
        del os.environ[name]
os.environ["PYTHON"] = sys.executable
# The checkout is for tests/overlay alone: scripts that other tests call run this folder's llava.
if "LLAVA_NEXT_DIR" in os.environ:
    os.environ["OVERLAY_CHECKOUT"] = str(Path(os.environ.pop("LLAVA_NEXT_DIR")).absolute())

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A shell that starts the tests in the background has its children ignore Ctrl-C; the tests' own commands must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
