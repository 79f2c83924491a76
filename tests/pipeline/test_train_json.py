"""The training command on LLaVA's JSON: a run, what it refuses, and a model made from a plain language model."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
QUICK = [
    "--config", str(ROOT / "configs" / "train" / "base.yaml"), "--bf16", "false", "--lora_r", "2", "--eval_strategy",
    "no", "--dataloader_num_workers", "0", "--global_batch_size", "2", "--per_device_train_batch_size", "2",
    "--max_steps", "2", "--save_strategy", "no", "--logging_steps", "1", "--learning_rate", "1e-3",
]  # fmt: skip


def run(base, samples, output, *more, status=0):
    from accelerate.state import AcceleratorState

    from llava.train.train import train

    AcceleratorState._reset_state(reset_partial_state=True)
    file = output.parent / "data.json"
    file.write_text(json.dumps(samples))
    arguments = ["--model_name_or_path", str(base), "--data_path", str(file), "--output_dir", str(output)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = train([*QUICK, *arguments, "--image_folder", str(output.parent), *more])
    assert found == status, err.getvalue()[-3000:]
    return out.getvalue() + err.getvalue()


def sample(number, **media):
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"A cat {number}."}]
    return {"id": f"s{number}", "conversations": said, **media}


@pytest.fixture()
def samples(tmp_path):
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (40 + 9 * number, 30), (90, 10, 10)).save(tmp_path / f"{number}.jpg")
    return [sample(number, image=f"{number}.jpg") for number in range(3)]


def test_a_run_leaves_an_adapter_and_lists_what_it_skipped(tiny_base, samples, tmp_path):
    bad = sample(9, image="../9.jpg")
    run(tiny_base, [*samples, bad], tmp_path / "run", "--lora_enable", "true", "--max_skipped", "0.3")
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert row["id"] == "s9"
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stories"]["image"]["stories"] == 3


def test_a_dry_run_prints_the_plan_and_writes_nothing(tiny_base, samples, tmp_path):
    text = run(tiny_base, samples, tmp_path / "run", "--dry_run", "true")
    assert "data.json: 3 samples, 3 epochs, 2 steps of 2 (1 devices x 2 x 1), loss on answers" in " ".join(text.split())
    assert "0 samples shortened, 0 skipped" in text
    assert "LoRA 4,352); 10,624 train" in text and "positions in 3 examples" in text
    assert not (tmp_path / "run").exists()


def test_one_sample_trains_and_none_is_an_error(tiny_base, samples, tmp_path):
    run(tiny_base, samples[:1], tmp_path / "one")
    assert "data.json holds no samples" in run(tiny_base, [], tmp_path / "none", status=2)
    text = run(tiny_base, samples[:1], tmp_path / "long", "--model_max_length", "30", status=2)
    assert "too long" in text
    assert "at most 30 were wanted" in text


def test_a_plain_language_model_gets_a_tower_and_a_projector_of_a_first_stage(tiny_base, samples, tmp_path):
    from llava.imagechain.checkpoint import load_checkpoint

    family = tiny_base.parent
    more = (
        "--vision_tower",
        str(family / "tower"),
        "--lora_enable",
        "false",
        "--version",
        "plain",
        "--mm_projector_type",
        "mlp2x_gelu",
    )
    first = run(family / "plain", samples, tmp_path / "first", *more, "--mm_tunable_parts", "mm_mlp_adapter")
    assert "projector" in first
    trained = load_checkpoint(tmp_path / "first", device="cpu").model.state_dict()
    stage = tmp_path / "first" / "mm_projector.bin"
    assert {name.split(".")[1] for name in torch.load(stage, weights_only=True)} == {"mm_projector"}
    run(family / "plain", samples, tmp_path / "second", *more[:4], "--pretrain_mm_mlp_adapter", str(stage),
        "--learning_rate", "1e-9", "--mm_tunable_parts", "mm_mlp_adapter,mm_language_model")  # fmt: skip
    again = load_checkpoint(tmp_path / "second", device="cpu").model.state_dict()
    name = "model.mm_projector.0.weight"
    torch.testing.assert_close(again[name], trained[name])


def test_a_new_projector_depends_on_the_seed_alone(tiny_base, samples, tmp_path):
    def start(name, seed):
        more = ("--vision_tower", str(tiny_base.parent / "tower"), "--mm_tunable_parts", "mm_mlp_adapter")
        more += ("--lora_enable", "false", "--max_steps", "1", "--learning_rate", "1e-9", "--seed", seed)
        run(tiny_base.parent / "plain", samples, tmp_path / name, *more)
        return torch.load(tmp_path / name / "mm_projector.bin", weights_only=True)["model.mm_projector.0.weight"]

    first, again, other = start("first", "3"), start("again", "3"), start("other", "4")
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_a_dry_run_from_a_plain_language_model_counts_what_it_will_get(tiny_base, samples, tmp_path):
    tower = ("--vision_tower", str(tiny_base.parent / "tower"), "--dry_run", "true")
    text = run(tiny_base.parent / "plain", samples, tmp_path / "run", *tower)
    assert "vision tower 31,040, projector 6,272" in text


def test_tiles_without_resolutions_are_refused(tiny_base, samples, tmp_path):
    more = ("--vision_tower", str(tiny_base.parent / "tower"), "--image_aspect_ratio", "anyres", "--dry_run", "true")
    text = run(tiny_base.parent / "plain", samples, tmp_path / "run", *more, status=2)
    assert "image_aspect_ratio anyres: the model's config has no resolutions; set image_grid_pinpoints" in text
