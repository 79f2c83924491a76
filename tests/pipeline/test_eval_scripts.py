"""The evaluation scripts one after another, on a handful of stories in folders with blanks in their names."""

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from llava.imagechain.story import storyframes_features

ROOT = Path(__file__).resolve().parents[2]


def run_script(name, *arguments, cwd, **settings):
    """Run scripts/eval/NAME.sh from another folder and return the finished process."""
    command = ["bash", str(ROOT / "scripts" / "eval" / f"{name}.sh"), *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **settings}, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture
def work(tmp_path):
    """Lay out `the runs/{mllm,imagechain}/predictions.jsonl` and `story frames`."""
    import datasets

    data = io.BytesIO()
    Image.new("RGB", (64, 64), "olive").save(data, "JPEG")
    rows = [
        {
            "sentence_parts": ["first", f"reference {i}"], "start_times": [0.0, 1.0], "end_times": [1.0, 2.0],
            "background_description": "", "video_name": f"v {i}", "question_info": "", "num_actors_in_video": 1,
            "caption": "", "sentence_parts_nocontext": ["", ""], "subsampled_frames_per_scene": [[0.1], [1.2]],
            "story_id": f"s{i}", "scenes": [[{"bytes": data.getvalue(), "path": None}]] * 2, "num_scenes": 2,
        }
        for i in range(4)
    ]  # fmt: skip
    stories = datasets.Dataset.from_list(rows, features=storyframes_features())
    stories.save_to_disk(str(tmp_path / "story frames" / "scene_2" / "val"))
    for variant, right in (("mllm", 1), ("imagechain", 3)):
        folder = tmp_path / "the runs" / variant
        folder.mkdir(parents=True)
        with (folder / "predictions.jsonl").open("w") as file:
            for i in range(4):
                texts = {"reference": f"reference {i}", "prediction": f"reference {i}" if i < right else "other"}
                file.write(json.dumps({"id": f"s{i}", "variant": variant, "num_scenes": 2, **texts}) + "\n")
    return tmp_path


def test_judge_then_table_then_report(work):
    runs = ["the runs/mllm", "the runs/imagechain"]
    judged = run_script("simrate", *runs, cwd=work, JUDGE="mock")
    assert judged.returncode == 0, judged.stderr
    assert "SimRate 75.00 % (3/4)" in judged.stdout
    table = run_script("tables", "the results", *runs, "--", "--paper", cwd=work)
    assert table.returncode == 0, table.stderr
    assert "25.00 (1/4)" in table.stdout and "– paper" in table.stdout
    assert {path.name for path in (work / "the results").glob("table*")} >= {
        f"{name}.{kind}" for name in ("table1", "table1_pairs") for kind in ("md", "csv", "tex", "json")
    }
    better = run_script("compare", *reversed(runs), "--", "--context", "c2", cwd=work)
    assert better.returncode == 0, better.stderr
    assert "ImageChain and MLLM is better: 75.00 % against 25.00 % of the same 4 stories, +50.0" in better.stdout
    page = run_script("report", "story frames", "the results/report.html", *runs, cwd=work)
    assert page.returncode == 0, page.stderr
    assert (work / "the results" / "report.html").read_text().count('<article class="card"') == 4


def test_runs_by_training_context_become_table_two_and_figure_five(work):
    runs = []
    for context in ("c2", "c3", "c4_7", "c2_7"):
        runs.append(f"trained on {context}")
        source = work / "the runs" / "imagechain" / "predictions.jsonl"
        rows = [json.loads(line) | {"train_context": context, "seed": 3} for line in source.read_text().splitlines()]
        (work / runs[-1]).mkdir()
        (work / runs[-1] / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = run_script("simrate", *runs, cwd=work, JUDGE="mock")
    assert judged.returncode == 0, judged.stderr
    table = run_script("tables", "the results", *runs, cwd=work, TABLE="2")
    assert table.returncode == 0, table.stderr
    assert "| ImageChain C2-7 |   C2 |      75.00 (3/4) |" in table.stdout
    figure = run_script("figure5", "the results", *runs, "--", "--paper", cwd=work)
    assert figure.returncode == 0, figure.stderr
    assert {path.name for path in (work / "the results").iterdir()} >= {
        "table2.md", "table2.csv", "table2.tex", "table2.json", "figure5.png", "figure5.svg", "figure5.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("simrate", ["the runs/mllm"]), ("report", ["story frames", "p.html", "r"]), ("tables", ["out", "r"]),
        ("figure5", ["out", "the runs/mllm"]), ("compare", ["the runs/mllm", "the runs/imagechain"]),
    ],
)  # fmt: skip
def test_dry_run_prints_a_command_and_does_nothing(work, name, arguments):
    before = sorted(work.rglob("*"))
    shown = run_script(name, "--dry-run", *arguments, "--", "--limit", "3", cwd=work)
    assert shown.returncode == 0
    module = {"compare": "tables", "figure5": "tables.figure5"}.get(name, name)
    assert f"-m eval.{module} " in shown.stdout and shown.stdout.rstrip().endswith("--limit 3")
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("name", ["simrate", "tables", "report", "figure5", "compare"])
def test_wrong_use_prints_the_usage_and_status_two(work, name):
    assert "usage: bash scripts/eval/" in run_script(name, "--help", cwd=work).stdout
    missing = run_script(name, cwd=work)
    assert missing.returncode == 2 and f"{name}.sh: found 0 words, wanted " in missing.stderr.splitlines()[-1]
    wrong = run_script(name, "--paper", "a", "b", "c", cwd=work)
    assert wrong.returncode == 2 and "unknown option --paper" in wrong.stderr
