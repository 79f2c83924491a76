#!/usr/bin/env bash
# Can the judge be trusted? Export a blind sample for people, import their labels, compare judges.
#
# usage: bash scripts/eval/agreement.sh [--dry-run] export STORIES OUTPUT_DIR RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#        bash scripts/eval/agreement.sh [--dry-run] import KEY OUTPUT_DIR LABELS [LABELS ...] [-- FLAG ...]
#        bash scripts/eval/agreement.sh [--dry-run] judges OUTPUT_DIR NAME=FILE NAME=FILE [...] [-- FLAG ...]
#
#   STORIES     StoryFrames folder (or the published dataset's name) that the predictions were made on
#   OUTPUT_DIR  export: folder for for_labellers/ (give it away) and key/ (keep it); else for agreement.md, .csv, ...
#   RUN_DIR     folder with predictions.jsonl and judgments.jsonl
#   KEY         key/key.jsonl of the export
#   LABELS      a filled labels.csv, one for each person; FILE or NAME=FILE
#   NAME=FILE   judgments.jsonl of one judge and what to call it
#   FLAG        anything that `python -m eval.agreement export --help` (import, judges) lists, such as --num 300
#   --dry-run   print the command and stop (`-- --dry-run` says what an export would draw)
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

parse 4 999 "$@"
case "${words[0]}" in
  export) arguments=(--stories "${words[1]}" --output-dir "${words[2]}" --runs "${words[@]:3}") ;;
  import) arguments=(--key "${words[1]}" --output-dir "${words[2]}" --labels "${words[@]:3}") ;;
  judges) arguments=(--output-dir "${words[1]}" --judgments "${words[@]:2}") ;;
  *) echo "agreement.sh: export, import or judges was wanted, found ${words[0]}" >&2; exit 2 ;;
esac
run "$PYTHON" -m eval.agreement "${words[0]}" "${arguments[@]}" ${flags[@]+"${flags[@]}"}
