"""Batches of all kinds: mixed, uneven, wrong; what a row gets in a batch is what it gets alone."""

import pytest
import torch

from llava.constants import IGNORE_INDEX
from llava.imagechain.decisions import settle_decisions
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

IMAGE = 28
MARK = -200
FLAT = {"mm_patch_merge_type": "flat", "image_aspect_ratio": "square"}


def pixels(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SCENES = [pixels(20 + number, frames, 3, IMAGE, IMAGE) for number, frames in enumerate((3, 2, 4))]
PICTURE = pixels(1, 3, IMAGE, IMAGE)
SEQUENCE_ROW = [1, 40, MARK, 41, 2, 1, 42, MARK, 43, 2, 1, 44, MARK, 45, 46]
IMAGE_ROW = [1, 50, MARK, 51, 52]
TEXT_ROW = [1, 60, 61]


@pytest.fixture(scope="module")
def loaded(tiny_llava):
    return LlavaLlamaForCausalLM.from_pretrained(tiny_llava.full).eval()


@pytest.fixture()
def model(loaded):
    before = dict(vars(loaded.config))
    for name, value in FLAT.items():
        setattr(loaded.config, name, value)
    yield loaded.eval()
    vars(loaded.config).clear()
    vars(loaded.config).update(before)
    loaded.get_vision_tower().frames_per_call = None


def padded(*rows):
    tensors = [torch.tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return ids, mask


def logits(model, rows, images, modalities):
    ids, mask = padded(*rows)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, images=images, modalities=modalities).logits


def test_rows_of_a_mixed_batch_equal_the_rows_alone(model):
    video = pixels(5, 4, 3, IMAGE, IMAGE)
    together = logits(
        model,
        [SEQUENCE_ROW, IMAGE_ROW, TEXT_ROW, IMAGE_ROW],
        [SCENES, PICTURE, torch.zeros(3, IMAGE, IMAGE), video],
        ["video-seq", "image", "text", "video"],
    )
    alone = [
        logits(model, [SEQUENCE_ROW], [SCENES], ["video-seq"]),
        logits(model, [IMAGE_ROW], [PICTURE], ["image"]),
        logits(model, [TEXT_ROW], None, ["image"]),
        logits(model, [IMAGE_ROW], [video], ["video"]),
    ]
    for row, single in zip(together, alone, strict=True):
        torch.testing.assert_close(row[: single.shape[1]], single[0], rtol=1e-4, atol=1e-4)


def test_a_text_row_needs_no_dummy_image_beside_a_sequence(model):
    together = logits(model, [TEXT_ROW, SEQUENCE_ROW], [SCENES], ["video-seq"])
    torch.testing.assert_close(together[0, :3], logits(model, [TEXT_ROW], None, ["image"])[0], rtol=1e-4, atol=1e-4)


def test_default_modality_serves_every_row(model):
    assert logits(model, [IMAGE_ROW, IMAGE_ROW], [PICTURE, PICTURE + 1], ["image"]).shape[0] == 2


def test_cached_features_give_what_the_frames_give(model):
    features = [model.get_vision_tower()(scene) for scene in SCENES]
    from_frames = logits(model, [SEQUENCE_ROW], [SCENES], ["video-seq"])
    model.get_vision_tower().forward = None  # the tower must not run
    try:
        from_features = logits(model, [SEQUENCE_ROW], [features], ["video-seq-features"])
    finally:
        del model.get_vision_tower().forward
    torch.testing.assert_close(from_features, from_frames, rtol=1e-5, atol=1e-5)


def test_all_frames_of_a_batch_go_through_the_tower_in_one_call(model, monkeypatch):
    tower, calls = model.get_vision_tower(), []
    encode = tower._encode
    monkeypatch.setattr(tower, "_encode", lambda frames: calls.append(len(frames)) or encode(frames))
    logits(model, [SEQUENCE_ROW, IMAGE_ROW], [SCENES, PICTURE], ["video-seq", "image"])
    assert calls == [10]


def test_a_frame_limit_cuts_the_calls_and_changes_nothing(model, monkeypatch):
    whole = logits(model, [SEQUENCE_ROW], [SCENES], "video-seq")
    tower, calls = model.get_vision_tower(), []
    encode = tower._encode
    monkeypatch.setattr(tower, "_encode", lambda frames: calls.append(len(frames)) or encode(frames))
    tower.frames_per_call = 4
    torch.testing.assert_close(logits(model, [SEQUENCE_ROW], [SCENES], "video-seq"), whole, rtol=1e-4, atol=1e-4)
    assert calls == [4, 4, 1]


def test_last_scene_uses_its_last_frame_only_when_the_config_says_so(model):
    last_only = [*SCENES[:-1], SCENES[-1][-1:]]
    mean = logits(model, [SEQUENCE_ROW], [SCENES], "video-seq")
    model.config.imagechain_last_scene = "last_frame"
    last = logits(model, [SEQUENCE_ROW], [SCENES], "video-seq")
    torch.testing.assert_close(last, logits(model, [SEQUENCE_ROW], [last_only], "video-seq"))
    assert not torch.allclose(last, mean, atol=1e-2)


def test_scene_means_are_taken_in_float32(model):
    from llava.imagechain.pooling import mean_over_frames

    frames = (1 + pixels(3, 25, 4, 8)).to(torch.bfloat16)
    pooled = mean_over_frames(frames)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, frames.double().mean(0).to(torch.bfloat16))


def test_a_config_made_for_sequences_puts_no_line_end_behind_scenes(model):
    model.config.mm_patch_merge_type = "spatial_unpad"
    with_ends = logits(model, [SEQUENCE_ROW], [SCENES], "video-seq").shape[1]
    model.config.imagechain_scene_aspect = "crop"
    assert logits(model, [SEQUENCE_ROW], [SCENES], "video-seq").shape[1] == with_ends - 3


@pytest.mark.parametrize(
    ("rows", "images", "modalities", "message"),
    [
        ([IMAGE_ROW, SEQUENCE_ROW], [PICTURE, SCENES[:2]], ["image", "video-seq"], "Row 1: .*3 image marks.*2 scenes"),
        ([SEQUENCE_ROW, IMAGE_ROW], [[*SCENES, SCENES[0]], PICTURE], ["video-seq", "image"], "Row 0: .*4 scenes"),
        ([IMAGE_ROW, IMAGE_ROW], [PICTURE], ["image"], "Row 1: .*only 0 images"),
        ([IMAGE_ROW, IMAGE_ROW], [PICTURE] * 3, ["image"], "Row 1 is the last and 1 images are left over"),
        ([IMAGE_ROW], [torch.zeros(3, IMAGE, IMAGE)], ["text"], "Row 0: .*no image"),
        ([IMAGE_ROW], None, ["image"], "Row 0: .*1 image marks"),
        ([SEQUENCE_ROW], [[SCENES[0], SCENES[1], SCENES[2][:0]]], "video-seq", "Sample 0, scene 3: at least one"),
        ([SEQUENCE_ROW], [[SCENES[0], SCENES[1], []]], "video-seq", "Sample 0, scene 3: at least one frame"),
        ([SEQUENCE_ROW], [[SCENES[0], SCENES[1], [PICTURE, SCENES[0][:2]]]], "video-seq", "scene 3.*Tiled"),
        ([SEQUENCE_ROW], [SCENES], ["image"], "Sample 0: a list of scenes goes with modality 'video-seq'"),
        ([IMAGE_ROW], [PICTURE], ["picture"], "found 'picture'"),
        ([IMAGE_ROW, IMAGE_ROW], [PICTURE, PICTURE], ["image"] * 3, "2 .*were wanted, found 3"),
        ([IMAGE_ROW, IMAGE_ROW], [PICTURE, PICTURE[:, :14, :14]], ["image"], "one size"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_place(model, rows, images, modalities, message):
    with pytest.raises(ValueError, match=message):
        logits(model, rows, images, modalities)


def test_image_sizes_in_the_place_of_modalities_are_tolerated(model):
    wanted = logits(model, [IMAGE_ROW], [PICTURE], ["image"])
    assert torch.equal(logits(model, [IMAGE_ROW], [PICTURE], [(40, 30)]), wanted)
    assert torch.equal(logits(model, [IMAGE_ROW], [PICTURE], None), wanted)
    assert torch.equal(logits(model, [IMAGE_ROW], [PICTURE], torch.tensor([[40, 30]])), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batched_generation_gives_each_row_what_it_gets_alone(model, side):
    rows, images = [SEQUENCE_ROW, IMAGE_ROW, TEXT_ROW], [SCENES, PICTURE, PICTURE]
    kinds = ["video-seq", "image", "text"]
    ids, mask = padded(*rows)
    if side == "left":
        ids, mask = (
            torch.stack([row.roll(int((m == 0).sum())) for row, m in zip(x, mask, strict=True)]) for x in (ids, mask)
        )
    settings = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(ids, attention_mask=mask, images=images, modalities=kinds, **settings)
    for number, row in enumerate(rows):
        alone = model.generate(
            torch.tensor([row]), images=images[number : number + 1], modalities=kinds[number : number + 1], **settings
        )
        assert together[number].tolist() == alone[0].tolist()


def test_a_batch_of_text_is_generated_as_its_rows_alone(model):
    ids, mask = padded([1, 60, 61, 62, 63, 64], TEXT_ROW)
    settings = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(ids, attention_mask=mask, **settings)
    assert together[1].tolist() == model.generate(torch.tensor([TEXT_ROW]), **settings)[0].tolist()


def test_loss_without_logits_is_the_loss_with_logits(model):
    ids, mask = padded(SEQUENCE_ROW, IMAGE_ROW)
    labels = ids.masked_fill((ids < 0) | (mask == 0), IGNORE_INDEX)
    call = {"input_ids": ids, "attention_mask": mask, "labels": labels, "images": [SCENES, PICTURE]}
    call["modalities"] = ["video-seq", "image"]
    full, short = model(**call), model(**call, return_logits=False)
    assert short.logits is None
    torch.testing.assert_close(short.loss, full.loss)
    count = int((labels[:, 1:] != IGNORE_INDEX).sum())
    for wide in (
        model(**call, num_items_in_batch=40),
        model(**call, num_items_in_batch=torch.tensor(40), return_logits=False),
    ):
        torch.testing.assert_close(wide.loss, full.loss * count / 40)


def test_a_batch_without_labels_on_any_token_has_loss_zero(model):
    ids, mask = padded(IMAGE_ROW)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for logits_wanted in (True, False):
        output = model(input_ids=ids, attention_mask=mask, labels=labels, images=[PICTURE], return_logits=logits_wanted)
        assert output.loss.item() == 0


def test_dpo_forward_returns_logits_and_labels_of_the_longer_row(model):
    ids, mask = padded(IMAGE_ROW)
    found, labels = model(input_ids=ids, attention_mask=mask, labels=ids, images=[PICTURE], dpo_forward=True)
    assert found.shape[1] == labels.shape[1] == len(IMAGE_ROW) - 1 + 16
    assert (labels[0, 2:18] == IGNORE_INDEX).all()


def test_logits_of_some_positions_are_those_of_all(model):
    ids = torch.tensor([SEQUENCE_ROW])
    call = {"input_ids": ids, "images": [SCENES], "modalities": "video-seq"}
    with torch.no_grad():
        every = model(**call).logits
        for wanted, keep in ((every[:, -2:], 2), (every[:, [0, 5]], torch.tensor([0, 5]))):
            torch.testing.assert_close(model(**call, logits_to_keep=keep).logits, wanted)


def test_return_dict_false_gives_a_tuple(model):
    assert isinstance(model(input_ids=torch.tensor([TEXT_ROW]), return_dict=False), tuple)


def test_text_alone_leaves_a_zero_gradient_on_the_projector_in_training(model):
    model.train()
    ids = torch.tensor([TEXT_ROW])
    loss = model(input_ids=ids, labels=ids, images=[PICTURE], modalities=["text"]).loss
    loss.backward()
    gradient = model.model.mm_projector[0].weight.grad
    model.zero_grad()
    assert gradient is not None and float(gradient.abs().sum()) == 0


def test_the_frozen_tower_gets_no_gradient_and_stays_in_evaluation_mode(model):
    model.train()
    assert not model.get_vision_tower().vision_tower.training
    ids = torch.tensor([SEQUENCE_ROW])
    model(input_ids=ids, labels=ids.clamp(min=0), images=[SCENES], modalities="video-seq").loss.backward()
    assert all(parameter.grad is None for parameter in model.get_vision_tower().parameters())
    assert float(model.model.mm_projector[0].weight.grad.abs().sum()) > 0
    model.zero_grad()


def test_a_run_cannot_contradict_what_a_checkpoint_was_trained_with(model):
    model.config.imagechain_last_scene = "last_frame"
    with pytest.raises(ValueError, match=r"imagechain_last_scene.*'last_frame'.*'mean'"):
        settle_decisions(model.config, {"imagechain_last_scene": "mean"}, trained=True)
    assert settle_decisions(model.config, {"imagechain_prompt": "template"}, trained=False) == {
        "imagechain_last_scene": "last_frame",
        "imagechain_pooling": "after_projector",
        "imagechain_scene_aspect": "crop",
        "imagechain_prompt": "template",
    }


def test_a_trained_checkpoint_without_decisions_gets_a_warning(model, caplog):
    with caplog.at_level("WARNING"):
        settle_decisions(model.config, {}, trained=True)
    assert "last_frame" in caplog.text
