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
#   PYTHON      python to use                                                                [.venv/bin/python]
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
: "${CONTEXT:=c2_7}" "${SPLIT:=validation}" "${CONTROL:=none}" "${BATCH_SIZE:=8}" "${PYTHON:=$root/.venv/bin/python}"

dry_run=0
words=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    -*) echo "predict.sh: unknown option $1; flags of eval.predict go after --" >&2; exit 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
((${#words[@]} == 4)) || { usage >&2; exit 2; }

command=("$PYTHON" -m eval.predict --checkpoint "$(realpath -m -- "${words[0]}")" --variant "${words[1]}"
  --stories "$(realpath -m -- "${words[2]}")" --output-dir "$(realpath -m -- "${words[3]}")"
  --context "$CONTEXT" --split "$SPLIT" --control "$CONTROL" --batch-size "$BATCH_SIZE" "$@")
if ((dry_run)); then
  printf '%q ' "${command[@]}"; echo
  exit 0
fi
cd "$root"
exec "${command[@]}"
