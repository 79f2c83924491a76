"""Damaged, incomplete and harmful checkpoint folders: each is refused by name, before or instead of a wrong model."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.imagechain.checkpoint import load_checkpoint
from llava.model import builder
from llava.model.builder import load_pretrained_model, load_tokenizer


def load(folder, base=None):
    return load_pretrained_model(
        str(folder), base and str(base), "llava_llama", device_map="cpu", torch_dtype="float32", multimodal=True
    )


def write_shards(folder):
    """Turn a folder's weight file into two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_bin(folder, tensors):
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


class Payload:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_missing_shard_is_named(copy_of_tiny_llava):
    folder = copy_of_tiny_llava.full
    write_shards(folder)
    load(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 weight files are missing \(model-00002-of-00002"):
        load(folder)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_file_that_was_cut_off_is_named(copy_of_tiny_llava, name):
    file = next((copy_of_tiny_llava.root / name).glob("*model.safetensors"))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        load(copy_of_tiny_llava.root / name)


def test_a_tokenizer_folder_without_its_vocabulary_is_refused(copy_of_tiny_llava):
    (copy_of_tiny_llava.full / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of tokenizer\.model.*no vocabulary"):
        load(copy_of_tiny_llava.full)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_a_vocabulary_that_is_no_sentencepiece_model_is_refused(copy_of_tiny_llava, content):
    (copy_of_tiny_llava.full / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer's files cannot be read"):
        load(copy_of_tiny_llava.full)


@pytest.mark.parametrize("content", ["{}", '{"added_tokens": [], "model": {"type": "BPE"}}', "[", ""])
def test_a_tokenizer_json_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer's files cannot be read"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["full", "lora", "projector"])
def test_a_config_without_a_vision_tower_is_refused(copy_of_tiny_llava, name):
    folder = copy_of_tiny_llava.root / name
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": None}))
    with pytest.raises(ValueError, match="names no mm_vision_tower"):
        load(folder, None if name == "full" else copy_of_tiny_llava.plain)


def test_a_bin_file_with_code_in_it_is_refused_and_nothing_runs(copy_of_tiny_llava, capsys):
    folder = copy_of_tiny_llava.full
    tensors = load_file(folder / "model.safetensors")
    write_bin(folder, {**tensors, "x": Payload()})
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is refused.*it holds"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload()}))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is refused"):
        load(folder)
    assert "must never run" not in capsys.readouterr().out


def test_a_bin_file_with_more_than_tensors_is_refused(copy_of_tiny_llava):
    folder = copy_of_tiny_llava.full
    tensors = load_file(folder / "model.safetensors")
    write_bin(folder, {**tensors, "epoch": 3})
    with pytest.raises(ValueError, match="named tensors were wanted, found dict with other values"):
        load(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(load(folder)[1].state_dict()["lm_head.weight"], tensors["lm_head.weight"])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_bin_file_is_read_or_refused_whatever_is_wrong_with_it(tmp_path, zipped):
    import random

    from llava.imagechain.weights import check_weights, read_tensors

    file, choose = tmp_path / "x.bin", random.Random(0)
    torch.save({"a": torch.zeros(3), "b": torch.ones(2, 2)}, file, _use_new_zipfile_serialization=zipped)
    whole, refused = file.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(choose.randint(1, 6)):
            damaged[choose.randrange(min(len(damaged), 600))] = choose.getrandbits(8)
        file.write_bytes(damaged)
        for read in (read_tensors, check_weights):
            try:
                read(file)
            except ValueError as error:
                assert "x.bin is refused" in str(error)
                refused += 1
    assert refused > 150


def test_an_adapter_without_weights_is_refused(copy_of_tiny_llava):
    (copy_of_tiny_llava.lora / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither adapter_model"):
        load(copy_of_tiny_llava.lora)


def test_a_folder_without_weights_is_refused(copy_of_tiny_llava):
    (copy_of_tiny_llava.full / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        load(copy_of_tiny_llava.full)


@pytest.mark.parametrize("change", [("layers.1.", "layers.7."), ("q_proj", None)])
def test_an_adapter_whose_tensors_are_not_the_models_is_refused(copy_of_tiny_llava, change):
    file = copy_of_tiny_llava.lora / "adapter_model.safetensors"
    tensors = load_file(file)
    kept = {
        name.replace(change[0], change[1] or ""): t for name, t in tensors.items() if change[1] or change[0] not in name
    }
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="adapter and model do not have the same tensors"):
        load(copy_of_tiny_llava.lora)


def test_an_adapter_in_the_tower_is_found_under_the_names_of_every_library_version(copy_of_tiny_llava):
    folder = copy_of_tiny_llava.lora
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj", "down_proj"]  # as LLaVA-NeXT names them: the tower's have them, too
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors, numbers = load_file(folder / "adapter_model.safetensors"), torch.Generator().manual_seed(0)
    stem = "base_model.model.model.vision_tower.vision_tower.{}encoder.layers.{}.self_attn.{}_proj.lora_{}.weight"
    features = []
    for level in ("", "vision_model."):
        inside = {
            stem.format(level, layer, name, side): torch.ones((4, 32) if side == "A" else (32, 4)) / 8
            for layer in range(3) for name in "qv" for side in "AB"
        }  # fmt: skip
        save_file({**tensors, **inside}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        features.append(load(folder)[1].encode_images(torch.randn(1, 3, 28, 28, generator=numbers.manual_seed(1))))
    without = load(copy_of_tiny_llava.projector, copy_of_tiny_llava.plain)[1].encode_images
    assert torch.equal(*features)
    assert not torch.allclose(features[0], without(torch.randn(1, 3, 28, 28, generator=numbers.manual_seed(1))))


@pytest.mark.parametrize("name", ["full/config.json", "lora/adapter_config.json"])
def test_a_config_that_is_no_object_is_refused(copy_of_tiny_llava, name):
    (copy_of_tiny_llava.root / name).write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: settings were wanted, found a list"):
        load((copy_of_tiny_llava.root / name).parent)


def test_an_adapter_can_stay_beside_its_base(tiny_llava):
    ids, frame = torch.tensor([[1, 40, -200, 41]]), torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(0))
    merged = load(tiny_llava.lora)[1]
    beside = load_pretrained_model(
        str(tiny_llava.lora), None, "llava_llama", device_map="cpu", torch_dtype="float32", merge_adapter=False
    )[1]
    assert type(beside).__name__.startswith("Peft") and type(merged).__name__ == "LlavaLlamaForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(
            beside(input_ids=ids, images=[frame]).logits,
            merged(input_ids=ids, images=[frame]).logits,
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip


def test_a_whole_file_counts_before_the_index_beside_it_as_in_the_library(copy_of_tiny_llava):
    folder = copy_of_tiny_llava.full
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load(folder)[1] is not None
    write_bin(folder, {**load_file(folder / "model.safetensors"), "x": Payload()})
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "good.bin"}}))
    torch.save({"lm_head.weight": torch.zeros(480, 64)}, folder / "good.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is refused"):
        load(folder)


def test_tensors_that_the_model_does_not_have_are_named(copy_of_tiny_llava, caplog):
    file = copy_of_tiny_llava.full / "model.safetensors"
    surplus = {f"model.layers.{number}.mlp.up_proj.weight": torch.zeros(2, 2) for number in (2, 3)}
    known = {"model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file({**load_file(file), **surplus, **known}, file, metadata={"format": "pt"})
    load(copy_of_tiny_llava.full)
    (message,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert all(name in message for name in surplus) and "position_ids" not in message


def test_a_tensor_of_another_shape_is_named(copy_of_tiny_llava, caplog):
    file = copy_of_tiny_llava.full / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 64}))
    with caplog.at_level("WARNING"), pytest.raises(RuntimeError) as error:
        load(copy_of_tiny_llava.full)
    shown = str(error.value) + caplog.text
    assert "128, 64" in shown or "64, 128" in shown


def test_a_towers_config_cannot_choose_code_to_be_fetched(copy_of_tiny_llava):
    file = copy_of_tiny_llava.tower / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attn_implementation": "someone/kernel"}))
    assert load(copy_of_tiny_llava.full)[1].get_vision_tower().config._attn_implementation == "sdpa"


def test_a_family_of_language_models_that_is_not_here_is_named(copy_of_tiny_llava, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llava.model.language_model.llava_mistral", None)  # there in a checkout
    file = copy_of_tiny_llava.full / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "llava_mistral"}))
    monkeypatch.setattr(builder, "TRANSFORMERS_VERSION", (4, 57))
    with pytest.raises(ImportError, match=r"LlavaMistral.*needs a LLaVA-NeXT checkout"):
        load(copy_of_tiny_llava.full)
    monkeypatch.setattr(builder, "TRANSFORMERS_VERSION", (5, 23))
    with pytest.raises(ValueError, match=r"LlavaMistral.* does not fit transformers 5; install transformers 4"):
        load(copy_of_tiny_llava.full)


def test_tensors_of_an_adapter_with_other_shapes_are_counted_and_the_first_named(copy_of_tiny_llava):
    file = copy_of_tiny_llava.lora / "adapter_model.safetensors"
    tensors = {name: tensor[:2] if "lora_A" in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"6 tensors are of other shapes: .*lora_A\S*, ") as caught:
        load_checkpoint(copy_of_tiny_llava.lora, device="cpu")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("index", [{}, [], {"weight_map": {"lm_head.weight": 1}}])
def test_an_index_that_names_no_files_is_refused(index, copy_of_tiny_llava):
    (copy_of_tiny_llava.full / "model.safetensors").unlink()
    (copy_of_tiny_llava.full / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a weight_map from tensor names to file names"):
        load(copy_of_tiny_llava.full)


def test_a_language_model_with_weights_missing_is_refused_alone_and_as_a_start_of_training(copy_of_tiny_llava):
    from types import SimpleNamespace

    from llava.imagechain.arguments import DataArguments, ModelArguments
    from llava.imagechain.start import load_model

    file = copy_of_tiny_llava.plain / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    settings = SimpleNamespace(bf16=False, fp16=False, device=torch.device("cpu"), model_max_length=64)
    model = ModelArguments(model_name_or_path=str(file.parent), vision_tower=str(copy_of_tiny_llava.tower))
    with pytest.raises(ValueError, match=r"no file holds weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model((model, DataArguments(), settings))
    with pytest.raises(ValueError, match=r"no file holds weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        load_pretrained_model(str(file.parent), None, "plain", device_map="cpu", torch_dtype="float32")


def test_a_projector_of_another_size_is_refused(tiny_llava, tmp_path):
    model = load(tiny_llava.full)[1].get_model()
    wrong = {f"model.mm_projector.{n}.weight": torch.zeros(3, 3) for n in (0, 2)}
    torch.save(wrong, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="does not fit this model's mm_projector"):
        model.load_adapter(str(tmp_path / "mm_projector.bin"), model.vision_resampler)


def test_a_new_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    from pathlib import Path

    from llava.imagechain.saving import new_folder

    target, rename = tmp_path / "model", Path.rename
    target.mkdir()
    (target / "old.txt").write_text("old")

    def fails(self, other):
        if other == target and not self.name.endswith("-old"):
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no"), new_folder(target, overwrite=True) as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old.txt"]


@pytest.mark.parametrize("output", [".", "family", "family/tower", "family/lora"])
def test_a_folder_that_holds_what_is_read_is_never_replaced(copy_of_tiny_llava, capsys, output):
    from llava.imagechain import merge_lora

    before = sorted(copy_of_tiny_llava.root.rglob("*"))
    target = copy_of_tiny_llava.root.parent / output
    command = ["--checkpoint", str(copy_of_tiny_llava.lora), "--output-dir", str(target), "--overwrite"]
    assert merge_lora.main(command) == 2 and "give another" in capsys.readouterr().err
    assert sorted(copy_of_tiny_llava.root.rglob("*")) == before
