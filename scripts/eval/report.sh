#!/usr/bin/env bash
# One self-contained page (report.html) with the table, the controls and a card for each story.
#
# usage: bash scripts/eval/report.sh [--dry-run] STORIES OUTPUT_HTML RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   STORIES    StoryFrames folder (or the published dataset's name) that the predictions were made on
#   RUN_DIR    folder with predictions.jsonl and judgments.jsonl, one for each variant and control
#   FLAG       anything that `python -m eval.report --help` lists, such as --max-stories 100
#   --dry-run  print the command and stop
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

parse 3 999 "$@"
run "$PYTHON" -m eval.report --stories "${words[0]}" --output "${words[1]}" --runs "${words[@]:2}" ${flags[@]+"${flags[@]}"}
