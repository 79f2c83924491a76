"""Start the processes of a training as torchrun does, and let a run that was asked to stop end with one line.

usage: python -m llava.imagechain.launch [TORCHRUN'S OPTIONS] -m llava.train.train ...

torchrun ends such a run with a traceback and status 1, and kills after 30 s what still writes its checkpoint. Here the
status is 130 for Ctrl-C or a file `stop` and 143 for SIGTERM, and the time 10 minutes (TORCH_ELASTIC_SHUTDOWN_TIMEOUT,
in seconds; PyTorch releases that do not know it keep to 30 s).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

# Status of the training's processes -> what the launcher adds. They have said the rest themselves.
TOLD = {2: "", 130: "stopped; the same command goes on from the last checkpoint"}


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes and wait for them; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(arguments))
        return 0
    except SignalException as error:
        print(f"python -m llava.imagechain.launch: {TOLD[130]}", file=sys.stderr)
        return 128 + error.sigval
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()} - {-signal.SIGTERM}
        status = statuses.pop() if len(statuses) == 1 else None
        if status not in TOLD:
            raise
        if TOLD[status]:
            print(f"python -m llava.imagechain.launch: {TOLD[status]}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
