"""Checkpoints trained here open in the unmodified LLaVA-NeXT checkout, on the older library it is used with.

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
image = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    logits = model(input_ids=ids, images=[image], modalities=["image"]).logits[..., :len(tokenizer)]
print("RESULT", json.dumps([ids[0].tolist(), float(logits.double().sum()), length, processor.crop_size["height"]]))
"""


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
    found = []
    for checkout, python in ((overlaid, sys.executable), (unmodified, old_python)):
        done = python_in(checkout, "-c", OPEN, trained / name, base and trained / base, name, python=python)
        line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
        assert line, done.stderr[-3000:]
        found.append(json.loads(line.removeprefix("RESULT")))
    (ids, total, *rest), (ids_there, total_there, *rest_there) = found
    assert ids_there == ids and rest_there == rest
    assert total_there == pytest.approx(total, rel=1e-4)
