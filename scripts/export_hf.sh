#!/usr/bin/env bash
# Export a LLaVA model to transformers' LlavaForConditionalGeneration, its logits compared.
#
# usage: bash scripts/export_hf.sh [--dry-run] CHECKPOINT OUTPUT_DIR [-- FLAG ...]
#
#   CHECKPOINT  model folder, LoRA folder or checkpoint-N of a training run
#   OUTPUT_DIR  folder of the exported model; appears when it is complete
#   FLAG        anything that `python -m llava.imagechain.export_hf --help` lists, such as --push-to OWNER/NAME
#   --dry-run   print the command and stop (`-- --dry-run` checks the folders)
#
# settings (environment):
#   BASE            base model of a LoRA folder                                [the one the adapter names]
#   PYTHON          python to use                                            [.venv/bin/python, else python3]
#   LLAVA_NEXT_DIR  a LLaVA-NeXT checkout with this overlay in it, to be used instead of this repository's llava
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
: "${BASE:=}" "${LLAVA_NEXT_DIR:=}"
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
    -*) echo "export_hf.sh: unknown option $1; flags of llava.imagechain.export_hf go after --" >&2; exit 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
((${#words[@]} == 2)) || { usage >&2; exit 2; }

command=("$PYTHON" -m llava.imagechain.export_hf --checkpoint "${words[0]}" --output-dir "${words[1]}")
[[ -n "$BASE" ]] && command+=(--base "$BASE")
command+=("$@")
if ((dry_run)); then
  printf '%q ' "${command[@]}"; echo
  exit 0
fi
export PYTHONPATH="${LLAVA_NEXT_DIR:+$LLAVA_NEXT_DIR:}$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${command[@]}"
