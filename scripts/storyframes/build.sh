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
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

case "${1:---help}" in -h | --help) usage; exit 0 ;; esac
dry_run=0
run "$PYTHON" -m stories.frames.build "$@"
