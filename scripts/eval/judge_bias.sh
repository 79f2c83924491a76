#!/usr/bin/env bash
# Does a judge say Yes too easily? Pairs that must be No, pairs that must be Yes, and a table: bias.md, .csv, .tex, .json.
#
# usage: bash scripts/eval/judge_bias.sh [--dry-run] STORIES OUTPUT_DIR [-- FLAG ...]
#
#   STORIES     StoryFrames folder (or the published dataset's name)
#   OUTPUT_DIR  folder for the pairs, their judgments and the table; one for each judge
#   FLAG        anything that `python -m eval.judge_bias --help` lists, such as --base-url http://127.0.0.1:8000/v1
#   --dry-run   print the command and stop (`-- --dry-run` counts the pairs)
#
# settings (environment):
#   JUDGE          world, simrate, mock, or your own judge folder (its parser.py is run)   [simrate]
#   SPLIT          validation or train                                                     [validation]
#   JUDGE_API_KEY  key of the judge's server, when it wants one; never written anywhere
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

: "${JUDGE:=simrate}" "${SPLIT:=validation}"
parse 2 2 "$@"
run "$PYTHON" -m eval.judge_bias --judge "$JUDGE" --split "$SPLIT" --stories "${words[0]}" --output-dir "${words[1]}" \
  ${flags[@]+"${flags[@]}"}
