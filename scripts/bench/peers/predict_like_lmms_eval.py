"""A side of scripts/bench/predict.sh: prediction the way lmms-eval's LLaVA wrapper treats a request, at batch size 1.

Requests are sorted by the length of their text, longest first. Of each request all frames are preprocessed in one call
and go through the vision tower in one call, with all hidden states kept; then the library generates, with its key-value
cache, for this request alone. What the wrapper has no word for, the mean over the frames of a scene, is the model's own
as on all sides. Weights, prompts, dtype, threads, sdpa attention and greedy decoding are the caller's.
"""

from __future__ import annotations

from typing import Any

import torch

from eval.predict.generation import clean_prediction
from llava.constants import IMAGE_TOKEN_INDEX
from llava.imagechain.prompts import render
from llava.imagechain.variants import Variant, build_dialogue
from llava.mm_utils import tokenizer_image_token


def predict_like_lmms_eval(
    model: Any, tokenizer: Any, image_processor: Any, stories: Any, variant: Variant, *, prompt_format: str, tokens: int
) -> dict[str, str]:
    """Return the text of each story by its id."""
    requests = []
    for row, story_id in enumerate(stories.ids):
        dialogue = build_dialogue(stories[row], variant)
        text = "".join(span.text for span in render(dialogue, prompt_format, tokenizer, for_generation=True))
        requests.append((len(tokenizer.encode(text, add_special_tokens=False)), text, row, story_id))
    whole_batch = model._encode_blocks
    model._encode_blocks = lambda blocks, *_: _run_tower(model, [frames for _, frames in blocks])
    try:
        return {
            story_id: _predict(model, tokenizer, image_processor, text, build_dialogue(stories[row], variant), tokens)
            for _, text, row, story_id in sorted(requests, key=lambda request: (-request[0], request[1]))
        }
    finally:
        model._encode_blocks = whole_batch


def _run_tower(model: Any, scenes: list[torch.Tensor]) -> list[torch.Tensor]:
    """Encode all frames of a request with the library's own model."""
    tower = model.get_vision_tower()
    frames = torch.cat(scenes).to(tower.device, tower.dtype)
    outputs = tower.vision_tower(frames, output_hidden_states=True)
    features = outputs.hidden_states[tower.select_layer][:, 1:].to(scenes[0].dtype)
    return list(features.split([len(scene) for scene in scenes]))


@torch.inference_mode()
def _predict(model: Any, tokenizer: Any, image_processor: Any, text: str, dialogue: Any, tokens: int) -> str:
    ids = tokenizer_image_token(text, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None].to(model.device)
    scenes = [scene.images() for scene in dialogue.scenes]
    frames = [image for scene in scenes for image in scene]
    pixels = torch.as_tensor(image_processor.preprocess(frames, return_tensors="pt")["pixel_values"]).to(model.device)
    images = list(pixels.split([len(scene) for scene in scenes]))
    new = model.generate(
        ids,
        images=[images],
        modalities=["video-seq"],
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        temperature=None,
        top_p=None,
        num_beams=1,
        max_new_tokens=tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        use_cache=True,
    )
    return clean_prediction(tokenizer.decode(new[0], skip_special_tokens=True))
