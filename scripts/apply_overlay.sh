#!/usr/bin/env bash
# Put ImageChain's files over a LLaVA-NeXT checkout, and take them away again.
#
# usage: bash scripts/apply_overlay.sh [--check | --dry-run | --revert] [--force] [CHECKOUT]
#
#   CHECKOUT    folder of the checkout, the one with llava/ in it (default: LLAVA_NEXT_DIR)
#   (nothing)   apply, or bring an applied overlay up to date; doing it twice changes nothing
#   --check     say what is there: exit 0 applied, whole and up to date; 1 not applied or out of date; 3 edited
#   --dry-run   print what would be written, and write nothing
#   --revert    put the files of the checkout back
#   --force     go on where the script refuses: another commit than the tested one, files with edits of yours.
#               Edited files are kept in llava/imagechain.edited-N/.
#
# Written are nine files (llava/{__init__,constants,conversation,mm_utils}.py, llava/model/{__init__,builder,llava_arch}.py,
# llava/model/language_model/llava_llama.py, llava/train/train.py) and the folder llava/imagechain/, which also
# holds the replaced files (.replaced/) and the hashes of what was written (.written).
# The tested commit is df17966. A checkout without .git is recognised by its files' hashes.
# Exit status: 0 done, 1 and 3 as above, 2 refused or wrong arguments.
set -euo pipefail

readonly commit=df179663ae8b83207df100a1f7af24caec633ff9
readonly replaced_files="\
52508db720555fae39081e92e8b7f26244df4153b5f3f6bc7bd4a647b7071310  llava/__init__.py
2c5a8a659b3c5c1c70360808ae901511db67da8fbe331e1329cd754f6f3a0879  llava/constants.py
f3a902025d032b19f7d2c37fe08707b3e184e5fa6f00aba7c931ca5d1e249629  llava/conversation.py
e9920f39cd9dd9d5c11b8f9302752ad937679dc53ab3a18c894f1a6c0afcaa2f  llava/mm_utils.py
16714be8b5e852887466b048d2bde886ff37f9cbbc701cd0565822a5e9507d5c  llava/model/__init__.py
288a4dc45ff84623332e312e2072adeadba2712853518475cca4a6fdf3e524e1  llava/model/builder.py
ce3d69fbcd69fcb0d056d419a1b6760237a209f1fc09584174bb10e54b9ff3af  llava/model/llava_arch.py
8a8f8374d49ac8780f24075be56ebddc326e944cfb719a142627ef81c915cc1f  llava/model/language_model/llava_llama.py
29a796981630025ffa9adf9f009108810f3582095d453c3f9113c2f38a80fa41  llava/train/train.py"

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
say() { printf 'overlay: %s\n' "$*"; }
refuse() { printf 'overlay: %s\n' "$@" >&2; exit 2; }

if command -v sha256sum >/dev/null; then sums=(sha256sum); else sums=(shasum -a 256); fi
hash_of() { if [[ -f "$1" ]]; then "${sums[@]}" <"$1" | cut -d' ' -f1; else echo absent; fi; }
listed_hash() { awk -v file="$2" '$2 == file { print $1 }' <<<"$1"; } # LIST FILE

action=apply force=0 checkout=""
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --check | --dry-run | --revert) [[ $action == apply ]] || refuse "$1 and --$action cannot be combined."; action=${1#--} ;;
    --force) force=1 ;;
    -*) refuse "unknown option $1; see --help." ;;
    *) [[ -z "$checkout" ]] || refuse "one checkout was wanted, found $checkout and $1."; checkout=$1 ;;
  esac
  shift
done
: "${checkout:=${LLAVA_NEXT_DIR:-}}"
[[ -n "$checkout" ]] || refuse "which checkout? Give its folder, or set LLAVA_NEXT_DIR."
[[ -d "$checkout" ]] || refuse "$checkout is not a folder."
unset CDPATH # `cd` would look for relative folders there
checkout=$(cd "$checkout" && pwd -P)
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
[[ "$checkout" != "$source_dir" ]] || refuse "$checkout is ImageChain itself; a LLaVA-NeXT checkout was wanted."
for part in llava/model/multimodal_encoder/builder.py llava/model/language_model llava/model/llava_arch.py llava/train; do
  [[ -e "$checkout/$part" ]] ||
    refuse "$checkout is not a LLaVA-NeXT checkout: $part is missing." "Give the folder that has llava/ in it."
done

state_dir=$checkout/llava/imagechain
backup_dir=$state_dir/.replaced
readonly action force checkout source_dir state_dir backup_dir

left_out=(! -path 'llava/imagechain/.*' ! -path '*/__pycache__/*' ! -name '*.imagechain-new')
# What the overlay consists of, with hashes: nine replacing files, then the new folder.
ours=$(cd "$source_dir" && { awk '{ print $2 }' <<<"$replaced_files"; find llava/imagechain -type f "${left_out[@]}" | LC_ALL=C sort; } |
  while read -r file; do echo "$(hash_of "$file")  $file"; done)
written=$(cat "$state_dir/.written" 2>/dev/null || true)

# read_lines NAME: the lines of the input as an array; bash 3.2, macOS's, has no command for it.
read_lines() { IFS=$'\n' read -r -d '' -a "$1" || true; }

# in_git FILE: print the committed content; fails without git.
in_git() { [[ -e "$checkout/.git" ]] && git -C "$checkout" show "HEAD:$1" 2>/dev/null; }

head_commit() { [[ -e "$checkout/.git" ]] && git -C "$checkout" rev-parse --verify --quiet HEAD 2>/dev/null || true; }

# Files that hold neither what was there before the overlay nor what any overlay wrote: somebody's edits.
edited_files() {
  local file now
  { awk '{ print $2 }' <<<"$ours"$'\n'"$written"
    [[ ! -d "$state_dir" ]] || (cd "$checkout" && find llava/imagechain -type f "${left_out[@]}"); } | awk 'NF && !seen[$0]++' |
    while read -r file; do
      now=$(hash_of "$checkout/$file")
      case "$now" in
        absent | "$(listed_hash "$ours" "$file")" | "$(listed_hash "$written" "$file")" | \
          "$(listed_hash "$replaced_files" "$file")" | "$(hash_of "$backup_dir/$file")") ;;
        *) echo "$file" ;;
      esac
    done
}

# Prints "FILE" for each file that differs from ours; nothing when the overlay is whole and up to date.
differing_files() {
  local hash file
  while read -r hash file; do
    [[ "$(hash_of "$checkout/$file")" == "$hash" ]] || echo "$file"
  done <<<"$ours"
  [[ -z "$written" ]] || awk '{ print $2 }' <<<"$written" | while read -r file; do
    [[ -n "$(listed_hash "$ours" "$file")" || ! -e "$checkout/$file" ]] || echo "$file"
  done
}

keep_edited() { # FILE ...
  local number=1 file
  while [[ -e "$checkout/llava/imagechain.edited-$number" ]]; do number=$((number + 1)); done
  for file in "$@"; do
    mkdir -p "$checkout/llava/imagechain.edited-$number/$(dirname "$file")"
    cp -p "$checkout/$file" "$checkout/llava/imagechain.edited-$number/$file"
  done
  say "your versions of $# files are kept in llava/imagechain.edited-$number/"
}

put() { # FROM TO: the file is whole or untouched, also when this is interrupted
  mkdir -p "$(dirname "$2")"
  cp "$1" "$2.imagechain-new" && mv "$2.imagechain-new" "$2"
}

refuse_unknown_commit() {
  local head
  head=$(head_commit)
  if [[ -n "$head" && "$head" != "$commit" ]]; then
    ((force)) || refuse "the checkout is at commit ${head:0:7}; the overlay is tested over ${commit:0:7}." \
      "Either: git -C $checkout checkout $commit" "Or, to try it on this commit: the same command with --force."
    say "commit ${head:0:7} is not the tested one (${commit:0:7}); going on as told."
  fi
}

back_up() {
  [[ -d "$backup_dir" ]] && return
  local hash file now building=$state_dir/.replaced.new
  rm -rf "$building"
  mkdir -p "$building"
  while read -r hash file; do
    now=$(hash_of "$checkout/$file")
    mkdir -p "$building/$(dirname "$file")"
    if [[ "$now" == "$(listed_hash "$ours" "$file")" ]]; then # copied by hand before: git may have the file that was there
      in_git "$file" >"$building/$file" || { rm -f "$building/$file"; :; }
    elif [[ "$now" != absent ]]; then
      cp -p "$checkout/$file" "$building/$file"
    fi
  done <<<"$replaced_files"
  mv "$building" "$backup_dir"
}

apply() {
  local file edited differing hash
  read_lines differing < <(differing_files)
  if ((${#differing[@]} == 0)); then
    say "already applied and up to date: $checkout"
    return
  fi
  refuse_unknown_commit
  read_lines edited < <(edited_files)
  if ((${#edited[@]} && !force)); then
    refuse "these files hold changes that are neither LLaVA-NeXT's at ${commit:0:7} nor the overlay's:" "${edited[@]/#/  }" \
      "Put them back (git checkout -- FILE), or use --force: they are then kept in llava/imagechain.edited-N/."
  fi
  if [[ $action == dry-run ]]; then
    for file in "${differing[@]}"; do
      if [[ -z "$(listed_hash "$ours" "$file")" ]]; then echo "remove   $file"
      elif [[ -e "$checkout/$file" ]]; then echo "replace  $file"
      else echo "add      $file"; fi
    done
    say "nothing was written"
    return
  fi
  ((${#edited[@]} == 0)) || keep_edited "${edited[@]}"
  back_up
  while read -r hash file; do
    [[ "$(hash_of "$checkout/$file")" == "$hash" ]] || put "$source_dir/$file" "$checkout/$file"
  done <<<"$ours"
  for file in "${differing[@]}"; do
    [[ -n "$(listed_hash "$ours" "$file")" ]] || rm -f "$checkout/$file"
  done
  while read -r hash file; do
    [[ "$(hash_of "$checkout/$file")" == "$hash" ]] || refuse "$file was not written right; is the disk full?"
  done <<<"$ours"
  echo "$ours" >"$state_dir/.written.imagechain-new" && mv "$state_dir/.written.imagechain-new" "$state_dir/.written"
  say "applied to $checkout ($(wc -l <<<"$ours" | tr -d ' ') files)"
}

revert() {
  local hash file edited
  if [[ ! -d "$backup_dir" ]]; then
    [[ -d "$state_dir" ]] && refuse "llava/imagechain was copied by hand, so there is nothing to put back from here." \
      "In a git checkout: git checkout -- llava && rm -r llava/imagechain"
    say "not applied: $checkout"
    return
  fi
  read_lines edited < <(edited_files)
  if ((${#edited[@]} && !force)); then
    refuse "these files were edited since the overlay was applied:" "${edited[@]/#/  }" \
      "Save your changes and use --force: the files are then kept in llava/imagechain.edited-N/."
  fi
  ((${#edited[@]} == 0)) || keep_edited "${edited[@]}"
  while read -r hash file; do
    if [[ -f "$backup_dir/$file" ]]; then
      put "$backup_dir/$file" "$checkout/$file"
      touch "$checkout/$file"
    else
      rm -f "$checkout/$file"
      say "$file is removed: what was there before the overlay is not known"
    fi
  done <<<"$replaced_files"
  rm -rf "$state_dir"
  say "reverted: $checkout"
}

check() {
  local edited differing
  if [[ -z "$written" ]]; then
    read_lines differing < <(differing_files)
    ((${#differing[@]})) || { say "applied by hand, whole and up to date: $checkout"; return; }
    say "not applied: $checkout"
    return 1
  fi
  read_lines edited < <(edited_files)
  if ((${#edited[@]})); then
    say "applied, but edited since:"
    printf '  %s\n' "${edited[@]}"
    return 3
  fi
  read_lines differing < <(differing_files)
  if ((${#differing[@]})); then
    say "applied, but not whole or not this version; apply again:"
    printf '  %s\n' "${differing[@]}"
    return 1
  fi
  say "applied, whole and up to date: $checkout"
}

case $action in
  apply | dry-run) apply ;;
  *) $action ;;
esac
