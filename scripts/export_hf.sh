#!/usr/bin/env bash
# Export a LLaVA model to transformers' LlavaForConditionalGeneration, its logits compared.
#
# usage: bash scripts/export_hf.sh [--dry-run] CHECKPOINT OUTPUT_DIR [-- FLAG ...]
#
#   CHECKPOINT  model folder, LoRA folder or checkpoint-N of a training run
#   OUTPUT_DIR  folder of the exported model; appears when it is complete
#   FLAG        anything that `python -m llava.imagechain.export_hf --help` lists, such as --push-to OWNER/NAME
#   --dry-run   print the command and stop (`-- --dry-run` checks the folders)
#
# settings (environment):
#   BASE            base model of a LoRA folder                                [the one the adapter names]
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse 2 2 "$@"
command=("$PYTHON" -m llava.imagechain.export_hf --checkpoint "${words[0]}" --output-dir "${words[1]}")
[[ -n "${BASE:-}" ]] && command+=(--base "$BASE")
run "${command[@]}" ${flags[@]+"${flags[@]}"}
