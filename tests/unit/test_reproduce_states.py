"""What a task's state is read from: run.json, the files it was made from, and rows tied to judge and texts."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from eval.judge.base import load_judge
from eval.reproduce.grid import Ablation
from eval.reproduce.states import State, fitting_gpus, forget, judge_of, state_of, train_groups
from eval.reproduce.tasks import Task
from llava.imagechain.arguments import as_json
from llava.imagechain.config import ConfigError
from llava.imagechain.files import read_json, sha256_file, sha256_json, sha256_model, write_json, write_jsonl
from llava.imagechain.story import load_stories, storyframes_features

ROOT = Path(__file__).parents[2]


def made(folder, **settings):
    return Task(
        name="prepare/base", stage="prepare", kind="made", module="stories.world.base", folder=folder,
        settings={"output_dir": str(folder), "seed": 0} | settings,
    )  # fmt: skip


def write_run(folder, status="success", **more):
    write_json(folder / "run.json", {"status": status, "config": {"seed": 0, "steps": 20, "output_dir": "x"}} | more)
    (folder / "model.safetensors").touch()


def test_a_run_is_done_when_it_says_success_and_its_product_is_there(tmp_path):
    assert state_of(made(tmp_path)).kind == "missing"
    write_run(tmp_path)
    assert state_of(made(tmp_path)).kind == "done"
    (tmp_path / "model.safetensors").unlink()
    assert state_of(made(tmp_path)).kind == "partly"


@pytest.mark.parametrize(("status", "kind"), [("started", "partly"), ("interrupted", "partly"), ("error", "failed")])
def test_a_run_that_did_not_end_well_is_told_apart(tmp_path, status, kind):
    write_run(tmp_path, status, error="RuntimeError: disk full")
    state = state_of(made(tmp_path))
    assert state.kind == kind
    assert ("disk full" in state.detail) == (kind == "failed")


def test_other_settings_are_changes_also_those_of_a_settings_file(tmp_path):
    write_run(tmp_path)
    assert state_of(made(tmp_path, seed=1)).detail == "seed was 0, is 1"
    (tmp_path / "more.yaml").write_text("steps: 30\n")
    state = state_of(made(tmp_path, config=[str(tmp_path / "more.yaml")]))
    assert (state.kind, state.detail) == ("changed", "steps was 20, is 30")


def test_an_input_that_changed_since_is_a_change(tmp_path):
    file = tmp_path / "annotations.json"
    file.write_text("[]")
    write_run(tmp_path, inputs=[{"path": str(file), "sha256": sha256_file(file)}])
    assert state_of(made(tmp_path)).kind == "done"
    file.write_text("[1]")
    assert state_of(made(tmp_path)).detail == "annotations.json has changed"
    file.unlink()
    assert state_of(made(tmp_path)).kind == "changed"


def test_a_moved_folder_is_told_by_what_its_files_hold(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "valid.json").write_text("[]")
    config = {"annotations": [str(old / "valid.json")], "videos": [str(old / "videos")], "split_by": "video", "seed": 0}
    write_json(
        old / "storyframes" / "run.json",
        {"status": "success", "config": config,
         "inputs": [{"path": str(old / "valid.json"), "sha256": sha256_file(old / "valid.json")}]},
    )  # fmt: skip
    (old / "storyframes" / "build_report.json").touch()
    old.rename(new)
    task = Task(
        name="prepare/storyframes", stage="prepare", kind="made", module="stories.frames.build",
        settings=config | {"annotations": [str(new / "valid.json")], "videos": [str(new / "videos")]},
        folder=new / "storyframes",
    )  # fmt: skip
    assert state_of(task) == State(kind="done")
    (new / "valid.json").write_text("[1]")
    assert state_of(task).detail == "valid.json has changed"


@pytest.mark.parametrize("text", ["[]", '{"status": "success"}', '{"status": "success", "config": null}'])
def test_a_run_json_that_is_no_run_json_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    state = state_of(made(tmp_path))
    assert state.kind == "failed"
    assert "run.json does not say how its folder was made" in state.detail


def test_a_run_json_that_is_no_json_has_failed_with_its_place(tmp_path):
    (tmp_path / "run.json").write_text("{")
    state = state_of(made(tmp_path))
    assert state.kind == "failed"
    assert "run.json is not valid JSON" in state.detail


def judged(folder, judge, rows):
    """Write two predictions, and judgments of those in `rows`, by id -> reference the judgment was given for."""
    texts = {"a": ("A cat runs.", "A cat runs."), "b": ("A dog sits.", "A cow eats.")}
    shared = {"variant": "mllm", "num_scenes": 2, "train_context": None, "control": None}
    write_jsonl(
        folder / "predictions.jsonl",
        [{"id": name, "reference": r, "prediction": p, **shared} for name, (r, p) in texts.items()],
    )
    write_jsonl(
        folder / "judgments.jsonl",
        [
            {"id": name, "verdict": "yes", "parsed": True, "answer": "Yes", "judge": judge.settings.name,
             "pair_sha256": sha256_json([reference, texts[name][1]]), "key": judge.key(reference, texts[name][1])}
            for name, reference in rows.items()
        ],
    )  # fmt: skip


def judge_task(folder):
    return Task(name="judge/mllm", stage="judge", kind="judge", module="eval.simrate", settings={}, folder=folder)


def test_judgments_count_for_this_judge_and_these_texts_only(tmp_path):
    (tmp_path / "simrate.yaml").write_text("judge: simrate\nmodel: one\n")
    (tmp_path / "other.yaml").write_text("judge: simrate\nmodel: another\n")
    judge = judge_of(tmp_path / "simrate.yaml")

    def state(name="simrate.yaml"):
        return state_of(judge_task(tmp_path), judge_file=tmp_path / name)

    assert state().kind == "missing"
    judged(tmp_path, judge, {"a": "A cat runs.", "b": "A dog sits."})
    assert (state().kind, state().rows) == ("done", {2: 2})
    assert state("other.yaml").kind == "missing"
    judged(tmp_path, judge, {"a": "A cat runs.", "b": "Another reference."})
    assert (state().kind, state().detail) == ("partly", "1 of 2 unscored")


def test_a_broken_predictions_file_is_named(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"id": 3}\n')
    (tmp_path / "judge.yaml").write_text("judge: mock\n")
    state = state_of(judge_task(tmp_path), judge_file=tmp_path / "judge.yaml")
    assert state.kind == "failed"
    assert "predictions.jsonl" in state.detail


def test_a_judge_file_without_settings_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=r"settings .* were wanted"):
        judge_of(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("judge: [\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        judge_of(tmp_path / "broken.yaml")
    assert judge_of(Path(__file__).parents[2] / "configs/judge/world.yaml").settings == load_judge("world").settings


def test_a_cell_whose_stories_are_not_given_is_left_out(tmp_path):
    task = Task(
        name="train/x", stage="train", kind="train", module="llava.train.train", folder=tmp_path,
        settings={"stories": "", "model_name_or_path": "m"}, ablation=Ablation(name="x", title="x", other_split=True),
    )  # fmt: skip
    assert state_of(task).kind == "left out"
    assert json.dumps(state_of(task).detail)


def one_story(folder):
    """Write a StoryFrames folder with one training story of two scenes without frames."""
    import datasets

    row = {
        "sentence_parts": ["a", "b"], "start_times": [0.0, 1.0], "end_times": [1.0, 2.0], "background_description": "",
        "video_name": "v", "question_info": "s", "num_actors_in_video": 1, "caption": "",
        "sentence_parts_nocontext": ["a", "b"], "subsampled_frames_per_scene": [[], []], "story_id": "s",
        "scenes": [[], []], "num_scenes": 2,
    }  # fmt: skip
    datasets.Dataset.from_list([row], features=storyframes_features()).save_to_disk(str(folder / "scene_2" / "train"))
    return folder


@pytest.fixture
def trained(tiny_llava, tmp_path):
    """Return the task of a training, and a function that writes what it would leave."""
    stories = one_story(tmp_path / "grid" / "stories")
    task = training(tiny_llava.full, stories, tmp_path / "grid" / "run")

    def finish():
        chosen = load_stories(str(stories), "train", "c2_7")
        made_from = {
            "stories_sha256": sha256_json([chosen.ids, chosen.texts()]), "model_sha256": sha256_model(tiny_llava.full)
        }  # fmt: skip
        settings = as_json(train_groups(task))
        write_json(task.folder / "run.json", {"status": "success", "config": settings, "made_from": made_from})
        write_json(task.folder / "config.json", {})

    return task, finish


def training(model, stories, folder, **more):
    configs = [str(ROOT / f"configs/train/{name}.yaml") for name in ("base", "imagechain", "c2_7")]
    settings = {"config": configs, "model_name_or_path": str(model), "stories": str(stories), "output_dir": str(folder)}
    return Task(
        name="train/imagechain-c2_7-seed0", stage="train", kind="train", module="llava.train.train", folder=folder,
        settings=settings | more,
    )  # fmt: skip


def test_a_training_in_bfloat16_is_done_also_where_the_plan_is_made_on_a_machine_without_it(trained, monkeypatch):
    task, finish = trained
    monkeypatch.setattr("llava.imagechain.arguments.has_bfloat16", lambda: True)
    finish()
    assert state_of(task).kind == "done"
    monkeypatch.setattr("llava.imagechain.arguments.has_bfloat16", lambda: False)
    assert state_of(task).kind == "done"
    other = dict(task.settings, seed=1)
    assert state_of(dataclasses.replace(task, settings=other)).kind == "changed"


def test_a_training_whose_grid_or_model_was_moved_is_done(trained, tiny_llava, tmp_path):
    trained[1]()
    (tmp_path / "grid").rename(tmp_path / "moved")
    model = shutil.copytree(tiny_llava.full, tmp_path / "model")
    forget()
    assert state_of(training(model, tmp_path / "moved/stories", tmp_path / "moved/run")).kind == "done"
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    assert state_of(training(model, tmp_path / "moved/stories", tmp_path / "moved/run")).detail == (
        "the base model has changed"
    )


def test_a_training_whose_stories_were_built_anew_with_other_frames_is_changed(trained, tmp_path):
    task, finish = trained
    finish()
    run = read_json(task.folder / "run.json")
    run["made_from"] |= {"frames_sha256": "of other frames"}
    write_json(task.folder / "run.json", run)
    assert state_of(task).detail == "the frames of the stories have changed"


def test_a_training_takes_as_many_gpus_as_share_its_batch_evenly(trained):
    task, _ = trained
    assert [fitting_gpus(task, most) for most in (0, 1, 3, 5, 8)] == [0, 1, 2, 4, 8]
    assert fitting_gpus(made(task.folder), 3) == 3
