"""The training benchmark: rows are comparable, the peer does what the authors did, wrong losses are noticed."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava.imagechain.arguments import ModelArguments
from llava.imagechain.bench.synthetic import SyntheticStories, random_model
from llava.imagechain.bench.train import compiled_layers, main
from llava.imagechain.checkpoint import load_checkpoint
from llava.imagechain.data import Collator

ROOT = Path(__file__).parents[2]
PEER = ROOT / "scripts" / "bench" / "peers" / "train_like_authors.py"
SETTINGS = [str(ROOT / "configs" / "train" / f"{name}.yaml") for name in ("base", "imagechain", "c2_7")]


def arguments(folder, output, *more):
    return [
        "--config-from", str(folder), "--output-dir", str(output), "--train-config", *SETTINGS,
        "--warmup", "1", "--steps", "6", "--threads", "1", "--least-speedup", "0", *more,
        "--set", "per_device_train_batch_size=4", "global_batch_size=4", "lora_r=4", "bf16=false",
    ]  # fmt: skip


def the_peer():
    spec = importlib.util.spec_from_file_location("the_peer", PEER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(tiny_llava, tmp_path_factory):
    output = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    assert main(arguments(tiny_llava.full, output, "--synthetic", "40")) == 0
    torch.set_num_threads(threads)
    return output


def test_rows_on_the_same_batches_have_the_same_losses(measured):
    rows = json.loads((measured / "train.json").read_text())["rows"]
    assert [len(row["losses"]) for row in rows] == [7] * 5
    assert rows[1]["losses"] == pytest.approx(rows[0]["losses"], rel=1e-4)
    for row in rows[3:]:
        assert row["losses"] == pytest.approx(rows[2]["losses"], rel=1e-4)
    assert rows[2]["losses"] != pytest.approx(rows[0]["losses"], rel=1e-4)


def test_batches_of_like_length_hold_the_same_stories_with_less_padding(measured):
    rows = json.loads((measured / "train.json").read_text())["rows"]
    assert rows[2]["padding"] < 0.6 * rows[0]["padding"]
    useful = [row["useful_tokens_per_second"] * row["seconds"][0] for row in rows]
    assert useful == pytest.approx([useful[0]] * 5)


def test_the_table_has_a_line_for_each_lever(measured):
    lines = (measured / "train.md").read_text().splitlines()
    assert [line.split("|")[1].strip()[:5] for line in lines[2:7]] == ["the a", "+ one", "+ bat", "+ log", "+ no "]


def test_the_peer_runs_tower_and_projector_once_per_scene(tiny_llava):
    model = load_checkpoint(tiny_llava.full, dtype=torch.float32).model
    model.config.imagechain_scene_aspect = "crop"
    stories = SyntheticStories(3, model.config, model.get_vision_tower(), 4096, seed=1)
    batch = Collator()([stories[index] for index in range(3)])
    calls = {"tower": 0, "projector": 0}
    model.get_vision_tower().vision_tower.register_forward_hook(lambda *_: calls.update(tower=calls["tower"] + 1))
    model.get_model().mm_projector.register_forward_hook(lambda *_: calls.update(projector=calls["projector"] + 1))
    ours = model(**batch, return_logits=False).loss
    assert calls == {"tower": 0, "projector": 1}  # our tower runs the layers it needs, not the library's forward
    with the_peer().one_tower_call_per_scene(model):
        theirs = the_peer().loss_of_all_positions(model, batch)
    scenes = sum(map(len, stories.text))
    assert calls == {"tower": scenes, "projector": 1 + scenes}
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-5)


def test_a_loss_that_differs_fails_the_benchmark(tiny_llava, tmp_path):
    peer = tmp_path / "peer.py"
    peer.write_text(
        PEER.read_text().replace("return_logits=True).loss", "return_logits=True).loss * 1.01")
    )  # fmt: skip
    assert main(arguments(tiny_llava.full, tmp_path, "--synthetic", "24", "--peer", str(peer))) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--synthetic", "23"], "6 steps of 4 take 24 stories, found 23"),
        ([], "one of --stories and --synthetic"),
        (["--synthetic", "24", "--peer", "nowhere.py"], "nowhere.py is missing"),
    ],
)
def test_wrong_settings_are_named(tiny_llava, tmp_path, capsys, more, message):
    assert main(arguments(tiny_llava.full, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_made_up_stories_have_the_lengths_of_the_papers_training_set(tiny_llava):
    model = load_checkpoint(tiny_llava.full, dtype=torch.float32).model
    stories = SyntheticStories(2000, model.config, model.get_vision_tower(), 4096, seed=0)
    scenes = [len(text) for text in stories.text]
    assert sum(scenes) / 2000 == pytest.approx(2.77, abs=0.08)
    assert sum(map(sum, stories.frames)) / 2000 == pytest.approx(13.4, abs=0.5)
    example = stories[3]
    marks = int((example["input_ids"] < 0).sum())
    assert len(example["input_ids"]) + 15 * marks == stories.lengths[3]
    assert max(SyntheticStories(50, model.config, model.get_vision_tower(), 160, seed=0).lengths) <= 160


def test_the_7b_config_makes_the_whole_model_in_half_precision():
    settings = SimpleNamespace(bf16=True, device=torch.device("meta"), model_max_length=4096)
    folder = ROOT / "configs" / "bench" / "llava-v1.6-vicuna-7b"
    model = random_model(folder, (ModelArguments(), None, settings), with_files=False).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(7.06e9, rel=0.01)
    assert torch.get_default_dtype() == torch.float32


def test_layers_are_compiled_for_their_row_only():
    layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    model = SimpleNamespace(get_model=lambda: SimpleNamespace(layers=layers))
    with compiled_layers(model):
        assert layers[0]._compiled_call_impl is not None
    assert layers[0]._compiled_call_impl is None


def test_without_a_gpu_the_table_has_the_processors_own_time(measured):
    rows = json.loads((measured / "train.json").read_text())["rows"]
    assert all(0 < seconds < 60 for row in rows for seconds in row["processor_seconds"])
    assert "processor s | speed by it |" in (measured / "train.md").read_text()
