"""Prediction by several processes: who predicts what, and the merge that misses nothing and takes nothing twice."""

import importlib.util
import json
from pathlib import Path

import pytest

from eval.predict.ranks import Shard, find_shard, own_gpus, shard_of_rows
from eval.predict.run import main
from eval.predict.shards import main as merge_main
from llava.imagechain.config import ConfigError
from llava.imagechain.files import read_jsonl, write_jsonl
from llava.imagechain.locks import only_one

spec = importlib.util.spec_from_file_location("helpers_test_predict", Path(__file__).with_name("test_predict.py"))
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1"}


def two_videos(row):
    """Three stories are of one video, and one cannot be read."""
    if row["story_id"] in ("validation-0", "validation-3", "validation-7"):
        row["video_name"] = "one"
    return helpers.damaged(row)


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return helpers.write_stories(tmp_path_factory.mktemp("stories") / "storyframes", two_videos)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*TORCHRUN, *SRUN, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def predict(model, stories, output, *flags):
    words = ["--checkpoint", model, "--stories", stories, "--output-dir", output, "--variant", "imagechain_noft"]
    words += ["--max-new-tokens", 4, "--device", "cpu", "--max-skipped", 0.2, *flags]
    return main([str(word) for word in words])


def files(folder):
    return [(folder / name).read_bytes() for name in ("predictions.jsonl", "skipped.jsonl")]


@pytest.fixture(scope="module")
def whole(tiny_llava, stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert predict(tiny_llava.full, stories, folder) == 0
    return folder


@pytest.fixture(scope="module")
def unmerged(tiny_llava, stories, tmp_path_factory):
    """A run of three parts, of which the last is not there yet."""
    folder = tmp_path_factory.mktemp("parts")
    for shard in (0, 1):
        assert predict(tiny_llava.full, stories, folder, "--num-shards", 3, "--shard", shard) == 0
    return folder


@pytest.fixture()
def parts(unmerged, tmp_path):
    import shutil

    return Path(shutil.copytree(unmerged, tmp_path / "run"))


def test_parts_keep_videos_together_take_every_story_once_and_are_about_equal():
    videos = [f"video-{row % 40}" for row in range(200)]
    scenes = [2 + row % 6 for row in range(200)]
    found = shard_of_rows(videos, scenes, 8)
    assert all(len({part for part, name in zip(found, videos, strict=True) if name == video}) == 1 for video in videos)
    loads = [sum(count for part, count in zip(found, scenes, strict=True) if part == k) for k in range(8)]
    assert set(found) == set(range(8)) and max(loads) - min(loads) <= 24
    assert shard_of_rows(["a"], [2], 4).count(0) == 1  # more parts than videos


@pytest.mark.parametrize(
    ("num_shards", "shard", "environment", "wanted"),
    [
        (None, None, {}, None),
        (4, 2, {}, Shard(number=2, of=4)),
        (None, None, TORCHRUN, Shard(number=1, of=4)),
        (4, None, TORCHRUN, Shard(number=1, of=4)),
        (None, None, SRUN, Shard(number=9, of=16)),
        (1, None, TORCHRUN, None),
        (8, 7, TORCHRUN, Shard(number=7, of=8)),
        (None, None, {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (None, None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, not a step of srun
    ],
)
def test_a_process_finds_its_part(num_shards, shard, environment, wanted):
    assert find_shard(num_shards, shard, environment) == wanted


@pytest.mark.parametrize(
    ("num_shards", "shard", "environment", "message"),
    [
        (None, 1, {}, "Give --num-shards"),
        (4, None, {}, "Give --shard"),
        (3, None, TORCHRUN, "the launcher started 4 processes"),
        (4, 4, {}, "0 to 3 was wanted, found 4"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(num_shards, shard, environment, message):
    with pytest.raises(ConfigError, match=message):
        find_shard(num_shards, shard, environment)


@pytest.mark.parametrize(
    ("environment", "per_process", "installed", "wanted"),
    [
        ({}, 1, 8, None),
        (TORCHRUN, 1, 0, None),
        (TORCHRUN, 1, 8, "1"),
        (TORCHRUN, 2, 8, "2,3"),
        ({**TORCHRUN, "CUDA_VISIBLE_DEVICES": "5,7"}, 1, 8, "7"),
        ({**TORCHRUN, "CUDA_VISIBLE_DEVICES": "GPU-a"}, 1, 8, None),  # bound by the launcher
        ({**SRUN, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2, 8, "2,3"),
    ],
)
def test_each_process_of_a_machine_takes_gpus_of_its_own(environment, per_process, installed, wanted):
    assert own_gpus(environment, per_process, installed) == wanted


def test_more_processes_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="process 1 of this machine needs 1 GPU"):
        own_gpus(TORCHRUN, 1, 1)


def test_the_last_part_merges_to_what_one_process_writes(tiny_llava, stories, parts, whole):
    assert not (parts / "predictions.jsonl").exists()
    assert predict(tiny_llava.full, stories, parts, "--num-shards", 3, "--shard", 2, "--batch-size", 3) == 0
    assert files(parts) == files(whole)
    run, one = (json.loads((folder / "run.json").read_text()) for folder in (parts, whole))
    for name in ("identity", "trained", "rows", "skipped", "predicted", "prompt_tokens", "new_tokens", "status"):
        assert run[name] == one[name]
    assert {**run["config"], "output_dir": ""} == {**one["config"], "output_dir": ""}


def test_a_launchers_process_predicts_its_part_only(tiny_llava, stories, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert predict(tiny_llava.full, stories, tmp_path) == 0
    videos = {row["video_name"] for row in read_jsonl(tmp_path / "shards" / "1-of-2" / "predictions.jsonl")}
    assert videos and "one" not in videos and not (tmp_path / "predictions.jsonl").exists()


def test_a_part_goes_on_where_it_stopped(tiny_llava, stories, parts, whole):
    path = parts / "shards" / "1-of-3" / "predictions.jsonl"
    wanted = path.read_bytes()
    run = path.with_name("run.json")
    path.write_bytes(wanted.splitlines(keepends=True)[0] + b'{"id": "cut o')
    run.write_text(json.dumps({**json.loads(run.read_text()), "status": "started"}))
    for shard in (2, 1):
        assert predict(tiny_llava.full, stories, parts, "--num-shards", 3, "--shard", shard) == 0
    assert path.read_bytes() == wanted and files(parts) == files(whole)


def test_a_merged_run_is_finished_for_every_process(tiny_llava, stories, parts, monkeypatch):
    predict(tiny_llava.full, stories, parts, "--num-shards", 3, "--shard", 2)
    before = files(parts)
    monkeypatch.setattr("eval.predict.run.load_model", lambda job: pytest.fail("the model was loaded"))
    for flags in ([], ["--num-shards", 3, "--shard", 0]):
        assert predict(tiny_llava.full, stories, parts, *flags) == 0
    assert files(parts) == before


def test_a_higher_limit_adds_the_new_stories_only(tiny_llava, stories, tmp_path, whole):
    for limit in (4, 10):
        for shard in (0, 1):
            flags = ["--num-shards", 2, "--shard", shard, "--limit", limit, "--max-skipped", 0.3]
            assert predict(tiny_llava.full, stories, tmp_path, *flags) == 0
        rows = len(read_jsonl(tmp_path / "predictions.jsonl"))
        assert rows == (4 if limit == 4 else 9)
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize("flags", [["--num-shards", 2, "--shard", 0], []])
def test_another_cut_in_the_same_folder_is_refused(tiny_llava, stories, parts, flags, capsys):
    assert predict(tiny_llava.full, stories, parts, *flags) == 2
    assert "holds parts of a run by 3 processes" in capsys.readouterr().err


def test_parts_in_the_folder_of_one_process_are_refused(tiny_llava, stories, tmp_path, capsys):
    assert predict(tiny_llava.full, stories, tmp_path, "--limit", 3) == 0
    assert predict(tiny_llava.full, stories, tmp_path, "--num-shards", 2, "--shard", 0) == 2
    assert "was begun by one process" in capsys.readouterr().err


def test_two_processes_never_write_one_folder(tiny_llava, stories, tmp_path, capsys):
    with only_one(tmp_path / ".predicting"):
        assert predict(tiny_llava.full, stories, tmp_path) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert not (tmp_path / "predictions.jsonl").exists()


def spoil(folder, change):
    path = folder / "shards" / "0-of-3" / "predictions.jsonl"
    write_jsonl(path, change(read_jsonl(path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "1 missing: validation-"),
        (lambda rows: [*rows, rows[0]], "1 there more than once: validation-"),
        (lambda rows: [*rows, {**rows[0], "id": "elsewhere"}], "1 not of this split: elsewhere"),
        (lambda rows: [*rows, {"id": "validation-9"}], "0-of-3: 1 rows of predictions.jsonl name no story"),
    ],
)
def test_a_merge_that_would_lose_or_repeat_a_story_is_refused_with_a_list(
    tiny_llava, stories, parts, change, message, capsys
):
    assert predict(tiny_llava.full, stories, parts, "--num-shards", 3, "--shard", 2) == 0
    for name in ("predictions.jsonl", "skipped.jsonl", "run.json"):
        (parts / name).unlink()
    spoil(parts, change)
    assert merge_main(["--output-dir", str(parts)]) == 2
    assert message in capsys.readouterr().err
    assert not (parts / "predictions.jsonl").exists()


def test_what_is_not_finished_or_made_otherwise_is_not_merged(parts, tmp_path, capsys):
    run = parts / "shards" / "1-of-3" / "run.json"
    facts = json.loads(run.read_text())
    facts["identity"]["seed"] = 7
    run.write_text(json.dumps(facts))
    assert merge_main(["--output-dir", str(parts)]) == 2
    message = capsys.readouterr().err
    assert "2-of-3: not started" in message and "1-of-3 was made otherwise than 0-of-3: seed is 7, not 0" in message
    assert merge_main(["--output-dir", str(tmp_path / "nothing")]) == 2
    assert "found none" in capsys.readouterr().err


def test_parts_of_another_dtype_are_not_merged(tiny_llava, stories, parts, capsys):
    predict(tiny_llava.full, stories, parts, "--num-shards", 3, "--shard", 2)
    path = parts / "shards" / "1-of-3" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    assert merge_main(["--output-dir", str(parts)]) == 2
    assert "1-of-3 was made otherwise than 0-of-3: dtype is 'bfloat16', not 'float32'" in capsys.readouterr().err


def test_overwriting_parts_drops_the_merged_predictions(tiny_llava, stories, parts):
    predict(tiny_llava.full, stories, parts, "--num-shards", 3, "--shard", 2)
    flags = ["--num-shards", 3, "--shard", 0, "--max-new-tokens", 3, "--overwrite"]
    assert (parts / "predictions.jsonl").is_file() and predict(tiny_llava.full, stories, parts, *flags) == 0
    assert not (parts / "predictions.jsonl").exists()  # until all parts are there again


def test_a_merge_by_hand_gives_the_same_files(tiny_llava, stories, parts, whole, capsys):
    predict(tiny_llava.full, stories, parts, "--num-shards", 3, "--shard", 2)
    for name in ("predictions.jsonl", "skipped.jsonl", "run.json"):
        (parts / name).unlink()
    assert merge_main(["--output-dir", str(parts), "--dry-run"]) == 0
    assert "would be merged: 9 predictions and 1 skipped" in capsys.readouterr().out
    assert merge_main(["--output-dir", str(parts)]) == 0
    assert files(parts) == files(whole)


def test_parts_that_do_not_say_their_stories_are_not_merged(tiny_llava, stories, parts, capsys):
    predict(tiny_llava.full, stories, parts, "--num-shards", 3, "--shard", 2)
    for path in (parts / "shards").glob("*/run.json"):
        facts = json.loads(path.read_text())
        del facts["identity"]["frames_sha256"]  # as in older runs
        path.write_text(json.dumps(facts))
    assert merge_main(["--output-dir", str(parts), "--dry-run"]) == 0
    for path in (parts / "shards").glob("*/run.json"):
        facts = json.loads(path.read_text())
        del facts["identity"]["stories_sha256"]
        path.write_text(json.dumps(facts))
    assert merge_main(["--output-dir", str(parts), "--dry-run"]) == 2
    assert "made with other stories" in capsys.readouterr().err
