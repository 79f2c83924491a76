#!/usr/bin/env bash
# Judge the predictions of one or more runs (SimRate); what is already judged is not asked again.
#
# usage: bash scripts/eval/simrate.sh [--dry-run] RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   RUN_DIR    folder with predictions.jsonl; judgments.jsonl is written beside it
#   FLAG       anything that `python -m eval.simrate --help` lists, such as --base-url http://127.0.0.1:8000/v1
#   --dry-run  print the command and stop
#
# settings (environment):
#   JUDGE          world, simrate, mock, or your own judge folder (its parser.py is run)   [simrate]
#   PYTHON         python to use                                                           [.venv/bin/python where there is one]
#   JUDGE_API_KEY  key of the judge's server, when it wants one; never written anywhere
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
: "${JUDGE:=simrate}"
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x "$root/.venv/bin/python" ]] && PYTHON="$root/.venv/bin/python"
fi

dry_run=0
files=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    -*) echo "simrate.sh: unknown option $1; flags of eval.simrate go after --" >&2; exit 2 ;;
    *) files+=("$(realpath -m -- "$1")/predictions.jsonl"); shift ;;
  esac
done
((${#files[@]})) || { usage >&2; exit 2; }
[[ "$JUDGE" == */* ]] && JUDGE="$(realpath -m -- "$JUDGE")"

command=("$PYTHON" -m eval.simrate --judge "$JUDGE" --predictions "${files[@]}" "$@")
if ((dry_run)); then
  printf '%q ' "${command[@]}"; echo
  exit 0
fi
cd "$root"
exec "${command[@]}"
