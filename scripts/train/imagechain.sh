#!/usr/bin/env bash
# Train one variant of ImageChain on StoryFrames, on one machine or many.
#
#   MODEL=DIR STORIES=DIR bash scripts/train/imagechain.sh [--dry-run] [-- FURTHER PYTHON FLAGS]
#
# The paper's run:  MODEL=llava-v1.6-vicuna-7b STORIES=data/StoryFrames NUM_GPUS=8 bash scripts/train/imagechain.sh
# A rerun of the same command goes on from the last checkpoint. --dry-run prints the command and stops.
#
# Settings (environment):
#   MODEL          folder of the LLaVA model to start from
#   STORIES        StoryFrames folder
#   VARIANT        imagechain (default), mllm_ft, visual_context, final_scene
#   CONTEXT        c2_7 (default), c2, c3, c4_7
#   OUTPUT_DIR     folder of the run (default runs/train/VARIANT-CONTEXT)
#   CONFIG         further YAML files of settings, separated by spaces, such as configs/train/world.yaml
#   FEATURE_CACHE  folder for frame features that are computed once and shared by all variants
#   NUM_GPUS       GPUs on this machine (default: what nvidia-smi shows; 0 trains on the CPU with one process)
#   NNODES NODE_RANK MASTER_ADDR MASTER_PORT   several machines: run the same command on each (scripts/slurm: by Slurm)
#   DEEPSPEED      DeepSpeed config for more than one GPU (default configs/deepspeed/zero3.json; none: DDP)
#
# Further flags: python -m llava.train.train --help. The global batch stays 32 whatever the number of GPUs.
# PYTHON and LLAVA_NEXT_DIR: see scripts/common.sh.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

parse 0 0 "$@"
: "${VARIANT:=imagechain}"
: "${CONTEXT:=c2_7}"
: "${OUTPUT_DIR:=runs/train/$VARIANT-$CONTEXT}"
: "${CONFIG:=}"
: "${FEATURE_CACHE:=}"
: "${NNODES:=1}"
: "${NODE_RANK:=${SLURM_NODEID:-0}}"
: "${MASTER_ADDR:=localhost}"
: "${MASTER_PORT:=29500}"
: "${DEEPSPEED:=$root/configs/deepspeed/zero3.json}"
if [[ -z "${NUM_GPUS:-}" ]]; then
    NUM_GPUS=0
    if command -v nvidia-smi >/dev/null 2>&1; then
        NUM_GPUS="$( (nvidia-smi --list-gpus 2>/dev/null || true) | grep -c '^GPU' || true)"
    fi
fi
problems=()
for name in NUM_GPUS NNODES; do
    [[ "${!name}" =~ ^[0-9]+$ ]] || problems+=("$name: a whole number was wanted, found ${!name}")
done
((${#problems[@]})) || ((NUM_GPUS > 0 || NNODES == 1)) ||
    problems+=("NNODES is $NNODES, but NUM_GPUS is 0: on CPUs one process trains")
[[ -n "${MODEL:-}" ]] || problems+=("MODEL is not set: the folder of the LLaVA model to start from")
[[ -n "${STORIES:-}" ]] || problems+=("STORIES is not set: a StoryFrames folder")
for name in "$VARIANT" "$CONTEXT"; do
    [[ -f "$root/configs/train/$name.yaml" ]] || problems+=("there is no configs/train/$name.yaml")
done
if ((${#problems[@]})); then
    printf 'imagechain.sh: %s\n' "${problems[@]}" >&2
    exit 2
fi

launch=("$PYTHON")
if ((NUM_GPUS > 0)); then
    launch+=(-m llava.imagechain.launch --nnodes "$NNODES" --nproc_per_node "$NUM_GPUS")
    if ((NNODES > 1)); then
        launch+=(--node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
    else
        launch+=(--standalone)
    fi
fi
read -r -a more_configs <<<"$CONFIG"
command=(
    "${launch[@]}" -m llava.train.train
    --config "$root/configs/train/base.yaml" "$root/configs/train/$VARIANT.yaml" "$root/configs/train/$CONTEXT.yaml"
    ${more_configs[@]+"${more_configs[@]}"}
    --model_name_or_path "$MODEL" --stories "$STORIES" --output_dir "$OUTPUT_DIR"
)
[[ -n "$FEATURE_CACHE" ]] && command+=(--feature_cache "$FEATURE_CACHE")
if ((NUM_GPUS * NNODES > 1)) && [[ "$DEEPSPEED" != none ]]; then
    command+=(--deepspeed "$DEEPSPEED")
fi
run "${command[@]}" ${flags[@]+"${flags[@]}"}
