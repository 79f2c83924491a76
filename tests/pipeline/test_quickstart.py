"""`bash scripts/quickstart.sh --fast`: the whole job, small; a second run does nothing anew."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("MLLM", "MLLM-ICL", "MLLM-FT", "VisualContext", "FinalScene", "ImageChain-NoFT", "ImageChain")
pytestmark = pytest.mark.slow


def quickstart(output):
    command = ["bash", str(ROOT / "scripts/quickstart.sh"), "--fast", "--output", str(output)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(output.parent / "cache")}
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("quick start") / "it's here"
    result = quickstart(output)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return output, result


def test_the_table_has_all_seven_variants_and_three_controls(finished):
    output, result = finished
    table = json.loads((output / "table1.json").read_text())
    text = (output / "table1.md").read_text()
    assert all(f"| {title} " in text for title in VARIANTS)
    assert text in result.stdout
    assert {path.name for path in (output / "runs").iterdir()} >= {
        "imagechain-blank_images", "imagechain-other_text", "imagechain-shuffled_scenes",
    }  # fmt: skip
    assert table
    assert (output / "table1.csv").is_file()
    assert (output / "report.html").stat().st_size > 10_000


def test_no_video_is_on_both_sides_of_the_split(finished):
    output, _ = finished
    report = json.loads((output / "storyframes/build_report.json").read_text())
    assert report["leak"]["with_video_in_train"] == 0
    assert report["leak"]["validation_stories"] > 0


def test_every_stage_left_a_manifest_that_says_success(finished):
    output, _ = finished
    manifests = list(output.rglob("*run.json"))
    assert len(manifests) > 20
    assert {json.loads(path.read_text())["status"] for path in manifests} == {"success"}


def test_a_second_run_keeps_everything(finished):
    output, _ = finished
    kept = [*output.glob("runs/*/*.jsonl"), *output.glob("checkpoints/*/adapter_model.safetensors"),
            output / "base/model.safetensors"]  # fmt: skip
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept}
    assert len(before) > 20
    again = quickstart(output)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert {path: path.read_bytes() for path in kept} == {path: content for path, (content, _) in before.items()}
    weights = [path for path in kept if path.suffix == ".safetensors"]
    assert all(path.stat().st_mtime_ns == before[path][1] for path in weights)
