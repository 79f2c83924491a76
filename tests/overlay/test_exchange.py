"""Folders written here open in the unmodified LLaVA-NeXT checkout and on the older library it is used with.

OVERLAY_OLD_PYTHON names a Python with transformers 4.45 to 4.55; without it the tests' own is used when it fits.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ("base", "imagechain", "c2")
TRAIN = [
    "-m", "llava.train.train", "--config", *[str(ROOT / f"configs/train/{name}.yaml") for name in CONFIGS],
    "--bf16", "false", "--learning_rate", "1e-2", "--dataloader_num_workers", "0", "--global_batch_size", "4",
    "--per_device_train_batch_size", "4", "--eval_strategy", "no", "--max_steps", "2", "--lora_r", "4",
]  # fmt: skip
# What a folder gives, through the checkout's own loader; the tokenizer of the tiny model has fewer words than rows.
OPEN = """
import json, sys, torch
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
folder, base, name = sys.argv[1:]
tokenizer, model, processor, length = load_pretrained_model(folder, base or None, name, attn_implementation="eager")
model = model.float()
ids = tokenizer_image_token("USER: <image>\\na man walks to the door ASSISTANT:", tokenizer, return_tensors="pt")[None]
side = processor.crop_size["height"]
image = torch.randn(3, side, side, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    logits = model(input_ids=ids, images=[image], modalities=["image"]).logits[..., :len(tokenizer)]
print("RESULT", json.dumps([ids[0].tolist(), float(logits.double().sum()), length, side]))
"""
# What a folder of transformers' own classes gives: a vision tower, or a whole exported model.
TOWER = """
import json, sys, numpy, torch
from transformers import CLIPImageProcessor, CLIPVisionModel
model, info = CLIPVisionModel.from_pretrained(sys.argv[1], output_loading_info=True)
image = numpy.arange(90 * 70 * 3, dtype="uint8").reshape(90, 70, 3)
pixels = torch.as_tensor(CLIPImageProcessor.from_pretrained(sys.argv[1])(image, return_tensors="pt")["pixel_values"])
with torch.no_grad():
    total = model.eval()(pixel_values=pixels).last_hidden_state.double().pow(2).sum()
print("RESULT", json.dumps([list(pixels.shape), float(total), sorted(info["missing_keys"])]))
"""
EXPORTED = """
import json, sys, numpy, torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
processor = AutoProcessor.from_pretrained(sys.argv[1])
model = LlavaForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
content = [{"type": "text", "text": "What is happening in the first image?"}, {"type": "image"}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
image = Image.fromarray(numpy.arange(90 * 70 * 3, dtype="uint8").reshape(90, 70, 3))
batch = processor(text=prompt, images=image, return_tensors="pt")
with torch.no_grad():
    total = model(**batch).logits.double().sum()
print("RESULT", json.dumps([batch["input_ids"][0].tolist(), float(total)]))
"""
TINY_BASE = [
    "--num-frames", "32", "--tower-steps", "2", "--tower-batch-size", "8", "--steps", "2", "--batch-size", "4",
    "--layers", "2", "--vision-layers", "2", "--hidden-size", "64", "--vision-hidden-size", "32", "--no-bf16",
]  # fmt: skip


def helpers(name):
    spec = importlib.util.spec_from_file_location(f"exchange_{name}", ROOT / f"tests/unit/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def old_python():
    import transformers

    if os.environ.get("OVERLAY_OLD_PYTHON"):
        return os.environ["OVERLAY_OLD_PYTHON"]
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (4, 56):
        pytest.skip("OVERLAY_OLD_PYTHON is not set to a Python with transformers 4.45 to 4.55")
    return sys.executable


@pytest.fixture(scope="module")
def trained(overlaid, tmp_path_factory, python_in):
    """Train the same base twice inside the checkout: an adapter and the whole model."""
    root = tmp_path_factory.mktemp("exchange")
    family = helpers("conftest").build_tiny_llava(root / "family")
    config = json.loads((family.full / "config.json").read_text())
    # LLaVA-NeXT itself reads no names relative to the folder.
    (family.full / "config.json").write_text(json.dumps({**config, "mm_vision_tower": str(family.tower)}))
    rows = helpers("test_data").stories_of(*[2] * 8, prefix="story-")
    rows.table.save_to_disk(str(root / "stories/scene_2/train"))
    for name, flags in {"llava-lora": [], "llava-whole": ["--lora_enable", "false"]}.items():
        paths = ["--model_name_or_path", family.full, "--stories", root / "stories", "--output_dir", root / name]
        done = python_in(overlaid, *TRAIN, *paths, *flags)
        assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize(("name", "base"), [("llava-lora", "family/full"), ("llava-whole", "")])
def test_a_trained_folder_gives_the_same_in_the_unmodified_checkout(
    trained, old_python, unmodified, overlaid, python_in, name, base
):
    ids, total, *rest = result_of(python_in(overlaid, "-c", OPEN, trained / name, base and trained / base, name))
    opened = python_in(unmodified, "-c", OPEN, trained / name, base and trained / base, name, python=old_python)
    ids_there, total_there, *rest_there = result_of(opened)
    assert ids_there == ids and rest_there == rest
    assert total_there == pytest.approx(total, rel=1e-4)


def result_of(done):
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    assert line, done.stdout[-1000:] + done.stderr[-3000:]
    return json.loads(line.removeprefix("RESULT"))


@pytest.fixture(scope="module")
def world_base(overlaid, tmp_path_factory, python_in):
    """The story world's base model, made inside the checkout."""
    folder = tmp_path_factory.mktemp("world") / "llava-base"
    command = ["-m", "stories.world.base", "--output-dir", folder, *TINY_BASE]
    done = python_in(overlaid, *command, PYTHONPATH=f"{overlaid}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_worlds_base_opens_in_the_unmodified_checkout_from_inside_its_folder(
    world_base, old_python, unmodified, overlaid, python_in
):
    # The tower is named relative to the model's folder; LLaVA-NeXT looks for it in the current one.
    ids, total, *rest = result_of(python_in(overlaid, "-c", OPEN, world_base, "", world_base.name))
    opened = python_in(unmodified, "-c", OPEN, ".", "", world_base.name, python=old_python, folder=world_base)
    assert result_of(opened) == [ids, pytest.approx(total, rel=1e-4), *rest]


def test_a_saved_tower_and_its_image_processor_open_on_the_older_library(world_base, old_python, overlaid, python_in):
    tower = world_base / "vision_tower"
    here, there = (
        result_of(python_in(overlaid, "-c", TOWER, tower, python=python)) for python in (sys.executable, old_python)
    )
    assert here[2] == there[2] == [] and here[0] == there[0]
    assert there[1] == pytest.approx(here[1], rel=1e-5)


def test_an_exported_model_and_its_processor_open_on_the_older_library(
    trained, old_python, overlaid, python_in, tmp_path
):
    command = ["-m", "llava.imagechain.export_hf", "--checkpoint", trained / "llava-whole"]
    done = python_in(overlaid, *command, "--output-dir", tmp_path / "exported")
    assert done.returncode == 0, done.stderr[-3000:]
    here, there = (
        result_of(python_in(overlaid, "-c", EXPORTED, tmp_path / "exported", python=python))
        for python in (sys.executable, old_python)
    )
    assert there == [here[0], pytest.approx(here[1], rel=1e-4)]
