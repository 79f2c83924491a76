"""LLaVA-NeXT's training flags: those its scripts use work, every other one is refused with a reason; what trains."""

import pytest
import torch

from llava.imagechain.arguments import ModelArguments, parse_arguments
from llava.imagechain.checkpoint import load_checkpoint
from llava.imagechain.config import ConfigError
from llava.imagechain.parts import parameter_groups, part_of, prepare_model, trainable_table, trained_parts
from llava.imagechain.upstream_flags import NOT_SUPPORTED

# Every argument of LLaVA-NeXT's three groups (overlay of its train.py), apart from the library's own.
UPSTREAM = """
model_name_or_path model_class_name mm_tunable_parts version freeze_backbone tune_mm_mlp_adapter
tune_mm_vision_resampler vision_tower vision_tower_pretrained unfreeze_mm_vision_tower unfreeze_language_model
mm_vision_select_layer pretrain_mm_mlp_adapter mm_projector_type mm_use_im_start_end mm_use_im_patch_token
mm_patch_merge_type mm_vision_select_feature mm_resampler_type mm_mask_drop_mode mm_mask_drop_skip_percentage
mm_mask_drop_ratio mm_mask_drop_ratio_upper mm_mask_drop_ratio_lower mm_spatial_pool_stride mm_spatial_pool_mode
mm_spatial_pool_out_channels mm_perceiver_depth mm_perceiver_latents mm_perceiver_ff_mult mm_perceiver_pretrained
mm_qformer_depth mm_qformer_latents mm_qformer_pretrained rope_scaling_factor rope_scaling_type s2 s2_scales
use_pos_skipping pos_skipping_range mm_newline_position delay_load add_faster_video faster_token_stride data_path
lazy_preprocess is_multimodal early_mix_text image_folder image_aspect_ratio image_grid_pinpoints
image_crop_resolution image_split_resolution video_folder video_fps frames_upbound add_time_instruction force_sample
cache_dir optim remove_unused_columns freeze_mm_mlp_adapter freeze_mm_vision_resampler mpt_attn_impl model_max_length
double_quant quant_type bits lora_enable lora_r lora_alpha lora_dropout lora_weight_path lora_bias mm_projector_lr
mm_vision_tower_lr group_by_varlen group_by_modality_length group_by_modality_length_auto auto_find_batch_size
gradient_checkpointing verbose_logging attn_implementation trainer_mode zo_eps zo_num_directions
""".split()  # noqa: SIM905

# What LLaVA-NeXT's current fine-tuning scripts pass, in one command.
SCRIPT = """
--version qwen_1_5 --mm_tunable_parts mm_vision_tower,mm_mlp_adapter,mm_language_model --mm_vision_tower_lr 2e-6
--mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False
--group_by_modality_length True --image_aspect_ratio anyres_max_9 --image_grid_pinpoints (1x1),...,(6x6)
--mm_patch_merge_type spatial_unpad --bf16 False --run_name x --num_train_epochs 1 --per_device_train_batch_size 1
--per_device_eval_batch_size 4 --gradient_accumulation_steps 2 --evaluation_strategy no --save_strategy steps
--save_steps 1000 --save_total_limit 1 --learning_rate 1e-5 --weight_decay 0. --warmup_ratio 0.03
--lr_scheduler_type cosine --logging_steps 1 --tf32 False --model_max_length 32768 --gradient_checkpointing True
--dataloader_num_workers 4 --lazy_preprocess True --report_to none --torch_compile False
--dataloader_drop_last True --frames_upbound 32 --mm_newline_position grid --add_time_instruction True
--force_sample True --mm_spatial_pool_stride 2 --mm_spatial_pool_mode bilinear --attn_implementation sdpa
--group_by_length False --logging_dir logs --overwrite_output_dir False --no_cuda True
""".split()  # noqa: SIM905


@pytest.fixture()
def flags(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"mm_vision_tower": "openai/clip"}')
    (tmp_path / "data.json").write_text("[]")
    return [
        "--model_name_or_path", str(tmp_path / "model"), "--data_path", str(tmp_path / "data.json"),
        "--image_folder", str(tmp_path), "--video_folder", str(tmp_path), "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip


def test_a_script_of_llava_next_is_understood(flags, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    (model, data, train), _ = parse_arguments([*flags, *SCRIPT, "--vision_tower", "elsewhere/clip"])
    assert trained_parts(model) == {"vision tower", "projector", "language model", "line end"}
    assert (data.image_aspect_ratio, data.frames_upbound, data.force_sample) == ("anyres_max_9", 32, True)
    assert (train.eval_strategy.value, train.use_cpu, train.overwrite) == ("no", True, False)
    assert getattr(train, "warmup_ratio", None) == 0.03 or train.warmup_steps == 0.03
    assert (train.global_batch_size, train.length_group_batches) == (2, 0)


@pytest.mark.parametrize("name", UPSTREAM)
def test_every_flag_of_llava_next_is_a_setting_or_in_the_table_of_refusals(name):
    import dataclasses

    from llava.imagechain.arguments import CLASSES

    known = {field.name for group in CLASSES for field in dataclasses.fields(group)}
    assert name in NOT_SUPPORTED or name in known


@pytest.mark.parametrize("name", [name for name, (allowed, _) in NOT_SUPPORTED.items() if allowed is not None])
def test_a_flag_that_is_not_supported_is_refused_with_its_reason(name, flags):
    allowed, reason = NOT_SUPPORTED[name]
    with pytest.raises(ConfigError) as error:
        parse_arguments([*flags, f"--{name}", "7"])
    assert f"{name} 7: not supported" in str(error.value)
    assert reason in str(error.value)
    for value in allowed:
        parse_arguments([*flags, f"--{name}={value}"])


def test_names_of_older_libraries_are_translated(flags, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    more = ["--overwrite_output_dir", "--group_by_length", "True", "--version", "llama_3"]
    (model, _, train), _ = parse_arguments([*flags, *more])
    assert train.overwrite
    assert train.length_group_batches == 8
    assert model.version == "llava_llama_3"


def test_settings_that_do_not_go_with_llavas_json_are_named(flags, tmp_path):
    more = ["--stories", str(tmp_path), "--variant", "imagechain", "--loss_on", "all_text", "--eval_strategy", "epoch"]
    with pytest.raises(ConfigError) as error:
        parse_arguments([*flags, *more, "--feature_cache", "x", "--image_aspect_ratio", "highres"])
    for part in ("stories: found beside data_path", "variant: found", "feature_cache: found", "loss_on:",
                 "eval_strategy: with data_path", "image_aspect_ratio: square, pad"):  # fmt: skip
        assert part in str(error.value)


# --- what trains ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lora_enable": True}, {"LoRA", "projector"}),
        ({"lora_enable": True, "freeze_mm_mlp_adapter": True}, {"LoRA"}),
        ({"lora_enable": True, "mm_tunable_parts": "mm_language_model"}, {"LoRA"}),
        ({"lora_enable": True, "mm_tunable_parts": "mm_mlp_adapter,mm_vision_tower"},
         {"LoRA", "projector", "vision tower"}),
        ({"tune_mm_mlp_adapter": True}, {"projector"}),
        ({"mm_tunable_parts": "mm_mlp_adapter"}, {"projector"}),
        ({"mm_tunable_parts": "mm_vision_tower, mm_mlp_adapter, mm_language_model"},
         {"projector", "vision tower", "language model", "line end"}),
        ({}, {"language model", "projector"}),
        ({"unfreeze_mm_vision_tower": True}, {"language model", "projector", "vision tower"}),
    ],
)  # fmt: skip
def test_what_trains_is_what_was_asked_for_in_float32(given, expected, tiny_llava):
    model = load_checkpoint(tiny_llava.full, device="cpu", dtype=torch.bfloat16).model
    model = prepare_model(model, ModelArguments(lora_r=2, **given))
    assert {row["part"] for row in trainable_table(model) if row["trained"]} == expected
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert not [name for name, _ in model.named_parameters() if "lora_" in name and "vision_tower" in name]


def test_the_tower_gets_adapters_only_when_asked(tiny_llava):
    model = load_checkpoint(tiny_llava.full, device="cpu").model
    model = prepare_model(model, ModelArguments(lora_r=2, lora_enable=True, lora_vision_tower=True))
    inside = [name for name, _ in model.named_parameters() if "lora_A" in name and "vision_tower" in name]
    assert len(inside) == 3 * 6
    with pytest.raises(ConfigError, match="lora_enable is off"):
        trained_parts(ModelArguments(lora_vision_tower=True))


def test_unknown_and_empty_parts_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'mm_mlp_adapter'"):
        trained_parts(ModelArguments(mm_tunable_parts="mm_mlp_adaptor"))
    with pytest.raises(ConfigError, match="nothing would train"):
        trained_parts(ModelArguments(mm_tunable_parts=","))


def test_each_part_has_its_learning_rate(tiny_llava):
    model = load_checkpoint(tiny_llava.full, device="cpu").model
    model = prepare_model(model, ModelArguments(unfreeze_mm_vision_tower=True))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, {"lm_head.weight"}, 0.1, {"projector": 1e-4, "vision tower": 2e-6}, 1e-5)
    rates = {(part_of(names[p]), group["lr"]) for group in groups for p in group["params"]}
    assert rates == {("projector", 1e-4), ("vision tower", 2e-6), ("language model", 1e-5)}
    (decayed,) = [group for group in groups if group["weight_decay"]]
    assert [names[p] for p in decayed["params"]] == ["lm_head.weight"]
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
