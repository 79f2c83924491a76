"""Adapters over weights of 4 and 8 bits: what is quantized, what trains, what is saved, what is refused."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIGS = [str(ROOT / "configs" / "train" / f"{name}.yaml") for name in ("base", "imagechain", "c2_7")]
QUICK = [
    "--bf16", "false", "--lora_r", "8", "--lora_alpha", "16", "--lora_dropout", "0", "--learning_rate", "1e-2",
    "--dataloader_num_workers", "0", "--global_batch_size", "8", "--per_device_train_batch_size", "8",
    "--eval_strategy", "no", "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2",
    "--logging_steps", "1", "--lr_scheduler_type", "constant",
]  # fmt: skip
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def flags(base, stories, output, *more):
    where = ["--model_name_or_path", str(base), "--stories", str(stories), "--output_dir", str(output)]
    return ["--config", *CONFIGS, *where, *QUICK, *more]


def train(*arguments):
    from accelerate.state import AcceleratorState

    from llava.train.train import train

    AcceleratorState._reset_state(reset_partial_state=True)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert train(flags(*arguments)) == 0, err.getvalue()[-3000:]
    return err.getvalue()


def losses(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.1), (8, 0.01)])
def test_an_adapter_trains_over_quantized_weights_and_names_its_whole_base(
    bits, tolerance, tiny_base, small_stories, tmp_path
):
    from llava.imagechain.checkpoint import load_checkpoint

    run = tmp_path / "run"
    text = train(tiny_base, small_stories, run, "--bits", str(bits))
    assert "language model           143,680               0" in text  # counted as numbers, not as bytes
    train(tiny_base, small_stories, tmp_path / "whole")
    assert losses(run)[0] == pytest.approx(losses(tmp_path / "whole")[0], rel=tolerance)
    assert losses(run) != losses(tmp_path / "whole")
    assert min(losses(run)[2:]) < losses(run)[0]
    for folder in (run, run / "checkpoint-2"):
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_base)
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    loaded = load_checkpoint(run, device="cpu").model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "kind"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_only_the_layers_under_the_adapters_are_quantized(bits, kind, tiny_base, small_stories, tmp_path):
    from llava.imagechain.arguments import parse_arguments
    from llava.imagechain.parts import prepare_model
    from llava.imagechain.start import load_model

    groups, _ = parse_arguments(flags(tiny_base, small_stories, tmp_path, "--bits", str(bits)))
    model = prepare_model(load_model(groups).model, groups[0])
    quantized = {name for name, module in model.named_modules() if type(module).__module__.startswith("bitsandbytes")}
    assert len(quantized) == 2 * 7
    assert all(".layers." in name and name.endswith("proj.base_layer") for name in quantized)
    assert {type(model.get_submodule(name)).__name__ for name in quantized} == {kind}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}


@needs_bitsandbytes
def test_a_run_over_quantized_weights_resumes(tiny_base, small_stories, tmp_path):
    import shutil

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tiny_base, small_stories, whole, "--bits", "4")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoint-4")
    for name in ("adapter_config.json", "config.json"):
        (cut / name).unlink()
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**record, "status": "started"}))
    assert "going on from" in train(tiny_base, small_stories, cut, "--bits", "4")
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--bits", "5"), "bits: 4, 8 or 16 was wanted, found 5"),
        (("--bits", "4", "--lora_enable", "false"), "bits 4: quantized weights cannot train; set lora_enable"),
        (("--bits", "4", "--unfreeze_mm_vision_tower", "true"), "leave the tower frozen"),
        (("--bits", "4", "--quant_type", "int4"), "nf4 or fp4 was wanted, found 'int4'"),
    ],
)
def test_what_cannot_be_quantized_is_refused(more, message, tiny_base, small_stories, tmp_path):
    from llava.imagechain.arguments import parse_arguments
    from llava.imagechain.config import ConfigError

    with pytest.raises(ConfigError, match=message):
        parse_arguments(flags(tiny_base, small_stories, tmp_path, *more))


def test_zero3_and_a_missing_library_are_named(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from llava.imagechain import quantized
    from llava.imagechain.arguments import ModelArguments

    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    settings = ModelArguments(bits=4, lora_enable=True)
    config = ROOT / "configs" / "deepspeed"
    problems = quantized.bits_problems(settings, SimpleNamespace(deepspeed=str(config / "zero3.json")))
    assert [problem.split(": ")[1] for problem in problems] == [
        "bitsandbytes is not installed; bash scripts/setup.sh train quantization",
        "ZeRO-3 cannot spread quantized weights; use zero2.json, or DDP without one",
    ]
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: name)
    assert quantized.bits_problems(settings, SimpleNamespace(deepspeed=str(config / "zero2.json"))) == []


def test_the_plan_counts_fewer_bytes_for_quantized_weights():
    from llava.imagechain.estimate import TrainPlan, estimate, meta_model

    model = meta_model(ROOT / "configs" / "bench" / "llava-v1.6-vicuna-7b")
    sizes = [
        estimate(model, [100], TrainPlan(num_gpus=1, zero_stage=0, bits=bits)).memory["frozen weights"] / 1e9
        for bits in (16, 8, 4)
    ]
    assert sizes[0] == pytest.approx(14.1, abs=0.2)
    assert sizes[1] == pytest.approx(7.8, abs=0.2)
    assert sizes[2] == pytest.approx(4.5, abs=0.2)
