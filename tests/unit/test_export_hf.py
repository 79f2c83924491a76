"""Export to the library's own LLaVA class: same logits, same ids, same pixels, or no folder."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from llava.imagechain import export_hf, hf_model
from llava.imagechain.checkpoint import load_checkpoint
from llava.imagechain.decisions import DECISIONS
from llava.imagechain.hf_prompt import ANSWERS, sample_ids, sample_messages
from llava.imagechain.vision import process_scene_frames

ROOT = Path(__file__).resolve().parents[2]


def set_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def trained_copy(family, path, **values):
    """Copy the whole model under another name, as if it had been trained on sequences."""
    shutil.copytree(family.full, family.root / path)
    set_config(family.root / path, **{name: values[0] for name, values in DECISIONS.items()}, **values)
    return family.root / path


@pytest.fixture(scope="module")
def family(tmp_path_factory, tiny_llava):
    root = tmp_path_factory.mktemp("export") / "family"
    shutil.copytree(tiny_llava.root, root)
    return type(tiny_llava)(root)


@pytest.fixture(scope="module")
def exported(family):
    """The trained model and its export."""
    source, output = trained_copy(family, "trained"), family.root / "exported"
    assert export_hf.main(["--checkpoint", str(source), "--output-dir", str(output)]) == 0
    return source, output


def test_a_story_gives_the_same_logits_through_processor_and_chat_template(exported):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    source, output = exported
    processor, model = AutoProcessor.from_pretrained(output), LlavaForConditionalGeneration.from_pretrained(output)
    noise = torch.randint(0, 256, (3, 40, 70, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    images = [Image.fromarray(image.numpy()) for image in noise]
    prompt = processor.apply_chat_template(sample_messages("figure3"), add_generation_prompt=True)
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**inputs).logits

    loaded = load_checkpoint(source, device="cpu", dtype=torch.float32)
    ids = sample_ids("figure3", loaded.tokenizer, "vicuna_v1").input_ids
    scenes = [process_scene_frames([image], loaded.image_processor) for image in images]
    with torch.no_grad():
        wanted = loaded.model(input_ids=torch.tensor([ids]), images=[scenes], modalities=["video-seq"]).logits
    assert prompt.count("<image>") == 3 and all(answer in prompt for answer in ANSWERS)
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, rtol=1e-4, atol=1e-4)


def test_the_folder_says_what_it_is(exported):
    _, output = exported
    card, config = (output / "README.md").read_text(), json.loads((output / "config.json").read_text())
    assert (
        "pipeline_tag: image-text-to-text" in card and "ONE square image (crop)" in card and "{" + "title}" not in card
    )
    assert "Opens in transformers 4.45 and newer" in card
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["torch_dtype"] == "float32"
    assert config["text_config"]["rope_theta"] == 10000.0 and config["vision_feature_layer"] == -2
    manifest = json.loads((output / "export.json").read_text())
    assert manifest["ids_equal"] and manifest["logits_relative_difference"] < 1e-5
    assert manifest["image_token_id"] == config["image_token_index"]


@pytest.mark.skipif(not hasattr(transformers, "LlavaImageProcessor"), reason="this transformers cannot pad")
@pytest.mark.parametrize("prompt", ["figure3", "template"])
def test_padded_frames_and_both_prompts_are_exported(family, tmp_path, prompt):
    source = trained_copy(family, f"pad-{prompt}")
    set_config(source, imagechain_scene_aspect="pad", imagechain_prompt=prompt)
    assert export_hf.main(["--checkpoint", str(source), "--output-dir", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "export.json").read_text())
    assert manifest["aspect"] == "pad" and manifest["prompt_format"] == prompt and manifest["ids_equal"]


def test_an_adapter_is_exported_merged(family, tmp_path):
    set_config(family.lora, **{name: values[0] for name, values in DECISIONS.items()})
    assert export_hf.main(["--checkpoint", str(family.lora), "--output-dir", str(tmp_path / "out")]) == 0


def test_a_head_tied_to_the_embedding_is_exported(family, tmp_path):
    from safetensors.torch import load_file, save_file

    source = trained_copy(family, "tied", tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert export_hf.main(["--checkpoint", str(source), "--output-dir", str(tmp_path / "out")]) == 0


def test_new_words_get_rows_that_are_never_the_likeliest():
    table = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    longer = hf_model.with_rows(table, 12)
    assert torch.equal(longer[:7], table) and hf_model.with_rows(table, 5) is table
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) @ longer.T
    assert int(logits.argmax(-1).max()) < 7


def test_names_follow_the_hub():
    assert hf_model.hub_name("model.image_newline") is None
    assert hf_model.hub_name("lm_head.weight") == "language_model.lm_head.weight"
    assert hf_model.hub_name("model.mm_projector.2.bias") == "multi_modal_projector.linear_2.bias"
    for name in ("post_layernorm.bias", "vision_model.post_layernorm.bias"):
        wanted = "vision_tower.vision_model.post_layernorm.bias"
        assert hf_model.hub_name(f"model.vision_tower.vision_tower.{name}") == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"imagechain_scene_aspect": None}, "images are cut into tiles"),
        ({"mm_projector_type": "linear"}, "the projector is 'linear'"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type is set"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is set"),
        ({"model_type": "llava_qwen"}, "not Llama"),
    ],
)
def test_what_the_class_cannot_do_is_refused_before_weights(family, tmp_path, capsys, values, message):
    source = trained_copy(family, f"odd-{'-'.join(values)}")
    set_config(source, **values)
    (source / "model.safetensors").unlink()
    assert export_hf.main(["--checkpoint", str(source), "--output-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_logits_that_differ_leave_nothing_behind(exported, tmp_path, capsys, monkeypatch):
    original, swapped = hf_model.hub_name, {"q_proj": "k_proj", "k_proj": "q_proj"}

    def wrong(name):
        return re.sub(r"[qk]_proj", lambda found: swapped[found[0]], original(name) or "") or None

    monkeypatch.setattr(hf_model, "hub_name", wrong)
    assert export_hf.main(["--checkpoint", str(exported[0]), "--output-dir", str(tmp_path / "out")]) == 2
    assert "differ from the checkpoint's" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_pushing_is_private_and_needs_a_login(exported, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    arguments = ["--checkpoint", str(exported[0]), "--output-dir", str(tmp_path / "out"), "--push-to", "me/story"]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert export_hf.main(arguments) == 2 and "nobody is logged in" in capsys.readouterr().err
    calls = []

    class Api:
        def create_repo(self, repository, **options):
            calls.append((repository, options))
            return f"https://hub/{repository}"

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "mine")
    assert export_hf.main(arguments) == 0 and calls[1]["repo_id"] == "me/story"
    assert "# story\n" in (Path(calls[1]["folder_path"]) / "README.md").read_text()
    calls.clear()
    assert export_hf.push(exported[1], "me/story", public=False) == "https://hub/me/story"
    assert calls[0] == ("me/story", {"private": True, "exist_ok": True})
    assert calls[1]["folder_path"] == str(exported[1]) and calls[1]["ignore_patterns"] == ["export.json"]


def test_the_script_shows_its_command(tmp_path):
    command = ["bash", str(ROOT / "scripts" / "export_hf.sh"), "--dry-run", "a", "b", "--", "--push-to", "me/story"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert "llava.imagechain.export_hf --checkpoint a --output-dir b --push-to me/story" in shown
