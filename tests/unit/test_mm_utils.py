"""Prompts and images to tensors, with the numbers that LLaVA-NeXT's own functions give."""

import base64
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from llava import mm_utils
from llava.imagechain.compat import load_image_processor

GRID = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def picture(seed, width, height):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([(x * (3 + seed) + y * (5 + c)) % 256 for c in range(3)], -1).astype("uint8"))


@pytest.fixture(scope="module")
def processor(tiny_llava):
    return load_image_processor(str(tiny_llava.tower))


@pytest.fixture(scope="module")
def tokenizer(tiny_llava):
    return AutoTokenizer.from_pretrained(tiny_llava.full, use_fast=False)


@pytest.mark.parametrize(
    ("aspect", "shape", "sums"),
    [
        ("square", (3, 28, 28), [512.3484, 853.1452]),
        ("pad", (3, 28, 28), [317.4186, 208.2116]),
        ("anyres", (5, 3, 28, 28), [-2462.2724, -5207.4282]),
    ],
)
def test_images_are_processed_as_upstream_does(processor, aspect, shape, sums):
    config = SimpleNamespace(image_aspect_ratio=aspect, image_grid_pinpoints=GRID)
    found = mm_utils.process_images([picture(1, 61, 44), picture(2, 30, 52)], processor, config)
    assert tuple(found[0].shape) == shape
    assert [float(image.double().sum()) for image in found] == pytest.approx(sums, abs=1e-3)


def test_images_of_unequal_tiling_come_as_a_list(processor):
    config = SimpleNamespace(image_aspect_ratio="anyres_max_9", image_grid_pinpoints=GRID)
    found = mm_utils.process_images([picture(1, 61, 44), picture(2, 80, 20)], processor, config)
    assert [image.shape[0] for image in found] == [5, 4]


def test_a_config_without_aspect_ratio_means_square(processor):
    assert mm_utils.process_images([picture(1, 61, 44)], processor, SimpleNamespace()).shape == (1, 3, 28, 28)


@pytest.mark.parametrize(
    ("size", "best"), [((60, 40), (56, 56)), ((100, 20), (84, 28)), ((20, 100), (28, 84)), ((30, 15), (56, 28))]
)
def test_the_best_resolution_keeps_most_pixels(size, best):
    assert mm_utils.select_best_resolution(size, GRID) == best


def test_grids_are_read_from_lists_text_and_ranges():
    assert mm_utils.get_anyres_image_grid_shape((100, 20), GRID, 28) == (3, 1)
    assert mm_utils.get_anyres_image_grid_shape((100, 20), str(GRID), 28) == (3, 1)
    assert mm_utils.get_anyres_image_grid_shape((2000, 700), "(1x1),(6x6)", 336) == (6, 3)
    with pytest.raises(ValueError, match="found 28 pixels"):
        mm_utils.get_anyres_image_grid_shape((100, 20), "(1x1),(6x6)", 28)


def test_highres_and_split_images_have_their_tiles(processor):
    assert mm_utils.process_highres_image(picture(1, 61, 44), processor, "56,84").shape == (10, 3, 28, 28)
    settings = SimpleNamespace(image_crop_resolution=56, image_split_resolution=28, image_processor=processor)
    assert mm_utils.process_highres_image_crop_split(picture(1, 61, 44), settings).shape == (4, 3, 28, 28)


def test_padding_and_base64():
    wide = picture(1, 40, 20)
    square = mm_utils.expand2square(wide, (1, 2, 3))
    assert square.size == (40, 40) and square.getpixel((0, 0)) == (1, 2, 3)
    assert mm_utils.expand2square(square, (9, 9, 9)) is square
    assert mm_utils.auto_pad_images(wide, [28, 56]).size == (56, 28)
    buffer = BytesIO()
    wide.save(buffer, "PNG")
    assert mm_utils.load_image_from_base64(base64.b64encode(buffer.getvalue()).decode()).size == (40, 20)


def test_one_mark_an_image_and_one_start_token(tokenizer):
    text = "<image>\nwhat?<image></Image> and"
    ids = mm_utils.tokenizer_image_token(text, tokenizer)
    assert ids[:2] == [tokenizer.bos_token_id, -200] and ids.count(-200) == 2 and ids.count(tokenizer.bos_token_id) == 1
    tensor = mm_utils.tokenizer_image_token(text, tokenizer, image_token_index=-7, return_tensors="pt")
    assert tensor.tolist() == [-7 if token == -200 else token for token in ids]
    with pytest.raises(ValueError, match="'np'"):
        mm_utils.tokenizer_image_token(text, tokenizer, return_tensors="np")


def test_text_after_a_mark_is_tokenized_as_sentencepiece_does(tokenizer, tiny_llava):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tiny_llava.full / "tokenizer.model"))
    ids = mm_utils.tokenizer_image_token("a<image> then<image>\nwhat", tokenizer)
    first, second = (i for i, token in enumerate(ids) if token == -200)
    assert ids[first + 1 : second] == pieces.encode(" then")
    assert ids[second + 1 :] == pieces.encode("\nwhat")


def test_model_names_come_from_the_last_folder():
    assert mm_utils.get_model_name_from_path("/a/b/llava-v1.6/") == "llava-v1.6"
    assert mm_utils.get_model_name_from_path("runs/mine/checkpoint-40") == "mine_checkpoint-40"


@pytest.mark.parametrize("keyword", ["</s>", "the ball"])
def test_keywords_stop_each_row_of_its_own(tokenizer, keyword):
    prompt = torch.tensor([[1, 5, 6]] * 2)
    stop = mm_utils.KeywordsStoppingCriteria([keyword], tokenizer, prompt)
    ends = tokenizer("the dog kicks " + keyword, add_special_tokens=False).input_ids
    goes_on = tokenizer("the woman opens the door and", add_special_tokens=False).input_ids[: len(ends)]
    goes_on += [5] * (len(ends) - len(goes_on))
    verdicts = [stop(torch.tensor([ends[: n + 1], goes_on[: n + 1]]), None).tolist() for n in range(len(ends))]
    assert verdicts[0] == [False, False] and verdicts[-1] == [True, False]


def test_keywords_in_the_prompt_do_not_stop(tokenizer):
    prompt = torch.tensor([tokenizer("the ball").input_ids])
    stop = mm_utils.KeywordsStoppingCriteria(["the ball"], tokenizer, prompt)
    assert not stop(torch.cat([prompt, torch.tensor([[5]])], dim=1), None).any()
