#!/usr/bin/env bash
# Table 2 of the paper: ImageChain trained on one context length, against C2-7.
# Trains, predicts and judges what is missing and prints; what is finished is kept. Ctrl-C, and the same command goes on.
#
# usage: bash scripts/reproduce/table2.sh [--world] [--dry-run] [--gpus N ...] [--slurm] [FLAG ...]
#
#   --world    everything on the story world: sets up .venv, needs no GPU, no network but pip's, no data and no model
#   --dry-run  print every training and every cell with its state, GPU hours, disk and judge cost, and stop
#   --gpus     numbers of the GPUs to use; by default all
#   --slurm    submit job arrays; with --dry-run print the sbatch lines
#   FLAG       anything that `python -m eval.reproduce --help` lists
#
# settings (environment): MODEL STORIES MEMENTOS OUTPUT GRID, see scripts/reproduce/common.sh; PYTHON, LLAVA_NEXT_DIR, see
# scripts/common.sh. OUTPUT gets table2.md, .csv, .tex, .json.
set -euo pipefail
PYTHON_GIVEN="${PYTHON:-}"
# shellcheck source=scripts/reproduce/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

reproduce table2 -- "$@"
