#!/usr/bin/env bash
# Table 1 of the paper from judged runs: table1.md, table1.csv, table1.json.
#
# usage: bash scripts/eval/tables.sh [--dry-run] OUTPUT_DIR RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   RUN_DIR    folder with predictions.jsonl and judgments.jsonl, one for each variant and control
#   FLAG       anything that `python -m eval.tables --help` lists, such as --paper
#   --dry-run  print the command and stop
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

parse 2 999 "$@"
run "$PYTHON" -m eval.tables --output-dir "${words[0]}" --runs "${words[@]:1}" "${flags[@]}"
