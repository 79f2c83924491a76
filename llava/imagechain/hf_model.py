"""A LLaVA model in the terms of transformers' `LlavaForConditionalGeneration`: names, config, processor, reading back.

Shape letters: L positions, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.constants import IMAGE_TOKEN_INDEX
from llava.imagechain.config import ConfigError
from llava.imagechain.files import read_json, write_json
from llava.imagechain.saving import probe_ids, probe_pixels

if TYPE_CHECKING:
    import torch

IMAGE_TOKEN = "<image>"


def hub_name(name: str) -> str | None:
    """Return the name that the hub's LLaVA files use for one of our tensors; None for what the class does not have."""
    tower = "model.vision_tower.vision_tower."
    if name.startswith(tower):
        return "vision_tower.vision_model." + name.removeprefix(tower).removeprefix("vision_model.")
    for layer, number in (("0", "1"), ("2", "2")):
        if name.startswith(f"model.mm_projector.{layer}."):
            return f"multi_modal_projector.linear_{number}.{name.rsplit('.', 1)[1]}"
    return None if name == "model.image_newline" else f"language_model.{name}"


def with_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Return an embedding or output table with more rows, each the mean of the others: never the likeliest token."""
    import torch

    missing = rows - len(table)
    if missing <= 0:
        return table
    return torch.cat([table, table.float().mean(0, keepdim=True).to(table.dtype).expand(missing, -1)])


def hub_config(model: Any, image_id: int, rows: int) -> dict[str, Any]:
    """Return config.json of the exported model, with the keys of transformers 4 and 5."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    from llava.imagechain.compat import with_old_config_keys

    tower, source = model.get_vision_tower(), model.config.to_dict()
    known = set(LlamaConfig().to_dict()) - {"model_type", "architectures", "transformers_version", "_name_or_path"}
    written = {"vocab_size": rows, "tie_word_embeddings": False}  # both tables are written, also where they are one
    text = LlamaConfig(**{**{key: source[key] for key in known if key in source}, **written})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower.config.to_dict()),
        text_config=text,
        image_token_index=image_id,
        projector_hidden_act="gelu",
        vision_feature_layer=tower.select_layer,
        vision_feature_select_strategy="default" if tower.select_feature == "patch" else "full",
    ).to_dict()
    config.update(
        architectures=["LlavaForConditionalGeneration"], image_token_index=image_id, image_seq_length=tower.num_patches,
        torch_dtype=str(model.dtype).removeprefix("torch."), tie_word_embeddings=False,
    )  # fmt: skip
    config.pop("dtype", None)
    config["text_config"] = with_old_config_keys(config["text_config"])
    return config


def make_processor(tokenizer: Any, image_processor: Any, tower: Any, scene_aspect: str) -> Any:
    """Return the library's processor; "pad" is done by its own LLaVA image processor.

    Raises:
        ConfigError: This library version cannot pad.
    """
    import transformers

    if scene_aspect == "pad":
        names = ("LlavaImageProcessorPil", "LlavaImageProcessor")
        kind = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
        if kind is None:
            raise ConfigError("frames are padded (imagechain_scene_aspect pad), which needs transformers 4.51 or newer")
        settings = {key: value for key, value in image_processor.to_dict().items() if key != "image_processor_type"}
        image_processor = kind(**{**settings, "do_pad": True})
    return transformers.LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default" if tower.select_feature == "patch" else "full",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
    )


def save_processor(processor: Any, folder: Path) -> None:
    """Save a processor so that transformers 4.45 and newer read the same from it, whichever version writes it."""
    from transformers import AutoTokenizer

    processor.save_pretrained(str(folder))
    settings = read_json(folder / "processor_config.json")
    if image_settings := settings.pop("image_processor", None):  # 5.x puts it where 4.x does not look
        owner = {"processor_class": type(processor).__name__}
        write_json(folder / "preprocessor_config.json", {**image_settings, **owner})
    write_json(folder / "processor_config.json", {"num_additional_image_tokens": 1, **settings})
    if not (folder / "tokenizer.json").is_file():  # 4.x saved sentencepiece's file alone, which 5.x reads otherwise
        AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).save_pretrained(str(folder))
    words = read_json(folder / "tokenizer_config.json")
    if isinstance(special := words.get("extra_special_tokens"), list):
        del words["extra_special_tokens"]
        kept = {name: value for name, value in words.items() if name not in ("backend", "is_local", "local_files_only")}
        write_json(folder / "tokenizer_config.json", {**kept, "additional_special_tokens": special})
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        write_json(folder / "chat_template.json", {"chat_template": template})


def write_weights(model: Any, folder: Path, rows: int) -> None:
    """Write the weights under the hub's names, in shards of 5 GB."""
    from huggingface_hub import save_torch_state_dict

    # Its logger bears its file's name; what it tells at level INFO is the temporary folder.
    logging.getLogger(inspect.getfile(save_torch_state_dict)).setLevel(logging.WARNING)
    state = {target: tensor for name, tensor in model.state_dict().items() if (target := hub_name(name))}
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        state[name] = with_rows(state[name], rows).clone()
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, str(folder))


def exported_logits(folder: Path, tokenizer: Any, tower: Any, device: str, dtype: str) -> torch.Tensor:
    """Return the logits (L, V) of the folder, read back with the library's class, on the probe.

    Raises:
        ValueError: Tensors are missing or left over.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    from llava.imagechain.compat import DTYPE_KEYWORD

    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, attn_implementation="sdpa", **{DTYPE_KEYWORD: getattr(torch, dtype)}
    )
    if problems := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise ValueError(f"the exported names are not the library's: {', '.join(sorted(problems)[:5])}")
    image_id = read_json(folder / "config.json")["image_token_index"]
    ids = [
        [image_id] * tower.num_patches if token == IMAGE_TOKEN_INDEX else [token]
        for token in probe_ids(tokenizer)[0].tolist()
    ]
    batch = torch.tensor([[token for part in ids for token in part]], device=device)
    pixels = probe_pixels(tower).to(device, getattr(torch, dtype))
    with torch.inference_mode():
        model = model.eval().to(device)
        return model(input_ids=batch, pixel_values=pixels, attention_mask=batch.new_ones(batch.shape)).logits[0].float()


def same_pixels(processor: Any, image_processor: Any, scene_aspect: str) -> bool:
    """Tell whether the exported image processor turns an image of random colours into the same pixels as ours."""
    import numpy
    import torch
    from PIL import Image

    from llava.imagechain.vision import process_scene_frames

    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype="uint8"))
    ours = process_scene_frames([noise], image_processor, scene_aspect)
    theirs = torch.as_tensor(processor.image_processor(noise, return_tensors="pt")["pixel_values"])
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() < 1e-4)
