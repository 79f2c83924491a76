#!/usr/bin/env bash
# Build StoryFrames from story annotations and their videos.
#
#   bash scripts/storyframes/build.sh --annotations FILE [FILE ...] --videos DIR [DIR ...] --output DIR
#
# Annotations: StoryBench raw JSON, StoryBench task JSON (action_exe.json with story_gen.json), or JSONL of your own;
# the formats are in docs/data.md. Common options, passed on to `python -m stories.frames.build`:
#   --num-workers N     decoding processes (one per core)
#   --group-by-video    keep all stories of a video on one side of the split
#   --seed 0            of the split
#   --shard i/n         extract only part i (0 to n-1) of n, for job arrays; gather with --merge
#   --merge             write the dataset once all shards have finished
#   --decoder NAME      pyav, decord or torchcodec
#   --max-side N        longest side of a stored frame in pixels
#   --limit N           use only the first N stories
#   --dry-run           print the counts and stop; needs no videos
# All options: python -m stories.frames.build --help
#
# Setting from the environment: PYTHON (the repository's .venv where there is one).
set -euo pipefail

if [[ $# -eq 0 || "$1" == "--help" || "$1" == "-h" ]]; then
    awk 'NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "$0"
    exit 0
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x "$root/.venv/bin/python" ]] && PYTHON="$root/.venv/bin/python"
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m stories.frames.build "$@"
