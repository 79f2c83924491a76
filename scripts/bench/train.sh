#!/usr/bin/env bash
# Time training steps against steps done the authors' way; one row per lever.
#
# usage: bash scripts/bench/train.sh [FLAG ...]
#
#   --model DIR            model to train                          [runs/quickstart/base]
#   --stories DIR          StoryFrames folder                      [runs/quickstart/storyframes]
#   --train-config FILE..  training settings          [configs/train/{base,imagechain,c2_7,world}.yaml]
#   --warmup N --steps N   steps before the timed ones, and timed  [10, 50]
#   --compiled             one more row: torch.compile of the language model's layers
#   FLAG                   anything else that `python -m llava.imagechain.bench.train --help` lists
#
# At 7B on a GPU, random weights and made-up stories of the paper's lengths, nothing to download:
#   bash scripts/bench/train.sh --config-from configs/bench/llava-v1.6-vicuna-7b --synthetic 1000 \
#     --train-config configs/train/{base,imagechain,c2_7}.yaml --set per_device_train_batch_size=2 --output-dir OUT
# (by llava.imagechain.estimate, 2 stories of 4,096 positions keep about 90 GB of activations without checkpointing)
#
# The exit status is 1 when the last row is not at least twice as fast as the first (--least-speedup), or when the
# losses of rows with the same batches differ.
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh. Over a checkout, LLaVA-NeXT's own trainer is one more first row where
# its file imports (transformers 4.45.2 with datasets and tyro); scripts/bench/peers/train_upstream.py says what else.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
given=" $* "
defaults=(--output-dir "$root/runs/bench" --peer "$root/scripts/bench/peers/train_like_authors.py")
[[ -z "$LLAVA_NEXT_DIR" ]] || defaults+=(--upstream-trainer "$root/scripts/bench/peers/train_upstream.py")
[[ "$given" == *" --model"[\ =]* || "$given" == *" --config-from"[\ =]* ]] ||
  defaults+=(--model "$root/runs/quickstart/base")
[[ "$given" == *" --stories"[\ =]* || "$given" == *" --synthetic"[\ =]* ]] ||
  defaults+=(--stories "$root/runs/quickstart/storyframes")
[[ "$given" == *" --train-config"[\ =]* ]] ||
  defaults+=(--train-config "$root/configs/train/"{base,imagechain,c2_7,world}.yaml)
dry_run=0
run "$PYTHON" -m llava.imagechain.bench.train "${defaults[@]}" "$@"
