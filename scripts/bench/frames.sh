#!/usr/bin/env bash
# Time the frame decoder against OpenCV's seek by frame number and against one ffmpeg decode of the same file.
#
#   bash scripts/bench/frames.sh [--clip FILE ...] [--rounds 3] [--threads 1] [--output FILE.json]
#
# Without --clip, two 720p clips with long groups of pictures are made. OpenCV must be installed
# (scripts/setup.sh bench); the ffmpeg command is used where there is one. The exit status is 1 when the decoder is
# not at least 2x faster than OpenCV, or slower than 1.3x ffmpeg, at 25 frames of a made clip.
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

case "${1:-}" in -h | --help) usage; exit 0 ;; esac
dry_run=0
run "$PYTHON" -m stories.frames.bench "$@"
