"""Launch: python -m eval.predict; see eval/predict/run.py."""

import signal
import sys

from eval.predict.run import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # from Slurm, or from the script that started the parts
    sys.exit(main())
