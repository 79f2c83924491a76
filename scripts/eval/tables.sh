#!/usr/bin/env bash
# Tables 1 and 2 of the paper from judged runs: table1.md, .csv, .tex, .json with every pair of rows compared
# (table1_pairs), or table2.
#
# usage: bash scripts/eval/tables.sh [--dry-run] OUTPUT_DIR RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   RUN_DIR    folder with predictions.jsonl and judgments.jsonl, one for each variant, control and training seed
#   FLAG       anything that `python -m eval.tables --help` lists, such as --paper
#   --dry-run  print the command and stop
#
# settings (environment):
#   TABLE      1, or 2 (ImageChain by training context)   [1]
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

: "${TABLE:=1}"
parse 2 999 "$@"
run "$PYTHON" -m eval.tables --table "$TABLE" --output-dir "${words[0]}" --runs "${words[@]:1}" ${flags[@]+"${flags[@]}"}
