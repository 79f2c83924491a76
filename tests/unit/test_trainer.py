"""The trainer's parts: what trains, in which order, at which rate, and the loss over the global batch."""

import re
from types import SimpleNamespace

import pytest
import torch

from llava.imagechain.arguments import ModelArguments
from llava.imagechain.callbacks import StopGently
from llava.imagechain.checkpoint import LORA_TARGETS
from llava.imagechain.order import FilledExamples, LengthGroupedSampler
from llava.imagechain.parts import part_of, prepare_model, trainable_table
from llava.imagechain.trainer import ImageChainTrainer


@pytest.fixture()
def model(tiny_llava):
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

    return LlavaLlamaForCausalLM.from_pretrained(tiny_llava.full)


def settings(**changes):
    values = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **changes}
    return ModelArguments(**values)


def trained_parts(model):
    return {row["part"] for row in trainable_table(model) if row["trained"]}


def test_lora_is_on_every_linear_layer_of_the_language_model_and_nowhere_else(model):
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = {name for name in linear if re.fullmatch(LORA_TARGETS, name)}
    assert len(chosen) == 2 * 7
    assert all(name.startswith("model.layers.") for name in chosen)
    prepared = prepare_model(model, settings())
    adapted = {name.split(".lora_")[0] for name, _ in prepared.named_parameters() if ".lora_" in name}
    assert {name.removeprefix("base_model.model.") for name in adapted} == chosen


def test_adapters_and_projector_train_and_the_rest_is_frozen(model):
    prepared = prepare_model(model, settings())
    assert trained_parts(prepared) == {"LoRA", "projector"}
    table = {row["part"]: row for row in trainable_table(prepared)}
    assert table["projector"]["trained"] == table["projector"]["parameters"] == 64 * 32 + 64 + 64 * 64 + 64
    assert table["vision tower"]["trained"] == table["language model"]["trained"] == 0


def test_the_projector_can_be_frozen_and_lora_left_out(model):
    assert trained_parts(prepare_model(model, settings(freeze_mm_mlp_adapter=True))) == {"LoRA"}


def test_without_lora_the_language_model_trains(model):
    assert trained_parts(prepare_model(model, settings(lora_enable=False))) == {"language model", "projector"}


def test_what_trains_is_held_in_float32(model):
    prepared = prepare_model(model.to(torch.bfloat16), settings())
    types = {(parameter.requires_grad, parameter.dtype) for parameter in prepared.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


def test_parts_are_told_by_full_names():
    assert part_of("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight") == "LoRA"
    assert part_of("base_model.model.model.mm_projector.0.weight") == "projector"
    assert (
        part_of("model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight")
        == "vision tower"
    )
    assert part_of("model.layers.0.self_attn.q_proj.weight") == "language model"


LENGTHS = [(i * 37) % 101 + 10 for i in range(200)]


def order(epoch=0, seed=0, group_batches=4):
    sampler = LengthGroupedSampler(LENGTHS, 8, group_batches, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padding(indices, size=8):
    batches = [indices[i : i + size] for i in range(0, len(indices), size)]
    return sum(max(LENGTHS[i] for i in b) * len(b) - sum(LENGTHS[i] for i in b) for b in batches)


def test_an_epoch_takes_every_example_once():
    assert sorted(order()) == list(range(200))
    assert sorted(order(group_batches=0)) == list(range(200))


def test_the_order_follows_from_seed_and_epoch_alone():
    torch.manual_seed(5)
    first = order()
    torch.rand(3)
    assert order() == first
    assert order(epoch=1) != first
    assert order(seed=1) != first


def test_neighbours_have_like_lengths():
    assert padding(order()) < 0.4 * padding(order(group_batches=0))


def test_the_longest_batch_comes_first_and_an_incomplete_one_last():
    assert max(LENGTHS[i] for i in order()[:8]) == max(LENGTHS)
    sampler = LengthGroupedSampler(LENGTHS[:61], 8, 4, 0)
    assert sorted(sampler) == list(range(61))


def test_what_processes_lack_for_equal_shares_is_a_blank_that_carries_no_loss():
    class Examples(list):
        lengths = (7, 5, 9)

    sampler = LengthGroupedSampler(LENGTHS[:61], 8, 4, 0, multiple=8)
    assert len(sampler) == len(list(sampler)) == 64
    assert list(sampler)[-3:] == [61] * 3
    assert sorted(sampler)[:61] == list(range(61))
    examples = Examples({"labels": torch.arange(n), "story_id": n} for n in Examples.lengths)
    filled = FilledExamples(examples)
    assert (len(filled), filled[2]["story_id"]) == (3, 9)
    assert filled[3]["story_id"] == 5
    assert filled[3]["labels"].tolist() == [-100] * 5
    assert examples[1]["labels"].tolist() == list(range(5))


def test_a_resumed_run_makes_batches_of_the_size_it_asks_for(monkeypatch):
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "get_train_dataloader", lambda self: self._train_batch_size)
    trainer = object.__new__(ImageChainTrainer)
    trainer.args, trainer._train_batch_size = SimpleNamespace(train_batch_size=2), 4  # 4 is the checkpoint's
    assert trainer.get_train_dataloader() == 2


def batch_of(*texts, size=12):
    """Return a text batch: random ids, the last `texts` positions of each row carry loss."""
    generator = torch.Generator().manual_seed(len(texts))
    ids = torch.randint(3, 400, (len(texts), size), generator=generator)
    labels = ids.clone()
    for row, count in enumerate(texts):
        labels[row, : size - count] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}


def test_half_precision_weights_train_under_autocast(model):
    prepared = prepare_model(model.to(torch.bfloat16), settings()).train()
    scenes = [torch.randn(2, 3, 28, 28), torch.randn(3, 3, 28, 28)]
    ids = torch.tensor([[1, 30, -200, 40, -200, 50, 60]])
    labels = torch.where(ids > 30, ids, -100)
    with torch.autocast("cpu", torch.bfloat16):
        loss = prepared(
            input_ids=ids, labels=labels, images=[scenes], modalities=["video-seq"], return_logits=False,
            num_items_in_batch=3,
        )["loss"]  # fmt: skip
    loss.backward()
    trained = [parameter for parameter in prepared.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    projector = [p for n, p in prepared.named_parameters() if "mm_projector" in n]
    assert all(parameter.grad.abs().sum() > 0 for parameter in projector)


def test_accumulated_micro_batches_give_the_gradient_of_the_global_token_mean(model):
    batch = batch_of(2, 9, 5, 1)
    count = int((batch["labels"] != -100).sum())
    parameter = model.lm_head.weight
    model(**batch, return_logits=False, num_items_in_batch=count)["loss"].backward()
    whole = parameter.grad.clone()
    parameter.grad = None
    for rows in (slice(0, 1), slice(1, 4)):
        part = {name: value[rows] for name, value in batch.items()}
        model(**part, return_logits=False, num_items_in_batch=count)["loss"].backward()
    torch.testing.assert_close(parameter.grad, whole, rtol=1e-4, atol=1e-6)
    logits = model(**batch)["logits"][:, :-1].flatten(0, 1)
    mean = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100)
    parameter.grad = None
    mean.backward()
    torch.testing.assert_close(parameter.grad, whole, rtol=1e-4, atol=1e-6)


def test_a_stop_file_asks_for_a_checkpoint_and_the_end(tmp_path):
    arguments = SimpleNamespace(output_dir=str(tmp_path), device="cpu")
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    stopper = StopGently()
    assert not stopper.on_step_end(arguments, None, control).should_training_stop
    (tmp_path / "stop").touch()
    found = stopper.on_step_end(arguments, None, control)
    assert found.should_save
    assert found.should_training_stop
    assert not (tmp_path / "stop").exists()


def test_a_request_to_stop_that_comes_while_the_model_loads_is_not_lost(tmp_path):
    (tmp_path / "stop").touch()
    arguments, state = (
        SimpleNamespace(output_dir=str(tmp_path), device="cpu"),
        SimpleNamespace(global_step=0, max_steps=9),
    )
    stopper = StopGently()
    stopper.on_train_begin(arguments, state, None)
    stopper.on_train_end(arguments, state, None)
    assert stopper.on_step_end(arguments, state, SimpleNamespace()).should_training_stop
