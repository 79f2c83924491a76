"""Launch: python -m eval.predict; see eval/predict/run.py."""

import sys

from eval.predict.run import main

sys.exit(main())
