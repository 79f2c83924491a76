"""Every switch of docs/fidelity.md for a model or a run: trained with, written down, followed by prediction."""

import contextlib
import io
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = [str(ROOT / "configs" / "train" / f"{name}.yaml") for name in ("base", "imagechain", "c2_7")]
QUICK = [
    "--bf16", "false", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0", "--learning_rate", "1e-3",
    "--dataloader_num_workers", "0", "--global_batch_size", "8", "--per_device_train_batch_size", "8",
    "--eval_strategy", "no", "--max_steps", "1", "--save_strategy", "no", "--logging_steps", "1",
]  # fmt: skip


def train(base, stories, output, *more, status=0):
    from accelerate.state import AcceleratorState

    from llava.train.train import train

    AcceleratorState._reset_state(reset_partial_state=True)
    where = ["--model_name_or_path", str(base), "--stories", str(stories), "--output_dir", str(output)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = train(["--config", *CONFIGS, *where, *QUICK, *more])
    assert found == status, err.getvalue()[-3000:]
    return out.getvalue() + err.getvalue()


def first_loss(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return next(row["loss"] for row in history if "loss" in row)


def predict(checkpoint, stories, output, *more):
    from eval.predict.run import main

    where = ["--checkpoint", str(checkpoint), "--stories", str(stories), "--output-dir", str(output)]
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        status = main([*where, "--variant", "imagechain", "--max-new-tokens", "4", "--device", "cpu", *more])
    return status, err.getvalue()


@pytest.fixture(scope="module")
def default_loss(tiny_base, small_stories, tmp_path_factory):
    output = tmp_path_factory.mktemp("default") / "run"
    train(tiny_base, small_stories, output)
    return first_loss(output)


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("imagechain_last_scene", "last_frame", "mean"),
        ("imagechain_pooling", "before_projector", "after_projector"),
        ("imagechain_prompt", "template", "figure3"),
        ("imagechain_scene_aspect", "pad", "crop"),
        ("max_frames_per_scene", 1, 2),
    ],
)
def test_what_a_model_was_trained_with_prediction_follows_and_a_contradiction_is_refused(
    name, value, other, default_loss, tiny_base, small_stories, tmp_path
):
    run = tmp_path / "run"
    train(tiny_base, small_stories, run, f"--{name}", str(value))
    assert json.loads((run / "config.json").read_text())[name] == value
    assert first_loss(run) != pytest.approx(default_loss, rel=1e-6)
    status, text = predict(run, small_stories, tmp_path / "predictions", "--limit", "2")
    assert status == 0, text
    status, text = predict(run, small_stories, tmp_path / "other", "--limit", "2", f"--{name}", str(other))
    assert status == 2
    assert f"{name}: the checkpoint was trained with" in text


def test_a_model_that_was_trained_on_all_frames_is_not_shown_fewer(tiny_base, small_stories, tmp_path):
    run = tmp_path / "run"
    train(tiny_base, small_stories, run, "--max_frames_per_scene", "0")
    assert "max_frames_per_scene" not in json.loads((run / "config.json").read_text())
    status, text = predict(run, small_stories, tmp_path / "p", "--limit", "2", "--max-frames-per-scene", "1")
    assert status == 2
    assert "the checkpoint was trained with all frames, the run asks for 1" in text
    assert predict(run, small_stories, tmp_path / "p", "--limit", "2", "--max-frames-per-scene", "0")[0] == 0


def test_training_and_prediction_show_a_model_the_same_frames(tiny_base, small_stories, tmp_path, monkeypatch):
    """With a cache and without, and a run whose cache was made while all frames were shown."""
    from llava.imagechain import features

    cache = ("--feature_cache", str(tmp_path / "cache"), "--feature_dtype", "float32")
    train(tiny_base, small_stories, tmp_path / "all", *cache)
    train(tiny_base, small_stories, tmp_path / "cached", *cache, "--max_frames_per_scene", "2")
    train(tiny_base, small_stories, tmp_path / "plain", "--max_frames_per_scene", "2")
    assert first_loss(tmp_path / "cached") == pytest.approx(first_loss(tmp_path / "plain"), rel=1e-4)
    counts = []
    original = features.StoryFeatures.scene
    monkeypatch.setattr(
        features.StoryFeatures, "scene", lambda *arguments: counts.append(len(found := original(*arguments))) or found
    )
    cached = ("--feature-cache", str(tmp_path / "cache"), "--limit", "3")
    assert predict(tmp_path / "cached", small_stories, tmp_path / "p", *cached)[0] == 0
    assert set(counts) == {2}


@pytest.mark.parametrize("loss_on", ["answers", "last_answer"])
def test_loss_can_be_on_less_text(loss_on, default_loss, tiny_base, small_stories, tmp_path):
    text = train(tiny_base, small_stories, tmp_path / "run", "--loss_on", loss_on)
    assert "is trained" in text
    assert first_loss(tmp_path / "run") != pytest.approx(default_loss, rel=1e-6)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["loss_on"] == loss_on


def test_long_stories_are_shortened_or_skipped_and_counted(tiny_base, small_stories, tmp_path):
    short = ("--model_max_length", "330", "--max_skipped", "1", "--dry_run", "true")
    shortened = train(tiny_base, small_stories, tmp_path / "a", *short)
    skipped = train(tiny_base, small_stories, tmp_path / "b", *short, "--overlength", "skip")
    count = int(shortened.split(" stories shortened")[0].split()[-1])
    assert count > 0
    assert f"0 stories shortened, {count} skipped" in skipped


def test_rope_scaling_makes_room_for_the_longest_story_and_prediction_has_it_too(small_stories, tmp_path):
    import importlib.util

    from llava.imagechain.checkpoint import load_checkpoint

    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "unit" / "conftest.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    base = tiny.build_tiny_llava(tmp_path / "short").full
    config = json.loads((base / "config.json").read_text())
    short = {**config, "max_position_embeddings": 330, "tokenizer_model_max_length": 330}
    (base / "config.json").write_text(json.dumps(short))
    run = tmp_path / "run"
    text = train(base, small_stories, run, "--overlength", "rope_scaling", "--model_max_length", "330")
    assert "the model's positions are scaled by " in text
    assert "shortened: none" in text
    saved = json.loads((run / "config.json").read_text())
    factor = saved["rope_scaling"]["factor"]
    assert saved["max_sequence_length"] == saved["tokenizer_model_max_length"] == int(330 * factor) > 330
    loaded = load_checkpoint(run, device="cpu")
    assert loaded.context_length == int(330 * factor)
    plain = load_checkpoint(base, device="cpu").model.get_model().rotary_emb.inv_freq
    assert loaded.model.get_model().rotary_emb.inv_freq.tolist() == pytest.approx((plain / factor).tolist())
    status, text = predict(run, small_stories, tmp_path / "p", "--context", "c5", "--max-new-tokens", "100")
    assert status == 0, text
    rows = [json.loads(line) for line in (tmp_path / "p" / "predictions.jsonl").read_text().splitlines()]
    assert {row["dropped_scenes"] for row in rows} == {0}


def test_positions_that_suffice_stay_as_they_are():
    from types import SimpleNamespace

    from llava.imagechain.rope import scale_positions

    config = SimpleNamespace(max_position_embeddings=4096)
    assert scale_positions(config, 3968) == 1.0
    assert vars(config) == {"max_position_embeddings": 4096}
    assert scale_positions(config, 4400) == 1.25
    assert config.rope_scaling == {"rope_type": "linear", "factor": 1.25, "type": "linear"}
    with pytest.raises(ValueError, match="scaled already"):
        scale_positions(config, 9000)
