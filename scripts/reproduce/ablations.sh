#!/usr/bin/env bash
# What the paper leaves open, measured: ImageChain trained and tested anew with one setting changed at a time.
# Trains, predicts and judges what is missing and prints; what is finished is kept. Ctrl-C, and the same command goes on.
#
# usage: bash scripts/reproduce/ablations.sh [--world] [--dry-run] [--gpus N ...] [--slurm] [FLAG ...]
#
#   --world    on the story world; shares the folder and the default training with all.sh --world
#   --dry-run  print every training and every cell with its state, GPU hours, disk and judge cost, and stop
#   --gpus     numbers of the GPUs to use; by default all
#   --slurm    submit job arrays; with --dry-run print the sbatch lines
#   FLAG       anything that `python -m eval.reproduce --help` lists
#
# settings (environment): MODEL STORIES OUTPUT GRID, see scripts/reproduce/common.sh; PYTHON, LLAVA_NEXT_DIR, see
# scripts/common.sh. OUTPUT gets ablations.md, .csv, .tex, .json. The settings stand in configs/reproduce/ablations.yaml,
# which goes after GRID. Outside the world the ablation of the split wants --other-split DIR.
set -euo pipefail
PYTHON_GIVEN="${PYTHON:-}"
# shellcheck source=scripts/reproduce/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ABLATIONS="$root/configs/reproduce/ablations.yaml" # read by reproduce
reproduce -- "$@"
