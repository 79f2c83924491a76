"""`python -m stories.world.base` gives an ordinary LLaVA checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava.imagechain.checkpoint import load_checkpoint

TINY = [
    "--num-frames", "32", "--tower-steps", "2", "--tower-batch-size", "8", "--steps", "2", "--batch-size", "4",
    "--layers", "2", "--vision-layers", "2", "--hidden-size", "64", "--vision-hidden-size", "32", "--no-bf16",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "base"
    subprocess.run([sys.executable, "-m", "stories.world.base", "--output-dir", str(folder), *TINY], check=True)
    return folder


def test_base_is_a_whole_llava_folder(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    assert config["model_type"] == "llava_llama" and config["mm_vision_tower"] == "vision_tower"
    assert config["hidden_size"] // config["num_attention_heads"] == 32
    for name in ("model.safetensors", "tokenizer.model", "tokenizer_config.json", "preprocessor_config.json"):
        assert (base / name).is_file(), name
    assert (base / "vision_tower" / "model.safetensors").is_file()
    assert not list(base.glob("*.state.pt"))
    manifest = json.loads((base / "run.json").read_text())
    assert manifest["status"] == "success" and 0 <= manifest["exact_named"] <= 1


def test_base_loads_with_its_vision_weights_and_still_does_when_moved(base: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(base, device="cpu", dtype=torch.float32)
    moved = tmp_path / "elsewhere"
    base.rename(moved)
    try:
        again = load_checkpoint(moved, device="cpu", dtype=torch.float32)
    finally:
        moved.rename(base)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = loaded.model.get_vision_tower()(pixels)
    assert features.shape == (2, 16, 32)
    assert torch.equal(features, again.model.get_vision_tower()(pixels))
    assert again.context_length == 4096


def test_a_finished_base_is_kept_and_other_settings_are_refused(base: Path) -> None:
    before = (base / "model.safetensors").stat().st_mtime_ns
    command = [sys.executable, "-m", "stories.world.base", "--output-dir", str(base), *TINY]
    subprocess.run(command, check=True)
    assert (base / "model.safetensors").stat().st_mtime_ns == before
    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, check=False)
    assert other.returncode == 2 and "seed was 0, is 1" in other.stderr
