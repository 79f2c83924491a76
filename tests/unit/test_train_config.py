"""Training settings: files and flags, all problems at once, the paper's values, the global batch."""

import json
from pathlib import Path

import pytest
import yaml

from llava.imagechain.arguments import as_json, parse_arguments
from llava.imagechain.config import ConfigError
from llava.imagechain.distributed import take_one_gpu
from llava.imagechain.resume import changed_on_resume, find_start

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "train"


@pytest.fixture()
def flags(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"mm_vision_tower": "x"}')
    (tmp_path / "stories").mkdir()
    return [
        "--model_name_or_path", str(tmp_path / "model"), "--stories", str(tmp_path / "stories"),
        "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip


def config_files(*names):
    return ["--config", *[str(CONFIGS / f"{name}.yaml") for name in names]]


def test_base_holds_the_papers_values(flags):
    (model, data, train), _ = parse_arguments([*config_files("base", "imagechain", "c2_7"), *flags])
    assert (model.lora_enable, model.lora_r, model.lora_alpha) == (True, 128, 256)
    assert (train.learning_rate, str(train.lr_scheduler_type.value)) == (2e-5, "cosine")
    assert (train.per_device_train_batch_size, train.global_batch_size) == (4, 32)
    assert getattr(train, "warmup_ratio", None) == 0.03 or train.warmup_steps == 0.03
    assert (model.imagechain_prompt, model.imagechain_last_scene) == ("figure3", "mean")
    assert (data.variant, data.context, data.loss_on) == ("imagechain", "c2_7", "all_text")


@pytest.mark.parametrize("variant", ["imagechain", "mllm_ft", "visual_context", "final_scene"])
@pytest.mark.parametrize("context", ["c2", "c3", "c4_7", "c2_7"])
def test_every_variant_and_context_has_a_config(variant, context, flags):
    (_, data, _), _ = parse_arguments([*config_files("base", variant, context), *flags])
    assert (data.variant, data.context) == (variant, context)


def test_later_files_win_and_flags_win_over_files(flags, tmp_path):
    (tmp_path / "a.yaml").write_text("lora_r: 8\nlora_alpha: 9\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("lora_alpha: 10\nseed: 2\n")
    files = ["--config", str(CONFIGS / "base.yaml"), str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    (model, _, train), given = parse_arguments([*files, "--variant", "mllm_ft", "--seed", "3", *flags])
    assert (model.lora_r, model.lora_alpha, train.seed) == (8, 10, 3)
    assert "num_train_epochs" not in given
    assert "seed" in given


def test_all_problems_are_told_at_once_with_the_nearest_names(flags, tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rat: 3\nlora_r: many\n")
    with pytest.raises(ConfigError) as error:
        parse_arguments([
            "--config", str(tmp_path / "a.yaml"), *flags, "--variant", "imagechan", "--context", "c2-7",
            "--imagechain_prompt", "figure", "--bf16", "maybe", "--per_device_train_batch_size", "5",
        ])  # fmt: skip
    text = str(error.value)
    for part in (
        "unknown setting 'learning_rat' (did you mean 'learning_rate'?)",
        "lora_r",
        "did you mean 'imagechain'",
        "context: unknown value 'c2-7' (did you mean 'c2_7'?)",
        "imagechain_prompt: unknown value 'figure' (did you mean 'figure3'?)",
        "bf16",
        "global_batch_size: 32 cannot be made of 1 devices x 5 examples",
    ):
        assert part in text


def test_missing_settings_and_folders_are_named(tmp_path):
    with pytest.raises(ConfigError) as error:
        parse_arguments(["--stories", str(tmp_path / "none"), "--model_name_or_path", str(tmp_path)])
    text = str(error.value)
    assert "--variant is required" in text
    assert "--output_dir is required" in text
    assert "no config.json in it" in text
    assert "is not a folder; build one with scripts/storyframes/build.sh" in text


def test_files_of_several_config_flags_add_up(flags, tmp_path):
    (tmp_path / "a.yaml").write_text("lora_r: 8\n")
    arguments = [*config_files("base", "imagechain"), "--config", str(tmp_path / "a.yaml"), *flags]
    (model, data, _), _ = parse_arguments([*arguments, "--seed", "1", "--seed", "2"])
    assert (model.lora_r, data.variant) == (8, "imagechain")


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        ("{}", (), "no LLaVA model"),
        ('{"mm_vision_tower": "x"}', ("adapter_config.json",), "the base model of .* is missing"),
    ],
)
def test_a_folder_that_cannot_be_trained_from_is_refused(config, more, message, flags, tmp_path):
    (tmp_path / "model" / "config.json").write_text(config)
    for name in more:
        (tmp_path / "model" / name).write_text("{}")
    with pytest.raises(ConfigError, match=message):
        parse_arguments([*config_files("base", "imagechain"), *flags])


def test_limits_are_above_zero(flags):
    with pytest.raises(ConfigError, match="limit: a number above 0 was wanted, found 0"):
        parse_arguments([*config_files("base", "imagechain"), *flags, "--limit", "0"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_train_epochs", "-1", "above 0 was wanted, found -1"),
        ("learning_rate", "nan", "above 0 was wanted, found nan"),
        ("per_device_train_batch_size", "0", "above 0 was wanted, found 0"),
        ("length_group_batches", "-1", "at least 0 was wanted, found -1"),
        ("max_steps", "0", "above 0, or -1 for none, was wanted, found 0"),
        ("output_dir", "", "--output_dir is required"),
    ],
)
def test_numbers_that_would_train_nothing_are_refused_at_once(name, value, message, flags):
    with pytest.raises(ConfigError, match=message):
        parse_arguments([*config_files("base", "imagechain"), *flags, f"--{name}", value])


def test_a_variant_that_is_not_trained_is_refused(flags):
    with pytest.raises(ConfigError, match="mllm_icl is not trained"):
        parse_arguments([*config_files("base"), *flags, "--variant", "mllm_icl"])


@pytest.mark.parametrize(("world_size", "per_device", "steps"), [(8, 4, 1), (1, 4, 8), (2, 8, 2), (32, 1, 1)])
def test_the_global_batch_stays_whatever_the_number_of_devices(world_size, per_device, steps, flags, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setattr("llava.imagechain.arguments._Parser.parse_args_into_dataclasses", without_process_group)
    (_, _, train), _ = parse_arguments(
        [*config_files("base", "imagechain"), *flags, "--per_device_train_batch_size", str(per_device)]
    )
    assert train.gradient_accumulation_steps == steps
    assert train.global_batch_size == world_size * per_device * steps == 32


def without_process_group(parser, words):
    """Parse as on one process: the library would wait for the other processes."""
    import os

    from transformers import HfArgumentParser

    size = os.environ.pop("WORLD_SIZE")
    try:
        return HfArgumentParser.parse_args_into_dataclasses(parser, words)
    finally:
        os.environ["WORLD_SIZE"] = size


def test_an_accumulation_that_contradicts_the_global_batch_is_refused(flags):
    arguments = [*config_files("base", "imagechain"), *flags, "--gradient_accumulation_steps", "2"]
    with pytest.raises(ConfigError, match="gradient_accumulation_steps: 8 follows from global_batch_size"):
        parse_arguments(arguments)


def test_names_of_other_library_versions_are_translated(flags):
    arguments = [*config_files("base", "imagechain"), *flags, "--evaluation_strategy", "no", "--no_cuda", "true"]
    (_, _, train), _ = parse_arguments(arguments)
    assert train.eval_strategy.value == "no"
    assert train.use_cpu


def test_one_process_takes_one_gpu_and_says_how_to_use_all(flags, caplog):
    (_, _, train), _ = parse_arguments([*config_files("base", "imagechain"), *flags])
    assert train.n_gpu <= 1  # the library looks for GPUs once
    train._n_gpu = 8
    take_one_gpu(train)
    assert (train.n_gpu, train.train_batch_size) == (1, 4)
    assert "8 GPUs are there and one trains; NUM_GPUS=8 bash scripts/train/imagechain.sh" in caplog.text


def test_a_yaml_file_that_is_no_list_of_settings_is_named(flags, tmp_path):
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: settings"):
        parse_arguments(["--config", str(tmp_path / "a.yaml"), *flags])


def test_settings_as_json_have_no_token(flags):
    groups, _ = parse_arguments([*config_files("base", "imagechain"), *flags, "--hub_token", "hf_secret"])
    assert "hf_secret" not in json.dumps(as_json(groups))


def test_what_decides_the_result_must_not_change_on_resume(flags):
    def settings(*more):
        return as_json(parse_arguments([*config_files("base", "imagechain"), *flags, *more])[0])

    before = settings()
    assert changed_on_resume(before, settings("--learning_rate", "1e-3")) == ["learning_rate was 2e-05, is 0.001"]
    same = ["--per_device_train_batch_size", "8", "--logging_steps", "3", "--save_strategy", "no"]
    same += ["--gradient_checkpointing", "true", "--ddp_timeout", "60"]
    assert changed_on_resume(before, settings(*same)) == []
    # A setting of transformers 4: each process has its own.
    assert changed_on_resume({**before, "local_rank": 0}, {**before, "local_rank": 1}) == []


@pytest.mark.parametrize("more", [("--unfreeze_mm_vision_tower", "true"), ("--lora_vision_tower", "true")])
def test_cached_features_and_a_tower_that_trains_contradict_each_other(more, flags):
    with pytest.raises(ConfigError, match="feature_cache: the vision tower would train, but cached features"):
        parse_arguments([*config_files("base", "imagechain"), *flags, "--feature_cache", "cache", *more])


def test_checkpointed_layers_need_no_input_with_a_gradient(flags):
    (_, _, train), _ = parse_arguments([*config_files("base"), "--variant", "mllm_ft", *flags])
    assert train.gradient_checkpointing_kwargs is None
    (_, _, train), _ = parse_arguments([
        *config_files("base"), "--variant", "mllm_ft", *flags, "--gradient_checkpointing", "true"
    ])  # fmt: skip
    assert train.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_every_value_of_base_yaml_that_is_the_papers_names_its_section():
    text = (CONFIGS / "base.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    assert "section 5.3" in text
    for name in ("lora_r", "lora_alpha", "learning_rate", "lr_scheduler_type", "warmup_ratio", "optim"):
        line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
        assert '# "' in line, name
        assert name in settings


@pytest.mark.parametrize("resume", ["false", "true"])  # without run.json, nobody knows whose they are
def test_a_new_start_beside_checkpoints_of_an_earlier_run_is_refused(flags, tmp_path, resume):
    (tmp_path / "out" / "checkpoint-100").mkdir(parents=True)
    files = config_files("base", "imagechain", "c2_7")
    groups, _ = parse_arguments([*files, *flags, "--resume", resume])
    with pytest.raises(ConfigError, match=r"checkpoint-100 of an earlier run.*--overwrite"):
        find_start(groups, {})
    groups, _ = parse_arguments([*files, *flags, "--resume", "false", "--overwrite", "true"])
    assert find_start(groups, {}) is None and not list((tmp_path / "out").iterdir())


def test_a_run_json_that_is_no_record_is_told(flags, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("[]")
    groups, _ = parse_arguments([*config_files("base", "imagechain", "c2_7"), *flags])
    with pytest.raises(ConfigError, match=r"run.json is no record of a run.*--overwrite"):
        find_start(groups, {})


def test_missing_packages_are_named_with_their_extra(flags, monkeypatch):
    import importlib.util

    from llava.imagechain import reporting

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(ConfigError, match=r"peft: not installed; bash scripts/setup\.sh train"):
        parse_arguments([*config_files("base", "imagechain", "c2_7"), *flags])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert reporting.reporting_problems(["tensorboard"]) == [
        "report_to: tensorboard is not installed; bash scripts/setup.sh train tensorboard"
    ]
    assert reporting.reporting_problems([]) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_alpha", "0"), ("frames_upbound", "-1"), ("tflops", "0"), ("learning_rate", "inf"), ("version", "v9"),
        ("report_to", "wanb"), ("attn_implementation", "flash"), ("lora_dropout", "1"), ("adam_beta1", "1"),
        ("adam_beta2", "-0.1"), ("adam_epsilon", "-1"), ("logging_steps", "-1"), ("save_steps", "0"),
        ("save_total_limit", "-1"), ("neftune_noise_alpha", "-1"), ("num_train_epochs", "1e300"),
    ],
)  # fmt: skip
def test_values_that_would_spoil_a_run_are_refused_before_it_starts(name, value, flags):
    with pytest.raises(ConfigError, match=f"{name}: .*(wanted|unknown)"):
        parse_arguments([*flags, f"--{name}", value])


@pytest.mark.parametrize("name", ["output_dir", "feature_cache"])
@pytest.mark.parametrize("below", ["", "runs/deeper"])
def test_a_file_in_the_place_of_a_folder_is_named(name, below, flags, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{name}: a folder was wanted, .*file is a file"):
        parse_arguments([*flags, f"--{name}", str(tmp_path / "file" / below)])


def test_a_word_that_belongs_to_no_flag_is_named(flags):
    with pytest.raises(ConfigError, match="seed: one value was wanted, found 1 runs/x"):
        parse_arguments([*flags, "--seed", "1", "runs/x"])


def test_fsdp_is_refused_with_what_there_is_in_its_place(flags):
    with pytest.raises(ConfigError, match=r"fsdp full_shard: not supported.*DeepSpeed"):
        parse_arguments([*flags, "--fsdp", "full_shard"])


def test_a_run_does_not_write_into_the_folder_of_its_model_or_stories(flags, tmp_path):
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    for name in ("model_name_or_path", "stories"):
        with pytest.raises(ConfigError, match=f"output_dir: .* is the folder of {name}"):
            parse_arguments([*flags, "--output_dir", f"{given[f'--{name}']}/."])


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe"])
def test_a_damaged_config_json_is_named_with_the_other_problems(content, flags, tmp_path):
    (tmp_path / "model" / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model_name_or_path: .*config\.json"):
        parse_arguments(flags)
