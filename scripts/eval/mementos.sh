#!/usr/bin/env bash
# Table 3: describe the Mementos benchmark's image sequences, extract keywords, score them.
#
# usage: bash scripts/eval/mementos.sh [--dry-run] DATA OUTPUT_DIR VARIANT=CHECKPOINT [...] [-- FLAG ...]
#
#   DATA        folder with the benchmark's CSVs, pictures and synonym graphs, in any arrangement (docs/mementos.md)
#   OUTPUT_DIR  folder for runs/VARIANT/, table3.md and its siblings; the same command goes on where it stopped
#   VARIANT     mllm, mllm_ft, visual_context, final_scene, imagechain or imagechain_noft
#   CHECKPOINT  model folder, LoRA folder, or checkpoint-N of a run
#   FLAG        anything that `python -m eval.mementos.predict --help` lists, such as --frames average or --limit 20
#   --dry-run   print the commands and stop
#
# settings (environment):
#   EXTRACTOR       openai, or grammar for the story world                                   [openai]
#   JUDGE_BASE_URL  the extractor's server, such as http://127.0.0.1:8000/v1
#   JUDGE_MODEL     model name on the server
#   JUDGE_API_KEY   key of the server, when it wants one; never written anywhere
#   PAPER           1 shows the paper's numbers beside ours                                  [0]
#
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

: "${EXTRACTOR:=openai}" "${PAPER:=0}"
parse 3 999 "$@"
data=${words[0]} output=${words[1]}
variants=() checkpoints=()
for word in "${words[@]:2}"; do
  [[ "$word" == ?*=?* ]] || { echo "mementos.sh: VARIANT=CHECKPOINT was wanted, found $word" >&2; exit 2; }
  variants+=("${word%%=*}") checkpoints+=("${word#*=}")
done
folders=("${variants[@]/#/$output/runs/}")
paper=()
((PAPER)) && paper=(--paper)

# `run` takes the place of the shell that it is called in, hence the parentheses.
for number in "${!variants[@]}"; do
  (run "$PYTHON" -m eval.mementos.predict --checkpoint "${checkpoints[number]}" --variant "${variants[number]}" \
    --data "$data" --output-dir "${folders[number]}" ${flags[@]+"${flags[@]}"})
done
(run "$PYTHON" -m eval.mementos.keywords --extractor "$EXTRACTOR" --predictions "${folders[@]/%//predictions.jsonl}")
run "$PYTHON" -m eval.mementos.score --runs "${folders[@]}" --data "$data" --output-dir "$output" ${paper[@]+"${paper[@]}"}
