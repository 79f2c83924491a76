"""Sizes of what was published, so that a plan can be made before anything is downloaded.

Models by the last part of their name: what differs from the published config of LLaVA-v1.6-Vicuna-7B. StoryFrames:
StoryBench's stories by number of scenes, split so that the validation sets are those that the percentages of the
paper's Table 1 imply; frames by the paper's budget and characters are means over StoryBench's stories of 2 to 7 scenes.
Mementos: the validation samples and the usual frames of a sequence. Texts count four characters to a token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.mementos.sequences import Showing, group_evenly
from llava.imagechain.story import CONTEXTS, HUB_DATASET, StoryFrames, storyframes_features

TEMPLATE = Path(__file__).resolve().parents[2] / "configs" / "bench" / "llava-v1.6-vicuna-7b"
MODELS: dict[str, dict[str, Any]] = {
    "llava-v1.6-vicuna-7b": {},
    "llava-v1.5-7b": {"mm_patch_merge_type": "flat"},
    "llava-v1.5-13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "mm_patch_merge_type": "flat",
    },
    "llava-v1.6-34b": {
        "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56,
        "num_key_value_heads": 8, "vocab_size": 64000,
    },
}  # fmt: skip
# Scenes: stories to train on, stories to validate on, frames of a story.
STORIES = {2: (2078, 519, 12), 3: (1185, 296, 14), 4: (478, 120, 17), 5: (171, 52, 21), 6: (75, 13, 21), 7: (45, 7, 23)}
CHARACTERS_OF_A_SCENE = 85
STORIES_IN_WORDS = (
    f"StoryFrames' counts, {sum(each[0] for each in STORIES.values()):,} stories to train on and "
    f"{sum(each[1] for each in STORIES.values()):,} to validate on, with StoryBench's mean lengths"
)
MEMENTOS_SAMPLES = 450 + 199 + 50  # daily life, robotics, comics
MEMENTOS_FRAMES = 9
MEMENTOS_IN_WORDS = f"the benchmark's {MEMENTOS_SAMPLES} validation sequences, {MEMENTOS_FRAMES} frames each"
CHARACTERS_OF_A_TOKEN = 4


def known_model(folder: str | Path) -> str | None:
    """Return the name of a published model that is not in its folder, or None."""
    name = Path(folder).name.lower()
    return name if name in MODELS and not (Path(folder) / "config.json").is_file() else None


def model_config(name: str) -> Any:
    """Return the config of a published model."""
    from llava.model.language_model.llava_llama import LlavaConfig

    config = LlavaConfig.from_pretrained(str(TEMPLATE))
    config.update(MODELS[name])
    return config


def is_downloaded(stories: str) -> bool:
    """Tell whether stories can be read without a download."""
    if stories != HUB_DATASET:
        return Path(stories).is_dir()
    import datasets

    cached = Path(datasets.config.HF_DATASETS_CACHE) / "ingoziegler___story_frames"
    return next(cached.glob("**/dataset_info.json"), None) is not None


def published_stories(split: str, context: str) -> StoryFrames:
    """Return as many stories as StoryFrames has, with texts and frame times of the usual lengths and no frames."""
    import datasets

    low, high = CONTEXTS[context]
    rows = []
    for scenes, (train, validation, frames) in STORIES.items():
        shown = [frames // scenes + (number < frames % scenes) for number in range(scenes)]
        text = "".join(f"word {number} " for number in range(100))[: CHARACTERS_OF_A_SCENE - 1] + "."
        row = dict.fromkeys(storyframes_features()) | {
            "sentence_parts": [text] * scenes, "num_scenes": scenes,
            "subsampled_frames_per_scene": [[0.0] * count for count in shown],
        }  # fmt: skip
        names = [f"{scenes}-{number}" for number in range(train if split == "train" else validation)]
        rows += [row | {"story_id": name, "video_name": name} for name in names if low <= scenes <= high]
    return StoryFrames(datasets.Dataset.from_list(rows, features=storyframes_features()))


def plain_tokenizer() -> Any:
    """Return a tokenizer that makes a token of every few characters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f".{{1,{CHARACTERS_OF_A_TOKEN}}}"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )  # fmt: skip


def mementos_frames(showing: Showing) -> list[list[int]]:
    """Return the frames of each scene of each sample of the Mementos benchmark."""
    pictures = [Path()] * (1 if showing.frames == "composite" else MEMENTOS_FRAMES)
    scenes = group_evenly(pictures, showing.max_scenes if showing.frames == "groups" else 1)
    return [[len(scene) for scene in scenes]] * MEMENTOS_SAMPLES
