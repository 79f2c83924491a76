"""What becomes of LLaVA-NeXT's training flags that this trainer has no setting for: one table, and old names."""

from __future__ import annotations

ANY = None  # every value is let through: the flag changes nothing, upstream neither
_RESAMPLER = "resamplers are not supported; every visual token reaches the projector"
_VIDEO = "the slow and fast video branch is not supported; each frame is pooled 2 x 2"
_LENGTH = "global_batch_size and length_group_batches decide the batches; group_by_modality_length is supported"

# Flag -> (values that are let through since they ask for what happens anyway, why others are refused).
NOT_SUPPORTED: dict[str, tuple[tuple[str, ...] | None, str]] = {
    "model_class_name": ((), "the model's class follows from its config.json"),
    "freeze_backbone": (("false",), "mm_tunable_parts says what trains"),
    "unfreeze_language_model": (("false",), "mm_tunable_parts says what trains"),
    "tune_mm_vision_resampler": (("false",), _RESAMPLER),
    "freeze_mm_vision_resampler": (ANY, ""),
    "mm_resampler_type": ((), _RESAMPLER),
    **dict.fromkeys(
        ("mm_mask_drop_mode", "mm_mask_drop_skip_percentage", "mm_mask_drop_ratio", "mm_mask_drop_ratio_upper",
         "mm_mask_drop_ratio_lower", "mm_perceiver_depth", "mm_perceiver_latents", "mm_perceiver_ff_mult",
         "mm_perceiver_pretrained", "mm_qformer_depth", "mm_qformer_latents", "mm_qformer_pretrained",
         "mm_spatial_pool_out_channels"),
        ((), _RESAMPLER),
    ),
    "mm_spatial_pool_stride": (("2",), "the frames of a video are pooled 2 x 2, as LLaVA-NeXT's model code does"),
    "vision_tower_pretrained": (("", "none"), "the tower's folder holds its weights; EVA towers need a checkout"),
    "mm_use_im_start_end": (("false",), "image start and end tokens are not supported; no current model has them"),
    "mm_use_im_patch_token": (("false",), "the image patch token is not supported; no current model uses it"),
    "rope_scaling_factor": ((), "set rope_scaling in the model's config.json"),
    "rope_scaling_type": ((), "set rope_scaling in the model's config.json"),
    "s2": (("false",), "multi-scale towers (S2) need a checkout's tower"),
    "s2_scales": ((), "multi-scale towers (S2) need a checkout's tower"),
    "use_pos_skipping": (("false",), "training on skipped positions is not supported"),
    "pos_skipping_range": ((), "training on skipped positions is not supported"),
    "delay_load": (ANY, ""),
    "add_faster_video": (("false",), _VIDEO),
    "faster_token_stride": ((), _VIDEO),
    "lazy_preprocess": (ANY, ""),
    "is_multimodal": (ANY, ""),
    "verbose_logging": (ANY, ""),
    "early_mix_text": (("false",), "text is mixed in by data_path alone"),
    "image_crop_resolution": ((), "the layouts crop_split and highres are not supported; use pad or anyres"),
    "image_split_resolution": ((), "the layouts crop_split and highres are not supported; use pad or anyres"),
    "cache_dir": ((), "set the environment variable HF_HOME"),
    "mpt_attn_impl": (("triton",), "attn_implementation chooses the attention"),
    "lora_weight_path": (("",), "it is never read; a run goes on from the last checkpoint of its output folder"),
    "lora_bias": (("none",), "adapters are trained without biases"),
    "fsdp": (("", "false"), "several GPUs train by DDP or DeepSpeed; see docs/scaling.md"),
    "fsdp_config": ((), "several GPUs train by DDP or DeepSpeed; see docs/scaling.md"),
    "group_by_varlen": (("false",), _LENGTH),
    "group_by_modality_length_auto": (("false",), _LENGTH),
    "auto_find_batch_size": (("false",), "the global batch has to stay what it is; set per_device_train_batch_size"),
    "label_smoothing_factor": (("0", "0.0"), "the loss is the mean over the label tokens of the global batch"),
    "resume_from_checkpoint": (("true",), "a run goes on from the last checkpoint of its own output_dir"),
    "push_to_hub": (("false",), "scripts/export_hf.sh ... -- --push-to uploads what is trained, checked before"),
    "trainer_mode": (("regular",), "zeroth-order training is not supported"),
    "zo_eps": (ANY, ""),
    "zo_num_directions": (ANY, ""),
}  # fmt: skip

# Names of conversation templates in LLaVA-NeXT's scripts and in speech -> key of llava.conversation.conv_templates.
VERSIONS = {
    "llama_3": "llava_llama_3", "llama_v3": "llava_llama_3", "qwen": "qwen_1_5", "gemma": "gemma_instruct"
}  # fmt: skip


def refusal(name: str, words: list[str] | None) -> str | None:
    """Return why a flag of `NOT_SUPPORTED` cannot be given so, or None where its value changes nothing.

    Args:
        name: A key of the table.
        words: Its value as command-line words; none for a switch (true).
    """
    allowed, reason = NOT_SUPPORTED[name]
    value = " ".join(words) if words else "true"
    if words is None or allowed is ANY or value.lower() in allowed or value == "None":
        return None
    only = f"; only {' or '.join(repr(a) for a in allowed)} is taken" if allowed else ""
    return f"{name} {value}: not supported{only}: {reason}"
