"""Saved model folders have tensor names that every library version reads, however the model was made."""

import json

import pytest
import torch
from safetensors.torch import load_file

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

NAME = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"


@pytest.mark.parametrize("source", ["full", "notower", "nothing"])
def test_vision_tensors_keep_their_level(tiny_llava, tmp_path, source):
    if source == "nothing":
        model = LlavaLlamaForCausalLM(LlavaConfig.from_pretrained(tiny_llava.full))
    else:
        model = LlavaLlamaForCausalLM.from_pretrained(tiny_llava.root / source)
    model.save_pretrained(tmp_path / "saved")
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == set(
        load_file(tiny_llava.full / "model.safetensors")
    )
    again = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "saved")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_given_state_is_written_in_shards(tiny_llava, tmp_path):
    model = LlavaLlamaForCausalLM.from_pretrained(tiny_llava.notower)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", state_dict=state, max_shard_size="100KB")
    weight_map = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) > 1
    written = load_file(tmp_path / "saved" / weight_map[NAME])[NAME]
    wanted = load_file(tiny_llava.tower / "model.safetensors")["vision_model.embeddings.class_embedding"]
    assert torch.equal(written, wanted + 1)


def test_a_tower_saved_alone_has_the_names_and_settings_of_every_version(tiny_llava, tmp_path):
    from transformers import CLIPVisionModel

    from llava.imagechain.saving import save_tower

    model = CLIPVisionModel.from_pretrained(tiny_llava.tower)
    save_tower(model, tmp_path)
    written, wanted = load_file(tmp_path / "model.safetensors"), load_file(tiny_llava.tower / "model.safetensors")
    assert written.keys() == wanted.keys() and all(torch.equal(written[name], wanted[name]) for name in wanted)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "clip_vision_model" and config["dtype"] == config["torch_dtype"] == "float32"
    _, info = CLIPVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
