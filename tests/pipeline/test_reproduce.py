"""python -m eval.reproduce with the real commands on a tiny model: to Table 1, killed, run again, wrong input."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eval.reproduce.__main__ import main
from eval.reproduce.runner import locked
from llava.imagechain.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {
    "max_steps": 2, "num_train_epochs": 1, "lora_r": 4, "lora_alpha": 8, "model_max_length": 512, "bf16": False,
    "per_device_train_batch_size": 4, "global_batch_size": 4, "eval_strategy": "no", "save_strategy": "no",
    "dataloader_num_workers": 0, "report_to": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory, tiny_base, small_stories):
    """A grid of one training: ImageChain and the base model, judged by the scripted judge."""
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    (path.parent / "judge.yaml").write_text("judge: mock\n")
    path.write_text(
        yaml.safe_dump(
            {
                "model": str(tiny_base), "stories": str(small_stories), "variants": ["mllm", "imagechain"],
                "results": ["table1"], "judge": str(path.parent / "judge.yaml"), "train": TRAINING,
                "predict": {"max_new_tokens": 4, "batch_size": 8}, "gpus_per_training": 1,
            }
        )
    )  # fmt: skip
    return path


def command(grid_file, output, *flags):
    return ["--config", str(grid_file), "--output-dir", str(output), *flags]


@pytest.fixture
def reproduce(capfd, monkeypatch):
    """Return a function that runs the command in this process (its tasks are processes of their own)."""
    monkeypatch.chdir(ROOT)

    def run(*words):
        capfd.readouterr()
        status = main(command(*words))
        return subprocess.CompletedProcess(words, status, *capfd.readouterr())

    return run


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(grid_file, tmp_path_factory):
    """Killed in the middle (the training is there, a prediction is not), then run again to its end."""
    output = tmp_path_factory.mktemp("out") / "grid"
    words = [sys.executable, "-m", "eval.reproduce", *command(grid_file, output)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: (output / "runs/mllm/run.json").is_file() or process.poll() is not None)
        second = main(command(grid_file, output))
        process.kill()
    assert second == 2  # refused: the folder is in use
    # The prediction at work ends with its parent, and gives the folder free.
    wait_for(lambda: is_free(output))
    return output, subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)


def wait_for(happened, seconds=1800):
    end = time.time() + seconds
    while not happened():
        assert time.time() < end
        time.sleep(0.05)


def is_free(output):
    try:
        with locked(output):
            return True
    except ConfigError:
        return False


def test_a_killed_run_goes_on_and_ends_with_the_table(finished):
    output, result = finished
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kept     train/imagechain-c2_7-seed0" in result.stderr
    assert "made     predict/imagechain-c2_7-seed0" in result.stderr
    text = (output / "table1.md").read_text()
    assert text in result.stdout
    assert measured(output) == {"mllm", "imagechain"}


def measured(output):
    cells = json.loads((output / "table1.json").read_text())["cells"]
    return {cell["variant"] for cell in cells if cell["n"]}


def test_a_finished_grid_is_kept_and_its_plan_says_done(finished, reproduce, grid_file):
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.glob("t*/**/*") if path.suffix == ".safetensors"}
    before |= {path: path.stat().st_mtime_ns for path in output.glob("runs/*/predictions.jsonl")}
    again = reproduce(grid_file, output)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("kept") == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before
    content = tree(output)
    plan = reproduce(grid_file, output, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert tree(output) == content
    cells = [line for line in plan.stdout.splitlines() if line.startswith("done") and "c2_7  " in line]
    assert len(cells) == 4  # ImageChain on C2, C3, C4, C5
    assert "trainings: 1 (1 done); cells: 8 (8 done)" in plan.stdout
    assert "left to do: 0.000 GPU hours, 0 B of disk, 0 calls" in plan.stdout


def copied(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "grid")
    return tmp_path / "grid"


def test_the_plan_of_a_fresh_folder_counts_everything_and_writes_nothing(reproduce, grid_file, tmp_path):
    (tmp_path / "server.yaml").write_text("judge: simrate\nmodel: some/model\n")
    plan = reproduce(grid_file, tmp_path / "fresh", "--dry-run", "--judge", str(tmp_path / "server.yaml"))
    assert plan.returncode == 0, plan.stderr
    assert "trainings: 1 (1 missing); cells: 8 (8 missing)" in plan.stdout
    assert "12 calls of the judge, price unknown" in plan.stdout.splitlines()[-2]
    assert "not in the sums" not in plan.stdout
    assert not (tmp_path / "fresh").exists()


def test_lost_rows_are_made_again_and_the_table_is_the_same(finished, reproduce, grid_file, tmp_path):
    output = copied(finished, tmp_path)
    predictions = output / "runs/mllm/predictions.jsonl"
    lines = predictions.read_text().splitlines(keepends=True)
    predictions.write_text("".join(lines[:2]) + lines[2][:30])
    (output / "runs/mllm/judgments.jsonl").unlink()
    plan = reproduce(grid_file, output, "--dry-run")
    assert "partly   MLLM" in plan.stdout
    result = reproduce(grid_file, output)
    assert result.returncode == 0, result.stderr
    assert (output / "table1.csv").read_text() == (finished[0] / "table1.csv").read_text()


def test_a_broken_cell_is_named_and_the_others_are_in_the_table(finished, reproduce, grid_file, tmp_path):
    output = copied(finished, tmp_path)
    (output / "runs/mllm/predictions.jsonl").write_text("{broken\n{}\n")
    result = reproduce(grid_file, output)
    assert result.returncode == 1
    assert "failed predict/mllm" in result.stdout
    assert "predict-mllm.log" in result.stdout
    assert "blocked judge/mllm: needs predict/mllm" in result.stdout
    assert "| ImageChain " in result.stdout or "made     results/table1" not in result.stderr


def test_other_settings_are_refused_not_overwritten_and_their_cells_are_in_no_table(
    finished, reproduce, grid_file, tmp_path
):
    output = copied(finished, tmp_path)
    kept = (output / "train/imagechain-c2_7-seed0/adapter_model.safetensors").read_bytes()
    changed = yaml.safe_load(grid_file.read_text())
    changed["train"]["learning_rate"] = 0.5
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(changed))
    plan = reproduce(tmp_path / "changed.yaml", output, "--dry-run")
    assert "learning_rate was 2e-05, is 0.5" in plan.stdout
    result = reproduce(tmp_path / "changed.yaml", output)
    assert result.returncode == 1
    assert "--redo-changed" in result.stdout
    assert (output / "train/imagechain-c2_7-seed0/adapter_model.safetensors").read_bytes() == kept
    assert "not in results/table1, made with other settings: imagechain-c2_7-seed0" in result.stderr
    assert measured(output) == {"mllm"}
    shutil.rmtree(output / "runs/imagechain-c2_7-seed0")  # as an element of a job array
    alone = reproduce(tmp_path / "changed.yaml", output, "--only", "predict/imagechain-c2_7-seed0")
    assert alone.returncode == 1
    assert "needs train/imagechain-c2_7-seed0" in alone.stdout
    assert not (output / "runs/imagechain-c2_7-seed0").exists()


def test_another_seed_trains_beside_the_first_and_the_table_has_their_mean(finished, reproduce, grid_file, tmp_path):
    output = copied(finished, tmp_path)
    plan = reproduce(grid_file, output, "--seeds", "0", "1", "--dry-run")
    assert "partly  table1\n          1 of its 3 runs are not done" in plan.stdout
    result = reproduce(grid_file, output, "--seeds", "0", "1")
    assert result.returncode == 0, result.stderr
    assert "kept     train/imagechain-c2_7-seed0" in result.stderr
    assert "made     train/imagechain-c2_7-seed1" in result.stderr
    assert "ImageChain, mean of 2 seeds" in (output / "table1.md").read_text()


def test_an_adapter_finds_its_base_where_the_grid_has_it(finished, reproduce, grid_file, tmp_path):
    output = copied(finished, tmp_path)
    settings = yaml.safe_load(grid_file.read_text())
    settings["model"] = str(shutil.copytree(settings["model"], tmp_path / "elsewhere"))
    (tmp_path / "moved.yaml").write_text(yaml.safe_dump(settings))
    adapter = output / "train/imagechain-c2_7-seed0/adapter_config.json"
    adapter.write_text(adapter.read_text().replace(str(grid_base(grid_file)), "/no/such/place"))
    shutil.rmtree(output / "runs/imagechain-c2_7-seed0")
    result = reproduce(tmp_path / "moved.yaml", output)
    assert result.returncode == 0, result.stderr
    assert "kept     train/imagechain-c2_7-seed0" in result.stderr
    assert (output / "table1.csv").read_text() == (finished[0] / "table1.csv").read_text()


def grid_base(grid_file):
    return yaml.safe_load(grid_file.read_text())["model"]


def test_the_plan_knows_the_paper_s_model_and_data_before_they_are_downloaded(reproduce, monkeypatch, tmp_path):
    monkeypatch.setattr("eval.reproduce.published.STORIES", {2: (20, 5, 12), 3: (10, 3, 14), 7: (4, 1, 23)})
    paper = ROOT / "configs/reproduce/paper.yaml"
    more = ("--dry-run", "--variants", "mllm", "mllm_icl", "imagechain", "--contexts", "c2_7", "--results", "table1")
    plan = reproduce(paper, tmp_path / "out", *more, "table3", "--model", str(tmp_path / "llava-v1.5-13b"))
    assert plan.returncode == 0, plan.stderr
    rows = [line.split() for line in plan.stdout.splitlines()]
    cells = {tuple(row[1:5]): row for row in rows if row[:1] == ["missing"] and len(row) == 13}
    assert cells["ImageChain", "c2_7", "c2", "0"][5:8] == ["5*", "0", "0"]
    assert len(cells) == 3 * 3  # MLLM, MLLM-ICL, ImageChain on 2, 3 and 7 scenes
    assert f"{27 + 5 * 699:,}* calls" in plan.stdout
    assert "the config of llava-v1.5-13b" in plan.stdout
    assert "not in the sums" not in plan.stdout
    assert not (tmp_path / "out").exists()
    refused = reproduce(paper, tmp_path / "out", *more[1:])
    assert refused.returncode == 2
    assert "llava-v1.6-vicuna-7b is not there; download" in refused.stderr
    unknown = reproduce(paper, tmp_path / "out", *more, "--model", str(tmp_path / "llava-v9"))
    assert unknown.returncode == 2
    assert "--dry-run knows llava-v1.6-vicuna-7b" in unknown.stderr


def test_an_element_of_a_job_array_runs_one_task(finished, reproduce, grid_file, tmp_path):
    output = copied(finished, tmp_path)
    shutil.rmtree(output / "runs/mllm")
    result = reproduce(grid_file, output, "--only", "predict/mllm")
    assert result.returncode == 0, result.stderr
    assert (output / "runs/mllm/predictions.jsonl").is_file()
    assert not (output / "runs/mllm/judgments.jsonl").exists()
    for more in ((), ("--dry-run",)):
        wrong = reproduce(grid_file, output, "--only", "predict/mlm", *more)
        assert wrong.returncode == 2
        assert "did you mean 'predict/mllm'" in wrong.stderr


@pytest.mark.slow
def test_the_story_world_from_nothing(tmp_path):
    """A tiny cut of all.sh --world: every stage, Tables 1 to 3 and Figure 5."""
    files = " ".join(str(ROOT / "configs/reproduce" / name) for name in ("world.yaml", "world_fast.yaml"))
    environment = {**os.environ, "PYTHON": sys.executable, "GRID": files, "OUTPUT": str(tmp_path / "it's out")}
    result = subprocess.run(
        ["bash", str(ROOT / "scripts/reproduce/all.sh"), "--world"], env=environment, cwd=tmp_path,
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    output = tmp_path / "it's out"
    for name in ("table1.md", "table2.tex", "table3.md", "table3.csv", "figure5.png", "figure5.svg"):
        assert (output / name).stat().st_size > 100
