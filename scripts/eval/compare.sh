#!/usr/bin/env bash
# Is run A better than run B on the same stories, and how sure is that?
#
# usage: bash scripts/eval/compare.sh [--dry-run] RUN_A RUN_B [-- FLAG ...]
#
#   RUN_A, RUN_B  folders with predictions.jsonl and judgments.jsonl by the same judge
#   FLAG          anything that `python -m eval.tables --help` lists, such as --context c4_6 or --output-dir DIR
#   --dry-run     print the command and stop
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

parse 2 2 "$@"
run "$PYTHON" -m eval.tables --compare "${words[@]}" ${flags[@]+"${flags[@]}"}
