#!/usr/bin/env bash
# Run the comparison tests on every library version that the overlay is made for, over a checkout and alone.
#
# usage: bash scripts/overlay_matrix.sh [--dry-run] [ROW ...]
#
#   rows: 4.45.2-checkout 4.57.6-checkout 4.57.6-alone 5-alone 5-checkout      (default: the first four)
#   A checkout row copies LLAVA_NEXT_DIR, applies the overlay to the copy and runs tests/overlay there.
#   An "alone" row runs the tests of the model and of training on this folder.
#
# settings (environment):
#   LLAVA_NEXT_DIR   LLaVA-NeXT checkout; without it the checkout rows are left out, and said to be
#   VENVS            folder for the environments .venv-overlay-4.45.2 and .venv-overlay-4.57.6 (default: this one);
#                    they are made when missing, some gigabytes each with a GPU build of torch. Row 5 uses .venv.
#   PYTHON           Python 3.10-3.12 to make them with (default: python3)
#
# The last lines say for each row what passed; exit status 1 when one failed.
set -euo pipefail

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
  exit 0
fi

[[ "${LLAVA_NEXT_DIR:-/}" == /* ]] || LLAVA_NEXT_DIR=$PWD/$LLAVA_NEXT_DIR
unset CDPATH # `cd` would look for relative folders there
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
: "${VENVS:=$root}" "${PYTHON:=python3}" "${LLAVA_NEXT_DIR:=}"
known=(4.45.2-checkout 4.57.6-checkout 4.57.6-alone 5-alone 5-checkout)
dry_run=0
[[ "${1:-}" == "--dry-run" ]] && dry_run=1 && shift
rows=("$@")
((${#rows[@]})) || rows=("${known[@]:0:4}")
for row in "${rows[@]}"; do
  [[ " ${known[*]} " == *" $row "* ]] || { echo "matrix: unknown row $row; known: ${known[*]}" >&2; exit 2; }
done

# Versions that go together: newer peft does not make LoRA layers on transformers 4.45 with a new torch.
common=(datasets==4.0.0 einops hypothesis numpy pillow protobuf pytest pyyaml requests safetensors scipy sentencepiece shortuuid)
packages_of() { # VERSION
  case $1 in
    4.45.2) echo transformers==4.45.2 peft==0.13.2 accelerate==0.34.2 ;;
    4.57.6) echo transformers==4.57.6 peft==0.21.2 accelerate==1.15.0 ;;
  esac
}

python_of() { # VERSION
  if [[ $1 == 5 ]]; then echo "$root/.venv/bin/python"; else echo "$VENVS/.venv-overlay-$1/bin/python"; fi
}

make_environment() { # VERSION
  local python stamp
  python=$(python_of "$1")
  if [[ $1 == 5 ]]; then
    [[ -x "$python" ]] || bash scripts/setup.sh train eval judge dev
    return
  fi
  local wanted
  read -r -a wanted <<<"$(packages_of "$1") ${common[*]}"
  stamp="$VENVS/.venv-overlay-$1/.made-$(printf '%s\n' "${wanted[@]}" | cksum | cut -d' ' -f1)"
  [[ -e "$stamp" ]] && return
  echo "matrix: making $VENVS/.venv-overlay-$1"
  [[ -x "$python" ]] || "$PYTHON" -m venv "$VENVS/.venv-overlay-$1"
  "$python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 # first, so that no other build follows
  "$python" -m pip install --quiet --disable-pip-version-check "${wanted[@]}"
  touch "$stamp"
}

alone=(tests/unit/test_model_*.py tests/unit/test_wrong_checkpoints.py
  tests/unit/test_{mm_utils,conversation,trainer,checkpoint,saved_names,train_config,story,data,labels,prompts,features,variants,media,merge_lora,export_hf}.py
  tests/pipeline/test_train.py)

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
results=()
failed=0
for row in "${rows[@]}"; do
  version=${row%-*} place=${row#*-}
  if [[ $place == checkout && -z "$LLAVA_NEXT_DIR" ]]; then
    results+=("left out: LLAVA_NEXT_DIR is not set")
    continue
  fi
  tests=("${alone[@]}")
  [[ $place == checkout ]] && tests=(tests/overlay)
  command=("$(python_of "$version")" -m pytest -q -p no:cacheprovider "${tests[@]}")
  if ((dry_run)); then
    printf '%q ' "${command[@]}" && echo
    continue
  fi
  make_environment "$version"
  if [[ $place == checkout ]]; then
    [[ $version == 5 ]] && make_environment 4.45.2 # which opens what version 5 saves
    OVERLAY_OLD_PYTHON=$(python_of 4.45.2)
    [[ -x "$OVERLAY_OLD_PYTHON" ]] || unset OVERLAY_OLD_PYTHON
    export LLAVA_NEXT_DIR ${OVERLAY_OLD_PYTHON+OVERLAY_OLD_PYTHON}
  fi
  echo "matrix: $row: $("${command[0]}" -c 'import torch, transformers; print("transformers", transformers.__version__, "torch", torch.__version__)')"
  log=$(mktemp)
  "${command[@]}" 2>&1 | tee "$log" || failed=1
  results+=("$(tail -n 1 "$log")")
  rm -f "$log"
done
((dry_run)) && exit 0
echo
for number in "${!rows[@]}"; do printf '%-16s %s\n' "${rows[number]}" "${results[number]}"; done
exit "$failed"
