"""Table 3 from the story world by the real commands: data, predictions, keywords by the grammar, scores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval.mementos.predict import main

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*words, status=0, **settings):
    result = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env={**ENVIRONMENT, **settings}, capture_output=True, text=True,
        timeout=1800,
    )  # fmt: skip
    assert result.returncode == status, result.stderr[-3000:]
    return result


def module(name, *words, **settings):
    return run(sys.executable, "-m", name, *words, **settings)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three sequences of each domain, drawn from a world of which only the settings are there."""
    root = tmp_path_factory.mktemp("mementos")
    (root / "world").mkdir()
    (root / "world" / "world.json").write_text(json.dumps({"num_videos": 10, "seed": 3, "frame_size": 128}))
    module("stories.world.mementos", "--world", root / "world", "--output-dir", root / "data", "--num-samples", 3,
           "--frame-size", 32)  # fmt: skip
    return root / "data"


@pytest.fixture
def predict(tiny_base, data, capsys, caplog):
    """Return a function that runs the prediction command in this process and gives back what it says."""

    def run_command(output, *flags, variant="imagechain", status=0, data=data, checkpoint=tiny_base):
        caplog.set_level("INFO")
        caplog.clear()
        words = ["--checkpoint", checkpoint, "--variant", variant, "--data", data, "--output-dir", output,
                 "--max-new-tokens", 6, *flags]  # fmt: skip
        try:
            found = main([str(word) for word in words])
        except SystemExit as end:
            found = end.code
        shown = capsys.readouterr()
        assert found == status, shown.err
        return shown.out + shown.err + caplog.text

    return run_command


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_world_gives_data_in_the_benchmarks_format(data):
    heads = {path.name: path.read_text().splitlines()[0] for path in data.glob("*.csv")}
    assert heads == {
        "cmc_description.csv": "image_name,gt_description",
        "dl_description.csv": "image_name,description",
        "robo_description.csv": "image,description",
    }
    assert len(list((data / "composites").glob("*.png"))) == 9
    assert len(list((data / "sym_graphs").glob("*_graph_v1.json"))) == 6
    again = module("stories.world.mementos", "--world", data.parent / "world", "--output-dir", data, "--num-samples", 4,
                   status=2)  # fmt: skip
    assert "holds other data" in again.stderr
    assert "world.json" in module("stories.world.mementos", "--world", data, "--output-dir", data, status=2).stderr


def test_the_three_steps_give_table_3(tiny_base, data, tmp_path):
    words = [f"{variant}={tiny_base}" for variant in ("mllm", "imagechain")]
    settings = {"EXTRACTOR": "grammar"}
    script = ["bash", "scripts/eval/mementos.sh", data, tmp_path, *words, "--", "--max-new-tokens", 6]
    dry = run(*script[:2], "--dry-run", *script[2:], **settings)
    assert dry.stdout.count("eval.mementos.predict") == 2 and "eval.mementos.score" in dry.stdout
    assert not (tmp_path / "runs").exists()
    run(*script, **settings)
    table = json.loads((tmp_path / "table3.json").read_text())
    overall = [cell for cell in table["cells"] if cell["domain"] == "overall"]
    assert {(cell["variant"], cell["n"]) for cell in overall} == {("mllm", 9), ("imagechain", 9)}
    assert all(0 <= cell["f1"] <= 100 for cell in overall)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/predictions.jsonl")}
    again = run(*script, **settings)
    assert again.stderr.count("all samples are predicted already") == 2
    assert before == {path: path.read_bytes() for path in before}


def test_own_earlier_text_describes_scene_after_scene_and_joins_the_answers(predict, tmp_path):
    predict(tmp_path / "a", "--limit", 1, "--max-scenes", 3)
    for row in rows_of(tmp_path / "a"):
        assert len(row["answers"]) == row["num_scenes"] == 3
        ended = (text if text.endswith((".", "!", "?")) else text + "." for text in row["answers"] if text)
        assert row["prediction"] == " ".join(ended)
    facts = json.loads((tmp_path / "a" / "run.json").read_text())
    assert facts["status"] == "success" and facts["showing"]["earlier_text"] == "own"


def test_batches_do_not_change_the_descriptions(predict, tmp_path):
    for name, size in (("a", 1), ("b", 4)):
        predict(tmp_path / name, "--batch-size", size)
    assert [row["prediction"] for row in rows_of(tmp_path / "a")] == [
        row["prediction"] for row in rows_of(tmp_path / "b")
    ]


def test_a_larger_limit_goes_on_and_other_settings_are_refused(predict, tmp_path):
    predict(tmp_path / "cut", "--limit", 1)
    assert len(rows_of(tmp_path / "cut")) == 3
    predict(tmp_path / "cut")
    predict(tmp_path / "whole")
    assert (tmp_path / "cut" / "predictions.jsonl").read_bytes() == (
        tmp_path / "whole" / "predictions.jsonl"
    ).read_bytes()
    refused = predict(tmp_path / "cut", "--frames", "average", status=2)
    assert "frames was" in refused


@pytest.mark.parametrize(("frames", "scenes"), [("average", 1), ("composite", 1), ("groups", 2)])
def test_pictures_are_shown_as_one_scene_as_a_composite_or_in_groups(predict, tmp_path, frames, scenes):
    predict(tmp_path, "--frames", frames, "--max-scenes", 2, "--limit", 1, variant="mllm")
    assert {row["num_scenes"] for row in rows_of(tmp_path)} == {scenes}


def test_show_prints_the_prompts_without_loading_a_model(predict, tmp_path):
    shown = predict(tmp_path, "--show", variant="visual_context")
    assert shown.count("Write a description for the given image sequence") == 3
    assert "=== rw_" in shown and "2 + " in shown
    chain = predict(tmp_path, "--show")
    assert "ASSISTANT: (the model's answer 1)</s>" in chain and "Write a description" not in chain
    empty = predict(tmp_path, "--show", "--earlier-text", "empty", "--question", "own")
    assert "ASSISTANT:</s>\n<s>USER: What is happening in the next image?" in empty and "(the model's" not in empty
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_pictures_are_skipped_once_and_listed(predict, data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    gone, damaged = sorted((copy / "frames").iterdir())[:2]
    shutil.rmtree(gone)
    (damaged / "1.png").write_bytes(b"no picture")
    refused = predict(tmp_path / "run", data=copy, status=2)
    assert "1 of 9" in refused and "--max-skipped" in refused
    predict(tmp_path / "run", "--max-skipped", 0.3, data=copy)
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in skipped] == [gone.name, damaged.name]
    assert "a composite only (--frames composite)" in skipped[0]["reason"]
    assert len(rows_of(tmp_path / "run")) == 7
    again = predict(tmp_path / "run", "--max-skipped", 0.3, data=copy)
    assert "all samples are predicted already" in again


def test_wrong_words_are_refused_with_what_was_wanted(predict, data, tmp_path):
    assert "variant" in predict(tmp_path, variant="mllm_icl", status=2)
    both = predict(tmp_path / "run", data=tmp_path / "none", checkpoint=tmp_path, status=2)
    assert "not a model folder" in both and "a folder with" in both
    assert (
        "VARIANT=CHECKPOINT" in run("bash", "scripts/eval/mementos.sh", data, tmp_path, "imagechain", status=2).stderr
    )
