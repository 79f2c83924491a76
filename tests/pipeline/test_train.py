"""The training command on a tiny model: what it writes, that it resumes exactly, what it refuses."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer

from llava.imagechain.locks import only_one

ROOT = Path(__file__).parents[2]
CONFIGS = [str(ROOT / "configs" / "train" / f"{name}.yaml") for name in ("base", "imagechain", "c2_7")]
QUICK = [
    "--bf16", "false", "--lora_r", "4", "--lora_alpha", "8", "--learning_rate", "1e-2", "--dataloader_num_workers", "0",
    "--global_batch_size", "8", "--per_device_train_batch_size", "4", "--eval_strategy", "no",
]  # fmt: skip


def command(base, stories, output, *more):
    return [
        sys.executable, "-m", "llava.train.train", "--config", *CONFIGS, "--model_name_or_path", str(base),
        "--stories", str(stories), "--output_dir", str(output), *QUICK, *more,
    ]  # fmt: skip


def run(*arguments, status=0):
    """Run the command in this process (a new one takes seconds to import the libraries)."""
    from accelerate.state import AcceleratorState

    from llava.train.train import train

    AcceleratorState._reset_state(reset_partial_state=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = train(command(*arguments)[3:])
    assert found == status, err.getvalue()[-3000:]
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


def run_command(*arguments):
    done = subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def one_line(done):
    return " ".join(done.stdout.split())


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors") | torch.load(
        folder / "non_lora_trainables.bin", weights_only=True
    )


def assert_equal(first, second):
    first, second = tensors(first), tensors(second)
    assert set(first) == set(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_close(first, second):
    first, second = tensors(first), tensors(second)
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-4)


STEPS = ("--max_steps", "10", "--save_strategy", "steps", "--save_steps", "5")


@pytest.fixture(scope="module")
def straight(tiny_base, small_stories, tmp_path_factory):
    """Ten steps in one go."""
    output = tmp_path_factory.mktemp("straight") / "run"
    run_command(tiny_base, small_stories, output, *STEPS, "--lora_dropout", "0.1", "--length_group_batches", "2")
    return output


def test_a_run_leaves_a_loadable_adapter_and_its_record(straight, tiny_base):
    from llava.imagechain.checkpoint import load_checkpoint

    loaded = load_checkpoint(straight, device="cpu")
    base = load_checkpoint(tiny_base, device="cpu")
    name = "model.mm_projector.0.weight"
    assert not torch.equal(loaded.model.get_parameter(name), base.model.get_parameter(name))
    tower = next(n for n, _ in base.model.named_parameters() if "vision_tower" in n and n.endswith("q_proj.weight"))
    assert torch.equal(loaded.model.get_parameter(tower), base.model.get_parameter(tower))
    record = json.loads((straight / "run.json").read_text())
    assert record["status"] == "success"
    assert record["steps"] == 10
    assert record["accumulation"] == 2
    assert {row["part"] for row in record["trained"] if row["trained"]} == {"LoRA", "projector"}
    assert record["stories"]["c2"]["stories"] == 16
    assert (straight / "skipped.jsonl").read_text() == ""


def test_every_checkpoint_loads_like_the_end(straight):
    from llava.imagechain.checkpoint import is_complete, load_checkpoint

    for step in (5, 10):
        assert is_complete(straight / f"checkpoint-{step}")
        load_checkpoint(straight / f"checkpoint-{step}", device="cpu")
    assert_equal(straight, straight / "checkpoint-10")
    assert any(not torch.equal(a, tensors(straight)[n]) for n, a in tensors(straight / "checkpoint-5").items())


def test_five_steps_and_five_more_equal_ten(straight, tiny_base, small_stories, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(straight, output)
    shutil.rmtree(output / "checkpoint-10")
    for name in ("adapter_model.safetensors", "non_lora_trainables.bin", "config.json", "adapter_config.json"):
        (output / name).unlink()
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**record, "status": "started"}))
    arguments = (*STEPS, "--lora_dropout", "0.1", "--length_group_batches", "2")
    (output / "stop").touch()  # an older request
    done = run(tiny_base, small_stories, output, *arguments)
    assert "going on from" in done.stderr
    assert_equal(output, straight)
    assert "is trained already" in run(tiny_base, small_stories, output, *arguments).stderr
    refused = run(tiny_base, small_stories, output, *arguments, "--learning_rate", "1e-3", status=2)
    assert "learning_rate was 0.01, is 0.001" in refused.stderr
    record = json.loads((output / "run.json").read_text())
    record["made_from"] |= {"stories_sha256": "of other stories", "frames_sha256": "of other frames"}
    (output / "run.json").write_text(json.dumps(record))
    wanted = "the stories have changed; the frames of the stories have changed"
    assert wanted in run(tiny_base, small_stories, output, *arguments, status=2).stderr


def test_an_interrupt_saves_and_the_same_command_goes_on_to_the_same_end(straight, tiny_base, small_stories, tmp_path):
    output = tmp_path / "run"
    arguments = (*STEPS[:2], "--save_strategy", "no", "--lora_dropout", "0.1", "--length_group_batches", "2")
    process = subprocess.Popen(
        command(tiny_base, small_stories, output, *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "training from step 0 to 10" in line:  # from here on an interrupt waits for the step's end
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=1800)
    assert process.returncode == 130
    assert json.loads((output / "run.json").read_text())["status"] == "interrupted"
    run(tiny_base, small_stories, output, *arguments)
    assert_equal(output, straight)


def losses(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row], [row for row in history if "eval_loss" in row]


def test_cached_features_train_the_same_model_and_every_scene_count_is_evaluated(tiny_base, small_stories, tmp_path):
    arguments = ("--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--logging_steps", "1")
    arguments += ("--learning_rate", "1e-3")
    cached = ("--feature_cache", str(tmp_path / "cache"), "--feature_dtype", "float32")
    first = run(tiny_base, small_stories, tmp_path / "cached", *arguments, *cached)
    again = run(tiny_base, small_stories, tmp_path / "again", *arguments, *cached, "--variant", "visual_context")
    run(tiny_base, small_stories, tmp_path / "plain", *arguments)
    assert "frames to compute" in first.stderr
    assert " 0 frames to compute" in again.stderr
    with_cache, without = losses(tmp_path / "cached"), losses(tmp_path / "plain")
    assert with_cache[0] == pytest.approx(without[0], rel=1e-3)
    assert len(with_cache[0]) == 4
    assert with_cache[0][-1] < with_cache[0][0]
    for row, other in zip(with_cache[1], without[1], strict=True):
        assert {"eval_c2_loss", "eval_c3_loss", "eval_c4_loss", "eval_c5_loss"} <= set(row)
        assert row["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-3)


def test_evaluating_does_not_change_what_is_trained(straight, tiny_base, small_stories, tmp_path):
    arguments = (*STEPS[:2], "--lora_dropout", "0.1", "--length_group_batches", "2", "--save_strategy", "no")
    run(tiny_base, small_stories, tmp_path / "run", *arguments, "--eval_strategy", "steps", "--eval_steps", "3")
    assert_equal(tmp_path / "run", straight)


@pytest.mark.skipif(
    not hasattr(Trainer, "get_batch_samples"), reason="transformers 4.45 gives accumulated batches the same weight"
)
def test_two_processes_give_the_losses_of_one(tiny_base, small_stories, tmp_path):
    arguments = ("--max_steps", "4", "--logging_steps", "1", "--learning_rate", "1e-3", "--lora_dropout", "0")
    arguments += ("--eval_strategy", "steps", "--eval_steps", "4")
    run(tiny_base, small_stories, tmp_path / "one", *arguments)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    cache = ("--feature_cache", str(tmp_path / "cache"), "--feature_dtype", "float32", "--ddp_backend", "gloo")
    done = subprocess.run(
        launch + command(tiny_base, small_stories, tmp_path / "two", *arguments, *cache)[1:],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (one, evaluated), (two, evaluated_two) = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-4)
    assert evaluated_two[0]["eval_loss"] == pytest.approx(evaluated[0]["eval_loss"], rel=1e-4)
    assert_close(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("asked", ["signal", "file"])
def test_several_processes_end_an_interrupt_with_one_line_and_its_status(asked, tiny_base, small_stories, tmp_path):
    output = tmp_path / "run"
    launch = [sys.executable, "-m", "llava.imagechain.launch", "--standalone", "--nproc_per_node", "2"]
    arguments = command(tiny_base, small_stories, output, "--save_strategy", "no", "--ddp_backend", "gloo")[1:]
    process = subprocess.Popen(
        launch + arguments, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "training from step 0" in line:
            break
    (output / "stop").touch() if asked == "file" else process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=1800)
    assert process.returncode == (130 if asked == "file" else 143), error[-3000:]
    assert error.splitlines()[-1].endswith("the same command goes on from the last checkpoint")
    assert "Traceback" not in error and list(output.glob("checkpoint-*"))
    assert json.loads((output / "run.json").read_text())["status"] == "interrupted"


def test_gradient_checkpointing_changes_nothing_but_memory(tiny_base, small_stories, tmp_path):
    arguments = ("--max_steps", "3", "--logging_steps", "1", "--learning_rate", "1e-3", "--lora_dropout", "0")
    run(tiny_base, small_stories, tmp_path / "plain", *arguments)
    run(tiny_base, small_stories, tmp_path / "checkpointed", *arguments, "--gradient_checkpointing", "true")
    assert losses(tmp_path / "checkpointed")[0] == pytest.approx(losses(tmp_path / "plain")[0], rel=1e-4)


def test_bfloat16_autocast_trains_on_this_machine(tiny_base, small_stories, tmp_path):
    arguments = ("--max_steps", "2", "--bf16", "true", "--logging_steps", "1")
    run(tiny_base, small_stories, tmp_path / "run", *arguments, "--feature_cache", str(tmp_path / "cache"))
    found, _ = losses(tmp_path / "run")
    assert all(0 < loss < 20 for loss in found)


def test_dry_run_prints_the_plan_and_writes_nothing(tiny_base, small_stories, tmp_path):
    done = run(tiny_base, small_stories, tmp_path / "run", "--dry_run", "true")
    assert "ImageChain on c2_7: 48 stories, 3 epochs, 18 steps of 8 (1 devices x 4 x 2), loss on all_text" in one_line(
        done
    )
    assert "of 4096; 0 stories shortened, 0 skipped" in one_line(done)
    assert not (tmp_path / "run").exists()


def test_epochs_follow_the_paper_unless_given(tiny_base, small_stories, tmp_path):
    done = run(tiny_base, small_stories, tmp_path / "a", "--context", "c4_7", "--dry_run", "true")
    assert "7 epochs" in done.stdout
    done = run(
        tiny_base, small_stories, tmp_path / "a", "--variant", "mllm_ft", "--context", "c4_7", "--dry_run", "true"
    )
    assert "3 epochs" in done.stdout
    done = run(tiny_base, small_stories, tmp_path / "a", "--num_train_epochs", "2", "--dry_run", "true")
    assert "2" in done.stdout.split(" epochs")[0].split(", ")[-1]


def test_an_interrupt_while_libraries_are_imported_leaves_no_traceback(tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "llava.train.train", "--output_dir", str(tmp_path / "o")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    next(line for line in process.stderr if "torch" in line)
    os.killpg(process.pid, signal.SIGINT)
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == -signal.SIGINT


def test_an_empty_context_and_a_wrong_setting_leave_with_status_2(tiny_base, small_stories, tmp_path):
    done = run(tiny_base, small_stories, tmp_path / "run", "--context", "c7", status=2)
    assert "no train stories of context c7" in done.stderr
    done = run(tiny_base, small_stories, tmp_path / "run", "--lora_ra", "3", "--variant", "imagechan", status=2)
    assert "did you mean 'lora_r'" in done.stderr
    assert "did you mean 'imagechain'" in done.stderr


def test_too_many_unreadable_stories_stop_the_run_and_are_listed(tiny_base, small_stories, tmp_path):
    import datasets

    from llava.imagechain.story import StoryFrames, storyframes_features

    broken = tmp_path / "stories" / "scene_2" / "train"
    rows = StoryFrames(datasets.load_from_disk(str(small_stories / "scene_2" / "train"))).table.to_list()
    rows[3]["scenes"][0][0]["bytes"] = rows[3]["scenes"][0][0]["bytes"][:-20]
    datasets.Dataset.from_list(rows, features=storyframes_features()).save_to_disk(str(broken))
    arguments = (tiny_base, tmp_path / "stories", tmp_path / "run", "--max_steps", "1")
    done = run(*arguments, status=2)
    assert "1 of 16 stories had to be skipped" in done.stderr
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert row["id"] == rows[3]["story_id"]
    run(*arguments, "--max_skipped", "0.1")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["skipped"] == 1


def test_a_run_that_diverges_fails_and_saves_none_of_it(tiny_base, small_stories, tmp_path):
    steps = ("--save_strategy", "steps", "--save_steps", "1", "--warmup_steps", "0")
    found = run(tiny_base, small_stories, tmp_path, "--max_steps", "9", "--learning_rate", "1e30", *steps, status=2)
    assert "diverged" in found.stderr and "learning_rate" in found.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "error" and not (tmp_path / "adapter_config.json").exists()
    for checkpoint in tmp_path.glob("checkpoint-*"):
        assert all(torch.isfinite(tensor).all() for tensor in tensors(checkpoint).values())


def test_weights_that_the_last_step_spoiled_are_not_saved(tiny_base, small_stories, tmp_path, monkeypatch):
    from llava.imagechain.trainer import ImageChainTrainer

    save = ImageChainTrainer.save_model

    def spoiled(self, *arguments, **options):
        next(p for p in self.model.parameters() if p.requires_grad).data[0] = float("nan")
        save(self, *arguments, **options)

    monkeypatch.setattr(ImageChainTrainer, "save_model", spoiled)
    found = run(tiny_base, small_stories, tmp_path, "--max_steps", "1", "--save_strategy", "no", status=2)
    assert "holds NaN" in found.stderr and not (tmp_path / "adapter_config.json").exists()


def test_one_story_trains_and_what_leaves_none_is_an_error(tiny_base, small_stories, tmp_path):
    done = run(tiny_base, small_stories, tmp_path / "one", "--limit", "1", "--num_train_epochs", "2")
    assert json.loads((tmp_path / "one" / "run.json").read_text())["steps"] == 2
    assert re.search(r"ImageChain is trained: \S+one \(2 steps in \d+ s, mean loss \d+\.\d{4}, last \d", done.stderr)
    short = ("--max_skipped", "1", "--model_max_length", "40")
    done = run(tiny_base, small_stories, tmp_path / "long", *short, status=2)
    assert "0 are left to train on (first reason: too long: " in done.stderr
    assert "at most 40 were wanted" in done.stderr


def test_the_script_prints_its_command_and_names_what_is_missing():
    script = ["bash", str(ROOT / "scripts" / "train" / "imagechain.sh")]
    environment = {name: value for name, value in os.environ.items() if name not in ("MODEL", "STORIES")}
    more = {"MODEL": "a model", "STORIES": "s", "VARIANT": "mllm_ft", "CONTEXT": "c3", "NUM_GPUS": "8"}
    done = subprocess.run(
        [*script, "--dry-run", "--", "--seed", "3"], env=environment | more, capture_output=True, text=True, check=True
    )
    for part in (
        "llava.imagechain.launch --nnodes 1 --nproc_per_node 8", "configs/train/mllm_ft.yaml", "configs/train/c3.yaml",
        r"--model_name_or_path a\ model", "--output_dir runs/train/mllm_ft-c3", "zero3.json", "--seed 3",
    ):  # fmt: skip
        assert part in done.stdout
    more["NUM_GPUS"] = "0"
    done = subprocess.run([*script, "--dry-run"], env=environment | more, capture_output=True, text=True, check=True)
    assert "launch" not in done.stdout
    assert "deepspeed" not in done.stdout
    done = subprocess.run(
        [*script, "--dry-run"], env=environment | more | {"NNODES": "2"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "NNODES is 2, but NUM_GPUS is 0" in done.stderr
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "MODEL is not set" in done.stderr
    assert "STORIES is not set" in done.stderr


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_at_work(tiny_base, small_stories, tmp_path):
    with only_one(tmp_path / "out" / ".training"):
        done = run(tiny_base, small_stories, tmp_path / "out", "--max_steps", "1", status=2)
    assert "another process is training in" in done.stderr and "give another folder" in done.stderr
    assert not (tmp_path / "out" / "run.json").exists()
