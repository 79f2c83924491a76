"""What is checked before vLLM is started, and the folder that it is given; none of it needs vLLM."""

import importlib.util
import json
from pathlib import Path

import pytest

from eval.predict.job import PredictConfig, prepare
from eval.predict.run import load_model, main, make_examples
from eval.predict.vllm_backend import exported_folder, find_problems, make_prompts
from llava.imagechain.config import ConfigError

spec = importlib.util.spec_from_file_location("helpers_test_predict", Path(__file__).with_name("test_predict.py"))
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return helpers.write_stories(tmp_path_factory.mktemp("stories") / "storyframes")


@pytest.fixture()
def vllm_is_there(monkeypatch):
    monkeypatch.setattr("eval.predict.vllm_backend.vllm_is_installed", lambda: True)


def job_of(model, stories, output, **settings):
    return prepare(PredictConfig(
        checkpoint=model, stories=stories, output_dir=output, variant="imagechain_noft", backend="vllm", device="cpu",
        max_new_tokens=4, **settings,
    ))  # fmt: skip


def test_a_missing_vllm_is_said_before_anything_is_loaded(tiny_llava, stories, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("eval.predict.vllm_backend.vllm_is_installed", lambda: False)
    words = [
        "--checkpoint",
        tiny_llava.full,
        "--variant",
        "mllm",
        "--stories",
        stories,
        "--output-dir",
        tmp_path / "out",
    ]
    assert main([str(word) for word in [*words, "--backend", "vllm"]]) == 2
    assert "vllm is not installed; pip install '.[vllm]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_that_the_class_cannot_hold_are_refused_but_tiles_are_not(copy_of_tiny_llava, vllm_is_there):
    file = copy_of_tiny_llava.full / "config.json"
    settings = json.loads(file.read_text())
    assert settings["image_aspect_ratio"] == "anyres" and find_problems(copy_of_tiny_llava.full) == []
    file.write_text(json.dumps({**settings, "model_type": "llava_qwen"}))
    assert "the language model is 'llava_qwen', not Llama" in find_problems(copy_of_tiny_llava.full)[0]


def test_a_checkpoint_is_exported_once_and_again_when_it_changes(copy_of_tiny_llava, stories, tmp_path, vllm_is_there):
    model = copy_of_tiny_llava.full
    folder = exported_folder(job_of(model, stories, tmp_path / "a"), "float32")
    assert folder == model.parent / "full.hf-float32"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    written = (folder / "model.safetensors").stat().st_ino
    assert exported_folder(job_of(model, stories, tmp_path / "a"), "float32") == folder
    assert (folder / "model.safetensors").stat().st_ino == written

    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    exported_folder(job_of(model, stories, tmp_path / "b"), "float32")
    assert (folder / "model.safetensors").stat().st_ino != written


def test_a_folder_of_something_else_is_left_alone(tiny_llava, stories, tmp_path, vllm_is_there):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="give another --engine-dir"):
        exported_folder(job_of(tiny_llava.full, stories, tmp_path / "out", engine_dir=tmp_path / "mine"), "float32")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_prompt_has_one_image_id_and_one_block_of_tokens_a_scene(tiny_llava, stories, tmp_path, vllm_is_there):
    import torch

    from llava.constants import IMAGE_TOKEN_INDEX

    job = job_of(tiny_llava.full, stories, tmp_path)
    loaded = load_model(job)
    examples = make_examples(job, loaded)
    batch = [examples[number] for number in (0, 4, 8)]  # stories of 2, 3 and 5 scenes
    prompts = make_prompts(loaded.model, batch, 479)
    for example, prompt in zip(batch, prompts, strict=True):
        ids, scenes = prompt["prompt_token_ids"], prompt["multi_modal_data"]["image"]
        assert [-200 if token == 479 else token for token in ids] == example["input_ids"].tolist()
        assert ids.count(479) == len(scenes) == (example["input_ids"] == IMAGE_TOKEN_INDEX).sum()
        _, _, _, _, wanted, _ = loaded.model.prepare_inputs_labels_for_multimodal(
            example["input_ids"][None], None, None, None, None, [[torch.stack(s.pixels) for s in example["images"]]],
            ["video-seq"], always_embed=True,
        )  # fmt: skip
        rows = loaded.model.get_model().embed_tokens(torch.tensor(ids))
        found = torch.cat([
            scenes[ids[:place].count(479)] if token == 479 else rows[place][None] for place, token in enumerate(ids)
        ])  # fmt: skip
        torch.testing.assert_close(found, wanted[0], atol=1e-5, rtol=1e-5)
