"""The other side of scripts/bench/predict.sh: prediction the way the authors' inference script does it.

One story at a time, in file order: each frame is preprocessed on its own, the vision tower runs once per scene through
all of its layers with all hidden states kept, and generation has batch size 1, the key-value cache and a keyword
criterion. Weights, prompts, dtype, threads and greedy decoding are the caller's, the same as on our side.
"""

from __future__ import annotations

from typing import Any

import torch

from eval.predict.generation import clean_prediction
from llava.constants import IMAGE_TOKEN_INDEX
from llava.imagechain.prompts import render
from llava.imagechain.story import Story
from llava.imagechain.variants import Variant, build_dialogue
from llava.mm_utils import KeywordsStoppingCriteria, tokenizer_image_token


def predict_one_by_one(
    model: Any, tokenizer: Any, image_processor: Any, stories: Any, variant: Variant, *, prompt_format: str, tokens: int
) -> dict[str, str]:
    """Return the text of each story by its id."""
    whole_batch = model._encode_blocks
    model._encode_blocks = lambda blocks, *_: [_run_tower(model, frames) for _, frames in blocks]
    try:
        return {
            story.story_id: _predict(model, tokenizer, image_processor, story, variant, prompt_format, tokens)
            for story in stories
        }
    finally:
        model._encode_blocks = whole_batch


def _run_tower(model: Any, frames: torch.Tensor) -> torch.Tensor:
    """Encode one scene with the library's own model."""
    tower = model.get_vision_tower()
    outputs = tower.vision_tower(frames.to(tower.device, tower.dtype), output_hidden_states=True)
    return outputs.hidden_states[tower.select_layer][:, 1:].to(frames.dtype)


@torch.inference_mode()
def _predict(
    model: Any, tokenizer: Any, image_processor: Any, story: Story, variant: Variant, prompt_format: str, tokens: int
) -> str:
    dialogue = build_dialogue(story, variant)
    spans = render(dialogue, prompt_format, tokenizer, for_generation=True)
    prompt = "".join(span.text for span in spans)
    ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None].to(model.device)
    scenes = []
    for scene in dialogue.scenes:
        frames = [image_processor.preprocess(image, return_tensors="pt")["pixel_values"] for image in scene.images()]
        scenes.append([torch.as_tensor(frame).to(model.device) for frame in frames])
    new = model.generate(
        ids,
        images=[scenes],
        modalities=[["video-seq"] * len(scene) for scene in scenes],
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        temperature=None,
        top_p=None,
        num_beams=1,
        max_new_tokens=tokens,
        stopping_criteria=[KeywordsStoppingCriteria([tokenizer.eos_token], tokenizer, ids)],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        use_cache=True,
        logits_to_keep=0,  # of every position, as the authors' model computes them
    )
    return clean_prediction(tokenizer.decode(new[0], skip_special_tokens=True))
