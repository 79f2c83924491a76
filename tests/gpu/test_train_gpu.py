"""Training on a CUDA device: bfloat16 steps with each attention, checkpoints that predict there, the benchmark."""

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
    "--lora_r", "4", "--lora_dropout", "0", "--dataloader_num_workers", "0", "--global_batch_size", "8",
    "--per_device_train_batch_size", "4", "--eval_strategy", "no", "--save_strategy", "no", "--logging_steps", "1",
    "--learning_rate", "1e-3", "--max_steps", "3",
]  # fmt: skip
needs_flash = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed"
)  # without it the setting falls back to sdpa


def train(base, stories, output, *more):
    from accelerate.state import AcceleratorState

    from llava.train.train import train

    AcceleratorState._reset_state(reset_partial_state=True)
    where = ["--model_name_or_path", str(base), "--stories", str(stories), "--output_dir", str(output)]
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert train(["--config", *CONFIGS, *where, *QUICK, *more]) == 0, err.getvalue()[-3000:]
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


@pytest.mark.parametrize("attention", ["sdpa", "eager", pytest.param("flash_attention_2", marks=needs_flash)])
def test_bfloat16_steps_lower_the_loss_as_float32_does(attention, tiny_base, small_stories, tmp_path):
    whole = train(tiny_base, small_stories, tmp_path / "float32", "--bf16", "false", "--tf32", "false")
    half = train(tiny_base, small_stories, tmp_path / "run", "--bf16", "true", "--attn_implementation", attention)
    assert half == pytest.approx(whole, rel=2e-2)
    saved = torch.load(tmp_path / "run" / "non_lora_trainables.bin", weights_only=True)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_a_checkpoint_trained_on_the_gpu_predicts_there(tiny_base, small_stories, tmp_path):
    from eval.predict.run import main

    train(tiny_base, small_stories, tmp_path / "run", "--bf16", "true")
    words = ["--checkpoint", tmp_path / "run", "--stories", small_stories, "--output-dir", tmp_path / "p"]
    assert main([*map(str, words), "--variant", "imagechain", "--max-new-tokens", "4", "--device", "cuda"]) == 0
    assert len((tmp_path / "p" / "predictions.jsonl").read_text().splitlines()) == 6


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", ["4", "8"])
def test_adapters_train_over_quantized_weights(bits, tiny_base, small_stories, tmp_path):
    losses = train(tiny_base, small_stories, tmp_path / "run", "--bf16", "true", "--bits", bits)
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses)


def test_the_benchmark_runs_in_bfloat16_and_counts_tflops(tiny_base, tmp_path):
    from llava.imagechain.bench.train import main

    status = main([
        "--config-from", str(tiny_base), "--synthetic", "40", "--output-dir", str(tmp_path), "--train-config", *CONFIGS,
        "--warmup", "1", "--steps", "4", "--least-speedup", "0",
        "--set", "per_device_train_batch_size=4", "global_batch_size=4", "lora_r=4", "bf16=true",
    ])  # fmt: skip
    assert status == 0
    found = json.loads((tmp_path / "train.json").read_text())
    assert found["facts"]["weights"] == "bfloat16"
    assert all(row["tflops"] > 0 and row["memory_bytes"] > 0 for row in found["rows"])
    assert "TFLOP/s" in (tmp_path / "train.md").read_text()
