"""Training on from an adapter: what it starts from, what it leaves, what it refuses."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location("helpers_test_train", Path(__file__).with_name("test_train.py"))
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
run, tensors = helpers.run, helpers.tensors

STILL = ("--learning_rate", "1e-30", "--max_steps", "1")  # a step that changes nothing
C3 = ("--context", "c3", "--max_steps", "2")


@pytest.fixture(scope="module")
def adapter(tiny_base, small_stories, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapter") / "run"
    run(tiny_base, small_stories, output, "--max_steps", "3")
    return output


def test_training_goes_on_from_the_adapters_weights(adapter, small_stories, tmp_path):
    run(adapter, small_stories, tmp_path / "on", *STILL)
    before, after = tensors(adapter), tensors(tmp_path / "on")
    assert set(before) == set(after)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-12)


def test_what_it_leaves_is_an_adapter_of_the_same_base(adapter, tiny_base, small_stories, tmp_path):
    from llava.imagechain.checkpoint import load_checkpoint

    run(adapter, small_stories, tmp_path / "on", *C3)
    settings = json.loads((tmp_path / "on" / "adapter_config.json").read_text())
    assert Path(settings["base_model_name_or_path"]).resolve() == Path(tiny_base).resolve()
    before, after = (load_checkpoint(folder, device="cpu").model for folder in (adapter, tmp_path / "on"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before.get_parameter(name), after.get_parameter(name))


def test_a_run_of_another_adapter_is_not_gone_on_with(adapter, tiny_base, small_stories, tmp_path):
    run(adapter, small_stories, tmp_path / "on", *C3)
    done = run(adapter, small_stories, tmp_path / "on", *C3)
    assert "is trained already" in done.stderr
    refused = run(tiny_base, small_stories, tmp_path / "on", *C3, status=2)
    assert "the adapter to start from has changed" in refused.stderr


def test_settings_that_the_adapter_does_not_have_are_refused(adapter, small_stories, tmp_path):
    given = ("--lora_r", "8", "--mm_tunable_parts", "mm_language_model")
    done = run(adapter, small_stories, tmp_path / "on", *given, status=2)
    assert "lora_r: 8, but the adapter was made with 4" in done.stderr
    assert "projector: trained with the adapter, but would be frozen now" in done.stderr
    done = run(adapter, small_stories, tmp_path / "on", "--lora_enable", "false", status=2)
    assert "scripts/merge_lora.sh" in done.stderr
    assert not (tmp_path / "on").exists()


def test_an_adapter_whose_base_is_gone_is_refused(adapter, small_stories, tmp_path):
    lost = shutil.copytree(adapter, tmp_path / "lost")
    settings = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "gone"}))
    done = run(lost, small_stories, tmp_path / "on", status=2)
    assert "the base model of" in done.stderr
    assert "scripts/merge_lora.sh" in done.stderr


def test_an_adapter_whose_settings_are_a_list_is_refused(adapter, small_stories, tmp_path):
    damaged = shutil.copytree(adapter, tmp_path / "damaged")
    (damaged / "adapter_config.json").write_text("[]")
    done = run(damaged, small_stories, tmp_path / "on", status=2)
    assert "adapter_config.json: settings were wanted, found a list" in done.stderr


def test_a_plan_of_an_adapter_needs_no_weights(adapter, small_stories, tmp_path):
    done = run(adapter, small_stories, tmp_path / "on", "--dry_run", *C3)
    assert f"model: {adapter}" in done.stdout
    assert not (tmp_path / "on").exists()
