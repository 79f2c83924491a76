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
#   BACKEND     hf, or vllm (see docs/scaling.md)                                            [hf]
#   NUM_GPUS    processes on this machine, each with a GPU and a part of the split of its own [1]
#
# With NUM_GPUS=8 part K of 8 writes RUN_DIR/shards/K-of-8 and, but for the first, its messages to
# RUN_DIR/shards/K-of-8.log; the last one to finish merges all. On several machines: srun or torchrun, docs/scaling.md.
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

: "${CONTEXT:=c2_7}" "${SPLIT:=validation}" "${CONTROL:=none}" "${BATCH_SIZE:=8}" "${BACKEND:=hf}" "${NUM_GPUS:=1}"
parse 4 4 "$@"
[[ "$NUM_GPUS" =~ ^[1-9][0-9]*$ ]] || { echo "predict.sh: NUM_GPUS: 1 or more was wanted, found $NUM_GPUS" >&2; exit 2; }
command=("$PYTHON" -m eval.predict --checkpoint "${words[0]}" --variant "${words[1]}" --stories "${words[2]}"
  --output-dir "${words[3]}" --context "$CONTEXT" --split "$SPLIT" --control "$CONTROL" --batch-size "$BATCH_SIZE"
  --backend "$BACKEND" ${flags[@]+"${flags[@]}"})
if ((NUM_GPUS == 1)) || ((dry_run)); then
  ((NUM_GPUS == 1)) || command+=(--num-shards "$NUM_GPUS" --shard 0)
  run "${command[@]}"
fi

# A subshell each, as `run` takes the place of its shell; all are told when this script is.
shards="${words[3]}/shards"
mkdir -p "$shards"
parts=()
trap 'trap - INT TERM; kill ${parts[@]+"${parts[@]}"} 2>/dev/null || true; wait; exit 130' INT TERM
for ((part = 0; part < NUM_GPUS; part++)); do
  export RANK=$part LOCAL_RANK=$part WORLD_SIZE=$NUM_GPUS
  if ((part == 0)); then
    (run "${command[@]}") &
  else
    (run "${command[@]}") >"$shards/$part-of-$NUM_GPUS.log" 2>&1 &
  fi
  parts+=($!)
done
status=0
for part in "${!parts[@]}"; do
  wait "${parts[$part]}" || {
    status=$? said="above"
    ((part == 0)) || said="in $shards/$part-of-$NUM_GPUS.log"
    echo "predict.sh: part $part of $NUM_GPUS ended with status $status; its messages are $said" >&2
  }
done
exit "$status"
