"""The model gives what LLaVA-NeXT with the authors' ImageChain files gives, on the same weights and inputs."""

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

IMAGE = 28
FLAT = {"mm_patch_merge_type": "flat", "image_aspect_ratio": "square"}
ANYRES = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres", "mm_newline_position": "one_token"}


def pixels(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ONE = [pixels(1, 3, IMAGE, IMAGE)]
TWO = [*ONE, pixels(2, 3, IMAGE, IMAGE)]
TILES = [pixels(3, 5, 3, IMAGE, IMAGE)]
VIDEO = [pixels(4, 6, 3, IMAGE, IMAGE)]
SCENES = [[pixels(20 + 10 * s + f, 1, 3, IMAGE, IMAGE) for f in range(n)] for s, n in enumerate((3, 2, 4))]
NESTED = [["video-seq"] * len(scene) for scene in SCENES]

# scenario -> (config, prompts, images, modalities, image sizes)
FORWARD = {
    "text": (FLAT, ["walks"], None, None, None),
    "image_4d_batch1": (FLAT, ["vicuna"], torch.stack(ONE), ["image"], None),
    "image_list_batch1": (FLAT, ["vicuna"], ONE, ["image"], None),
    "image_list_batch2": (FLAT, ["vicuna", "short"], TWO, ["image", "image"], None),
    "image_left_padding": (
        {**FLAT, "tokenizer_padding_side": "left"},
        ["vicuna", "short"],
        TWO,
        ["image", "image"],
        None,
    ),
    "three_images_one_row": (FLAT, ["three"], TWO + ONE, ["image"] * 3, None),
    "three_images_one_modality": (FLAT, ["three"], TWO + ONE, ["image"], None),
    "mixed_text_and_image": (FLAT, ["short", "dog"], TWO, ["image", "text"], None),
    "anyres_unpad_wide": (ANYRES, ["vicuna"], TILES, ["image"], [(60, 40)]),
    "anyres_unpad_tall": (ANYRES, ["vicuna"], TILES, ["image"], [(31, 60)]),
    "anyres_max": ({**ANYRES, "image_aspect_ratio": "anyres_max_2"}, ["vicuna"], TILES, ["image"], [(56, 56)]),
    "anyres_spatial": ({**ANYRES, "mm_patch_merge_type": "spatial"}, ["vicuna"], TILES, ["image"], [(56, 56)]),
    "unpad_single": (ANYRES, ["vicuna"], ONE, ["image"], [(28, 28)]),
    "video_one_token": (ANYRES, ["vicuna"], VIDEO, ["video"], [(28, 28)]),
    "video_no_token": ({**ANYRES, "mm_newline_position": "no_token"}, ["vicuna"], VIDEO, ["video"], None),
    "video_frame": ({**ANYRES, "mm_newline_position": "frame"}, ["vicuna"], VIDEO, ["video"], None),
    "video_grid": ({**ANYRES, "mm_newline_position": "grid"}, ["vicuna"], VIDEO, ["video"], None),
    "video_flat": (FLAT, ["vicuna"], VIDEO, ["video"], None),
    "truncation": ({**FLAT, "tokenizer_model_max_length": 20}, ["vicuna"], ONE, ["image"], None),
    "seq_flat": (FLAT, ["seq"], [SCENES], NESTED, None),
    "seq_flat_nested_modalities": (FLAT, ["seq"], [SCENES], [NESTED], None),
    "seq_unpad": (ANYRES, ["seq"], [SCENES], NESTED, None),
    "seq_frames_3d": (FLAT, ["seq"], [[[frame[0] for frame in scene] for scene in SCENES]], NESTED, None),
    "seq_stacked_scenes": (FLAT, ["seq"], [[torch.cat(scene) for scene in SCENES]], "video-seq", None),
    "seq_batch2": (FLAT, ["seq", "seq"], [SCENES, SCENES[::-1]], [NESTED, NESTED[::-1]], None),
    "seq_batch2_flat_modalities": (FLAT, ["seq", "seq"], [SCENES, SCENES[::-1]], NESTED + NESTED[::-1], None),
    "seq_one_scene": (FLAT, ["one_scene"], [SCENES[:1]], NESTED[:1], None),
    "seq_by_hand_mean_before_projector": (
        {**FLAT, "imagechain_pooling": "before_projector"},
        ["seq"],
        [SCENES],
        "video-seq",
        None,
    ),
    "seq_by_hand_mean_of_last_scene": ({**FLAT, "imagechain_last_scene": "mean"}, ["seq"], [SCENES], "video-seq", None),
}
GENERATE = {
    "generate_text": (FLAT, ["walks_on"], None, None, None),
    "generate_image": (FLAT, ["vicuna"], ONE, ["image"], None),
    "generate_anyres": (ANYRES, ["vicuna"], TILES, ["image"], [(60, 40)]),
    "generate_video": (ANYRES, ["vicuna"], VIDEO, ["video"], [(28, 28)]),
    "generate_batch2": (FLAT, ["vicuna", "short"], TWO, None, None),
    "generate_beam2": (FLAT, ["vicuna"], ONE, ["image"], None),
    "generate_seq": (FLAT, ["seq"], [SCENES], NESTED, None),
}


@pytest.fixture(scope="module")
def loaded(tiny_llava):
    return LlavaLlamaForCausalLM.from_pretrained(tiny_llava.full, attn_implementation="eager").eval()


@pytest.fixture()
def model(loaded):
    """The model with its config put back after each test."""
    before = dict(vars(loaded.config))
    loaded.config.imagechain_last_scene = "last_frame"
    yield loaded
    vars(loaded.config).clear()
    vars(loaded.config).update(before)


def batch(prompts, numbers):
    rows = [torch.tensor(numbers["prompts"][name]) for name in prompts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def inputs(scenario, model, numbers):
    config, prompts, images, modalities, sizes = scenario
    for name, value in config.items():
        setattr(model.config, name, value)
    ids, mask = batch(prompts, numbers)
    chosen = {} if modalities is None else {"modalities": modalities}
    return ids, {"attention_mask": mask, "images": images, "image_sizes": sizes, **chosen}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_gives_what_the_authors_code_gives(name, model, upstream_numbers):
    ids, rest = inputs(FORWARD[name], model, upstream_numbers)
    wanted = upstream_numbers["forward"][name]
    labels = ids.masked_fill((ids < 0) | (rest["attention_mask"] == 0), IGNORE_INDEX) if "loss" in wanted else None
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels, use_cache=False, **rest)
    assert output.logits.shape[1] == wanted["positions"]
    rows = [float(row.double().sum()) for row in output.logits]
    assert rows == pytest.approx(wanted["rows"], rel=1e-4)
    if labels is not None:
        assert float(output.loss) == pytest.approx(wanted["loss"], rel=1e-5)


@pytest.mark.parametrize("name", GENERATE)
def test_generate_gives_what_the_authors_code_gives(name, model, upstream_numbers):
    ids, rest = inputs(GENERATE[name], model, upstream_numbers)
    beams = 2 if name == "generate_beam2" else 1
    new = model.generate(
        ids, do_sample=False, num_beams=beams, max_new_tokens=6 if beams == 2 else 10, pad_token_id=0, **rest
    )
    assert new.tolist() == upstream_numbers["generate"][name]


def test_the_checkpoints_own_vision_weights_are_used(model, upstream_numbers):
    features = model.encode_images(torch.stack(TWO)).detach()
    assert float(features.double().sum()) == pytest.approx(upstream_numbers["tower_features_sum"], rel=1e-4)
