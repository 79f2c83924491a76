#!/usr/bin/env bash
# Time the frame decoder against OpenCV's seek by frame number and against one ffmpeg decode of the same file.
#
#   bash scripts/bench/frames.sh [--clip FILE ...] [--rounds 3] [--threads 1] [--output FILE.json]
#
# Without --clip, two 720p clips with long groups of pictures are made. OpenCV must be installed
# (scripts/setup.sh bench); the ffmpeg command is used where there is one. The exit status is 1 when the decoder is
# not at least 2x faster than OpenCV, or slower than 1.3x ffmpeg, at 25 frames of a made clip.
#
# Setting from the environment: PYTHON (the repository's .venv where there is one).
set -euo pipefail

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
    awk 'NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "$0"
    exit 0
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x "$root/.venv/bin/python" ]] && PYTHON="$root/.venv/bin/python"
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m stories.frames.bench "$@"
