"""LLaVA on Llama: config, body and causal language model.

Shape letters: B rows, L positions, D embedding size, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.constants import IGNORE_INDEX
from llava.imagechain.compat import accepted, with_old_config_keys, without_load_report
from llava.imagechain.vision import CLIPVisionTower, complete_vision_tower, portable_tower_name
from llava.imagechain.weights import name_in_files, shortened
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel

logger = logging.getLogger(__name__)


class LlavaConfig(LlamaConfig):
    """Llama's config with LLaVA's keys beside it; `checkpoint_dir` remembers the folder it came from (not saved)."""

    model_type = "llava_llama"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a config.json, whatever model type it names."""
        result = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        if Path(pretrained_model_name_or_path).is_dir():
            config.checkpoint_dir = str(Path(pretrained_model_name_or_path).resolve())
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the config as JSON values."""
        values = super().to_dict()
        values.pop("checkpoint_dir", None)
        return values

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what config.json holds, also under the names that transformers 4 reads."""
        return with_old_config_keys(super().to_diff_dict())

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write config.json; a vision tower named relative to the old folder is named relative to the new one."""
        name = getattr(self, "mm_vision_tower", None)
        if name:
            self.mm_vision_tower = portable_tower_name(name, getattr(self, "checkpoint_dir", None), save_directory)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            if name:
                self.mm_vision_tower = name


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama's body with vision modules."""

    config_class = LlavaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)


class LlavaLlamaForCausalLM(LlamaForCausalLM, LlavaMetaForCausalLM):
    """Llama that reads images, videos and image sequences."""

    config_class = LlavaConfig

    def __init__(self, config: LlamaConfig) -> None:
        LlamaForCausalLM.__init__(self, config)
        config.model_type = "llava_llama"
        self.model = LlavaLlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint; vision weights that it does not hold come from the vision tower's own folder."""
        with_info = kwargs.pop("output_loading_info", False)
        if "config" not in kwargs and Path(pretrained_model_name_or_path).is_dir():
            kwargs["config"] = cls.config_class.from_pretrained(pretrained_model_name_or_path)
        with without_load_report():
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        info["missing_keys"] = complete_vision_tower(model, info["missing_keys"])
        if info["missing_keys"] and not with_info:
            logger.warning("Not in the checkpoint, still at random values: %s", ", ".join(sorted(info["missing_keys"])))
        # Buffers that older library versions wrote are no loss.
        surplus = sorted(n for n in info["unexpected_keys"] if not n.endswith((".position_ids", ".inv_freq")))
        if surplus:
            logger.warning("In the checkpoint, but not in the model, and left out: %s", shortened(surplus))
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the model folder, its tensors under the names that every library version reads."""
        if isinstance(self.get_vision_tower(), CLIPVisionTower) and len(args) < 2:
            state = kwargs.pop("state_dict", None)
            state = self.state_dict() if state is None else state
            kwargs["state_dict"] = {name_in_files(name): tensor for name, tensor in state.items()}
            if "save_original_format" in inspect.signature(super().save_pretrained).parameters:
                kwargs["save_original_format"] = False  # the library renames only what it renamed while loading
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_model(self) -> LlavaLlamaModel:
        """Return the body."""
        return self.model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Any = None,
        image_sizes: Any = None,
        return_dict: bool | None = None,
        modalities: Any = ("image",),
        dpo_forward: bool | None = None,
        cache_position: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        return_logits: bool = True,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids (B, L) with image marks.
            attention_mask: Positions that are not padding.
            position_ids: Positions, where they are not simply counted.
            past_key_values: Key-value cache.
            inputs_embeds: Embeddings (B, L, D) in place of ids and images.
            labels: Labels (B, L); -100 carries no loss.
            use_cache: Return the cache.
            output_attentions: Return attention weights.
            output_hidden_states: Return hidden states.
            images: See `llava.imagechain.items.read_items`.
            image_sizes: (width, height) of each image.
            return_dict: False for a plain tuple.
            modalities: See `llava.imagechain.items.read_items`.
            dpo_forward: Return (logits, labels in the expanded length) only.
            cache_position: Handed on where the library wants it.
            num_items_in_batch: Label tokens of the global batch: the loss is the sum over this batch's label tokens
                divided by it. None takes the mean over this batch's own.
            return_logits: False computes logits at positions with a label only and returns none (training).
            logits_to_keep: Compute logits of that many last positions only, 0 for all, or of these positions.
            **kwargs: Handed on to the language model.

        Returns:
            Loss (float32), logits (B, L', V), cache, hidden states and attentions.
        """
        if inputs_embeds is None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images, modalities, image_sizes
                )
            )
        optional = {
            "output_attentions": output_attentions, "output_hidden_states": output_hidden_states,
            "cache_position": cache_position, **kwargs,
        }  # fmt: skip
        given = {name: value for name, value in optional.items() if value is not None}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **accepted(type(self.model).forward, given),
        )
        hidden = outputs[0]
        if dpo_forward:
            return self.lm_head(hidden), labels
        loss, logits = None, None
        if labels is not None and not return_logits:
            loss = self._loss_on_labels(hidden, labels, num_items_in_batch)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
            if labels is not None:
                loss = token_loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), num_items_in_batch)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=getattr(outputs, "past_key_values", None),
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )
        return result.to_tuple() if return_dict is False else result

    def _loss_on_labels(self, hidden: torch.Tensor, labels: torch.Tensor, num_items: Any) -> torch.Tensor:
        """Return the loss with the vocabulary projected at positions that carry a label only."""
        targets = labels[:, 1:]
        carries = targets != IGNORE_INDEX
        return token_loss(self.lm_head(hidden[:, :-1][carries]), targets[carries], num_items)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: Any = None,
        image_sizes: Any = None,
        modalities: Any = ("image",),
        **kwargs: Any,
    ) -> Any:
        """Generate; rows are padded on the left, so that a row gets in a batch what it gets alone.

        Args:
            inputs: Prompt ids (B, L) with image marks, padded on any side (`attention_mask` says where).
            images: See `llava.imagechain.items.read_items`.
            image_sizes: (width, height) of each image.
            modalities: See `llava.imagechain.items.read_items`.
            **kwargs: The library's generation settings.

        Returns:
            New token ids (B, number of new tokens), or the library's output object.
        """
        if kwargs.pop("inputs_embeds", None) is not None:
            raise NotImplementedError("inputs_embeds is not supported in generate; pass ids and images.")
        kwargs.pop("position_ids", None)  # counted anew: images lengthen the prompt
        mask = kwargs.pop("attention_mask", None)
        _, _, new_mask, _, embeddings, _ = self.prepare_inputs_labels_for_multimodal(
            inputs, None, mask, None, None, images, modalities or ("image",), image_sizes,
            padding_side="left", always_embed=True,
        )  # fmt: skip
        if embeddings is None:
            raise ValueError("generate: `inputs`, the prompt's token ids, were wanted.")
        if new_mask is None:
            new_mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        return super().generate(attention_mask=new_mask, inputs_embeds=embeddings, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the inputs of the next step; images, where a caller passes them by hand, stay with it."""
        extra = {name: kwargs.pop(name, None) for name in ("images", "image_sizes")}
        prepared = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        return {**prepared, **{name: value for name, value in extra.items() if value is not None}}


def token_loss(logits: torch.Tensor, targets: torch.Tensor, num_items: Any = None) -> torch.Tensor:
    """Return the cross-entropy over target tokens in float32.

    Args:
        logits: (n, V).
        targets: (n), -100 where there is no loss.
        num_items: What the sum is divided by; None takes the number of targets (0 targets give 0).
    """
    total = functional.cross_entropy(
        logits.float(), targets.to(logits.device), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    if num_items is None:
        num_items = (targets != IGNORE_INDEX).sum().clamp(min=1)
    return total / (num_items.to(total.device) if isinstance(num_items, torch.Tensor) else num_items)


AutoConfig.register("llava_llama", LlavaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM, exist_ok=True)
