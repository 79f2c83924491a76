#!/usr/bin/env bash
# Time judging against a plain loop over the openai client, on one local server that answers after 50 ms.
#
# usage: bash scripts/bench/judge.sh [FLAG ...]
#
#   FLAG  anything that `python -m eval.judge.bench --help` lists, such as --rows 400 --rounds 3 --output-dir OUT
#
# Both sides send the same prompts to the same server, which runs in a process of its own. No GPU and no model are needed.
# The exit status is 1 when judging at concurrency 32 is not at least 8 times as fast as the loop, when a second run
# makes a call, or when an answer differs.
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
dry_run=0
run "$PYTHON" -m eval.judge.bench --output-dir "$root/runs/bench" "$@"
