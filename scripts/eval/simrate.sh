#!/usr/bin/env bash
# Judge the predictions of one or more runs (SimRate); what is already judged is not asked again.
#
# usage: bash scripts/eval/simrate.sh [--dry-run] RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   RUN_DIR    folder with predictions.jsonl; judgments.jsonl is written beside it
#   FLAG       anything that `python -m eval.simrate --help` lists, such as --base-url http://127.0.0.1:8000/v1
#   --dry-run  print the command and stop
#
# settings (environment):
#   JUDGE          world, simrate, mock, or your own judge folder (its parser.py is run)   [simrate]
#   JUDGE_API_KEY  key of the judge's server, when it wants one; never written anywhere
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

: "${JUDGE:=simrate}"
parse 1 999 "$@"
run "$PYTHON" -m eval.simrate --judge "$JUDGE" --predictions "${words[@]/%//predictions.jsonl}" ${flags[@]+"${flags[@]}"}
