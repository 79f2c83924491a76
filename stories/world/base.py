"""Make the story world's base model: an ordinary LLaVA checkpoint that can caption single frames.

    python -m stories.world.base --output-dir runs/base --seed 0

First the vision tower learns what is in a picture (every patch names the person on its side, as a stand-in for CLIP's
own pre-training), then projector and language model learn to answer questions about single frames. No video of the
story world is seen, and no sequence. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.files import read_json, write_json
from llava.imagechain.manifest import run_manifest

if TYPE_CHECKING:
    import torch

    from stories.world.captions import Frames

logger = logging.getLogger(__name__)

TOWER_FOLDER = "vision_tower"
SETTINGS_FILE = "base.json"
NUM_CHECKS = 200  # new frames that the finished model is asked about


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Settings of `python -m stories.world.base`."""

    output_dir: Path = option(help="model folder; the vision tower goes to its subfolder vision_tower")
    seed: int = option(0, help="everything is drawn from it")
    num_frames: int = option(12000, help="frames drawn to learn from")
    tower_steps: int = option(1000, help="steps of the vision tower's training")
    tower_batch_size: int = option(64, help="frames a step of the tower")
    tower_learning_rate: float = option(1.5e-3, help="peak rate of the tower")
    steps: int = option(1200, help="steps of the captioner's training")
    batch_size: int = option(24, help="frames a step of the captioner")
    learning_rate: float = option(1.5e-3, help="peak rate of projector and language model")
    image_size: int = option(64, help="side of the tower's input, pixels")
    patch_size: int = option(16, help="side of a patch, pixels; 64 / 16 gives 16 tokens a frame")
    vision_hidden_size: int = option(128, help="size of the tower's features, a multiple of 32")
    vision_layers: int = option(4, help="layers of the tower; LLaVA reads the second to last")
    hidden_size: int = option(192, help="size of the language model's embeddings, a multiple of 32 (the head size)")
    layers: int = option(4, help="layers of the language model")
    intermediate_size: int = option(512, help="size between the two halves of a language layer's MLP")
    bf16: bool | None = option(None, help="bfloat16 autocast; by default where the processor has instructions for it")
    resume: bool = option(True, help="go on where an interrupted run stopped")
    overwrite: bool = option(False, help="start anew")
    dry_run: bool = option(False, help="print what would be trained and stop")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        BaseConfig, make_base, argv, program="python -m stories.world.base",
        description="Train the story world's base model.",
        interrupted="the same command goes on from the last minute's state",
    )  # fmt: skip


def make_base(config: BaseConfig) -> None:
    """Make the model, or say what would be made."""
    check_settings(config)
    if config.dry_run:
        print(f"{config.num_frames} frames, {config.tower_steps} + {config.steps} steps would make {config.output_dir}")
        return
    if _is_finished(config):
        logger.info("%s is trained already; --overwrite starts anew", config.output_dir)
        return
    with run_manifest(config.output_dir, config=to_json(config)) as run:
        run.record(**train_base(config))
    logger.info("The base model is in %s", config.output_dir)


def _model_settings(config: BaseConfig) -> dict[str, Any]:
    """Return the settings that the model depends on."""
    return {k: v for k, v in to_json(config).items() if k not in ("output_dir", "resume", "overwrite", "dry_run")}


def check_settings(config: BaseConfig) -> None:
    """Refuse wrong sizes, and a folder that holds another run.

    Raises:
        ConfigError: With what is wrong.
    """
    if config.hidden_size % 32 or config.vision_hidden_size % 32 or config.image_size % config.patch_size:
        raise ConfigError("sizes that are multiples of 32 and a patch_size that divides image_size were wanted.")
    if min(config.num_frames, config.tower_steps, config.steps, config.batch_size, config.tower_batch_size) < 1:
        raise ConfigError("numbers of frames, steps and batch sizes of at least 1 were wanted.")
    settings = config.output_dir / SETTINGS_FILE
    if settings.is_file() and not config.overwrite:
        before, now = read_json(settings), _model_settings(config)
        changed = [f"{k} was {before.get(k)!r}, is {now[k]!r}" for k in now if before.get(k) != now[k]]
        if changed or not config.resume:
            raise ConfigError(
                f"{config.output_dir} holds a run already{': ' if changed else ''}{'; '.join(changed)}. "
                "Choose another --output-dir or add --overwrite."
            )


def _is_finished(config: BaseConfig) -> bool:
    manifest = config.output_dir / "run.json"
    done = manifest.is_file() and read_json(manifest).get("status") == "success"
    return done and not config.overwrite and (config.output_dir / "model.safetensors").is_file()


def train_base(config: BaseConfig) -> dict[str, Any]:
    """Train tokenizer, tower and captioner and save the checkpoint.

    Returns:
        Facts for run.json.
    """
    import torch
    from transformers import logging as transformers_logging

    from llava.imagechain.saving import save_tower
    from stories.world.captions import draw_frames
    from stories.world.tokenizer import train_tokenizer

    transformers_logging.set_verbosity_error()
    states = {name: config.output_dir / f"{name}.state.pt" for name in ("tower", "captioner")}
    if config.overwrite:
        for path in states.values():
            path.unlink(missing_ok=True)
    write_json(config.output_dir / SETTINGS_FILE, _model_settings(config))
    torch.manual_seed(config.seed)
    train_tokenizer(config.output_dir, seed=config.seed + 1_000_003)
    write_tower_folder(config)
    model, tokenizer = build_model(config)
    frames = draw_frames(config.num_frames, config.image_size, f"base {config.seed}")
    tower_loss = train_tower(config, model, frames, states["tower"])
    caption_loss = train_captioner(config, model, tokenizer, frames, states["captioner"])
    model.save_pretrained(str(config.output_dir))
    save_tower(model.get_vision_tower().vision_tower, config.output_dir / TOWER_FOLDER)
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bf16": uses_bf16(config),
        "tower_loss": round(tower_loss, 4),
        "caption_loss": round(caption_loss, 4),
        **check(config, model, tokenizer),
    }
    for path in states.values():
        path.unlink(missing_ok=True)
    return facts


def write_tower_folder(config: BaseConfig) -> None:
    """Write the vision tower's config and image processor settings."""
    from transformers import CLIPVisionConfig

    folder = config.output_dir / TOWER_FOLDER
    CLIPVisionConfig(
        hidden_size=config.vision_hidden_size,
        intermediate_size=4 * config.vision_hidden_size,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_hidden_size // 32,
        image_size=config.image_size,
        patch_size=config.patch_size,
        projection_dim=config.vision_hidden_size,
    ).save_pretrained(str(folder))
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": config.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    for path in (folder, config.output_dir):
        write_json(path / "preprocessor_config.json", processor)


def build_model(config: BaseConfig) -> tuple[Any, Any]:
    """Return the untrained model and its tokenizer."""
    from transformers import AutoTokenizer

    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from stories.world.tokenizer import MAX_LENGTH

    tokenizer = AutoTokenizer.from_pretrained(str(config.output_dir), use_fast=False)
    model_config = LlavaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.hidden_size // 32,
        num_key_value_heads=config.hidden_size // 32,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        initializer_range=0.06,  # the library's 0.02 suits wide models; here copying words then comes too late
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        mm_vision_tower=TOWER_FOLDER,
        checkpoint_dir=str(config.output_dir),
        use_mm_proj=True,
        mm_hidden_size=config.vision_hidden_size,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_patch_merge_type="flat",
        mm_resampler_type=None,
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        image_aspect_ratio="pad",
        tokenizer_model_max_length=MAX_LENGTH,
        tokenizer_padding_side="right",
        unfreeze_mm_vision_tower=False,
        tune_mm_mlp_adapter=False,
        freeze_mm_mlp_adapter=False,
    )
    model = LlavaLlamaForCausalLM(model_config)
    model.lm_head.weight.data.copy_(model.get_input_embeddings().weight.data)  # a common start helps copying words
    return model, tokenizer


def uses_bf16(config: BaseConfig) -> bool:
    """Tell whether to train under bfloat16 autocast; without processor support it would be slower than float32."""
    import torch

    if config.bf16 is not None:
        return config.bf16
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def normalized(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    """Return uint8 pixels (n, 3, H, W) as the image processor would normalise them."""
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixels.float() / 255 - mean) / std


def batch_of(step: int, count: int, batch_size: int, seed: str) -> list[int]:
    """Return the frames of a step: each pass over all frames is a new order."""
    per_pass = max(1, count // batch_size)
    order = list(range(count))
    random.Random(f"{seed} {step // per_pass}").shuffle(order)
    start = step % per_pass * batch_size
    return order[start : start + batch_size]


def train_tower(config: BaseConfig, model: Any, frames: Frames, state_path: Path) -> float:
    """Teach the tower: from every patch, tell person, colour, action, object and place of the patch's half."""
    import torch
    from torch import nn
    from torch.nn import functional

    from stories.world.captions import SLOTS
    from stories.world.fit import Schedule, fit

    tower = model.get_vision_tower()
    tower.requires_grad_(True)
    sizes = [len(values) for values in SLOTS.values()]
    head = nn.Linear(config.vision_hidden_size, sum(sizes))
    side = config.image_size // config.patch_size
    half = (torch.arange(side * side) % side >= side / 2).long()
    targets = frames.targets()

    def loss_of_step(step: int) -> torch.Tensor:
        rows = batch_of(step, config.num_frames, config.tower_batch_size, f"tower {config.seed}")
        features = tower(normalized(frames.pixels[rows], tower.image_processor))
        logits = head(features).float().split(sizes, dim=-1)
        wanted = targets[rows][:, half]
        losses = [functional.cross_entropy(x.flatten(0, 1), wanted[..., k].flatten()) for k, x in enumerate(logits)]
        return torch.stack(losses).sum()

    schedule = Schedule(num_steps=config.tower_steps, learning_rate=config.tower_learning_rate, bf16=uses_bf16(config))
    loss = fit("vision tower", nn.ModuleList([tower, head]), loss_of_step, schedule, state_path)
    tower.requires_grad_(False)
    tower.is_loaded = True
    return loss


def features_of(model: Any, pixels: torch.Tensor, frames_per_call: int = 256) -> torch.Tensor:
    """Return the tower's features of frames, (n, N, D)."""
    import torch

    tower = model.get_vision_tower()
    with torch.inference_mode():
        parts = [tower(normalized(part, tower.image_processor)) for part in pixels.split(frames_per_call)]
    return torch.cat(parts).clone()


def train_captioner(config: BaseConfig, model: Any, tokenizer: Any, frames: Frames, state_path: Path) -> float:
    """Teach projector and language model to answer questions about single frames; the tower is frozen."""
    from torch import nn

    from stories.world.captions import CaptionWriter, collate
    from stories.world.fit import Schedule, fit

    features = features_of(model, frames.pixels)
    writer = CaptionWriter(tokenizer)
    model.train()

    def loss_of_step(step: int) -> torch.Tensor:
        rng = random.Random(f"captions {config.seed} {step}")
        rows = batch_of(step, config.num_frames, config.batch_size, f"captioner {config.seed}")
        ids, labels, mask = collate([writer.write(frames.meanings[row], rng) for row in rows])
        output = model(
            input_ids=ids,
            labels=labels,
            attention_mask=mask,
            images=[[features[row][None]] for row in rows],
            modalities=["video-seq-features"] * len(rows),
            return_logits=False,
        )
        return output.loss

    trained = nn.ModuleList([module for name, module in _trained_parts(model)])
    schedule = Schedule(num_steps=config.steps, learning_rate=config.learning_rate, bf16=uses_bf16(config))
    loss = fit("captioner", trained, loss_of_step, schedule, state_path)
    model.eval()
    return loss


def _trained_parts(model: Any) -> list[tuple[str, Any]]:
    body = model.get_model()
    return [(n, m) for n, m in body.named_children() if n != "vision_tower"] + [("lm_head", model.lm_head)]


def check(config: BaseConfig, model: Any, tokenizer: Any) -> dict[str, float]:
    """Ask about new frames: how many answers are exact, for a named person and for either person."""
    import torch

    from eval.judge.world.grammar import parse
    from llava.imagechain.variants import FIRST_QUESTION
    from stories.world.captions import CaptionWriter, draw_frames
    from stories.world.tokenizer import actor_question

    frames = draw_frames(NUM_CHECKS, config.image_size, f"check {config.seed}")
    pixels = normalized(frames.pixels, model.get_vision_tower().image_processor)
    writer = CaptionWriter(tokenizer)

    def answers(questions: list[str]) -> list[Any]:
        found = []
        for start in range(0, NUM_CHECKS, 50):
            prompts = [writer.question(question) for question in questions[start : start + 50]]
            length = max(map(len, prompts))
            ids = torch.tensor([prompt + [0] * (length - len(prompt)) for prompt in prompts])
            mask = torch.tensor([[1] * len(prompt) + [0] * (length - len(prompt)) for prompt in prompts])
            new = model.generate(
                ids, attention_mask=mask, images=list(pixels[start : start + 50]), modalities=["image"] * len(prompts),
                do_sample=False, max_new_tokens=32, pad_token_id=0,
            )  # fmt: skip
            found += [parse(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
        return found

    named = answers([actor_question(*left.actor) for left, _ in frames.meanings])
    free = answers([FIRST_QUESTION] * NUM_CHECKS)
    facts = {
        "exact_named": sum(a == pair[0] for a, pair in zip(named, frames.meanings, strict=True)) / NUM_CHECKS,
        "exact_either": sum(a in pair for a, pair in zip(free, frames.meanings, strict=True)) / NUM_CHECKS,
    }
    logger.info("of %d new frames: %s", NUM_CHECKS, ", ".join(f"{k} {v:.0%}" for k, v in facts.items()))
    return facts


if __name__ == "__main__":
    sys.exit(main())
