"""Curves of a run: TensorBoard and W&B, offline, one run over interruptions; float32 where there is no bfloat16."""

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = [str(ROOT / "configs" / "train" / f"{name}.yaml") for name in ("base", "imagechain", "c2_7")]
QUICK = [
    "--bf16", "false", "--lora_r", "4", "--lora_dropout", "0", "--dataloader_num_workers", "0",
    "--global_batch_size", "4", "--per_device_train_batch_size", "4", "--eval_strategy", "no", "--max_steps", "4",
    "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1",
]  # fmt: skip


def flags(base, stories, output, *more):
    where = ["--model_name_or_path", str(base), "--stories", str(stories), "--output_dir", str(output)]
    return ["--config", *CONFIGS, *where, *QUICK, *more]


@pytest.fixture()
def train(tiny_base, small_stories, monkeypatch):
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RESUME"):
        monkeypatch.setenv(name, "")  # so that what a run sets is taken back
        monkeypatch.delenv(name)

    def run(output, *more):
        from accelerate.state import AcceleratorState

        from llava.train.train import train

        AcceleratorState._reset_state(reset_partial_state=True)
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            assert train(flags(tiny_base, small_stories, output, *more)) == 0, err.getvalue()[-3000:]
        return err.getvalue()

    return run


def cut_off(output):
    """Make a run folder look as if the run had been killed after step 2."""
    import shutil

    shutil.rmtree(output / "checkpoint-4")
    for name in ("adapter_config.json", "config.json"):
        (output / name).unlink()
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**record, "status": "started"}))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_shows_a_resumed_run_as_one(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    train(output, "--report_to", "tensorboard")
    cut_off(output)
    assert "going on from" in train(output, "--report_to", "tensorboard")
    curves = EventAccumulator(str(output / "tensorboard")).Reload()
    steps = [event.step for event in curves.Scalars("train/loss")]
    assert sorted(set(steps)) == [1, 2, 3, 4]
    assert not (output / "runs").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_writes_into_the_run_folder_and_sends_nothing(tiny_base, small_stories, tmp_path):
    output = tmp_path / "run"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = [sys.executable, "-m", "llava.train.train", *flags(tiny_base, small_stories, output)]
    for number in (1, 2):
        done = subprocess.run(
            [*command, "--report_to", "wandb"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        folders = sorted((output / "wandb").glob("offline-run-*"))
        assert len(folders) == number
        if number == 1:
            cut_off(output)
    names = {folder.name.rsplit("-", 1)[1] for folder in folders}
    assert names == {(output / "wandb_id.txt").read_text()}


def test_wandb_is_offline_and_keeps_its_run_unless_told_otherwise(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from llava.imagechain.reporting import prepare_reporting

    for name in ("WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RESUME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "online")
    settings = SimpleNamespace(report_to=["wandb"], output_dir=str(tmp_path), process_index=0)
    prepare_reporting(settings, resumed=False)
    first = os.environ.pop("WANDB_RUN_ID")
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_RESUME"]) == ("online", "allow")
    monkeypatch.delenv("WANDB_MODE")
    prepare_reporting(settings, resumed=True)
    assert (os.environ.pop("WANDB_RUN_ID"), os.environ["WANDB_MODE"]) == (first, "offline")
    prepare_reporting(settings, resumed=False)
    assert os.environ["WANDB_RUN_ID"] != first


def test_without_bfloat16_a_run_is_in_float32_and_says_so(tiny_base, small_stories, tmp_path, monkeypatch, caplog):
    from llava.imagechain import arguments

    wanted = [*flags(tiny_base, small_stories, tmp_path), "--bf16", "true"]
    monkeypatch.setattr(arguments, "has_bfloat16", lambda: False)
    (_, _, settings), _ = arguments.parse_arguments(wanted)
    assert not settings.bf16
    assert [record.message for record in caplog.records if "bf16" in record.message] == [
        "bf16: this machine's processors have no bfloat16; the run is in float32"
    ]
    monkeypatch.setattr(arguments, "has_bfloat16", lambda: True)
    assert arguments.parse_arguments(wanted)[0][2].bf16


@pytest.mark.parametrize(
    ("text", "found"), [("flags : fpu avx512_bf16 sse", True), ("Features : asimd bf16", True), ("flags : fpu", False)]
)
def test_bfloat16_is_told_by_the_processors_flags(text, found, monkeypatch):
    from llava.imagechain import distributed

    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert distributed.has_bfloat16() is found
