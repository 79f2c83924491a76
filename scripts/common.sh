#!/usr/bin/env bash
# Sourced by the scripts that wrap one Python command: help text, words and flags, which llava runs, dry run.
#
# Settings (environment) of all of them:
#   PYTHON          python to use   [.venv/bin/python of this repository, else python3]
#   LLAVA_NEXT_DIR  a LLaVA-NeXT checkout with this overlay in it, to be used instead of this repository's llava

unset CDPATH # `cd` would look for relative folders there, and print what it finds
root="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
: "${LLAVA_NEXT_DIR:=}"
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x "$root/.venv/bin/python" ]] && PYTHON="$root/.venv/bin/python"
fi

# usage: print the comment at the head of the script that was called.
usage() { awk 'NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "$0"; }

# parse LEAST MOST "$@": sets words (LEAST to MOST of them), flags (all after --) and dry_run.
# shellcheck disable=SC2034  # flags is read by the scripts
parse() {
  local least=$1 most=$2
  shift 2
  dry_run=0 words=() flags=()
  while (($#)); do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --dry-run) dry_run=1 ;;
      --) shift; flags=("$@"); break ;;
      -*) echo "$(basename "$0"): unknown option $1; flags of the Python command go after --" >&2; exit 2 ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  ((${#words[@]} >= least && ${#words[@]} <= most)) || {
    usage >&2
    echo "$(basename "$0"): found ${#words[@]} words, wanted $least$( ((most == least)) || echo " or more")" >&2
    exit 2
  }
}

# use_llava: put LLAVA_NEXT_DIR, when set, before this repository on Python's path, and say which llava runs.
use_llava() {
  local found
  if [[ -n "$LLAVA_NEXT_DIR" ]]; then
    [[ -d "$LLAVA_NEXT_DIR/llava/imagechain" ]] || {
      echo "$(basename "$0"): LLAVA_NEXT_DIR=$LLAVA_NEXT_DIR has no overlay; run scripts/apply_overlay.sh on it" >&2
      exit 2
    }
    LLAVA_NEXT_DIR="$(cd "$LLAVA_NEXT_DIR" && pwd -P)"
    export LLAVA_NEXT_DIR PYTHONSAFEPATH=1 # else python -m takes llava of the current folder before that of the path
  fi
  export PYTHONPATH="${LLAVA_NEXT_DIR:+$LLAVA_NEXT_DIR:}$root${PYTHONPATH:+:$PYTHONPATH}"
  found="$("$PYTHON" -c 'import importlib.util as u; print(*u.find_spec("llava").submodule_search_locations)')" || exit 2
  echo "llava: $found" >&2
  [[ -z "$LLAVA_NEXT_DIR" || "$(cd "$found" && pwd -P)" == "$LLAVA_NEXT_DIR/llava" ]] || {
    echo "$(basename "$0"): llava of LLAVA_NEXT_DIR was wanted; Python before 3.11 takes that of the current folder:" \
      "start the same command from inside $LLAVA_NEXT_DIR, with absolute paths" >&2
    exit 2
  }
}

# run COMMAND...: run it in place of this script, or print it when dry_run is 1.
run() {
  if ((dry_run)); then
    printf '%q ' "$@"
    echo
    exit 0
  fi
  use_llava
  export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
  exec "$@"
}
