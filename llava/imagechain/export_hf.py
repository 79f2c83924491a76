"""Export a LLaVA model to transformers' `LlavaForConditionalGeneration`: flat, one square image per scene.

Launch: python -m llava.imagechain.export_hf --checkpoint DIR --output-dir OUT [--push-to OWNER/NAME]

The folder holds weights under the hub's usual names, processor, chat template and a model card (README.md). It appears
when the library's own model, read back from it, gives the same logits for images of random pixels. What the class
cannot do (tiles of anyres, other projectors and towers) is refused. Pushing uses the library's own login.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib.metadata
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.constants import IMAGE_TOKEN_INDEX
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.files import read_json, write_json, write_text
from llava.imagechain.manifest import Run, run_manifest, training_manifest
from llava.imagechain.saving import FolderConfig, check_folders, compare_logits, new_folder, probe_logits, trained_base

logger = logging.getLogger("llava.export_hf")
PROGRAM = "python -m llava.imagechain.export_hf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(FolderConfig):
    """Settings of export_hf."""

    conversation: str = option("vicuna_v1", help="conversation template of the model, for the chat template")
    push_to: str | None = option(None, help="hub repository OWNER/NAME to upload the folder to, private")
    public: bool = option(False, help="make a pushed repository public")


def obstacles(config: Any) -> list[str]:
    """Return why a LLaVA config cannot be expressed by `LlavaForConditionalGeneration`; nothing when it can."""

    def value(name: str, default: Any = None) -> Any:
        found = getattr(config, name, None)
        return default if found is None else found

    found = []
    if value("imagechain_scene_aspect") is None:  # not made for sequences: images are laid out as the config says
        aspect, merge = str(value("image_aspect_ratio", "square")), str(value("mm_patch_merge_type", "flat"))
        if aspect not in ("square", "pad") or merge != "flat":
            found.append(
                f"images are cut into tiles (image_aspect_ratio {aspect!r}, mm_patch_merge_type {merge!r}); the class "
                "takes one square image. Train it on sequences first, or use LlavaNextForConditionalGeneration"
            )
    if (kind := value("model_type", "llava")) not in ("llava", "llava_llama"):
        found.append(f"the language model is {kind!r}, not Llama")
    if (kind := value("mm_projector_type", "linear")) != "mlp2x_gelu":
        found.append(f"the projector is {kind!r}, the class has mlp2x_gelu only")
    if (kind := value("mm_vision_select_feature", "patch")) not in ("patch", "cls_patch"):
        found.append(f"mm_vision_select_feature is {kind!r}; patch or cls_patch was wanted")
    found += [f"{name} is set" for name in ("mm_resampler_type", "mm_use_im_start_end") if value(name)]
    return found


def check(config: ExportConfig) -> str:
    """Return the dtype after all checks that need no weights.

    Raises:
        ConfigError: With the reason.
    """
    if not (config.checkpoint / "config.json").is_file():
        raise ConfigError(f"{config.checkpoint} is not a model folder: config.json was wanted in it")
    settings = read_json(config.checkpoint / "config.json")
    if found := obstacles(SimpleNamespace(**settings)):
        raise ConfigError(f"{config.checkpoint} cannot be exported: {'; '.join(found)}.")
    base = config.checkpoint
    if (config.checkpoint / "adapter_config.json").is_file():
        base = trained_base(config)
    dtype = check_folders(config, base, config.checkpoint)
    if config.push_to:
        from huggingface_hub import get_token

        if config.push_to.count("/") != 1:
            raise ConfigError(f"push_to: OWNER/NAME was wanted, found {config.push_to!r}")
        if not get_token():
            raise ConfigError("push_to: nobody is logged in to the hub; run `hf auth login` first")
    return dtype


def write_prompt(processor: Any, original: Any, prompt_format: str, conversation: str) -> dict[str, Any]:
    """Give the processor the chat template whose ids are the original's, and say what was found."""
    from llava.imagechain.hf_prompt import chat_template, sample_ids, sample_messages

    wanted = sample_ids(prompt_format, original, conversation).input_ids
    tokenizer, image_id = processor.tokenizer, processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    for after_image in ("", " "):
        template = chat_template(prompt_format, original, conversation, after_image)
        if template is None:
            return {"has_template": False, "ids_equal": False, "after_image": "", "prompt_format": prompt_format}
        text = processor.apply_chat_template(
            sample_messages(prompt_format), chat_template=template, add_generation_prompt=True, tokenize=False
        )
        ids = [IMAGE_TOKEN_INDEX if token == image_id else token for token in tokenizer(text).input_ids]
        if ids == wanted:
            break
    else:
        logger.warning(
            "the library's tokenizer reads a sample story differently: %d ids, not %d", len(ids), len(wanted)
        )
    processor.chat_template = template
    return {
        "has_template": True, "ids_equal": ids == wanted, "after_image": after_image, "prompt_format": prompt_format
    }  # fmt: skip


def export(config: ExportConfig, dtype: str, folder: Path, manifest: Run) -> None:
    """Write the folder and compare what is read back with the original.

    Raises:
        ValueError: Logits or pixels differ.
    """
    import torch

    from llava.imagechain import hf_model
    from llava.imagechain.checkpoint import load_checkpoint
    from llava.imagechain.decisions import decision, settle_decisions

    loaded = load_checkpoint(config.checkpoint, base=config.base, device=config.device, dtype=getattr(torch, dtype))
    model, original = loaded.model, loaded.tokenizer
    tower, image_processor = model.get_vision_tower(), loaded.image_processor
    settle_decisions(model.config, {}, trained=False)  # a base without them is exported as it would be trained
    aspect, prompt_format = (decision(model.config, f"imagechain_{name}") for name in ("scene_aspect", "prompt"))
    wanted = probe_logits(model, original)
    tokenizer = copy.deepcopy(original)
    tokenizer.add_special_tokens({"additional_special_tokens": [hf_model.IMAGE_TOKEN]})
    image_id = tokenizer.convert_tokens_to_ids(hf_model.IMAGE_TOKEN)
    vocabulary = model.get_input_embeddings().num_embeddings
    rows = vocabulary if image_id < vocabulary else -(-(image_id + 1) // 64) * 64
    write_json(folder / "config.json", hf_model.hub_config(model, image_id, rows))
    model.generation_config.save_pretrained(str(folder))
    hf_model.write_weights(model, folder, rows)
    processor = hf_model.make_processor(tokenizer, image_processor, tower, aspect)
    facts = write_prompt(processor, original, prompt_format, config.conversation)
    hf_model.save_processor(processor, folder)
    del model, loaded
    gc.collect()

    found = hf_model.exported_logits(folder, original, tower, config.device, dtype).cpu()
    facts.update(compare_logits(found[:, : wanted.shape[1]], wanted, config, dtype))
    facts.update(dtype=dtype, image_token_id=image_id, aspect=aspect)
    manifest.record(**facts)
    if not hf_model.same_pixels(processor, image_processor, aspect):
        raise ValueError("the exported image processor gives other pixels; nothing was written")
    write_card(config, facts, folder)


def write_card(config: ExportConfig, facts: dict[str, Any], folder: Path) -> None:
    """Write README.md, the model card."""
    from llava.imagechain.hf_prompt import model_card

    manifest = training_manifest(config.checkpoint)
    trained = (read_json(manifest).get("config") or {}) if manifest else {}
    base = trained.get("model_name_or_path") or read_json(config.checkpoint / "config.json").get("_name_or_path")
    names = {
        "title": (config.push_to or config.output_dir.name).rsplit("/", 1)[-1],
        "base": Path(str(base)).name if base else "not recorded",
        "variant": trained.get("variant") or "none recorded",
        "context": trained.get("context") or "any number of",
        "conversation": config.conversation,
        "version": importlib.metadata.version("transformers"),
    }
    write_text(folder / "README.md", model_card({**facts, **names}))


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Upload a folder to a hub repository, made when missing, with the library's own login; return its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = str(api.create_repo(repository, private=not public, exist_ok=True))
    api.upload_folder(
        repo_id=repository, folder_path=str(folder), commit_message="Export from ImageChain",
        ignore_patterns=["export.json"],  # names folders of this machine
    )  # fmt: skip
    return address


def run(config: ExportConfig) -> None:
    """Check, write the folder, upload it where that was asked for."""
    dtype = check(config)
    if config.dry_run:
        pushed = f", then to the hub as {config.push_to}" if config.push_to else ""
        print(f"{config.checkpoint} in {dtype} -> {config.output_dir}{pushed}")
        return
    with (
        new_folder(config.output_dir, overwrite=config.overwrite) as folder,
        run_manifest(folder, config=to_json(config), name="export.json") as manifest,
    ):
        export(config, dtype, folder, manifest)
    logger.info("exported: %s", config.output_dir)
    if config.push_to:
        logger.info("pushed: %s", push(config.output_dir, config.push_to, public=config.public))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(ExportConfig, run, argv, program=PROGRAM, description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
