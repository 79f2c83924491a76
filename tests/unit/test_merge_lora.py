"""Merging an adapter: the same outputs in one folder, or no folder."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava.imagechain import export_hf, merge_lora, saving
from llava.imagechain.checkpoint import load_checkpoint
from llava.imagechain.decisions import DECISIONS
from llava.imagechain.files import sha256_model

ROOT = Path(__file__).resolve().parents[2]


def add_run(family):
    """Give the LoRA folder what a training run leaves there."""
    config = json.loads((family.lora / "config.json").read_text())
    decided = {"imagechain_last_scene": "last_frame", **{n: v[0] for n, v in DECISIONS.items() if "last" not in n}}
    (family.lora / "config.json").write_text(json.dumps({**config, **decided}))
    (family.lora / "run.json").write_text(json.dumps({"config": {"variant": "imagechain", "context": "c2_7"}}))
    return decided


def logits(folder):
    model = load_checkpoint(folder, device="cpu", dtype=torch.float32).model
    scene = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ids = torch.tensor([[1, 30, 40, -200, 50, 60]])
        return model(input_ids=ids, images=[[scene]], modalities=["video-seq"]).logits


def test_the_merged_folder_stands_alone(copy_of_tiny_llava, tmp_path, capsys):
    decided = add_run(copy_of_tiny_llava)
    output = tmp_path / "deeper" / "merged"
    assert merge_lora.main(["--checkpoint", str(copy_of_tiny_llava.lora), "--output-dir", str(output)]) == 0
    torch.testing.assert_close(logits(output), logits(copy_of_tiny_llava.lora), rtol=1e-4, atol=1e-4)
    config = json.loads((output / "config.json").read_text())
    assert {name: config[name] for name in DECISIONS} == decided
    assert config["mm_vision_tower"] == "../../family/tower" and config["architectures"] == ["LlavaLlamaForCausalLM"]
    assert (output / "tokenizer.model").read_bytes() == (copy_of_tiny_llava.lora / "tokenizer.model").read_bytes()
    assert json.loads((output / "run.json").read_text())["config"]["variant"] == "imagechain"
    manifest = json.loads((output / "merge.json").read_text())
    assert manifest["status"] == "success" and manifest["logits_relative_difference"] < 1e-4
    assert not list(output.glob("adapter_*")) and len(list(output.parent.iterdir())) == 1


def test_a_folder_without_vision_weights_gets_the_tower_s(copy_of_tiny_llava, tmp_path):
    from safetensors.torch import load_file

    assert merge_lora.main(["--checkpoint", str(copy_of_tiny_llava.lora), "--output-dir", str(tmp_path / "m")]) == 0
    merged, tower = (load_file(f / "model.safetensors") for f in (tmp_path / "m", copy_of_tiny_llava.tower))
    name = "vision_model.embeddings.class_embedding"
    assert torch.equal(merged[f"model.vision_tower.vision_tower.{name}"], tower[name])


def test_logits_that_differ_leave_nothing_behind(copy_of_tiny_llava, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saving, "relative_difference", lambda found, wanted: float("inf"))
    arguments = ["--checkpoint", str(copy_of_tiny_llava.lora), "--output-dir", str(tmp_path / "new" / "m")]
    assert merge_lora.main(arguments) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


def test_a_missing_base_is_named(copy_of_tiny_llava, tmp_path, capsys):
    copy_of_tiny_llava.plain.rename(tmp_path / "elsewhere")
    arguments = ["--checkpoint", str(copy_of_tiny_llava.lora), "--output-dir", str(tmp_path / "m")]
    assert merge_lora.main(arguments) == 2
    error = capsys.readouterr().err
    assert "the base model of" in error and "plain" in error and "--base" in error
    assert merge_lora.main([*arguments, "--base", str(tmp_path / "elsewhere")]) == 0


def test_another_base_of_the_same_shapes_is_refused_and_told_where_it_is_loaded(
    copy_of_tiny_llava, tmp_path, capsys, caplog
):
    from safetensors.torch import load_file, save_file

    add_run(copy_of_tiny_llava)
    lora, base, other = copy_of_tiny_llava.lora, copy_of_tiny_llava.plain, tmp_path / "other"
    (lora / "run.json").write_text(json.dumps({"made_from": {"model_sha256": sha256_model(base)}}))
    weights = shutil.copytree(base, other) / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    for command in (merge_lora, export_hf):
        arguments = ["--checkpoint", str(lora), "--output-dir", str(tmp_path / "out"), "--dry-run", "--base"]
        assert command.main([*arguments, str(other)]) == 2
        error = capsys.readouterr().err
        assert "other is not the base that" in error and sha256_model(base)[:12] in error and "--other-base" in error
        assert command.main([*arguments, str(other), "--other-base"]) == command.main([*arguments, str(base)]) == 0
    for folder, told in ((base, False), (other, True)):
        caplog.clear()
        load_checkpoint(lora, base=folder, device="cpu")
        assert ("is not the base that" in caplog.text) is told


@pytest.mark.parametrize(
    ("checkpoint", "output", "message"),
    [
        ("full", "new", "is no LoRA folder"),
        ("lora", "plain", "is or holds the base's folder"),
        ("lora", "lora", "is or holds the checkpoint's folder"),
        ("lora", "full", "exists; --overwrite"),
    ],
)
def test_wrong_folders_are_refused_and_left_alone(copy_of_tiny_llava, capsys, checkpoint, output, message):
    root = copy_of_tiny_llava.root
    before = sorted(root.rglob("*"))
    arguments = ["--checkpoint", str(root / checkpoint), "--output-dir", str(root / output)]
    assert merge_lora.main(arguments) == 2
    assert message in capsys.readouterr().err and sorted(root.rglob("*")) == before


def test_a_folder_is_replaced_when_told_to(copy_of_tiny_llava, tmp_path):
    output = tmp_path / "m"
    output.mkdir()
    (output / "old.txt").write_text("old")
    arguments = ["--checkpoint", str(copy_of_tiny_llava.lora), "--output-dir", str(output)]
    assert merge_lora.main(arguments) == 2 and (output / "old.txt").exists()
    assert merge_lora.main([*arguments, "--overwrite"]) == 0
    assert not (output / "old.txt").exists() and (output / "model.safetensors").is_file()


def test_the_script_hands_flags_on(copy_of_tiny_llava, tmp_path):
    command = ["bash", str(ROOT / "scripts" / "merge_lora.sh"), str(copy_of_tiny_llava.lora), "out"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "BASE": str(copy_of_tiny_llava.plain)}
    shown = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env=environment, check=True).stdout
    words = shlex.split(shown)
    assert words[words.index("--base") + 1] == str(copy_of_tiny_llava.plain) and "llava.imagechain.merge_lora" in words
    done = subprocess.run([*command, "--", "--dry-run"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and "in float32 on cpu -> out" in done.stdout and not (tmp_path / "out").exists()
    assert subprocess.run(command[:3], capture_output=True, env=environment).returncode == 2
