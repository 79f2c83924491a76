#!/usr/bin/env bash
# Serve the judge (Llama 3 70B Instruct) with vLLM on this machine, for one command or until it is stopped.
#
# usage: bash scripts/eval/serve_judge.sh [--dry-run] [-- COMMAND ...]
#        bash scripts/eval/serve_judge.sh --stop
#
#   COMMAND    run it with the server up, stop the server, leave with the command's status; for example
#              bash scripts/eval/serve_judge.sh -- bash scripts/eval/simrate.sh runs/eval/imagechain
#              Without a command the server stays up. `source` the file that is named at the end, then judge
#   --stop     stop the server that stayed up
#   --dry-run  print the command of the server and stop
#
# The command, or the sourced file, has JUDGE_BASE_URL, JUDGE_MODEL, JUDGE_REVISION and JUDGE_API_KEY, which eval.simrate
# reads. The server listens on 127.0.0.1 only. Its key is drawn anew at each start and is in no argument and no log.
#
# settings (environment):
#   MODEL          model name or folder                                [meta-llama/Meta-Llama-3-70B-Instruct]
#   NAME           the model's name on the server and in the cache     [MODEL]
#   REVISION       branch or commit of the model                       [the newest that is on disk, else main]
#   NUM_GPUS       cards; the largest power of two in it is used       [CUDA_VISIBLE_DEVICES, else nvidia-smi]
#   QUANTIZATION   none, fp8 or another of vLLM's                      [fp8 where one card must hold a 70B model]
#   MAX_MODEL_LEN  tokens of prompt and answer                         [4096]
#   PORT           port of 127.0.0.1                                   [8000, or a free one when that is taken]
#   TIMEOUT_S      seconds to load, a download included                [3600]
#   VLLM_FLAGS     further flags of `vllm serve`, split at blanks      []
#   STATE_DIR      folder for the log, the process number and the key  [runs/judge_server/HOST]
#
# PYTHON: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

: "${MODEL:=meta-llama/Meta-Llama-3-70B-Instruct}" "${NAME:=$MODEL}" "${REVISION:=}" "${QUANTIZATION:=}" "${PORT:=}"
: "${NUM_GPUS:=}" "${MAX_MODEL_LEN:=4096}" "${TIMEOUT_S:=3600}" "${VLLM_FLAGS:=}"
: "${STATE_DIR:=$root/runs/judge_server/$(uname -n)}"
url="" server="" revision="" dry_run=0

say() { echo "serve_judge.sh: $*" >&2; }
die() { say "$*"; exit 2; }

# started PID: when a process started, in ticks, or nothing; tells apart a number that another process has by now.
started() {
  local fields
  { fields=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  read -ra fields <<<"${fields##*) }"
  echo "${fields[19]}"
}

# running: print the process number of the server that STATE_DIR names, when it is still that process.
running() {
  local pid since
  { read -r pid && read -r since; } 2>/dev/null <"$STATE_DIR/process" || return 1
  [[ "$pid" =~ ^[0-9]+$ && -n "$since" && "$(started "$pid")" == "$since" ]] && echo "$pid"
}

# stop PID: end the server with all its processes, by force after a minute.
stop() {
  trap '' INT TERM HUP
  kill -TERM -- "-$1" 2>/dev/null || kill -TERM "$1" 2>/dev/null || true
  for ((i = 0; i < 600; i++)); do
    kill -0 -- "-$1" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL -- "-$1" 2>/dev/null || true
  rm -f "$STATE_DIR/process" "$STATE_DIR/environment"
  say "the server is stopped"
}

# choose_port: print PORT, 8000 or a free port; fail when PORT is taken.
choose_port() {
  "$PYTHON" - "$PORT" <<'PYTHON'
import socket, sys
for port in [int(sys.argv[1])] if sys.argv[1] else [8000, 0]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(probe.getsockname()[1])
        sys.exit()
sys.exit(1)
PYTHON
}

# answers PATH: whether the server answers 200 there, asked with its key and around any proxy.
answers() {
  "$PYTHON" - "$url$1" <<'PYTHON' 2>/dev/null
import os, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + os.environ["JUDGE_API_KEY"]})
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
PYTHON
}

# check_numbers: leave when a setting is no number.
check_numbers() {
  for number in "${NUM_GPUS:-0}" "$MAX_MODEL_LEN" "$TIMEOUT_S" "${PORT:-0}"; do
    [[ "$number" =~ ^[0-9]+$ ]] || die "NUM_GPUS, MAX_MODEL_LEN, TIMEOUT_S, PORT: whole numbers were wanted, found '$number'"
  done
}

# make_command: set `command`, the server's, from the settings and the cards of this machine.
make_command() {
  local cards
  if [[ -z "$NUM_GPUS" && -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
    IFS=, read -ra cards <<<"$CUDA_VISIBLE_DEVICES"
    NUM_GPUS=${#cards[@]}
  elif [[ -z "$NUM_GPUS" ]]; then
    NUM_GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)
  fi
  # 70 billion weights of 2 bytes are 140 GB: more than one card has.
  if [[ -z "$QUANTIZATION" && "$NUM_GPUS" == 1 && "$NAME" == *70[Bb]* ]]; then QUANTIZATION=fp8; fi
  command=(vllm serve "$MODEL" --host 127.0.0.1 --port "$PORT" --served-model-name "$NAME"
    --max-model-len "$MAX_MODEL_LEN" --enable-prefix-caching)
  [[ -z "$REVISION" ]] || command+=(--revision "$REVISION")
  local parallel=1  # the attention heads must be divisible by it
  while ((parallel * 2 <= NUM_GPUS)); do parallel=$((parallel * 2)); done
  ((NUM_GPUS == 0)) || command+=(--tensor-parallel-size "$parallel")
  [[ "${QUANTIZATION:-none}" == none ]] || command+=(--quantization "$QUANTIZATION")
  read -ra words <<<"$VLLM_FLAGS"
  command+=(${words[@]+"${words[@]}"})
}

# find_revision: set `revision`, the commit that the Hugging Face cache holds, with the quantization.
find_revision() {
  local home=~ hub ref # between quotes ~ would stay ~
  hub="${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$home/.cache}/huggingface}/hub}"
  ref="$hub/models--${MODEL//\//--}/refs/${REVISION:-main}"
  revision=$REVISION
  [[ ! -f "$ref" ]] || revision=$(<"$ref")
  [[ "${QUANTIZATION:-none}" == none ]] || revision="${revision:-main}+$QUANTIZATION"
}

# wait_until_healthy: return when the server judges, leave with its last words when it dies or takes too long.
wait_until_healthy() {
  local start=$SECONDS
  until answers /health && answers /v1/models; do
    if ! kill -0 "$server" 2>/dev/null; then
      say "the server died while it started; the end of $STATE_DIR/server.log:"
      tail -n 30 "$STATE_DIR/server.log" >&2
      exit 1
    elif ((SECONDS - start >= TIMEOUT_S)); then
      say "no answer after $TIMEOUT_S s (TIMEOUT_S); the end of $STATE_DIR/server.log:"
      tail -n 30 "$STATE_DIR/server.log" >&2
      exit 1
    fi
    sleep 0.5
  done
  say "$NAME answers on $url after $((SECONDS - start)) s; log: $STATE_DIR/server.log"
}

start() {
  command -v vllm >/dev/null ||
    die "vllm was not found: pip install '.[vllm]' on a machine with a GPU, or put vllm on PATH"
  local mask
  mask=$(umask)
  umask 077
  mkdir -p "$STATE_DIR"
  chmod 700 "$STATE_DIR"
  if running >/dev/null; then die "a server is up already (process $(running), STATE_DIR $STATE_DIR); end it with --stop"; fi
  JUDGE_API_KEY=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
  export JUDGE_API_KEY
  trap '[[ -z "$server" ]] || stop "$server"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
  say "starting ${command[*]}"
  # A session of its own: Ctrl-C reaches it through `stop` only, which ends all of its processes.
  VLLM_API_KEY=$JUDGE_API_KEY setsid "${command[@]}" >"$STATE_DIR/server.log" 2>&1 </dev/null &
  server=$!
  printf '%s\n' "$server" "$(started "$server")" >"$STATE_DIR/process"
  umask "$mask"
  wait_until_healthy
  find_revision
  export JUDGE_BASE_URL="$url/v1" JUDGE_MODEL="$NAME" JUDGE_REVISION="$revision"
  export no_proxy="127.0.0.1${no_proxy:+,$no_proxy}" NO_PROXY="127.0.0.1${NO_PROXY:+,$NO_PROXY}"
}

# run_job: run `job` beside this script, as bash hears a signal only after what it runs in front has ended.
run_job() {
  local run_it='
import os, signal, sys
for name in ("SIGINT", "SIGQUIT", "SIGPIPE"):  # the shell and Python have them ignored
    signal.signal(getattr(signal, name), signal.SIG_DFL)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    print(f"serve_judge.sh: {sys.argv[1]}: {error.strerror}", file=sys.stderr)
    sys.exit(127)'
  "$PYTHON" -c "$run_it" "${job[@]}" <&0 &
  local worker=$!
  trap 'while kill -0 "$worker" 2>/dev/null; do sleep 0.1; done; exit 130' INT  # Ctrl-C has reached it, too
  trap 'kill "$worker" || true; exit 143' TERM
  wait "$worker"
}

job=() mode=start
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=1 ;;
    --stop) mode=stop ;;
    --) shift; job=("$@"); (($#)) || die "a command was wanted after --"; break ;;
    *) die "unknown option $1; a command goes after --" ;;
  esac
  shift
done

if [[ "$mode" == stop ]]; then
  server=$(running) || die "no server is up (STATE_DIR $STATE_DIR)"
  stop "$server"
  exit 0
fi
check_numbers
wanted=$PORT
PORT=$(choose_port) || die "port $wanted of 127.0.0.1 is taken; choose another PORT, or leave it out"
url="http://127.0.0.1:$PORT"
make_command
if ((dry_run)); then run "${command[@]}"; fi
start
if ((${#job[@]})); then
  status=0
  run_job || status=$?
  kill -0 "$server" 2>/dev/null || say "the server had died; its words are in $STATE_DIR/server.log"
  exit "$status"  # the trap stops the server
else
  umask 077
  for name in JUDGE_BASE_URL JUDGE_MODEL JUDGE_REVISION JUDGE_API_KEY no_proxy NO_PROXY; do
    printf 'export %s=%q\n' "$name" "${!name}"
  done >"$STATE_DIR/environment"
  server=""  # it stays up
  echo "source $(printf %q "$STATE_DIR/environment")"
  say "run the line above, then judge; bash scripts/eval/serve_judge.sh --stop ends the server"
fi
