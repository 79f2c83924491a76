#!/usr/bin/env bash
# Figure 5 of the paper from judged runs: SimRate by training context, as figure5.png, figure5.svg and figure5.json.
#
# usage: bash scripts/eval/figure5.sh [--dry-run] OUTPUT_DIR RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   RUN_DIR    folder with predictions.jsonl and judgments.jsonl, one for each fine-tuned variant, training context
#              (c2, c3, c4_7) and training seed
#   FLAG       anything that `python -m eval.tables.figure5 --help` lists, such as --paper
#   --dry-run  print the command and stop
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

parse 2 999 "$@"
run "$PYTHON" -m eval.tables.figure5 --output-dir "${words[0]}" --runs "${words[@]:1}" ${flags[@]+"${flags[@]}"}
