#!/usr/bin/env bash
# Sourced by the scripts of this folder. Everything is done by python -m eval.reproduce; see docs/reproduce.md.
#
# Settings (environment) of all of them; --world takes only the last two:
#   MODEL     folder of the LLaVA model to start from                  [models/llava-v1.6-vicuna-7b]
#   STORIES   StoryFrames folder, or ingoziegler/StoryFrames           [data/StoryFrames]
#   MEMENTOS  folder of the Mementos benchmark (Table 3)               [data/mementos]
#   OUTPUT    folder of everything that is made                        [runs/reproduce, with --world runs/reproduce-world]
#   GRID      grid files, separated by spaces                          [configs/reproduce/paper.yaml, with --world world.yaml]

# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

ABLATIONS="" # a further grid file; ablations.sh sets it

# reproduce RESULT... -- "$@": make these results with the flags of the command line.
reproduce() {
  local results=() world=0 dry=0 flags=()
  while [[ "$1" != -- ]]; do results+=("$1") && shift; done
  shift
  while (($#)); do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --world) world=1 ;;
      --dry-run) dry=1 && flags+=("$1") ;;
      --) ;; # flags need none here, other scripts want it
      *) flags+=("$1") ;;
    esac
    shift
  done
  if ((world && !dry)) && [[ -z "${PYTHON_GIVEN:-}" ]]; then
    (cd "$root" && bash scripts/setup.sh train eval judge)
    PYTHON="$root/.venv/bin/python"
  fi
  local files=("$root/configs/reproduce/paper.yaml")
  ((!world)) || files=("$root/configs/reproduce/world.yaml")
  [[ -z "${GRID:-}" ]] || read -r -a files <<<"$GRID"
  if ((world)); then : "${OUTPUT:=$root/runs/reproduce-world}"; else : "${OUTPUT:=runs/reproduce}"; fi
  local command=("$PYTHON" -m eval.reproduce --config "${files[@]}" ${ABLATIONS:+"$ABLATIONS"})
  ((!${#results[@]})) || command+=(--results "${results[@]}")
  if ((!world)); then
    [[ -z "${MODEL:-}" ]] || command+=(--model "$MODEL")
    [[ -z "${STORIES:-}" ]] || command+=(--stories "$STORIES")
    [[ -z "${MEMENTOS:-}" ]] || command+=(--mementos "$MEMENTOS")
  fi
  command+=(--output-dir "$OUTPUT" ${flags[@]+"${flags[@]}"})
  export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-$world}" MPLBACKEND="${MPLBACKEND:-Agg}"
  dry_run=0
  run "${command[@]}"
}
