#!/usr/bin/env bash
# BLEU, chrF and ROUGE-L beside SimRate, and how they go along with the judge's verdicts.
#
# usage: bash scripts/eval/text_metrics.sh [--dry-run] OUTPUT_DIR RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   OUTPUT_DIR  folder for text_metrics.md, .csv, .tex and .json
#   RUN_DIR     folder with predictions.jsonl and judgments.jsonl
#   FLAG        anything that `python -m eval.text_metrics --help` lists, such as --embeddings MODEL
#   --dry-run   print the command and stop
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

parse 2 999 "$@"
run "$PYTHON" -m eval.text_metrics --output-dir "${words[0]}" --runs "${words[@]:1}" ${flags[@]+"${flags[@]}"}
