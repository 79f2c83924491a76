#!/usr/bin/env bash
# Table 1 of the paper from judged runs: table1.md, table1.csv, table1.json.
#
# usage: bash scripts/eval/tables.sh [--dry-run] OUTPUT_DIR RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   RUN_DIR    folder with predictions.jsonl and judgments.jsonl, one for each variant and control
#   FLAG       anything that `python -m eval.tables --help` lists, such as --paper
#   --dry-run  print the command and stop
#
# settings (environment):
#   PYTHON     python to use   [.venv/bin/python where there is one]
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x "$root/.venv/bin/python" ]] && PYTHON="$root/.venv/bin/python"
fi

dry_run=0
folders=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    -*) echo "tables.sh: unknown option $1; flags of eval.tables go after --" >&2; exit 2 ;;
    *) folders+=("$(realpath -m -- "$1")"); shift ;;
  esac
done
((${#folders[@]} >= 2)) || { usage >&2; exit 2; }

command=("$PYTHON" -m eval.tables --output-dir "${folders[0]}" --runs "${folders[@]:1}" "$@")
if ((dry_run)); then
  printf '%q ' "${command[@]}"; echo
  exit 0
fi
cd "$root"
exec "${command[@]}"
