"""What is written so that older library versions can read it."""

import json

import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

SCALING = {"rope_type": "linear", "factor": 2.0}


def frequencies(config):
    return LlavaLlamaForCausalLM(config).model.rotary_emb.inv_freq.tolist()


@pytest.fixture()
def scaled(copy_of_tiny_llava):
    """A config.json as transformers 4 writes it, with a base and a scaling of its own."""
    file = copy_of_tiny_llava.full / "config.json"
    old = json.loads(file.read_text())
    file.write_text(json.dumps({**old, "rope_theta": 5_000_000.0, "rope_scaling": SCALING}))
    return LlavaConfig.from_pretrained(copy_of_tiny_llava.full)


def test_a_saved_config_has_the_names_of_transformers_4(scaled, tmp_path):
    LlavaLlamaForCausalLM(scaled).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 5_000_000.0 and written["torch_dtype"] == "float32"
    assert {name: written["rope_scaling"][name] for name in SCALING} == SCALING


def test_rotary_settings_survive_saving_and_loading(scaled, tiny_llava, tmp_path):
    scaled.save_pretrained(tmp_path)
    again = frequencies(LlavaConfig.from_pretrained(tmp_path))
    assert again == frequencies(scaled)
    plain = frequencies(LlavaConfig.from_pretrained(tiny_llava.full))
    assert again[0] == pytest.approx(plain[0] / 2) and again[-1] < plain[-1] / 2


def test_an_adapters_config_names_no_settings_that_are_at_their_default(tmp_path):
    from peft import LoraConfig

    from llava.imagechain.checkpoint import ADAPTER_CONFIG, _drop_default_settings

    LoraConfig(r=4, target_modules="x", use_rslora=True).save_pretrained(str(tmp_path))
    _drop_default_settings(tmp_path / ADAPTER_CONFIG)
    kept = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert {"r": 4, "target_modules": "x", "use_rslora": True, "peft_type": "LORA"}.items() <= kept.items()
    assert not {"peft_version", "use_dora", "corda_config"} & set(kept)
    assert LoraConfig.from_pretrained(str(tmp_path)).use_rslora


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu", 0)])
def test_a_model_loads_on_the_cpu_under_any_of_its_names(tiny_llava, device):
    _, model, _, _ = load_pretrained_model(
        str(tiny_llava.full), None, "llava", device_map=device, torch_dtype="float32"
    )
    assert model.device.type == "cpu"


def test_a_config_is_shown_without_a_warning_of_the_library(tiny_llava, monkeypatch):
    from transformers import configuration_utils

    from llava.model.language_model.llava_llama import LlavaConfig

    told = []
    config = LlavaConfig.from_pretrained(tiny_llava.full)
    monkeypatch.setattr(configuration_utils.logger, "warning_once", lambda *words, **_: told.append(words))
    assert '"torch_dtype": "float32"' in str(config) and not told
