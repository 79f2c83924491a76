#!/usr/bin/env bash
# Add a LoRA adapter to its base model and write the whole LLaVA model as one folder, its logits compared.
#
# usage: bash scripts/merge_lora.sh [--dry-run] CHECKPOINT OUTPUT_DIR [-- FLAG ...]
#
#   CHECKPOINT  LoRA folder or checkpoint-N of a training run
#   OUTPUT_DIR  folder of the whole model; appears when it is complete
#   FLAG        anything that `python -m llava.imagechain.merge_lora --help` lists, such as --dtype float32
#   --dry-run   print the command and stop (`-- --dry-run` checks the folders)
#
# settings (environment):
#   BASE            base model's folder                                      [the one the adapter names]
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse 2 2 "$@"
command=("$PYTHON" -m llava.imagechain.merge_lora --checkpoint "${words[0]}" --output-dir "${words[1]}")
[[ -n "${BASE:-}" ]] && command+=(--base "$BASE")
run "${command[@]}" ${flags[@]+"${flags[@]}"}
