#!/usr/bin/env bash
# Set up everything and run all checks: formatting, lint, types, shell scripts, tests.
#
# usage: bash scripts/test.sh [PYTEST ARGUMENT ...]
#
#   With arguments only pytest runs, with these arguments (bash scripts/test.sh tests/unit -k labels).
#
# settings (environment):
#   JOBS             test processes (default: number of processors, at most 4)
#   LLAVA_NEXT_DIR   a LLaVA-NeXT checkout: tests/overlay then runs on copies of it
#
# What the system lacks (a browser, ffmpeg, ninja) is a skip with its reason; nothing is installed outside .venv.
set -euo pipefail

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
  exit 0
fi

unset CDPATH # `cd` would look for relative folders there
if [[ -n "${LLAVA_NEXT_DIR:-}" ]]; then
  LLAVA_NEXT_DIR=$(cd -- "$LLAVA_NEXT_DIR" && pwd -P)
  export LLAVA_NEXT_DIR
  echo "test: tests/overlay runs on copies of $LLAVA_NEXT_DIR"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh train eval judge deepspeed quantization tensorboard decord torchcodec bench dev
VENV=$(cd "${VENV:-.venv}" && pwd)
export PATH="$VENV/bin:$PATH" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=Agg
processors=$(getconf _NPROCESSORS_ONLN)
: "${JOBS:=$((processors > 4 ? 4 : processors))}"

if (($#)); then
  exec python -m pytest "$@"
fi

echo "== ruff"
ruff check .
ruff format --check --quiet .
echo "== mypy"
mypy
echo "== shellcheck"
find scripts .ci -type f \( -name '*.sh' -o -name '*.sbatch' -o -name run \) -exec shellcheck {} +
echo "== pytest"
python -m pytest --numprocesses "$JOBS" --dist loadfile --durations 15
