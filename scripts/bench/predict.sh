#!/usr/bin/env bash
# Time prediction against a loop of one story at a time, the way the authors' script works, and against lmms-eval's way
# of one request at a time; one row per lever.
#
# usage: bash scripts/bench/predict.sh [--checkpoint DIR] [--stories DIR] [FLAG ...]
#
#   --checkpoint DIR  model to predict with                  [runs/quickstart/checkpoints/imagechain]
#   --stories DIR     StoryFrames folder                     [runs/quickstart/storyframes]
#   FLAG              anything that `python -m eval.predict.bench --help` lists, such as --limit 64 --threads 2, or
#                     --vllm for a row of --backend vllm (where it is installed)
#
# All sides have the same weights, dtype, threads, greedy decoding and key-value cache, and none has a feature cache.
# The exit status is 1 when prediction is not at least 4 times as fast, or when a text differs.
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
dry_run=0
run "$PYTHON" -m eval.predict.bench --checkpoint "$root/runs/quickstart/checkpoints/imagechain" \
  --stories "$root/runs/quickstart/storyframes" --output-dir "$root/runs/bench" "$@"
