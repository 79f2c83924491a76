"""Settings every test runs under: no network, few threads, no screen, the same examples every time."""

import os
import signal
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# The checkout is for tests/overlay alone: scripts that other tests call run this folder's llava.
if "LLAVA_NEXT_DIR" in os.environ:
    os.environ["OVERLAY_CHECKOUT"] = str(Path(os.environ.pop("LLAVA_NEXT_DIR")).absolute())

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A shell that starts the tests in the background has its children ignore Ctrl-C; the tests' own commands must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
