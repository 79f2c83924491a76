#!/usr/bin/env bash
# Make .venv with this project and its tested dependencies, or bring it up to date.
#
# usage: bash scripts/setup.sh [EXTRA ...]
#
#   EXTRA     extras of pyproject.toml: train eval judge dev decord torchcodec bench deepspeed quantization tensorboard
#             embeddings vllm
#             (default: train eval judge)
#
# settings (environment):
#   PYTHON    the Python 3.10-3.12 to use (default: the first of python3.11 python3.12 python3.10 python3 that fits)
#   VENV      where the environment goes (default: .venv in this folder)
#
# Nothing outside VENV is touched. When nothing changed since the last run it returns at once.
# A machine without an NVIDIA card saves gigabytes by offering pip a CPU build of torch (pip's own settings:
# PIP_FIND_LINKS, PIP_INDEX_URL); a torch that is in the environment already is kept when it fits.
set -euo pipefail

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
  exit 0
fi

unset CDPATH # `cd` would look for relative folders there
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${VENV:=.venv}"
extras=("$@")
((${#extras[@]})) || extras=(train eval judge)

for extra in "${extras[@]}"; do
  if ! grep -qE "^$extra = \[" pyproject.toml; then
    echo "setup: unknown extra $extra; known: $(sed -n '/optional-dependencies/,/^\[tool/s/^\([a-z]*\) = \[.*/\1/p' pyproject.toml | paste -sd' ' -)" >&2
    exit 2
  fi
done

usable() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; }

if [[ ! -x "$VENV/bin/python" ]]; then
  python=""
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.10 python3; do
    if usable "$candidate"; then python=$candidate && break; fi
  done
  if [[ -z "$python" ]]; then
    echo "setup: no Python 3.10-3.12 with venv was found; install one (Debian: python3 python3-venv) or name it in PYTHON." >&2
    exit 2
  fi
  echo "setup: making $VENV with $("$python" --version)"
  "$python" -m venv "$VENV"
elif [[ ! -x "$VENV/bin/pip" ]]; then # it was being made when the script was interrupted
  "$VENV/bin/python" -m ensurepip --default-pip
fi

joined=$(printf '%s\n' "${extras[@]}" | sort -u | paste -sd, -)
# One stamp an extra: what is installed already in this state of the requirements is not looked at again.
state=$( (cat pyproject.toml configs/constraints.txt; pwd) | cksum | cut -d' ' -f1)
missing=0
for extra in "${extras[@]}"; do [[ -e "$VENV/.setup-$state-$extra" ]] || missing=1; done
if ((!missing)); then
  exit 0
fi

export DS_BUILD_OPS=0  # DeepSpeed compiles what it needs on first use
echo "setup: installing [$joined] (a few minutes the first time)"
install=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint configs/constraints.txt)
log="$VENV/setup.log"
# torch first: what follows then finds it there and does not bring another build.
if ! { "${install[@]}" torch && "${install[@]}" --editable ".[$joined]"; } >"$log" 2>&1; then
  echo "setup: pip failed. The end of $VENV/setup.log:" >&2
  tail -n 20 "$log" >&2
  exit 1
fi
for extra in "${extras[@]}"; do touch "$VENV/.setup-$state-$extra"; done
echo "setup: ready. Activate with: source $VENV/bin/activate"
