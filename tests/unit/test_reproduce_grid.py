"""The grid file: which cells and tasks follow from it, and what is said about a wrong one."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from eval.reproduce.costs import Need
from eval.reproduce.grid import GridConfig, ablations_of, cells_of, check
from eval.reproduce.plan import Entry, entries_of, mementos_entry, to_text, totals
from eval.reproduce.states import State
from eval.reproduce.tasks import Task, flags, tasks_of
from llava.imagechain.config import ConfigError, build_config
from llava.imagechain.story import HUB_DATASET

ROOT = Path(__file__).parents[2]


def grid(tmp_path, *names, **more):
    layers = [yaml.safe_load((ROOT / "configs/reproduce" / f"{name}.yaml").read_text()) for name in names]
    places = {name: str(tmp_path / name) for name in ("model", "mementos")} if "world" not in names else {}
    for place in places.values():
        Path(place).mkdir(exist_ok=True)
    if places:
        (tmp_path / "model/config.json").touch()
    stories = {} if "world" in names else {"stories": str(tmp_path / "mementos")}
    return build_config(GridConfig, [*layers, {"output_dir": str(tmp_path / "out")} | places | stories | more])


@pytest.mark.parametrize("name", ["paper", "world"])
def test_the_grid_is_sixteen_trainings(tmp_path, name):
    config = grid(tmp_path, name)
    check(config)
    trainings = [task.name for task in tasks_of(config) if task.kind == "train"]
    variants = ("mllm_ft", "visual_context", "final_scene", "imagechain")
    assert sorted(trainings) == sorted(f"train/{v}-{c}-seed0" for v in variants for c in ("c2_7", "c2", "c3", "c4_7"))


def test_every_task_stands_after_what_it_needs(tmp_path):
    seen = set()
    for task in tasks_of(grid(tmp_path, "world", "ablations")) + tasks_of(grid(tmp_path, "world")):
        assert set(task.needs) <= seen, task.name
        seen.add(task.name)


def test_a_table_asks_only_for_its_own_cells(tmp_path):
    config = grid(tmp_path, "paper")
    names = {result: [cell.name for cell in cells_of(config, result)] for result in ("table1", "table2", "figure5")}
    assert names["table2"] == [f"imagechain-{context}-seed0" for context in ("c2_7", "c2", "c3", "c4_7")]
    assert {"mllm", "mllm_icl", "imagechain_noft", "mllm_ft-c2_7-seed0"} <= set(names["table1"])
    assert len(names["table1"]) == 7
    assert len(names["figure5"]) == 12
    assert not [name for name in names["figure5"] if "c2_7" in name]
    only = tasks_of(dataclasses.replace(config, results=["table2"]))
    assert {task.stage for task in only} == {"train", "predict", "judge", "results"}
    assert len(only) == 4 + 4 + 4 + 1


def test_seeds_multiply_trained_cells_only(tmp_path):
    tasks = tasks_of(grid(tmp_path, "paper", seeds=[0, 3], results=["table1"]))
    predictions = [task.name for task in tasks if task.kind == "predict"]
    assert len(predictions) == 3 + 2 * 4
    assert "predict/imagechain-c2_7-seed3" in predictions


def test_the_papers_epochs_are_the_variants_own_and_the_worlds_are_equal(tmp_path):
    assert "num_train_epochs" not in {**grid(tmp_path, "paper").train}
    world = yaml.safe_load((ROOT / "configs/train/world.yaml").read_text())
    assert world["num_train_epochs"] == 3


def test_an_ablation_changes_one_setting_of_training(tmp_path):
    config = grid(tmp_path, "paper", "ablations", other_split=str(tmp_path))
    check(config)
    tasks = {task.name: task for task in tasks_of(config)}
    default = tasks["train/imagechain-c2_7-seed0"].settings
    for ablation in ablations_of(config):
        changed = tasks[f"train/imagechain-c2_7-seed0-{ablation.name}"].settings
        differs = {name for name in default | changed if default.get(name) != changed.get(name)} - {"output_dir"}
        assert differs == set(ablation.train) | ({"stories"} if ablation.other_split else set()), ablation.name
        assert len(differs) == 1


@pytest.mark.parametrize(("name", "context"), [("paper", "c2_7"), ("world", "c2")])
def test_ablations_and_their_default_are_trained_on_one_context(tmp_path, name, context):
    config = grid(tmp_path, name, "ablations")
    cells = cells_of(config, "ablations")
    assert [cell.context for cell in cells] == [context] * (1 + len(config.ablations))
    assert cells[0] in cells_of(config, "table2")  # the default is trained once
    other = cells_of(dataclasses.replace(config, ablation_context="c3"), "ablations")
    assert not {cell.name for cell in cells} & {cell.name for cell in other}
    assert not {cell.training for cell in cells} & {cell.training for cell in other}


def test_all_problems_are_told_at_once(tmp_path):
    config = GridConfig(output_dir=tmp_path, judge=Path("no-judge.yaml"), seeds=[1, 1], contexts=["c2"], train=3)
    with pytest.raises(ConfigError) as error:
        check(config)
    for word in ("--model", "--stories", "--mementos", "no-judge.yaml", "seeds", "table2", "figure5", "train"):
        assert word in str(error.value)


@pytest.mark.parametrize("tflops", [0, -1])
def test_a_speed_that_gives_no_hours_is_refused(tflops):
    with pytest.raises(ConfigError, match="tflops: at least"):
        build_config(GridConfig, [{"output_dir": "out", "tflops": tflops}])


def test_a_row_of_table_3_stands_under_its_heads(tmp_path):
    task = next(task for task in tasks_of(grid(tmp_path, "world")) if task.kind == "mementos")
    costs = SimpleNamespace(
        mementos=lambda _: Need(stories=7), extracting=lambda *_: Need(calls=5), absent={},
        config=SimpleNamespace(tflops=1),
    )  # fmt: skip
    entry = mementos_entry(task, task, State(kind="missing"), State(kind="missing"), costs)
    lines = to_text({"train": [], "cells": [], "Mementos": [entry]}, tmp_path, costs).splitlines()
    head, row = lines[2:4]
    assert [row[head.index(name) :].split()[0] for name in ("samples", "calls")] == ["7", "5"]


@pytest.mark.parametrize(("kind", "state"), [("done", "done"), ("missing", "partly"), ("left out", "done")])
def test_a_result_is_done_when_all_of_its_runs_that_can_be_made_are(tmp_path, kind, state):
    def task(name, stage, **more):
        return Task(name=name, stage=stage, kind=stage, module="m", settings={}, folder=tmp_path, **more)

    tasks = [
        task("prepare/a", "prepare"), task("judge/a", "judge", needs=("prepare/a",)), task("judge/b", "judge"),
        task("results/table1", "result", after=("judge/a", "judge/b")),
    ]  # fmt: skip
    states = {"prepare/a": State(kind=kind)}
    plan = entries_of(tasks, lambda task: states.get(task.name, State(kind="done")), None, None)
    assert [entry.kind for entry in plan["results"]] == [state]
    assert plan["results"][0].detail == ("1 of its 2 runs are not done" if state == "partly" else "")
    only = entries_of(tasks, lambda task: State(kind="done"), None, None, only=["prepare/a"])
    assert [len(entries) for entries in only.values() if entries] == [1]


@pytest.mark.parametrize(("kind", "left"), [("missing", "at least 0.000"), ("done", "0.000")])
def test_sums_without_entries_of_unknown_size_say_at_least(kind, left):
    unknown = Entry(words=("a", ""), kind=kind, detail="", need=None, left=None)
    lines = totals({"train": [unknown], "cells": [], "Mementos": []})
    assert lines[1].startswith(f"left to do: {left} GPU hours")
    assert lines[2].startswith("the whole grid: at least 0.000 GPU hours")
    known = Entry(words=("a", ""), kind=kind, detail="", need=Need(), left=Need())
    assert "at least" not in "".join(totals({"train": [known], "cells": [], "Mementos": []}))


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"name": "a b", "title": "x"}, "a b"),
        ({"name": "a", "title": "x", "trian": {}}, "did you mean 'train'"),
        ({"name": "a"}, "title"),
        ("text", "text"),
    ],
)
def test_a_wrong_ablation_is_named(tmp_path, entry, word):
    config = dataclasses.replace(grid(tmp_path, "paper"), ablations=[entry])
    with pytest.raises(ConfigError, match=word):
        ablations_of(config)


def test_a_file_in_place_of_the_output_folder_is_told(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(ConfigError, match=r"output_dir: a folder was wanted, .*file is a file"):
            check(dataclasses.replace(grid(tmp_path, "world"), output_dir=tmp_path / place))
    check(dataclasses.replace(grid(tmp_path, "world"), output_dir=tmp_path / "not/there"))


def test_what_the_story_world_makes_is_not_also_taken_from_elsewhere(tmp_path):
    config = dataclasses.replace(grid(tmp_path, "world"), model=tmp_path, other_split="some/where")
    with pytest.raises(ConfigError) as error:
        check(config)
    assert "leave --model or --world out" in str(error.value)
    assert "leave --other-split or --world out" in str(error.value)
    assert "mementos" not in str(error.value)


def test_one_task_alone_is_not_submitted(tmp_path):
    with pytest.raises(ConfigError, match="only: --slurm submits everything"):
        check(dataclasses.replace(grid(tmp_path, "world"), only=["prepare/world"], slurm=True))


def test_places_that_are_not_there_are_told_before_anything_is_planned(tmp_path):
    config = dataclasses.replace(grid(tmp_path, "paper"), model=tmp_path, stories="no/where")
    with pytest.raises(ConfigError) as error:
        check(config)
    assert "model: " in str(error.value)
    assert "stories: no/where is not a folder" in str(error.value)
    check(dataclasses.replace(grid(tmp_path, "paper"), stories=HUB_DATASET))


def test_settings_become_the_words_of_a_command_line():
    settings = {"limit": 3, "resume": False, "fast": True, "config": ["a", "b"], "none": None, "batch_size": 2}
    words = ["--limit", "3", "--no-resume", "--fast", "--config", "a", "b", "--batch-size", "2"]
    assert flags(settings) == words
    assert flags({"bf16": True, "output_dir": "x"}, underscores=True) == ["--bf16", "true", "--output_dir", "x"]


def test_several_gpus_train_under_torchrun_and_one_does_not(tmp_path):
    task = next(task for task in tasks_of(grid(tmp_path, "paper")) if task.kind == "train")
    assert "torch.distributed.run" not in task.command(1)
    words = task.command(4)
    assert words[words.index("--nproc_per_node") + 1] == "4"
    assert any(word.endswith("zero3.json") for word in words)
