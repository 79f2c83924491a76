"""eval.predict on the tiny model: batches, resumption, checkpoints, skips, wrong input."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from eval.predict.run import main
from llava.imagechain.files import read_jsonl
from llava.imagechain.story import bucket_of, storyframes_features

LENGTHS = [2, 2, 2, 3, 3, 4, 5, 3, 2, 4]


def frame(seed):
    pixels = np.random.RandomState(seed).randint(0, 255, (30, 40, 3), dtype="uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def story_row(number, count, split):
    times = [[4.0 * scene + 0.5 * f for f in range(2 + scene % 2)] for scene in range(count)]
    texts = [f"the {'dog' if number % 2 else 'woman'} opens the door {number} {scene}" for scene in range(count)]
    return {
        "sentence_parts": texts,
        "start_times": [4.0 * scene for scene in range(count)],
        "end_times": [4.0 * scene + 4 for scene in range(count)],
        "background_description": "",
        "video_name": f"{split}-{number}",
        "question_info": "",
        "num_actors_in_video": 1,
        "caption": "",
        "sentence_parts_nocontext": texts,
        "subsampled_frames_per_scene": times,
        "story_id": f"{split}-{number}",
        "scenes": [
            [{"bytes": frame(100 * number + 10 * scene + f), "path": None} for f in range(len(scene_times))]
            for scene, scene_times in enumerate(times)
        ],
        "num_scenes": count,
    }


def write_stories(root, changed=None):
    import datasets

    for split, folder in (("validation", "val"), ("train", "train")):
        rows = [story_row(number, count, split) for number, count in enumerate(LENGTHS)]
        if split == "validation":
            rows = [changed(row) for row in rows] if changed else rows
        for bucket in {bucket_of(count) for count in LENGTHS}:
            chosen = [row for row in rows if bucket_of(row["num_scenes"]) == bucket]
            datasets.Dataset.from_list(chosen, features=storyframes_features()).save_to_disk(root / bucket / folder)
    return root


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("stories") / "storyframes")


@pytest.fixture()
def adapter(copy_of_tiny_llava):
    """A LoRA folder in a run folder that says how it was trained, and a checkpoint-2 in it."""
    family = copy_of_tiny_llava
    config = json.loads((family.lora / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(family.full)
    (family.lora / "adapter_config.json").write_text(json.dumps(config))
    decisions = {
        "imagechain_last_scene": "last_frame",
        "imagechain_pooling": "after_projector",
        "imagechain_scene_aspect": "pad",
        "imagechain_prompt": "template",
    }
    model = json.loads((family.lora / "config.json").read_text())
    (family.lora / "config.json").write_text(json.dumps({**model, **decisions}))
    (family.lora / "checkpoint-2").mkdir()
    for file in [path for path in family.lora.iterdir() if path.is_file()]:
        (family.lora / "checkpoint-2" / file.name).write_bytes(file.read_bytes())
    nested = {**model, **decisions, "mm_vision_tower": "../../tower"}
    (family.lora / "checkpoint-2" / "config.json").write_text(json.dumps(nested))
    trained = {"config": {"variant": "imagechain", "context": "c4_7", "seed": 0}, "status": "success"}
    (family.lora / "run.json").write_text(json.dumps(trained))
    return family.lora


def predict(model, stories, output, *flags, variant="imagechain"):
    words = ["--checkpoint", model, "--stories", stories, "--output-dir", output, "--variant", variant]
    status = main([str(word) for word in [*words, "--max-new-tokens", 6, "--device", "cpu", *flags]])
    path = output / "predictions.jsonl"
    return status, (read_jsonl(path) if path.is_file() else [])


@pytest.mark.parametrize("variant", ["imagechain_noft", "mllm", "mllm_icl", "visual_context", "final_scene"])
def test_a_batch_of_eight_gives_the_text_of_single_stories(tiny_llava, stories, tmp_path, variant):
    one = predict(tiny_llava.full, stories, tmp_path / "one", "--batch-size", 1, variant=variant)
    eight = predict(tiny_llava.full, stories, tmp_path / "eight", "--batch-size", 8, variant=variant)
    assert one == eight and one[0] == 0
    rows = one[1]
    assert [row["num_scenes"] for row in rows] == [2, 2, 2, 2, 3, 3, 3, 4, 5, 4]  # as in the dataset
    assert len({row["prediction"] for row in rows}) > 3
    assert {row["control"] for row in rows} == {None} and {row["train_context"] for row in rows} == {None}


def test_a_row_holds_what_tables_need(tiny_llava, stories, tmp_path):
    _, rows = predict(tiny_llava.full, stories, tmp_path, "--context", "c3", variant="mllm")
    row = rows[0]
    assert {**row, "prediction": "", "new_tokens": 0, "prompt_tokens": 0} == {
        "id": "validation-3", "variant": "mllm", "train_context": None, "seed": None, "num_scenes": 3,
        "video_name": "validation-3", "prediction": "", "reference": "the dog opens the door 3 2",
        "dropped_scenes": 0, "prompt_tokens": 0, "new_tokens": 0, "control": None,
    }  # fmt: skip
    assert 1 <= row["new_tokens"] <= 6 and row["prompt_tokens"] > 3 * 16
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == "success" and run["rows"] == 3 and run["identity"]["checkpoint_sha256"]


def test_a_cut_off_run_goes_on_to_the_same_file(tiny_llava, stories, tmp_path):
    predict(tiny_llava.full, stories, tmp_path)
    path = tmp_path / "predictions.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[5:8]) + lines[0][:30])
    assert predict(tiny_llava.full, stories, tmp_path, "--batch-size", 3)[0] == 0
    assert path.read_bytes() == whole
    assert json.loads((tmp_path / "run.json").read_text())["predicted"] == len(lines) - 3


def test_a_run_stopped_after_its_last_row_is_still_brought_to_its_end(tiny_llava, stories, tmp_path):
    predict(tiny_llava.full, stories, tmp_path)
    path, manifest = tmp_path / "predictions.jsonl", tmp_path / "run.json"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    broken = json.dumps({"id": json.loads(lines[1])["id"]}).encode() + b"\n"
    path.write_bytes(broken + b"".join(lines[::-1]) + lines[3])  # unsorted, one row twice, one without its text
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "interrupted"}))
    assert predict(tiny_llava.full, stories, tmp_path)[0] == 0
    assert path.read_bytes() == whole
    assert json.loads(manifest.read_text())["status"] == "success"


@pytest.mark.parametrize(("name", "number"), [("limit", 0), ("limit", -1), ("tflops", 0)])
def test_a_number_without_meaning_is_refused(tiny_llava, stories, tmp_path, name, number):
    with pytest.raises(SystemExit, match="2"):
        predict(tiny_llava.full, stories, tmp_path, f"--{name}", number, "--dry-run")


def test_an_answer_longer_than_the_model_is_refused_before_anything_is_loaded(tiny_llava, stories, tmp_path, capsys):
    positions = json.loads((tiny_llava.full / "config.json").read_text())["max_position_embeddings"]
    wanted = "fewer than the {:,} positions of prompt and answer together were wanted, found {:,}"
    for flags, most, found in (
        (("--max-new-tokens", "1e9"), positions, 10**9),
        (("--max-new-tokens", positions), positions, positions),
        (("--max-length", 6), 6, 6),
    ):
        assert predict(tiny_llava.full, stories, tmp_path / "out", *flags, "--dry-run")[0] == 2
        assert wanted.format(most, found) in capsys.readouterr().err


def test_a_config_that_contradicts_the_weights_is_an_error_without_traceback(
    copy_of_tiny_llava, stories, tmp_path, capsys
):
    file = copy_of_tiny_llava.full / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "intermediate_size": settings["intermediate_size"] + 8}))
    assert predict(copy_of_tiny_llava.full, stories, tmp_path, "--limit", 2)[0] == 2
    assert "do its weights, its base and its config files belong together?" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error_without_traceback(tiny_llava, stories, tmp_path, device, capsys):
    assert main([
        "--checkpoint", str(tiny_llava.full), "--variant", "imagechain", "--stories", str(stories),
        "--output-dir", str(tmp_path), "--device", device,
    ]) == 2  # fmt: skip
    assert f"device: {device} cannot be used" in capsys.readouterr().err


def test_a_finished_run_does_not_load_the_model_again(tiny_llava, stories, tmp_path, monkeypatch):
    predict(tiny_llava.full, stories, tmp_path)
    monkeypatch.setattr("eval.predict.run.load_model", lambda job: pytest.fail("the model was loaded"))
    assert predict(tiny_llava.full, stories, tmp_path)[0] == 0


def test_other_settings_in_the_same_folder_are_refused(tiny_llava, stories, tmp_path, capsys):
    _, before = predict(tiny_llava.full, stories, tmp_path, "--limit", 2)
    status, rows = predict(tiny_llava.full, stories, tmp_path, "--limit", 2, variant="mllm")
    assert status == 2 and rows == before
    assert "variant was 'imagechain', is 'mllm'" in capsys.readouterr().err
    status, rows = predict(tiny_llava.full, stories, tmp_path, "--limit", 2, "--overwrite", variant="mllm")
    assert status == 0 and {row["variant"] for row in rows} == {"mllm"} and len(rows) == 2
    (tmp_path / "run.json").unlink()
    assert predict(tiny_llava.full, stories, tmp_path, "--limit", 2, variant="mllm")[0] == 2


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_the_record_of_a_training_is_not_replaced(tiny_llava, stories, tmp_path, flags, capsys):
    (tmp_path / "run.json").write_text('{"status": "success", "command": ["train.py"]}')
    assert predict(tiny_llava.full, stories, tmp_path, *flags) == (2, [])
    assert "holds the result of another command" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_goes_on_in_the_dtype_it_was_begun_in(tiny_llava, stories, tmp_path, capsys, monkeypatch):
    _, before = predict(tiny_llava.full, stories, tmp_path, "--limit", 2)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["device"], run["dtype"], run["identity"]["dtype"]) == ("cpu", "float32", None)
    import eval.predict.run as command

    # Another machine, whose device would take bfloat16 by itself.
    monkeypatch.setattr(command, "device_and_dtype", lambda config: ("cpu", config.dtype or "bfloat16"))
    assert predict(tiny_llava.full, stories, tmp_path, "--limit", 4) == (2, before)
    assert "holds predictions in float32, and cpu takes bfloat16 by itself" in capsys.readouterr().err
    assert predict(tiny_llava.full, stories, tmp_path, "--limit", 4, "--dtype", "bfloat16")[0] == 2
    assert "dtype was 'float32', is 'bfloat16'" in capsys.readouterr().err
    status, rows = predict(tiny_llava.full, stories, tmp_path, "--limit", 4, "--dtype", "float32")
    assert status == 0 and rows[:2] == before and len(rows) == 4


def test_stories_built_anew_with_other_frames_are_noticed(tiny_llava, stories, tmp_path, capsys):
    def one_frame_a_scene(row):
        return row | {"scenes": [frames[:1] for frames in row["scenes"]]}

    rebuilt = write_stories(tmp_path / "rebuilt", one_frame_a_scene)
    assert predict(tiny_llava.full, stories, tmp_path / "run", variant="mllm")[0] == 0
    assert predict(tiny_llava.full, rebuilt, tmp_path / "run", variant="mllm")[0] == 2
    assert "frames_sha256 was " in capsys.readouterr().err
    path = tmp_path / "run" / "run.json"  # of a version that did not record them
    run = json.loads(path.read_text())
    del run["identity"]["frames_sha256"]
    path.write_text(json.dumps(run))
    assert predict(tiny_llava.full, stories, tmp_path / "run", variant="mllm")[0] == 0


def test_a_retrained_checkpoint_is_noticed(copy_of_tiny_llava, stories, tmp_path, capsys):
    predict(copy_of_tiny_llava.full, stories, tmp_path, "--limit", 2)
    weights = copy_of_tiny_llava.full / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert predict(copy_of_tiny_llava.full, stories, tmp_path, "--limit", 2)[0] == 2
    assert "checkpoint_sha256" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [".", "checkpoint-2"])
def test_adapters_follow_the_decisions_they_were_trained_with(adapter, stories, tmp_path, folder, monkeypatch):
    import eval.predict.run as command

    seen = []
    original = command.make_examples
    monkeypatch.setattr(command, "make_examples", lambda job, loaded: seen.append(loaded) or original(job, loaded))
    status, rows = predict(adapter / folder, stories, tmp_path, "--limit", 3)
    assert status == 0 and {(row["train_context"], row["seed"]) for row in rows} == {("c4_7", 0)}
    assert seen[0].model.config.imagechain_last_scene == "last_frame"


def test_a_flag_against_the_checkpoints_decisions_is_refused(adapter, stories, tmp_path, capsys):
    assert predict(adapter, stories, tmp_path, "--imagechain-last-scene", "mean")[0] == 2
    assert "imagechain_last_scene: the checkpoint was trained with 'last_frame'" in capsys.readouterr().err
    assert predict(adapter, stories, tmp_path, "--imagechain-last-scene", "last_frame", "--limit", 2)[0] == 0


def test_features_from_the_cache_give_the_same_text(tiny_llava, stories, tmp_path):
    plain = predict(tiny_llava.full, stories, tmp_path / "a", variant="mllm_icl")
    cached = predict(tiny_llava.full, stories, tmp_path / "b", "--feature-cache", tmp_path / "c", variant="mllm_icl")
    same = [one["prediction"] == two["prediction"] for one, two in zip(plain[1], cached[1], strict=True)]
    assert sum(same) >= len(same) - 1  # the cache keeps float16


def test_controls_change_the_answers_and_are_named(tiny_llava, stories, tmp_path):
    plain = predict(tiny_llava.full, stories, tmp_path / "none")[1]
    for control in ("blank_images", "other_text", "shuffled_scenes"):
        status, rows = predict(tiny_llava.full, stories, tmp_path / control, "--control", control, "--max-skipped", 0.5)
        assert status == 0 and {row["control"] for row in rows} == {control}
        by_id = {row["id"]: row for row in plain}
        assert all(row["reference"] == by_id[row["id"]]["reference"] for row in rows)
        assert any(row["prediction"] != by_id[row["id"]]["prediction"] for row in rows)


def damaged(row):
    if row["story_id"] == "validation-3":
        row["scenes"][0][0] = {"bytes": row["scenes"][0][0]["bytes"][:200], "path": None}
    return row


def test_an_unreadable_frame_costs_its_story_only(tiny_llava, tmp_path, capsys):
    stories = write_stories(tmp_path / "damaged", damaged)
    status, rows = predict(tiny_llava.full, stories, tmp_path / "out", "--max-skipped", 0.2)
    assert status == 0 and len(rows) == len(LENGTHS) - 1
    skipped = read_jsonl(tmp_path / "out" / "skipped.jsonl")
    assert [row["id"] for row in skipped] == ["validation-3"] and "Error" in skipped[0]["reason"]
    assert predict(tiny_llava.full, stories, tmp_path / "strict", "--max-skipped", 0.05)[0] == 2
    assert "1 of 10 stories cannot be used (validation-3" in capsys.readouterr().err


def test_long_stories_lose_their_oldest_scenes_and_say_so(tiny_llava, stories, tmp_path):
    flags = ["--context", "c4_7", "--max-length", 200]
    _, rows = predict(tiny_llava.full, stories, tmp_path / "drop", *flags)
    assert all(row["dropped_scenes"] > 0 and row["prompt_tokens"] <= 200 - 6 for row in rows) and len(rows) == 3
    status, _ = predict(tiny_llava.full, stories, tmp_path / "skip", *flags, "--overlength", "skip")
    assert status == 2


def test_a_dry_run_writes_nothing(tiny_llava, stories, tmp_path, capsys):
    assert predict(tiny_llava.full, stories, tmp_path / "out", "--dry-run") == (0, [])
    shown = capsys.readouterr().out
    assert "10 stories, 10 to predict with 30 scenes" in shown
    assert "parameters: " in shown and "memory per GPU: about" in shown and "expected wall time: " in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["notower", "lora"])
def test_a_dry_run_needs_no_weights(copy_of_tiny_llava, stories, tmp_path, capsys, kind):
    for file in copy_of_tiny_llava.root.rglob("*.safetensors"):
        file.unlink()
    (copy_of_tiny_llava.lora / "tokenizer.model").unlink()  # an adapter may leave the tokenizer to its base
    folder = copy_of_tiny_llava.root / kind
    assert predict(folder, stories, tmp_path / "out", "--dry-run", "--tflops", 2)[0] == 0
    assert "on 1 GPU at 2 useful TFLOP/s each, every answer 6 tokens long" in capsys.readouterr().out


def test_all_wrong_settings_are_told_at_once(stories, tmp_path, capsys):
    flags = ["--batch-size", 0, "--control", "other_text"]
    assert predict(tmp_path / "nothing", tmp_path / "none", tmp_path / "out", *flags, variant="final_scene")[0] == 2
    message = capsys.readouterr().err
    for part in (
        "checkpoint:",
        "stories: No StoryFrames",
        "batch_size: at least 1",
        "control other_text changes nothing",
    ):
        assert part in message
    assert not (tmp_path / "out").exists()


def test_an_unknown_variant_names_the_nearest(stories, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        predict(tmp_path, stories, tmp_path / "out", variant="imagchain")
    assert end.value.code == 2 and "did you mean 'imagechain'" in capsys.readouterr().err
