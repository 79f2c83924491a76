#!/usr/bin/env bash
# Predict the last scene's description of every story of a split with one checkpoint and one variant.
#
# usage: bash scripts/eval/predict.sh [--dry-run] CHECKPOINT VARIANT STORIES RUN_DIR [-- FLAG ...]
#
#   CHECKPOINT  model folder, LoRA folder, or checkpoint-N of a run
#   VARIANT     mllm, mllm_icl, mllm_ft, visual_context, final_scene, imagechain_noft or imagechain
#   STORIES     StoryFrames folder
#   RUN_DIR     folder for predictions.jsonl, skipped.jsonl and run.json; the same command goes on where it stopped
#   FLAG        anything that `python -m eval.predict --help` lists, such as --device cuda:0 or --limit 100
#   --dry-run   print the command and stop (`-- --dry-run` says what would be predicted)
#
# settings (environment):
#   CONTEXT     numbers of scenes, such as c2, c4_7                                          [c2_7]
#   SPLIT       validation or train                                                          [validation]
#   CONTROL     none, blank_images, other_text or shuffled_scenes                            [none]
#   BATCH_SIZE  stories per batch                                                            [8]
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

: "${CONTEXT:=c2_7}" "${SPLIT:=validation}" "${CONTROL:=none}" "${BATCH_SIZE:=8}"
parse 4 4 "$@"
run "$PYTHON" -m eval.predict --checkpoint "${words[0]}" --variant "${words[1]}" --stories "${words[2]}" \
  --output-dir "${words[3]}" --context "$CONTEXT" --split "$SPLIT" --control "$CONTROL" --batch-size "$BATCH_SIZE" \
  "${flags[@]}"
