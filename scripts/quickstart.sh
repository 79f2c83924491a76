#!/usr/bin/env bash
# The whole job of the paper on the story world: render videos, build StoryFrames from them, make a small base model,
# train ImageChain and its trained baselines with LoRA, predict, judge, print Table 1 and write a report with pictures.
#
# usage: bash scripts/quickstart.sh [--fast] [--output DIR]
#
#   --fast        tiny numbers, about 2 minutes: shows that everything runs, not that anything is learnt
#   --output DIR  where everything goes (default: runs/quickstart, with --fast runs/quickstart-fast)
#
# Sets up .venv first. Needs no GPU and no network beyond pip's. Can be interrupted at any point (Ctrl-C): the same
# command carries on where it stopped. At the end DIR holds table1 (.md, .csv, .tex, .json) and report.html.
#
# settings (environment): SEED [0], CONTEXT [c2_7], and LLAVA_NEXT_DIR, a checkout whose llava is to run (common.sh).
set -euo pipefail

: "${SEED:=0}"
: "${CONTEXT:=c2_7}"
fast=0
output=""
while (($#)); do
  case "$1" in
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --fast) fast=1; shift ;;
    --output) [[ -n "${2:-}" ]] || { echo "quickstart: --output needs a folder" >&2; exit 2; }; output=$2; shift 2 ;;
    *) echo "quickstart: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done

unset CDPATH # `cd` would look for relative folders there
if [[ -n "$output" ]]; then
  mkdir -p -- "$output"
  output=$(cd -- "$output" && pwd -P)
fi
[[ "${LLAVA_NEXT_DIR:-/}" == /* ]] || LLAVA_NEXT_DIR=$PWD/$LLAVA_NEXT_DIR
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
if ((fast)); then
  : "${output:=$root/runs/quickstart-fast}"
  videos=60 world=(--config configs/world/fast.yaml) training=(configs/train/world.yaml configs/train/world_fast.yaml)
  predicting=(--max-skipped 0.5) # among so few stories one may have no other of its length to borrow text from
else
  : "${output:=$root/runs/quickstart}"
  videos=1300 world=() training=(configs/train/world.yaml) predicting=()
fi
mkdir -p "$output/logs"

begin=$SECONDS
stage_times=()
# stage NAME COMMAND...: run a stage with its log kept, say what it does and how long it took.
stage() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  local log="$output/logs/${name//[^a-zA-Z0-9]/_}.log"
  if ! "$@" 2>&1 | tee -ia "$log"; then
    printf '\nquickstart: "%s" did not finish. Its log: %s\nThe same command carries on from here.\n' "$name" "$log" >&2
    exit 1
  fi
  stage_times+=("$(printf '%6d s  %s' $((SECONDS - start)) "$name")")
}

stage "Set up" bash scripts/setup.sh train eval judge
VENV=$(cd "${VENV:-.venv}" && pwd)
export PYTHON="$VENV/bin/python"
# shellcheck source=scripts/common.sh
source scripts/common.sh
use_llava
export PATH="$VENV/bin:$PATH" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=Agg

stage "Render the story world" \
  python -m stories.world.make --output-dir "$output/world" --num-videos "$videos" --seed "$SEED"
stage "Build StoryFrames" \
  bash scripts/storyframes/build.sh --annotations "$output"/world/annotations/{valid,test}.json \
  --videos "$output/world/videos" --output "$output/storyframes" --group-by-video --seed "$SEED"
stage "Train the base model" \
  python -m stories.world.base ${world[@]+"${world[@]}"} --output-dir "$output/base" --seed "$SEED"

for variant in imagechain mllm_ft visual_context final_scene; do
  stage "Train $variant" \
    python -m llava.train.train --config configs/train/{base,"$variant","$CONTEXT"}.yaml "${training[@]}" \
    --model_name_or_path "$output/base" --stories "$output/storyframes" --seed "$SEED" \
    --feature_cache "$output/features" --output_dir "$output/checkpoints/$variant"
done

predict() { # predict VARIANT CHECKPOINT CONTROL: one run folder per variant and control
  local run="$output/runs/$1"
  [[ "$3" == none ]] || run="$run-$3"
  python -m eval.predict --checkpoint "$2" --variant "$1" --control "$3" --stories "$output/storyframes" \
    --split validation --context "$CONTEXT" --max-new-tokens 40 --batch-size 32 \
    --feature-cache "$output/features" --output-dir "$run" ${predicting[@]+"${predicting[@]}"} || exit 1
}
predict_all() {
  local variant
  for variant in mllm mllm_icl imagechain_noft; do predict "$variant" "$output/base" none; done
  for variant in mllm_ft visual_context final_scene imagechain; do
    predict "$variant" "$output/checkpoints/$variant" none
  done
  for control in blank_images other_text shuffled_scenes; do
    predict imagechain "$output/checkpoints/imagechain" "$control"
  done
}
stage "Predict" predict_all
runs=("$output"/runs/*)
stage "Judge" env JUDGE=world bash scripts/eval/simrate.sh "${runs[@]}"
stage "Table 1" bash scripts/eval/tables.sh "$output" "${runs[@]}"
stage "Report" bash scripts/eval/report.sh "$output/storyframes" "$output/report.html" "${runs[@]}"

printf '\n%s\n' "$(cat "$output/table1.md")"
printf '\n== Times\n'
printf '%s\n' "${stage_times[@]}" "$(printf '%6d s  in all' $((SECONDS - begin)))" | tee "$output/times.txt"
printf '\nTable:  %s\nReport: %s\n' "$output/table1.md" "$output/report.html"
