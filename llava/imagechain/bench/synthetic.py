"""Made-up stories and random weights, so that training can be measured at any size without a download."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.imagechain.checkpoint import LoadedModel
from llava.imagechain.compat import attention_implementation
from llava.imagechain.decisions import asked_of, settle_decisions
from llava.model.builder import load_tokenizer
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

# Stories by number of scenes: the paper's C2, C3 and C4-7 training sets; within C4-7 a guess with the paper's mean.
SCENES = {2: 2078, 3: 1185, 4: 500, 5: 169, 6: 69, 7: 31}
TEXT_TOKENS = (30, 60)  # of a scene; the mean is 45


class SyntheticStories(Dataset[dict[str, Any]]):
    """Made-up examples with the lengths of the paper's training set; all text carries loss (equation 2).

    Stories longer than `max_length` positions have as many scenes as surely fit.
    """

    def __init__(self, count: int, config: Any, tower: Any, max_length: int, seed: int) -> None:
        draw, most = random.Random(seed), max_length // (tower.num_patches + TEXT_TOKENS[1])
        scenes = [min(n, most) for n in draw.choices(list(SCENES), weights=list(SCENES.values()), k=count)]
        self.text = [[draw.randint(*TEXT_TOKENS) for _ in range(number)] for number in scenes]
        self.frames = [[4 + (draw.random() < 0.84) for _ in range(number)] for number in scenes]  # 13.4 a story
        self.lengths = [sum(text) + tower.num_patches * len(text) for text in self.text]
        self.vocabulary, self.seed = config.vocab_size, seed
        self.pool = torch.randn(64, 3, tower.image_size, tower.image_size)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a story as `StoryExamples` does."""
        generator = torch.Generator().manual_seed(self.seed + index)
        parts = []
        for size in self.text[index]:
            parts += [
                torch.randint(3, self.vocabulary, (size,), generator=generator),
                torch.tensor([IMAGE_TOKEN_INDEX]),
            ]
        ids = torch.cat(parts).roll(1)  # a mark before each text
        images = [self.pool[torch.randint(64, (number,), generator=generator)] for number in self.frames[index]]
        labels = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX)
        return {"input_ids": ids, "labels": labels, "images": images, "modality": "video-seq"}


def random_model(folder: Path, groups: Any, *, with_files: bool) -> Any:
    """Make the model of a config.json at random values; `with_files`: tokenizer and image processor are there, too."""
    model_arguments, _, settings = groups
    half = settings.bf16 and settings.device.type != "cpu"  # as training loads weights
    config = LlavaConfig.from_pretrained(
        str(folder), attn_implementation=attention_implementation(model_arguments.attn_implementation)
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if half else torch.float32)
    try:
        with settings.device:
            model = LlavaLlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    settle_decisions(model.config, asked_of(model_arguments), trained=False)
    tower = model.get_vision_tower()
    tower.is_loaded, tower.frames_per_call = True, model_arguments.frames_per_call
    return LoadedModel(
        tokenizer=load_tokenizer(str(folder)) if with_files else None,
        model=model,
        image_processor=tower.image_processor if with_files else None,
        context_length=settings.model_max_length,
    )
