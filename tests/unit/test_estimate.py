"""Estimates without weights: against published sizes, real training models and measured activations.

tests/unit/published holds config values of the published models. Checked against what their authors published:
LLaVA-v1.5-7B's config, tensor names and total_size (pytorch_model.bin.index.json), CLIP-L/336's config and file size,
v1.5-13B's config and mm_projector.bin. v1.6-Vicuna-7B's config is the published one, v1.6-34B's is put together from
Yi-34B's and from conversions of it; the index files of 13B and of both v1.6 models could not be had.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava.imagechain.arguments import DataArguments, ModelArguments
from llava.imagechain.checkpoint import load_checkpoint
from llava.imagechain.compat import TRANSFORMERS_VERSION
from llava.imagechain.estimate import Estimate, PredictPlan, TrainPlan, estimate, kept_bytes, meta_model
from llava.imagechain.parts import part_of, prepare_model, trainable_table
from llava.imagechain.weights import name_in_files

PUBLISHED = Path(__file__).parent / "published"
LAYER = (
    "input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm",
    "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
)  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a function that gives the meta model of a published config, each built once."""
    root, models = tmp_path_factory.mktemp("published"), {}
    (root / "tower").mkdir()
    shutil.copy(PUBLISHED / "clip-vit-large-patch14-336.json", root / "tower" / "config.json")

    def model(name):
        config = json.loads((PUBLISHED / f"{name}.json").read_text())
        (root / name).mkdir(exist_ok=True)
        (root / name / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "../tower"}))
        if name not in models:
            models[name] = meta_model(root / name)
        return models[name]

    return model


def count(model, *parts):
    return sum(p.numel() for name, p in model.named_parameters() if part_of(name) in parts)


def test_v1_5_7b_has_the_published_names_and_bytes(published):
    model = published("llava-v1.5-7b")
    assert all(parameter.is_meta for parameter in model.parameters())
    names = {name_in_files(name) for name, _ in model.named_parameters() if part_of(name) != "vision tower"}
    wanted = {f"model.layers.{layer}.{part}.weight" for layer in range(32) for part in LAYER}
    wanted |= {f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert names == wanted | {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    # The published files also hold a float32 buffer of 64 rotary frequencies per layer, which is computed today.
    assert 2 * count(model, "language model", "projector") + 32 * 64 * 4 == 13_518_798_848


def test_the_tower_has_the_published_bytes(published):
    size = 4 * count(published("llava-v1.5-7b"), "vision tower")
    assert 0 < 1_214_077_616 - size < 65_536  # the file begins with a header of names


@pytest.mark.parametrize(
    ("name", "language", "projector", "newline"),
    [
        ("llava-v1.5-7b", 6_738_415_616, 20_979_712, 0),
        ("llava-v1.6-vicuna-7b", 6_738_415_616, 20_979_712, 4096),
        ("llava-v1.5-13b", 13_015_864_320, 31_467_520, 0),  # mm_projector.bin: 62.9 MB in float16
        ("llava-v1.6-34b", 34_388_917_248, 58_734_592, 7168),
    ],
)
def test_the_parts_of_each_published_model(published, name, language, projector, newline):
    model = published(name)
    parts = [count(model, part) for part in ("language model", "projector", "line end", "vision tower")]
    assert parts == [language, projector, newline, 303_507_456]


def test_the_paper_s_run_matches_its_anchors(published):
    """4,032 stories x 3 epochs, mean 1,720 positions and 13.4 frames: 0.56 + 0.06 EFLOP before LoRA and attention."""
    found = estimate(published("llava-v1.6-vicuna-7b"), [1720] * 4032, TrainPlan(), frames=[13] * 4032, tflops=400)
    assert 0.62e18 < found.flops < 0.75e18
    assert found.steps == 378 and found.trainable == 319_815_680 + 20_979_712
    assert 45 * 60 < 8 * replace(found, tflops=237.0).seconds < 60 * 60
    text = found.describe()
    assert (
        "7,382,722,560" in text and "LoRA 319,815,680" in text and "378 steps" in text and "400 useful TFLOP/s" in text
    )


def test_zero_3_shares_what_is_held(published):
    model = published("llava-v1.5-7b")
    plans = {gpus: TrainPlan(num_gpus=gpus, micro_batch=1) for gpus in (1, 2, 8)}
    memory = {gpus: estimate(model, [2048], plan).memory for gpus, plan in plans.items()}
    for name in ("frozen weights", "trained weights, gradients, optimizer"):
        assert memory[1][name] == pytest.approx(8 * memory[8][name]) == pytest.approx(2 * memory[2][name])
    assert memory[1]["frozen weights"] == 2 * (6_738_415_616 + 303_507_456)
    assert memory[1]["gathered layers"] == 0 and memory[8]["gathered layers"] == 2_000_000_000
    assert memory[1]["activations"] == memory[8]["activations"]


def test_plans_change_what_they_should(tiny_llava):
    lengths, frames = [100, 200, 60], [3, 6, 2]

    def of(**changes):
        plan = TrainPlan(**{"num_gpus": 1, "micro_batch": 2, "global_batch": 2, "epochs": 2, "lora_rank": 4, **changes})
        return estimate(tiny_llava.full, lengths, plan, frames=frames)

    plain = of()
    assert plain.steps == 4 and plain.positions == 360 and plain.longest == 200
    assert of(checkpointing=True).memory["activations"] < plain.memory["activations"]
    assert of(tower_runs=False).flops < plain.flops and "vision tower" not in of(tower_runs=False).memory
    assert of(max_steps=3).steps == 3 and of(max_steps=3).flops == pytest.approx(plain.flops)  # 3 x 2 = 2 x 3 examples
    assert of(epochs=4).flops == pytest.approx(2 * plain.flops)
    assert of(lora_rank=None).trainable > of().trainable > of(projector=False).trainable
    assert replace(plain, tflops=2 * plain.tflops).seconds == pytest.approx(plain.seconds / 2)


def test_prediction_holds_weights_and_cache(tiny_llava):
    plan = PredictPlan(batch_size=2, max_new_tokens=28, dtype="float32")
    found = estimate(tiny_llava.full, [100, 72, 50], plan, frames=[2, 2, 1])
    model = meta_model(tiny_llava.full)
    assert found.memory["weights"] == 4 * sum(p.numel() for p in model.parameters())
    assert (
        found.memory["key-value cache"] == 2 * 2 * 64 * 4 * 2 * 128
    )  # keys and values, layers, size, bytes, positions
    assert found.steps == 2 and found.trainable == 0 and "lower bound" in found.describe()


def test_no_example_is_no_error(tiny_llava):
    assert isinstance(estimate(tiny_llava.full, [], TrainPlan()), Estimate)


@pytest.mark.parametrize("rank", [4, None])
def test_trained_parameters_are_those_of_real_training(tiny_llava, rank):
    settings = ModelArguments(lora_enable=rank is not None, lora_r=rank or 1, lora_alpha=8, lora_dropout=0.0)
    table = trainable_table(prepare_model(load_checkpoint(tiny_llava.full, device="cpu").model, settings))
    found = estimate(tiny_llava.full, [10], TrainPlan(lora_rank=rank))
    assert found.trainable == sum(row["trained"] for row in table)
    assert sum(found.parameters.values()) == sum(row["parameters"] for row in table)


@pytest.mark.parametrize(
    "changes",
    [
        {"tune_mm_mlp_adapter": True},
        {"mm_tunable_parts": "mm_mlp_adapter,mm_vision_tower"},
        {"lora_enable": True, "lora_r": 4, "freeze_mm_mlp_adapter": True},
        {"unfreeze_mm_vision_tower": True},
    ],
)
def test_a_dry_run_counts_the_parts_that_train(changes, tiny_llava):
    from llava.imagechain.plan import needs

    model = ModelArguments(model_name_or_path=str(tiny_llava.full), **changes)
    train = SimpleNamespace(
        deepspeed=None, world_size=1, per_device_train_batch_size=1, global_batch_size=1, num_train_epochs=1,
        max_steps=-1, gradient_checkpointing=False, tflops=300.0,
    )  # fmt: skip
    examples = SimpleNamespace(plans=[], lengths=[10], num_frames=lambda: [2])
    text = needs((model, DataArguments(), train), str(tiny_llava.full), examples)
    table = trainable_table(prepare_model(load_checkpoint(tiny_llava.full, device="cpu").model, model))
    assert f"; {sum(row['trained'] for row in table):,} train" in text


@pytest.mark.parametrize(("place", "offloaded"), [("cpu", ("optimizer",)), ("none", ())])
def test_a_dry_run_reads_from_the_deepspeed_config_what_is_kept_elsewhere(place, offloaded, tmp_path, monkeypatch):
    from llava.imagechain import plan

    zero = {"stage": 3, "offload_optimizer": {"device": place}, "offload_param": None}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero}))
    train = SimpleNamespace(
        deepspeed=str(tmp_path / "zero.json"), world_size=1, per_device_train_batch_size=1, global_batch_size=1,
        num_train_epochs=1, max_steps=-1, gradient_checkpointing=False, tflops=300.0,
    )  # fmt: skip
    examples = SimpleNamespace(plans=[], lengths=[10], num_frames=lambda: [2])
    seen = []
    monkeypatch.setattr(plan, "estimate", lambda *a, **_: seen.append(a[2]) or SimpleNamespace(describe=str))
    plan.needs((ModelArguments(), DataArguments(), train), "", examples)
    assert seen[0].offload == offloaded


@pytest.mark.skipif(TRANSFORMERS_VERSION < (5, 0), reason="the layers of older library versions keep more")
@pytest.mark.parametrize("rank", [8, None])
def test_kept_activations_are_those_measured(rank):
    from transformers import LlamaConfig, LlamaModel

    def config(layers):
        return LlamaConfig(
            vocab_size=8, hidden_size=128, intermediate_size=320, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, attn_implementation="sdpa",
        )  # fmt: skip

    def measured(layers, positions):
        model = LlamaModel(config(layers)).to(torch.bfloat16).requires_grad_(False)
        if rank:
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(r=rank, lora_dropout=0.05, target_modules=r"layers\.\d+\.\w+\.\w+_proj")
            model = get_peft_model(model, lora)
            for parameter in model.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        else:
            model.layers.requires_grad_(True)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept = {}

        def keep(tensor):
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        inputs = torch.randn(1, positions, 128, dtype=torch.bfloat16, requires_grad=True)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            output = model.train()(inputs_embeds=inputs, use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) + 0 * len(output)

    slopes = [measured(layers, 256) - measured(layers, 128) for layers in (2, 3)]
    assert (slopes[1] - slopes[0]) / 128 == pytest.approx(kept_bytes(config(2), rank), rel=0.03)


def test_what_is_kept_in_the_machines_memory_is_not_counted_on_the_gpu(tiny_llava):
    whole, offloaded = (
        estimate(tiny_llava.full, [10], TrainPlan(offload=o)).memory for o in ((), ("optimizer", "param"))
    )
    trained = "trained weights, gradients, optimizer"
    assert offloaded[trained] == pytest.approx(whole[trained] / 4, rel=1e-3)
    assert whole["frozen weights"] > offloaded["frozen weights"] == 0
    assert {name for name in whole if whole[name] != offloaded[name]} == {trained, "frozen weights"}
