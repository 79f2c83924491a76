"""LLaVA's multimodal part: vision modules on the model, images encoded, pooled and put at their marks.

Every language model class of a LLaVA-NeXT checkout inherits from the two classes here. Sequences ("video-seq") follow
ImageChain: all frames of a batch go through the tower in one call, scenes are averaged over their frames.

Shape letters: B rows, L positions, F frames, N tokens per frame, D embedding size.
"""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.imagechain.compat import gathered
from llava.imagechain.decisions import decision
from llava.imagechain.items import Item, items_by_row, read_items
from llava.imagechain.merge import MergeRules, end_line, image_tokens, pool_frames, unpad_image, video_tokens
from llava.imagechain.pooling import mean_over_frames, needed_frames
from llava.imagechain.projector import build_vision_projector, build_vision_resampler
from llava.imagechain.splice import pad_rows, splice_row, text_positions
from llava.imagechain.vision import build_vision_tower, encode_frames, in_step
from llava.imagechain.weights import read_tensors

__all__ = ["LlavaMetaForCausalLM", "LlavaMetaModel", "unpad_image"]
logger = logging.getLogger(__name__)


class LlavaMetaModel:
    """Adds the tower, the resampler, the projector and the line end to a language model body."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        if getattr(config, "mm_vision_tower", None):
            self.vision_tower = build_vision_tower(config, delay_load=getattr(config, "delay_load", False))
            self.vision_resampler = build_vision_resampler(config, vision_tower=self.vision_tower)
            self.mm_projector = build_vision_projector(config, vision_cfg=self.vision_tower.config)
            if "unpad" in (getattr(config, "mm_patch_merge_type", None) or ""):
                self.image_newline = nn.Parameter(torch.zeros(config.hidden_size, dtype=self.dtype))  # type: ignore[attr-defined]

    def get_vision_tower(self) -> Any:
        """Return the tower, also where FSDP keeps it in a list; None without one."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Give a language model its vision modules before training.

        Args:
            model_args: LLaVA's model arguments (`vision_tower`, `mm_vision_select_layer`, `mm_projector_type`, ...).
            fsdp: Non-empty where FSDP is used: the tower is then kept out of its sight, in a list.
        """
        config = self.config  # type: ignore[attr-defined]
        config.mm_vision_tower = model_args.vision_tower
        config.vision_tower_pretrained = getattr(model_args, "vision_tower_pretrained", "")
        if self.get_vision_tower() is None:
            tower, resampler = build_vision_tower(model_args), build_vision_resampler(model_args)
            for name, value in resampler.config.items():
                setattr(config, name, value)
            self.vision_tower = [tower] if fsdp else tower
            self.vision_resampler = [resampler] if fsdp else resampler
        tower = self.get_vision_tower()
        tower.load_model()
        resampler = self.vision_resampler[0] if isinstance(self.vision_resampler, list) else self.vision_resampler
        config.use_mm_proj = True
        config.mm_projector_type = getattr(model_args, "mm_projector_type", "linear")
        config.mm_hidden_size = getattr(resampler, "hidden_size", tower.hidden_size)
        for name in ("mm_vision_select_layer", "mm_vision_select_feature", "mm_patch_merge_type"):
            setattr(config, name, getattr(model_args, name))
        if getattr(model_args, "add_faster_video", False):
            raise NotImplementedError("add_faster_video (slow and fast frames) is not supported; set it to false.")
        if getattr(self, "mm_projector", None) is None:
            self.mm_projector = build_vision_projector(config, vision_cfg=tower.config)
            if "unpad" in config.mm_patch_merge_type:
                newline = torch.randn(config.hidden_size, dtype=self.dtype) * config.hidden_size**-0.5  # type: ignore[attr-defined]
                self.image_newline = nn.Parameter(newline)
        for parameter in [*self.mm_projector.parameters(), *resampler.parameters()]:
            parameter.requires_grad = True  # LoRA freezes the whole model before this
        if model_args.pretrain_mm_mlp_adapter is not None:
            self.load_adapter(model_args.pretrain_mm_mlp_adapter, resampler)

    def load_adapter(self, path: str, resampler: nn.Module) -> None:
        """Load the projector, and the resampler where there is one, from the file of a first training stage.

        Raises:
            ValueError: The file holds other tensors than these modules have.
        """
        tensors = read_tensors(path)
        for name, module in (("mm_projector", self.mm_projector), ("vision_resampler", resampler)):
            found = {key.split(f"{name}.", 1)[1]: value for key, value in tensors.items() if f"{name}." in key}
            try:
                with gathered(module.parameters()):
                    module.load_state_dict(found)
            except RuntimeError as error:
                raise ValueError(f"{path} does not fit this model's {name}: {error}") from error
        logger.info("The projector was loaded from %s.", path)


class LlavaMetaForCausalLM(ABC):
    """Adds images to the forward pass of a causal language model."""

    config: Any
    training: bool

    @abstractmethod
    def get_model(self) -> Any:
        """Return the body that carries the vision modules."""

    def get_vision_tower(self) -> Any:
        """Return the tower, or None."""
        return self.get_model().get_vision_tower()

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return projected features (F, N, D) of images (F, 3, H, W)."""
        return self._project(self.get_vision_tower()(images))

    def get_2dPool(self, image_feature: torch.Tensor, stride: int = 2) -> torch.Tensor:
        """Return frame features (F, N, D) pooled over squares of `stride` tokens."""
        return pool_frames(image_feature, self._merge_rules(), stride)

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: Any,
        modalities: Any = ("image",),
        image_sizes: Any = None,
        *,
        padding_side: str | None = None,
        always_embed: bool = False,
    ) -> tuple[Any, Any, Any, Any, torch.Tensor | None, torch.Tensor | None]:
        """Turn ids with image marks into embeddings.

        Args:
            input_ids: Token ids (B, L), image marks in them.
            position_ids: Given back in the new length where it is not None.
            attention_mask: Positions (B, L) that are not padding; None means all.
            past_key_values: Given back.
            labels: Labels (B, L) or None.
            images: See `llava.imagechain.items.read_items`.
            modalities: One entry for all, or one an image.
            image_sizes: (width, height) in pixels of each image; anyres needs it.
            padding_side: Overrides the config's `tokenizer_padding_side`.
            always_embed: Return embeddings for text alone, too.

        Returns:
            (ids or None, position ids, attention mask, past_key_values, embeddings (B, L', D) or None, labels (B, L')).

        Raises:
            ValueError: Marks and images do not agree; the message names the row.
        """
        has_tower = self.get_vision_tower() is not None
        together = has_tower and in_step(self.get_model())  # each process takes part in the tower calls of the others
        needed = always_embed or together or (has_tower and images is not None)
        if not needed or (input_ids.shape[1] == 1 and not always_embed):
            if input_ids.shape[1] > 1:
                items_by_row([], (input_ids == IMAGE_TOKEN_INDEX).sum(dim=1).tolist())
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        present = text_positions(input_ids, attention_mask)
        marks = ((input_ids == IMAGE_TOKEN_INDEX) & present).sum(dim=1).tolist()
        rows = items_by_row([] if images is None or not has_tower else read_items(images, modalities), marks)
        tokens = self._tokens_of_rows(rows, image_sizes, together) if has_tower else [[] for _ in rows]
        table = self.get_model().embed_tokens
        nothing: Any = 0
        if has_tower and (together or self.training) and not any(rows):
            # Keeps the projector in the graph of a batch of text. It runs before the embedding, as with images: with
            # ZeRO-3 all processes gather weights in one order.
            nothing = self._project(table.weight.new_zeros(1, 1, self.config.mm_hidden_size)).sum() * 0
        embedded = table(input_ids.clamp(min=0)) + nothing
        known = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        spliced = [
            splice_row(input_ids[row][present[row]], embedded[row][present[row]], known[row][present[row]], tokens[row])
            for row in range(len(input_ids))
        ]
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        longest = max(len(row) for row, _ in spliced)
        if limit and longest > limit and not self.training:
            logger.warning("A row of %d positions is cut to tokenizer_model_max_length %d.", longest, limit)
        batch = pad_rows(
            [row for row, _ in spliced],
            None if labels is None else [row_labels for _, row_labels in spliced],
            side=padding_side or getattr(self.config, "tokenizer_padding_side", None) or "right",
            max_length=limit,
        )
        mask = batch.attention_mask if attention_mask is None else batch.attention_mask.to(attention_mask.dtype)
        if attention_mask is None and bool(mask.all()):
            mask = None
        positions = None if position_ids is None else batch.position_ids
        if self.training and getattr(self.config, "use_pos_skipping", False):
            positions = self._skipped_positions(batch.embeddings)
        return None, positions, mask, past_key_values, batch.embeddings, batch.labels

    def _tokens_of_rows(
        self, rows: list[list[Item]], image_sizes: Any, together: bool = False
    ) -> list[list[torch.Tensor]]:
        """Encode all images of a batch, the tower and the projector running once, and return their tokens by row."""
        items = [item for row in rows for item in row]
        blocks = [needed_frames(item.blocks, self.config) if item.kind == "sequence" else item.blocks for item in items]
        flat = [(item, block) for item, item_blocks in zip(items, blocks, strict=True) for block in item_blocks]
        encoded = self._encode_blocks(flat, together)
        features = iter(self._project_blocks(encoded, [item.kind == "sequence" for item, _ in flat]))
        tokens = {item.index: [self._merge(item, next(features), image_sizes) for _ in item.blocks] for item in items}
        return [[token for item in row for token in tokens[item.index]] for row in rows]

    def _encode_blocks(self, blocks: list[tuple[Item, torch.Tensor]], together: bool) -> list[torch.Tensor]:
        """Return tower features (F, N, Dv) of each block; cached blocks are theirs already."""
        tower = self.get_vision_tower()
        pixels = [block for item, block in blocks if not item.cached]
        shapes = {tuple(block.shape[1:]) for block in pixels}
        if len(shapes) > 1:
            raise ValueError(f"All images of a batch must have one size after processing, found {sorted(shapes)}.")
        size = getattr(tower, "image_size", 1)
        # The tower's device is passed by hand: the images may still be on the CPU.
        frames = (
            torch.cat([p.to(tower.device) for p in pixels])
            if pixels
            else torch.zeros(0, 3, size, size, device=tower.device)
        )
        encoded: list[torch.Tensor] = []
        if pixels or together:
            features = encode_frames(tower, frames, getattr(tower, "frames_per_call", None), in_step=together)
            encoded = list(torch.split(features, [len(block) for block in pixels])) if pixels else []
        queue = iter(encoded)
        return [block if item.cached else next(queue) for item, block in blocks]

    def _project_blocks(self, blocks: list[torch.Tensor], is_scene: list[bool]) -> list[torch.Tensor]:
        """Project every block in one call; scenes are averaged over frames after it, or before as the config says."""
        if not blocks:
            return []
        before = decision(self.config, "imagechain_pooling") == "before_projector"
        if before:
            blocks = [mean_over_frames(b)[None] if scene else b for b, scene in zip(blocks, is_scene, strict=True)]
        device = self.get_model().embed_tokens.weight.device
        projected = self._project(torch.cat([block.to(device) for block in blocks]))
        parts = torch.split(projected, [len(block) for block in blocks])
        return [mean_over_frames(part) if scene else part for part, scene in zip(parts, is_scene, strict=True)]

    def _merge(self, item: Item, features: torch.Tensor, image_sizes: Any) -> torch.Tensor:
        rules = self._merge_rules()
        if item.kind == "sequence":
            # A model made for sequences puts nothing between scenes, whatever its layout for images is.
            flat = getattr(self.config, "imagechain_scene_aspect", None) is not None
            return features if flat else end_line(features, rules)
        if item.kind == "video":
            return video_tokens(features, rules)
        if item.kind == "plain":
            return features.flatten(0, 1)
        size = image_sizes[item.index] if image_sizes is not None else None
        return image_tokens(features, None if size is None else (int(size[0]), int(size[1])), rules)

    def _merge_rules(self) -> MergeRules:
        tower = self.get_vision_tower()
        newline = getattr(self.get_model(), "image_newline", None)
        return MergeRules(
            config=self.config, side=tower.num_patches_per_side, image_size=tower.image_size, newline=newline
        )

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        projector = self.get_model().mm_projector
        parameter = next(projector.parameters(), None)
        return projector(features if parameter is None else features.to(device=parameter.device, dtype=parameter.dtype))

    def _skipped_positions(self, embeddings: torch.Tensor) -> torch.Tensor:
        length = embeddings.shape[1]
        split = random.randint(0, length)
        left = random.randint(0, self.config.pos_skipping_range)
        right = random.randint(left, self.config.pos_skipping_range)
        positions = torch.arange(length, device=embeddings.device)[None]
        return positions + torch.where(positions < split, left, right)

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Add LLaVA's optional image tokens to tokenizer and embeddings, the new rows starting at the mean."""
        if model_args.mm_use_im_patch_token:
            tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
            self.resize_token_embeddings(len(tokenizer))  # type: ignore[attr-defined]
        if not model_args.mm_use_im_start_end:
            if model_args.mm_use_im_patch_token and model_args.tune_mm_mlp_adapter:
                self._embeddings_train(inputs=False)
            return
        added = tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
        self.resize_token_embeddings(len(tokenizer))  # type: ignore[attr-defined]
        inputs = self.get_input_embeddings().weight  # type: ignore[attr-defined]
        outputs = self.get_output_embeddings().weight  # type: ignore[attr-defined]
        with torch.no_grad():
            for table in (inputs, outputs) if added else ():
                table[-added:] = table[:-added].mean(dim=0, keepdim=True)
            if model_args.pretrain_mm_mlp_adapter:
                name = "model.embed_tokens.weight"
                rows = read_tensors(model_args.pretrain_mm_mlp_adapter, lambda key: key == name).get(name)
                if rows is None or added != 2 or len(rows) not in (2, len(inputs)):
                    raise ValueError(
                        f"{model_args.pretrain_mm_mlp_adapter}: {name} with the 2 image token rows was wanted."
                    )
                inputs[-2:] = rows[-2:]
        if model_args.tune_mm_mlp_adapter:
            self._embeddings_train(inputs=True)

    def _embeddings_train(self, *, inputs: bool) -> None:
        self.get_input_embeddings().requires_grad_(inputs)  # type: ignore[attr-defined]
        self.get_output_embeddings().requires_grad_(False)  # type: ignore[attr-defined]
