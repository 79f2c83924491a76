"""Two processes train what one does: DDP, ZeRO-2, ZeRO-3, with offload; saving, resuming, batches of unequal kinds."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIGS = [str(ROOT / "configs" / "train" / f"{name}.yaml") for name in ("base", "imagechain", "c2_7")]
QUICK = [
    "--bf16", "false", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0", "--learning_rate", "1e-2",
    "--dataloader_num_workers", "0", "--global_batch_size", "8", "--per_device_train_batch_size", "4",
    "--eval_strategy", "no", "--max_steps", "20", "--logging_steps", "1", "--save_strategy", "no",
    "--lr_scheduler_type", "constant",
]  # fmt: skip
HALFWAY = ("--save_strategy", "steps", "--save_steps", "10")
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# DeepSpeed lies beside the interpreter where a virtual environment is not activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed (scripts/setup.sh train deepspeed)",
)


def train(base, data, output, *more, processes=2):
    arguments = [
        "-m", "llava.train.train", "--config", *(CONFIGS[:1] if "--data_path" in data else CONFIGS),
        "--model_name_or_path", str(base), *data,
        "--output_dir", str(output), *QUICK, *more,
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "PATH": PATH
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *(LAUNCHER if processes == 2 else []), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return output


def zero(name, tmp_path):
    """Return a config of configs/deepspeed for a machine without a GPU."""
    settings = json.loads((ROOT / "configs" / "deepspeed" / f"{name}.json").read_text())
    settings["zero_force_ds_cpu_optimizer"] = False  # compiling DeepSpeed's own Adam takes minutes
    (tmp_path / "deepspeed.json").write_text(json.dumps(settings))
    return "--deepspeed", str(tmp_path / "deepspeed.json")


def losses(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


def tensors(folder):
    from safetensors.torch import load_file

    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    rest = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    return load_file(folder / "adapter_model.safetensors") | rest


def assert_close(first, second, atol=1e-4):
    first, second = tensors(first), tensors(second)
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=atol, msg=name)


def take_back_to_step_10(output, before):
    """Make a run folder look as if the run had been killed after step 10."""
    shutil.copytree(before, output)
    shutil.rmtree(output / "checkpoint-20")
    for name in ("adapter_config.json", "config.json"):
        (output / name).unlink(missing_ok=True)
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**record, "status": "started"}))


@pytest.fixture(scope="module")
def data(small_stories):
    return "--stories", str(small_stories)


@pytest.fixture(scope="module")
def alone(tiny_base, data, tmp_path_factory):
    """Twenty steps of one process."""
    return train(tiny_base, data, tmp_path_factory.mktemp("alone") / "run", processes=1)


def test_ddp_trains_as_one_process_does_and_resumes_within_an_epoch(alone, tiny_base, data, tmp_path):
    whole = train(tiny_base, data, tmp_path / "whole", *HALFWAY)
    assert len(losses(alone)) == 20
    assert losses(whole) == pytest.approx(losses(alone), rel=1e-4)
    assert_close(whole, alone)
    take_back_to_step_10(tmp_path / "resumed", whole)
    resumed = train(tiny_base, data, tmp_path / "resumed", *HALFWAY)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)


def test_an_epoch_that_two_processes_cannot_share_evenly_trains_on_each_story_once(tiny_base, data, tmp_path):
    more = ("--max_steps", "5", "--limit", "13")  # the second global batch has 5 of 8, one for the second process
    own_means = ("--average_tokens_across_devices", "false")  # the default of transformers 4.46 to 4.51
    one = train(tiny_base, data, tmp_path / "one", *more, processes=1)
    two = train(tiny_base, data, tmp_path / "two", *more, *own_means)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert_close(two, one)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3_offload"])
def test_zero_trains_as_one_process_does(name, alone, tiny_base, data, tmp_path):
    output = train(tiny_base, data, tmp_path / "run", *zero(name, tmp_path), "--max_steps", "8")
    assert losses(output) == pytest.approx(losses(alone)[:8], rel=1e-4)


@needs_deepspeed
@pytest.mark.slow
def test_zero3_trains_as_one_process_does_and_resumes_within_an_epoch(alone, tiny_base, data, tmp_path):
    from llava.imagechain.checkpoint import load_checkpoint

    settings = (*zero("zero3", tmp_path), *HALFWAY)
    whole = train(tiny_base, data, tmp_path / "whole", *settings)
    assert losses(whole) == pytest.approx(losses(alone), rel=1e-4)
    assert_close(whole, alone)
    load_checkpoint(whole / "checkpoint-10", device="cpu")
    take_back_to_step_10(tmp_path / "resumed", whole)
    resumed = train(tiny_base, data, tmp_path / "resumed", *settings)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-4)


@needs_deepspeed
@pytest.mark.slow
def test_zero3_trains_in_bfloat16_as_the_paper_s_settings_say(alone, tiny_base, data, tmp_path):
    settings = (*zero("zero3", tmp_path), "--bf16", "true", "--max_steps", "4")
    assert losses(train(tiny_base, data, tmp_path / "run", *settings)) == pytest.approx(losses(alone)[:4], rel=0.02)


@needs_deepspeed
@pytest.mark.slow
def test_zero3_trains_on_from_an_adapter_as_one_process_does(alone, data, tmp_path):
    one = train(alone, data, tmp_path / "one", "--max_steps", "3", processes=1)
    two = train(alone, data, tmp_path / "two", "--max_steps", "3", *zero("zero3", tmp_path))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert_close(two, one)


@needs_deepspeed
@pytest.mark.slow
def test_zero3_saves_a_whole_model_frozen_tower_included(tiny_base, data, tmp_path):
    more = ("--lora_enable", "false", "--learning_rate", "1e-3", "--max_steps", "3")
    output = train(tiny_base, data, tmp_path / "run", *zero("zero3", tmp_path), *more)
    before, after = tensors(tiny_base), tensors(output)
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "lm_head.weight" in moved
    assert not any("vision_tower" in name for name in moved)


@needs_deepspeed
@pytest.mark.slow
def test_zero3_trains_on_cached_features_as_one_process_does_without(alone, tiny_base, data, tmp_path):
    cache = ("--feature_cache", str(tmp_path / "cache"), "--feature_dtype", "float32", "--max_steps", "4")
    output = train(tiny_base, data, tmp_path / "run", *zero("zero3", tmp_path), *cache)
    assert losses(output) == pytest.approx(losses(alone)[:4], rel=1e-4)


def test_deepspeed_without_a_launcher_is_refused_with_the_way_to_start_it(tiny_base, data, tmp_path, monkeypatch):
    from llava.imagechain.arguments import parse_arguments
    from llava.imagechain.config import ConfigError

    monkeypatch.delenv("RANK", raising=False)
    flags = ["--config", *CONFIGS, "--model_name_or_path", str(tiny_base), *data, "--output_dir", str(tmp_path)]
    with pytest.raises(ConfigError, match="started without a launcher") as error:
        parse_arguments([*flags, "--deepspeed", str(tmp_path / "none.json")])
    assert "is not a file; configs/deepspeed holds three" in str(error.value)


@pytest.fixture(scope="module")
def mixed_data(tmp_path_factory):
    """LLaVA's JSON: text only, one image, sequences of unequal numbers of scenes and frames."""
    from PIL import Image

    root = tmp_path_factory.mktemp("json")
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 10, 10)).save(root / f"{number}.jpg")
    scenes = [["0.jpg"], ["1.jpg", "2.jpg", "0.jpg"], ["2.jpg"]]
    media = [
        ("What is it?", {}), ("<image>\nWhat?", {"image": "0.jpg"}), ("Say more.", {}),
        ("<image> and <image>?", {"video-seq": scenes[:2]}), ("<image><image><image>", {"video-seq": scenes}),
        ("Why?", {}),
    ]  # fmt: skip
    samples = []
    for number, (text, more) in enumerate(media):
        said = [{"from": "human", "value": text}, {"from": "gpt", "value": f"A cat {number}."}]
        samples.append({"id": str(number), "conversations": said, **more})
    (root / "data.json").write_text(json.dumps(samples))
    return "--data_path", str(root / "data.json"), "--image_folder", str(root)


MIXED = (
    "--global_batch_size", "2", "--per_device_train_batch_size", "1", "--max_steps", "9", "--length_group_batches", "0",
)  # fmt: skip


@needs_deepspeed
@pytest.mark.slow
def test_processes_with_text_only_or_other_numbers_of_scenes_train_together_under_zero3(
    tiny_base, mixed_data, tmp_path
):
    one = train(tiny_base, mixed_data, tmp_path / "one", *MIXED, processes=1)
    two = train(tiny_base, mixed_data, tmp_path / "two", *MIXED, *zero("zero3", tmp_path))
    assert len(losses(one)) == 9
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
