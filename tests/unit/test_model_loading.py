"""Every kind of checkpoint loads right, and what is missing or harmful is refused."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

FRAMES = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(5))


def load(folder, base=None, name="llava_llama", **settings):
    settings = {"device_map": "cpu", "torch_dtype": "float32", "attn_implementation": "sdpa", **settings}
    return load_pretrained_model(str(folder), base and str(base), name, **settings)


def tower_tensor(model):
    state = model.get_vision_tower().vision_tower.state_dict()
    return next(value for name, value in state.items() if name.endswith("class_embedding"))


def file_tensor(folder, ending):
    return next(value for name, value in load_file(folder / "model.safetensors").items() if name.endswith(ending))


@pytest.mark.parametrize(
    ("kind", "base", "tower_from"),
    [("full", None, "full"), ("notower", None, "tower"), ("lora", "plain", "tower"), ("projector", "plain", "tower")],
)
def test_every_kind_of_checkpoint_loads_with_the_right_weights(tiny_llava, kind, base, tower_from):
    tokenizer, model, processor, length = load(tiny_llava.root / kind, base and tiny_llava.root / base)
    assert torch.equal(tower_tensor(model), file_tensor(tiny_llava.root / tower_from, "class_embedding"))
    full = load_file(tiny_llava.full / "model.safetensors")
    own = model.state_dict()
    for name in ("model.mm_projector.0.weight", "model.mm_projector.2.bias", "model.image_newline", "lm_head.weight"):
        assert torch.equal(own[name], full[name]), name
    assert length == 4096 and processor.crop_size["height"] == 28 and tokenizer("a").input_ids
    assert model.get_vision_tower().is_loaded and not model.training
    assert torch.isfinite(model.encode_images(FRAMES)).all()


@pytest.mark.parametrize(("kind", "base"), [("notower", None), ("projector", "plain"), ("lora", "plain")])
def test_only_the_language_model_is_quantized(tiny_llava, kind, base):
    pytest.importorskip("bitsandbytes")
    _, model, _, _ = load(tiny_llava.root / kind, base and tiny_llava.root / base, load_4bit=True)
    body = model.get_model()
    assert type(body.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert not any("4bit" in type(m).__name__ for m in (*body.vision_tower.modules(), *body.mm_projector.modules()))
    assert torch.equal(tower_tensor(model), file_tensor(tiny_llava.tower, "class_embedding"))
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([[1, 40, -200]]), images=[FRAMES[0]]).logits).all()


def test_a_name_on_the_hub_is_fetched_and_checked_like_a_folder(copy_of_tiny_llava, monkeypatch):
    import huggingface_hub

    hub = {"someone/llava-lora": copy_of_tiny_llava.lora, "someone/vicuna": copy_of_tiny_llava.plain}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(hub[name]))
    _, model, _, _ = load("someone/llava-lora", "someone/vicuna", name="llava-lora")
    _, wanted, _, _ = load(copy_of_tiny_llava.lora)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True))
    (copy_of_tiny_llava.plain / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match="is damaged"):
        load("someone/llava-lora", "someone/vicuna", name="llava-lora")


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_an_error():
    with pytest.raises(FileNotFoundError, match="'no/such-llava' is neither a folder nor to be had"):
        load("no/such-llava")


def test_an_adapter_is_added_to_its_base(tiny_llava):
    _, model, _, _ = load(tiny_llava.lora)  # its base is named in adapter_config.json, relative to its folder
    base = load_file(tiny_llava.full / "model.safetensors")
    lora = load_file(tiny_llava.lora / "adapter_model.safetensors")
    stem = "model.layers.1.mlp.down_proj"
    change = lora[f"base_model.model.{stem}.lora_B.weight"] @ lora[f"base_model.model.{stem}.lora_A.weight"] * (8 / 4)
    torch.testing.assert_close(model.state_dict()[f"{stem}.weight"], base[f"{stem}.weight"] + change)
    assert torch.equal(
        model.state_dict()["model.layers.1.mlp.up_proj.weight"], base["model.layers.1.mlp.up_proj.weight"]
    )


def test_the_class_loader_fills_the_tower_too(tiny_llava):
    model = LlavaLlamaForCausalLM.from_pretrained(tiny_llava.notower)
    assert torch.equal(tower_tensor(model), file_tensor(tiny_llava.tower, "class_embedding"))


def test_loading_in_bfloat16_brings_every_part_to_it(tiny_llava):
    _, model, _, _ = load(tiny_llava.notower, torch_dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ids = torch.tensor([[1, 40, -200, 41]])
    assert torch.isfinite(model(input_ids=ids, images=[FRAMES[0]]).logits).all()


def test_a_family_of_folders_can_be_moved(copy_of_tiny_llava, tmp_path):
    moved = copy_of_tiny_llava.root.rename(tmp_path / "elsewhere")
    _, model, _, _ = load(moved / "notower")
    assert torch.equal(tower_tensor(model), file_tensor(moved / "tower", "class_embedding"))


def test_a_saved_folder_still_finds_its_tower_and_keeps_its_numbers(copy_of_tiny_llava, tmp_path):
    _, model, _, _ = load(copy_of_tiny_llava.full)
    saved = tmp_path / "deeper" / "saved"
    model.save_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    assert config["mm_vision_tower"] == "../../family/tower" and "checkpoint_dir" not in config
    names = load_file(saved / "model.safetensors")
    assert "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding" in names
    again = LlavaLlamaForCausalLM.from_pretrained(saved).eval()
    ids = torch.tensor([[1, 40, -200, 41]])
    torch.testing.assert_close(
        again(input_ids=ids, images=[FRAMES[0]]).logits, model(input_ids=ids, images=[FRAMES[0]]).logits
    )


def without(folder, *endings):
    tensors = load_file(folder / "model.safetensors")
    left = {name: value for name, value in tensors.items() if not name.endswith(endings)}
    assert len(left) < len(tensors)
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})


def test_vision_weights_that_nobody_has_are_named(copy_of_tiny_llava):
    without(copy_of_tiny_llava.tower, "layers.1.mlp.fc1.weight")
    with pytest.raises(ValueError, match=r"encoder\.layers\.1\.mlp\.fc1\.weight"):
        load(copy_of_tiny_llava.notower)
    assert load(copy_of_tiny_llava.full)[1] is not None


def test_a_tower_folder_without_weights_is_an_error(copy_of_tiny_llava):
    (copy_of_tiny_llava.tower / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load(copy_of_tiny_llava.notower)


def test_a_missing_tower_folder_is_an_error_that_names_it(copy_of_tiny_llava):
    copy_of_tiny_llava.tower.rename(copy_of_tiny_llava.root / "gone")
    with pytest.raises(ValueError, match=r"mm_vision_tower '\.\./tower'"):
        load(copy_of_tiny_llava.full)


def test_missing_projector_weights_are_named(copy_of_tiny_llava):
    without(copy_of_tiny_llava.full, "mm_projector.2.bias", "image_newline")
    with pytest.raises(ValueError, match=r"model\.image_newline, model\.mm_projector\.2\.bias"):
        load(copy_of_tiny_llava.full)


def test_a_lora_folder_that_lost_its_projector_is_an_error(copy_of_tiny_llava):
    (copy_of_tiny_llava.lora / "non_lora_trainables.bin").unlink()
    with pytest.raises(FileNotFoundError, match="non_lora_trainables"):
        load(copy_of_tiny_llava.lora)


def test_an_adapter_without_its_base_is_an_error(copy_of_tiny_llava):
    copy_of_tiny_llava.plain.rename(copy_of_tiny_llava.root / "gone")
    with pytest.raises(FileNotFoundError, match=r"base model '\.\./plain'"):
        load(copy_of_tiny_llava.lora)


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("content", [{"model.image_newline": Harmful()}, {"a": 1}, [torch.zeros(1)]])
def test_a_bin_file_with_anything_but_tensors_is_refused(copy_of_tiny_llava, content, capsys):
    torch.save(content, copy_of_tiny_llava.projector / "mm_projector.bin", pickle_module=pickle)
    with pytest.raises(ValueError, match="refused"):
        load(copy_of_tiny_llava.projector, copy_of_tiny_llava.plain)
    assert "never run" not in capsys.readouterr().out


def test_a_tensor_the_model_does_not_have_is_an_error(copy_of_tiny_llava):
    torch.save({"model.mm_projector.9.weight": torch.zeros(2)}, copy_of_tiny_llava.projector / "mm_projector.bin")
    with pytest.raises(ValueError, match=r"mm_projector\.9\.weight"):
        load(copy_of_tiny_llava.projector, copy_of_tiny_llava.plain)


def test_overwrite_config_and_unknown_dtype(tiny_llava):
    _, model, _, _ = load(tiny_llava.full, overwrite_config={"mm_patch_merge_type": "flat"})
    assert model.config.mm_patch_merge_type == "flat"
    with pytest.raises(ValueError, match="bfloat16"):
        load(tiny_llava.full, torch_dtype="float15")


def test_a_plain_language_model_loads_without_images(tiny_llava):
    _, model, processor, _ = load(tiny_llava.plain, name="vicuna-tiny")
    assert processor is None and type(model).__name__ == "LlamaForCausalLM"


def test_a_config_of_another_model_type_is_read_as_ours(copy_of_tiny_llava):
    file = copy_of_tiny_llava.full / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "llava"}))
    assert isinstance(load(copy_of_tiny_llava.full)[1].config, LlavaConfig)


def test_the_package_shows_the_real_import_error():
    code = (
        "import sys, llava, llava.model\n"
        "sys.modules['llava.model.language_model.llava_qwen'] = None\n"  # absent, also in a LLaVA-NeXT checkout
        "assert 'torch' not in sys.modules\n"
        "from llava.model import *\n"
        "assert LlavaLlamaForCausalLM is llava.LlavaLlamaForCausalLM\n"
        "try:\n    llava.model.LlavaQwenForCausalLM\n"
        "except ImportError as error:\n    assert 'llava_qwen' in str(error), error\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr


def test_vision_modules_can_be_added_to_a_language_model(tiny_llava, tmp_path):
    from types import SimpleNamespace

    model = LlavaLlamaForCausalLM.from_pretrained(tiny_llava.plain)
    projector = torch.load(tiny_llava.projector / "mm_projector.bin", weights_only=True)
    save_file(projector, tmp_path / "mm_projector.safetensors")
    model.get_model().initialize_vision_modules(SimpleNamespace(
        vision_tower=str(tiny_llava.tower), mm_vision_select_layer=-2, mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu", mm_patch_merge_type="flat",
        pretrain_mm_mlp_adapter=str(tmp_path / "mm_projector.safetensors"),
    ))  # fmt: skip
    _, wanted, _, _ = load(tiny_llava.projector, tiny_llava.plain)
    torch.testing.assert_close(model.encode_images(FRAMES), wanted.encode_images(FRAMES))
