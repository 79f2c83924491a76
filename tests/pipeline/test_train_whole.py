"""Training without an adapter: the whole model is saved, and a run goes on from its checkpoint."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def train(base, stories, output):
    configs = [str(ROOT / "configs" / "train" / f"{name}.yaml") for name in ("base", "imagechain", "c2_7")]
    command = [
        sys.executable, "-m", "llava.train.train", "--config", *configs, "--model_name_or_path", str(base),
        "--stories", str(stories), "--output_dir", str(output), "--bf16", "false", "--lora_enable", "false",
        "--mm_tunable_parts", "mm_mlp_adapter,mm_vision_tower,mm_language_model", "--learning_rate", "1e-3",
        "--global_batch_size", "4", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0",
        "--eval_strategy", "no", "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_two_steps_and_two_more_equal_four(tiny_base, small_stories, tmp_path):
    output = tmp_path / "run"
    train(tiny_base, small_stories, output)
    straight = load_file(output / "model.safetensors")
    assert any("vision_tower.vision_tower.vision_model." in name for name in straight)
    shutil.rmtree(output / "checkpoint-4")
    (output / "model.safetensors").unlink()
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**record, "status": "started"}))
    assert "going on from" in train(tiny_base, small_stories, output)
    resumed = load_file(output / "model.safetensors")
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
