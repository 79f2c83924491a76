"""The training benchmark's row of LLaVA-NeXT's own trainer: left out with its reason, or comparable with the others."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import Trainer

from llava.imagechain.bench import train as bench
from llava.imagechain.bench.table import ROWS, UPSTREAM, Measured

ROOT = Path(__file__).parents[2]
PEER = ROOT / "scripts" / "bench" / "peers" / "train_upstream.py"
SETTINGS = [str(ROOT / "configs" / "train" / f"{name}.yaml") for name in ("base", "imagechain", "c2_7")]


class LLaVATrainer(Trainer):
    """Broken as the published one is."""

    def _inner_training_loop(self, *arguments, **options):
        raise NameError("name 'DebugOption' is not defined")

    def create_accelerator_and_postprocess(self):
        from accelerate import Accelerator

        self.accelerator = Accelerator(dispatch_batches=None, split_batches=None)
        super().create_accelerator_and_postprocess()


@pytest.fixture()
def like_upstream(monkeypatch):
    """A module in the place of the checkout's."""
    module = ModuleType("llava.train.llava_trainer")
    module.LLaVATrainer = LLaVATrainer
    module.__spec__ = importlib.util.spec_from_loader(module.__name__, loader=None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture()
def elsewhere(monkeypatch):
    """A `llava` without the trainer's file, whatever runs the tests."""
    peer = bench.load_peer(PEER)
    monkeypatch.setattr(peer, "TRAINER", "llava.train.not_there")
    return peer


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def arguments(folder, output):
    return [
        "--config-from", str(folder), "--output-dir", str(output), "--train-config", *SETTINGS, "--synthetic", "16",
        "--warmup", "1", "--steps", "2", "--threads", "1", "--least-speedup", "0", "--upstream-trainer", str(PEER),
        "--set", "per_device_train_batch_size=4", "global_batch_size=4", "lora_r=4", "bf16=true",
    ]  # fmt: skip


def test_a_missing_trainer_is_a_reason_that_says_what_was_wanted(elsewhere):
    assert "LLAVA_NEXT_DIR=a LLaVA-NeXT checkout" in elsewhere.why_not()


def test_a_trainer_that_does_not_import_is_a_reason_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "trainer_of_before.py").write_text("from transformers.trainer import never_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    peer = bench.load_peer(PEER)
    monkeypatch.setattr(peer, "TRAINER", "trainer_of_before")
    reason = peer.why_not()
    assert "cannot import name 'never_there_at_all'" in reason
    assert f"transformers {peer.__version__}" in reason and "4.45.2" in reason


def test_the_row_is_left_out_with_the_reason_where_the_trainer_is_missing(
    tiny_llava, tmp_path, elsewhere, monkeypatch, caplog
):
    real = bench.load_peer
    monkeypatch.setattr(bench, "load_peer", lambda path: elsewhere if path == PEER else real(path))
    monkeypatch.setattr(
        bench, "run_row", lambda *_: Measured(seconds=1.0, processor_seconds=1.0, useful=1, padded=1, losses=[1.0])
    )
    assert bench.main(arguments(tiny_llava.full, tmp_path)) == 0
    assert "left out, LLaVA-NeXT's trainer" in caplog.text and "not_there is not there" in caplog.text
    result = json.loads((tmp_path / "train.json").read_text())
    assert [row["row"] for row in result["rows"]] == [row.title for row in ROWS]
    assert "not_there is not there" in result["facts"]["left out"]


def test_the_trainer_without_its_pasted_loop_has_the_losses_of_the_authors_way(
    tiny_llava, tmp_path, like_upstream, capsys
):
    assert bench.main(arguments(tiny_llava.full, tmp_path)) == 0
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [row["row"] for row in rows[:2]] == [UPSTREAM.title, "the authors' way"]
    assert len(rows[0]["losses"]) == 3
    assert rows[1]["losses"] == pytest.approx(rows[0]["losses"], rel=1e-4)  # dropout included
    assert rows[0]["processor_seconds"][0] > 0
    assert capsys.readouterr().out.startswith("| row |")
