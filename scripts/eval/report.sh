#!/usr/bin/env bash
# One self-contained page (report.html) with the table, the controls and a card for each story.
#
# usage: bash scripts/eval/report.sh [--dry-run] STORIES OUTPUT_HTML RUN_DIR [RUN_DIR ...] [-- FLAG ...]
#
#   STORIES    StoryFrames folder (or the published dataset's name) that the predictions were made on
#   RUN_DIR    folder with predictions.jsonl and judgments.jsonl, one for each variant and control
#   FLAG       anything that `python -m eval.report --help` lists, such as --max-stories 100
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
words=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    -*) echo "report.sh: unknown option $1; flags of eval.report go after --" >&2; exit 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
((${#words[@]} >= 3)) || { usage >&2; exit 2; }
stories="${words[0]}"
[[ -d "$stories" ]] && stories="$(realpath -- "$stories")"
runs=()
for folder in "${words[@]:2}"; do runs+=("$(realpath -m -- "$folder")"); done

command=("$PYTHON" -m eval.report --stories "$stories" --output "$(realpath -m -- "${words[1]}")" --runs "${runs[@]}" "$@")
if ((dry_run)); then
  printf '%q ' "${command[@]}"; echo
  exit 0
fi
cd "$root"
exec "${command[@]}"
