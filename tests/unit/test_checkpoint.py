"""Checkpoints: complete, equal after loading, and never a way to run code."""

import json
import pickle

import pytest
import torch

from llava.imagechain.arguments import ModelArguments
from llava.imagechain.checkpoint import (
    NON_LORA,
    is_complete,
    last_checkpoint,
    load_checkpoint,
    load_named,
    plain_name,
    save_checkpoint,
    trainable_state,
)
from llava.imagechain.decisions import DECISIONS, settle_decisions
from llava.imagechain.parts import prepare_model


@pytest.fixture()
def trained(tiny_llava):
    """A base with adapter and projector moved away from where they start."""
    loaded = load_checkpoint(tiny_llava.full, device="cpu", dtype=torch.float32)
    settle_decisions(loaded.model.config, {"imagechain_last_scene": "last_frame"}, trained=False)
    arguments = ModelArguments(lora_enable=True, lora_r=4, lora_alpha=8, lora_dropout=0.0)
    model = prepare_model(loaded.model, arguments)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), loaded.tokenizer


def logits(model):
    ids = torch.tensor([[1, 30, 40, -200, 50, 60]])
    generator = torch.Generator().manual_seed(2)
    scene = torch.randn(3, 3, 28, 28, generator=generator)
    with torch.no_grad():
        return model(input_ids=ids, images=[[scene]], modalities=["video-seq"])["logits"]


def save(path, trained, base):
    model, tokenizer = trained
    save_checkpoint(path, model, trainable_state(model), tokenizer, base)
    return path


def test_a_saved_adapter_gives_the_same_outputs(tmp_path, trained, tiny_llava):
    expected = logits(trained[0])
    path = save(tmp_path / "run", trained, tiny_llava.full)
    loaded = load_checkpoint(path, device="cpu")
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-4)
    assert loaded.model.config.imagechain_last_scene == "last_frame"
    base = load_checkpoint(tiny_llava.full, device="cpu").model
    settle_decisions(base.config, {"imagechain_last_scene": "last_frame"}, trained=False)
    assert not torch.allclose(logits(base), expected, atol=1e-2)


def test_every_checkpoint_is_complete(tmp_path, trained, tiny_llava):
    path = save(tmp_path / "run", trained, tiny_llava.full)
    names = {file.name for file in path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", NON_LORA, "config.json", "tokenizer.model"} <= names
    config = json.loads((path / "config.json").read_text())
    assert {name: config[name] for name in DECISIONS} == {
        "imagechain_last_scene": "last_frame", "imagechain_pooling": "after_projector",
        "imagechain_scene_aspect": "crop", "imagechain_prompt": "figure3",
    }  # fmt: skip
    assert (path / "tokenizer.model").read_bytes() == (tiny_llava.full / "tokenizer.model").read_bytes()
    projector = torch.load(path / NON_LORA, weights_only=True)
    assert set(projector) == {
        f"base_model.model.model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


def test_who_reads_a_folder_reads_its_weights(tmp_path, trained, tiny_llava):
    from llava.imagechain.saving import new_folder

    readable = (save(tmp_path / "run", trained, tiny_llava.full) / "config.json").stat().st_mode
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_mode == readable
    with new_folder(tmp_path / "whole", overwrite=False) as folder:
        (folder / "model.safetensors").touch(mode=0o600)
    assert (tmp_path / "whole" / "model.safetensors").stat().st_mode == readable


def test_an_adapter_names_a_relative_base_from_its_own_folder(tmp_path, trained, tiny_llava, monkeypatch):
    monkeypatch.chdir(tiny_llava.full.parent)
    path = save(tmp_path / "runs" / "a", trained, "full")
    monkeypatch.chdir(tmp_path)
    expected = logits(trained[0])
    torch.testing.assert_close(logits(load_checkpoint(path, device="cpu").model), expected, rtol=1e-4, atol=1e-4)


def test_a_full_model_is_saved_and_loaded_whole(tmp_path, tiny_llava):
    loaded = load_checkpoint(tiny_llava.full, device="cpu")
    arguments = ModelArguments(lora_enable=False)
    model = prepare_model(loaded.model, arguments)
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    path = save(tmp_path / "run", (model.eval(), loaded.tokenizer), tiny_llava.full)
    torch.testing.assert_close(logits(load_checkpoint(path, device="cpu").model), logits(model))


class Payload:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_file_with_anything_but_tensors_is_refused(tmp_path, trained, tiny_llava, capsys):
    path = save(tmp_path / "run", trained, tiny_llava.full)
    (path / NON_LORA).write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(ValueError, match="is refused"):
        load_checkpoint(path, device="cpu")
    assert "must never run" not in capsys.readouterr().out


def test_missing_pieces_are_named(tmp_path, trained, tiny_llava):
    with pytest.raises(FileNotFoundError, match=r"a model folder with config\.json was wanted"):
        load_checkpoint(tmp_path)
    path = save(tmp_path / "run", trained, tiny_llava.full)
    (path / NON_LORA).unlink()
    with pytest.raises(FileNotFoundError, match="non_lora_trainables"):
        load_checkpoint(path, device="cpu")
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PREFIX_TUNING"}))
    with pytest.raises(ValueError, match="a LoRA adapter was wanted, found 'PREFIX_TUNING'"):
        load_checkpoint(path, device="cpu")


def test_tensors_of_another_name_or_shape_change_nothing(tmp_path):
    model = torch.nn.Module()
    model.lm_head = torch.nn.Linear(2, 2)
    before = model.lm_head.weight.detach().clone()
    with pytest.raises(ValueError, match="does not have: other"):
        load_named(model, {"lm_head.weight": torch.ones(2, 2), "other": torch.ones(1)}, source=tmp_path)
    with pytest.raises(ValueError, match=r"\(3,\), wanted \(2,\)"):
        load_named(model, {"lm_head.weight": torch.ones(2, 2), "lm_head.bias": torch.ones(3)}, source=tmp_path)
    assert torch.equal(model.lm_head.weight, before)


def test_tensors_are_found_under_the_names_of_every_library_version(tiny_llava):
    model = load_checkpoint(tiny_llava.full, device="cpu").model
    stem = "vision_tower.vision_tower.{}embeddings.class_embedding"
    for number, prefix in enumerate(("model.", "base_model.model.model.")):
        for level in ("", "vision_model."):
            value = torch.full((32,), float(2 * number + bool(level)))
            loaded = load_named(model, {prefix + stem.format(level): value}, source="x")
            assert loaded == {"model." + stem.format("vision_model.")}
            tower = model.get_vision_tower().vision_tower.state_dict()
            assert torch.equal(next(t for name, t in tower.items() if name.endswith("class_embedding")), value)


def test_a_trained_tower_is_saved_beside_an_adapter_under_the_names_of_every_version(tmp_path, tiny_llava):
    loaded = load_checkpoint(tiny_llava.full, device="cpu", dtype=torch.float32)
    arguments = ModelArguments(lora_enable=True, lora_r=4, mm_tunable_parts="mm_mlp_adapter,mm_vision_tower")
    path = save(tmp_path / "run", (prepare_model(loaded.model, arguments), loaded.tokenizer), tiny_llava.full)
    names = [name for name in torch.load(path / NON_LORA, weights_only=True) if "vision_tower" in name]
    assert names and all(".vision_tower.vision_tower.vision_model." in name for name in names)
    load_checkpoint(path, device="cpu")


def test_names_lose_what_peft_puts_before_them():
    assert plain_name("base_model.model.model.mm_projector.0.weight") == "model.mm_projector.0.weight"
    assert plain_name("model.mm_projector.0.weight") == "model.mm_projector.0.weight"
    assert plain_name("base_model.model.lm_head.weight") == "lm_head.weight"


def test_the_last_checkpoint_is_the_newest_that_was_written_to_its_end(tmp_path, trained, tiny_llava):
    assert last_checkpoint(tmp_path) is None
    for step in (5, 10, 15):
        save(tmp_path / f"checkpoint-{step}", trained, tiny_llava.full)
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-15" / "trainer_state.json").write_text('{"cut')
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / NON_LORA).unlink()
    assert not is_complete(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
