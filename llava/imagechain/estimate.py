"""What a run will need, from config.json and the lengths of the examples alone: parameters, memory, steps, time.

Models are built on the meta device; no weight is read. Lengths count positions in the language model, visual tokens
included. Memory leaves out the CUDA context and fragmentation (1 to 3 GB together).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GB = 1e9
DEFAULT_TFLOPS = 300.0
PARTS = {"vision_tower": "vision tower", "mm_projector": "projector", "image_newline": "line end"}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes that autograd keeps per position and layer in bfloat16, as multiples of hidden size, key-value size, inner size
# and LoRA rank; measured with saved_tensors_hooks on transformers 5's Llama layers with sdpa, within 1 % (tests measure
# again). Those of 4.57 keep a tenth more with LoRA, a fifth more without.
KEPT_BYTES = {"lora": (48, 4, 12, 14), "full": (20, 4, 8, 0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """How a model is to be trained.

    Attributes:
        lora_rank: Rank of the adapters on all linear layers of the language model; None for none.
        language_model: Without adapters, the language model itself trains.
        projector: The projector trains, too.
        tower: The vision tower trains, too.
        num_gpus: Processes.
        zero_stage: DeepSpeed stage; 0 without DeepSpeed.
        offload: What DeepSpeed keeps in the machine's memory: "optimizer", "param".
        micro_batch: Examples per device and forward pass.
        global_batch: Examples per optimizer step.
        epochs: Passes over the examples.
        max_steps: Optimizer steps, where they are given instead of epochs.
        checkpointing: Activations are computed again in the backward pass.
        label_tokens: Most positions with a label in one example (their logits are kept in float32).
        tower_runs: False when frame features come from a cache.
        bits: Of the frozen linear layers of the language model.
    """

    lora_rank: int | None = 128
    language_model: bool = True
    projector: bool = True
    tower: bool = False
    num_gpus: int = 8
    zero_stage: int = 3
    offload: tuple[str, ...] = ()
    micro_batch: int = 4
    global_batch: int = 32
    epochs: float = 3
    max_steps: int | None = None
    checkpointing: bool = False
    label_tokens: int = 256
    tower_runs: bool = True
    bits: int = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictPlan:
    """How a model is to be used: examples per batch, most new tokens, type of the weights."""

    batch_size: int = 8
    max_new_tokens: int = 128
    dtype: str = "bfloat16"
    num_gpus: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will need.

    Attributes:
        parameters: Part of the model -> number.
        trainable: Numbers that train.
        memory: What is held on one GPU -> bytes.
        num_examples: Examples.
        positions: Positions of all examples together, once.
        longest: Positions of the longest example.
        steps: Optimizer steps, or batches.
        flops: Floating point operations of the whole run; padding and recomputation not counted.
        num_gpus: GPUs that share the work.
        tflops: Stated useful TFLOP/s of one GPU.
        note: What the time leaves out.
    """

    parameters: dict[str, int]
    trainable: int
    memory: dict[str, int]
    num_examples: int
    positions: int
    longest: int
    steps: int
    flops: float
    num_gpus: int
    tflops: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """Expected wall time at the stated speed."""
        return self.flops / (self.num_gpus * self.tflops * 1e12)

    def describe(self) -> str:
        """Return the estimate as lines of text."""
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        memory = ", ".join(f"{name} {size / GB:.2f}" for name, size in self.memory.items())
        return "\n".join((
            f"parameters: {sum(self.parameters.values()):,} ({parts}); {self.trainable:,} train",
            f"memory per GPU: about {sum(self.memory.values()) / GB:.1f} GB ({memory})",
            f"work: {self.steps:,} steps, {self.positions:,} positions in {self.num_examples:,} examples (longest "
            f"{self.longest:,}), {self.flops / 1e15:,.3g} PFLOP",
            f"expected wall time: {_duration(self.seconds)} on {self.num_gpus} GPU at {self.tflops:g} useful TFLOP/s "
            f"each{self.note}",
        ))  # fmt: skip


def meta_model(config: Any) -> Any:
    """Return a LLaVA model on the meta device: all names and shapes, no memory.

    Args:
        config: A `LlavaConfig`, or a model folder.
    """
    import torch

    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    if isinstance(config, (str, Path)):
        config = LlavaConfig.from_pretrained(str(config))
    with torch.device("meta"):
        return LlavaLlamaForCausalLM(config)


def estimate(
    config: Any,
    lengths: Sequence[int],
    plan: TrainPlan | PredictPlan,
    *,
    frames: Sequence[int] | None = None,
    tflops: float = DEFAULT_TFLOPS,
) -> Estimate:
    """Estimate a training or prediction run.

    Args:
        config: A `LlavaConfig`, a model folder, or a model from `meta_model`.
        lengths: Positions of each example; for prediction those of the prompt.
        plan: `TrainPlan` or `PredictPlan`.
        frames: Frames of each example, in all its scenes; None leaves tower and projector out.
        tflops: Useful TFLOP/s of one GPU.

    Returns:
        The estimate.
    """
    model = config if hasattr(config, "named_parameters") else meta_model(config)
    parameters: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = next((part for word, part in PARTS.items() if word in name), "language model")
        parameters[part] = parameters.get(part, 0) + parameter.numel()
    if isinstance(plan, TrainPlan):
        return _training(model, parameters, lengths, plan, frames, tflops)
    return _prediction(model, parameters, lengths, plan, frames, tflops)


def lora_parameters(model: Any, rank: int) -> int:
    """Return the number of LoRA parameters on the layers that training adapts."""
    return sum(rank * (layer.in_features + layer.out_features) for layer in _adapted_layers(model))


def _adapted_layers(model: Any) -> list[Any]:
    """Return the linear layers of the language model that training adapts, and quantizes when asked to."""
    from torch import nn

    from llava.imagechain.checkpoint import LORA_TARGETS

    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(LORA_TARGETS, name)
    ]


def kept_bytes(config: Any, lora_rank: int | None) -> int:
    """Return the bytes that one position keeps in one layer for the backward pass, in bfloat16."""
    heads = config.num_key_value_heads or config.num_attention_heads
    key_value = config.hidden_size // config.num_attention_heads * heads
    sizes = (config.hidden_size, key_value, config.intermediate_size, lora_rank or 0)
    return sum(factor * size for factor, size in zip(KEPT_BYTES["lora" if lora_rank else "full"], sizes, strict=True))


def _training(
    model: Any, parameters: dict[str, int], lengths: Sequence[int], plan: TrainPlan, frames: Any, tflops: float
) -> Estimate:
    config, total = model.config, sum(parameters.values())
    adapters = lora_parameters(model, plan.lora_rank) if plan.lora_rank else 0
    language = parameters["language model"]
    whole = plan.language_model and not plan.lora_rank
    trainable = adapters + language * whole
    trainable += parameters.get("projector", 0) * plan.projector + parameters.get("vision tower", 0) * plan.tower
    shards = plan.num_gpus if plan.zero_stage == 3 else 1
    frozen = total + adapters - trainable
    # 4 bits come with a scale for each 64 numbers, itself of 8 bits: about 0.13 bits more.
    saved = sum(layer.weight.numel() for layer in _adapted_layers(model)) * (16 - plan.bits * 1.03) / 8
    saved = saved if plan.bits < 16 else 0
    # Trained: 2 bytes weight, 2 gradient, 12 master weight and Adam's two moments (float32 weights: 4 + 4 + 8).
    optimizer = 0 if "optimizer" in plan.offload else 12
    per_trained = 2 + (2 + optimizer) / plan.num_gpus if plan.zero_stage in (1, 2) else (4 + optimizer) / shards
    longest = max(lengths, default=0)
    per_layer = plan.micro_batch * longest * kept_bytes(config, plan.lora_rank)
    layers = config.num_hidden_layers
    inputs = plan.micro_batch * longest * config.hidden_size * 2 * layers
    logits = plan.micro_batch * min(longest, plan.label_tokens) * config.vocab_size
    memory = {
        "frozen weights": 0 if "param" in plan.offload else round(2 * frozen / shards - saved),
        "trained weights, gradients, optimizer": round(per_trained * trainable),
        "gathered layers": round(2 * min(1e9, total)) if shards > 1 else 0,  # stage3_max_live_parameters
        "activations": inputs + per_layer if plan.checkpointing else per_layer * layers,
        "logits": logits * (2 + 4 + 4 + 2),
    }
    if plan.tower_runs and frames:
        memory["vision tower"] = _tower_bytes(model, plan.micro_batch * max(frames))
    positions, squares = sum(lengths), sum(length * length for length in lengths)
    per_position = (6 if whole else 4) * language + 6 * adapters  # frozen weights get no gradients of their own
    flops = per_position * positions + 6.0 * squares * config.hidden_size * layers
    if frames:
        flops += 6.0 * parameters.get("projector", 0) * sum(frames) * model.get_vision_tower().num_patches
        flops += _tower_flops(model, sum(frames)) * (3 if plan.tower else 1) if plan.tower_runs else 0
    steps = math.ceil(math.ceil(len(lengths) / plan.global_batch) * plan.epochs)
    passes = plan.epochs
    if plan.max_steps:
        steps, passes = plan.max_steps, plan.max_steps * plan.global_batch / max(len(lengths), 1)
    return Estimate(
        parameters={**parameters, **({"LoRA": adapters} if adapters else {})},
        trainable=trainable, memory=memory, num_examples=len(lengths), positions=positions, longest=longest,
        steps=steps, flops=flops * passes, num_gpus=plan.num_gpus, tflops=tflops,
        note=", padding, recomputation and evaluation not counted",
    )  # fmt: skip


def _prediction(
    model: Any, parameters: dict[str, int], lengths: Sequence[int], plan: PredictPlan, frames: Any, tflops: float
) -> Estimate:
    config, size = model.config, BYTES[plan.dtype]
    heads = config.num_key_value_heads or config.num_attention_heads
    key_value = config.hidden_size // config.num_attention_heads * heads
    longest, layers = max(lengths, default=0), config.num_hidden_layers
    cached = plan.batch_size * (longest + plan.max_new_tokens)
    memory = {
        "weights": size * sum(parameters.values()),
        "key-value cache": 2 * layers * key_value * size * cached,
        "activations": plan.batch_size * longest * size * (4 * config.hidden_size + 3 * config.intermediate_size),
        "logits": 4 * plan.batch_size * config.vocab_size,
    }
    if frames:
        memory["vision tower"] = _tower_bytes(model, plan.batch_size * max(frames), size)
    positions = sum(lengths)
    new = plan.max_new_tokens * len(lengths)
    squares = sum(length * length for length in lengths)
    flops = 2.0 * parameters["language model"] * (positions + new) + 2.0 * squares * config.hidden_size * layers
    if frames:
        flops += _tower_flops(model, sum(frames))
    return Estimate(
        parameters=parameters, trainable=0, memory=memory, num_examples=len(lengths), positions=positions,
        longest=longest, steps=math.ceil(len(lengths) / plan.batch_size), flops=flops, num_gpus=plan.num_gpus,
        tflops=tflops,
        note=f", every answer {plan.max_new_tokens} tokens long; a lower bound, since new tokens wait for memory",
    )  # fmt: skip


def _tower_flops(model: Any, frames: int) -> float:
    tower = model.get_vision_tower()
    tokens, weights = tower.num_patches + 1, sum(parameter.numel() for parameter in tower.parameters())
    attention = 4 * tokens * tokens * tower.config.hidden_size * tower.config.num_hidden_layers
    return float(frames) * (2 * weights * tokens + attention)


def _tower_bytes(model: Any, frames: int, size: int = 2) -> int:
    """Return what one tower call holds at its widest layer, no gradients kept."""
    config = model.get_vision_tower().config
    tokens = model.get_vision_tower().num_patches + 1
    return frames * tokens * size * (6 * config.hidden_size + 2 * config.intermediate_size)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
