"""The base model's tokenizer, captions and training loop."""

import random
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from eval.judge.world.grammar import CLOTHES, COLOURS, OBJECTS, PLACES, parse
from llava.imagechain.labels import IGNORE_INDEX, make_labels
from llava.imagechain.prompts import IMAGE_TOKEN_INDEX, encode, render
from llava.imagechain.variants import FIRST_QUESTION, NEXT_QUESTION, Dialogue, Part, Turn
from stories.world.base import batch_of, main
from stories.world.captions import SLOTS, CaptionWriter, collate, draw_frames
from stories.world.fit import Schedule, fit
from stories.world.plan import plan_video
from stories.world.tokenizer import actor_question, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder, seed=3)
    return AutoTokenizer.from_pretrained(str(folder), use_fast=False)


def test_words_of_the_world_are_one_token_each(tokenizer) -> None:
    for word in (*CLOTHES, *CLOTHES.values(), *COLOURS, *OBJECTS, *PLACES, "kicks", "again"):
        assert len(tokenizer.tokenize(word)) == 1, word


def test_questions_and_role_marks_take_few_tokens(tokenizer) -> None:
    assert len(tokenizer.tokenize(NEXT_QUESTION)) == len(NEXT_QUESTION.split())
    assert tokenizer.tokenize("<s>USER: What")[:2] == ["<s>", "USER:"]
    assert len(tokenizer.tokenize("</Image> ASSISTANT:")) == 2


def test_texts_come_back_from_their_tokens(tokenizer) -> None:
    for text in plan_video(5, 0).texts[0]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert len(ids) <= len(text.split()) + 2


def test_tokenizer_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name in "ab":
        train_tokenizer(tmp_path / name, seed=3)
    assert (tmp_path / "a/tokenizer.model").read_bytes() == (tmp_path / "b/tokenizer.model").read_bytes()


def test_captions_are_what_the_prompt_code_would_write(tokenizer) -> None:
    writer = CaptionWriter(tokenizer)
    meanings = draw_frames(1, 32, "captions").meanings[0]
    seen = set()
    for seed in range(60):
        ids, labels = writer.write(meanings, random.Random(seed))
        assert ids.count(IMAGE_TOKEN_INDEX) == 1
        ends = [i for i, label in enumerate(labels) if label == tokenizer.eos_token_id]
        assert len(ends) == 2
        answers = []
        for end in ends:
            start = max(i for i in range(end) if labels[i] == IGNORE_INDEX) + 1
            answers.append(tokenizer.decode(ids[start:end]))
        assert {parse(answer) for answer in answers} == set(meanings)
        second = actor_question(*parse(answers[1]).actor)
        questions = (FIRST_QUESTION, NEXT_QUESTION, actor_question(*parse(answers[0]).actor))
        candidates = {}
        for style in ("figure3", "template"):
            for question in questions:
                turns = (
                    Turn((Part("question", question), Part("image")), answers[0]),
                    Turn((Part("question", second),), answers[1]),
                )
                encoded = encode(render(Dialogue(story_id="x", turns=turns, scenes=()), style, tokenizer), tokenizer)
                candidates[style, question] = (encoded.input_ids, make_labels(encoded, "answers"))
        matching = [key for key, candidate in candidates.items() if candidate == (ids, labels)]
        assert len(matching) == 1
        seen.update(matching)
    assert len(seen) == 8


def test_frames_show_two_people_and_follow_from_the_seed() -> None:
    one, same, other = draw_frames(5, 32, "a"), draw_frames(5, 32, "a"), draw_frames(5, 32, "b")
    assert torch.equal(one.pixels, same.pixels) and one.meanings == same.meanings
    assert not torch.equal(one.pixels, other.pixels)
    targets = one.targets()
    assert targets.shape == (5, 2, len(SLOTS))
    left = one.meanings[0][0]
    assert [list(values)[i] for values, i in zip(SLOTS.values(), targets[0, 0].tolist(), strict=True)] == [
        left.person, left.colour, left.action, left.object, left.place,
    ]  # fmt: skip


def test_collate_pads_without_labels() -> None:
    ids, labels, mask = collate([([1, 5], [IGNORE_INDEX, 5]), ([1, 6, 7], [IGNORE_INDEX, 6, 7])])
    assert ids.tolist() == [[1, 5, 0], [1, 6, 7]]
    assert labels.tolist() == [[IGNORE_INDEX, 5, IGNORE_INDEX], [IGNORE_INDEX, 6, 7]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_each_pass_takes_every_frame_once() -> None:
    steps = [batch_of(step, 12, 4, "x") for step in range(6)]
    assert sorted(chain(*steps[:3])) == sorted(chain(*steps[3:])) == list(range(12))
    assert steps[:3] != steps[3:]


class _Interrupt(Exception):
    pass


def test_a_stopped_loop_ends_where_an_unstopped_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stories.world.fit.SAVE_EVERY_S", 0.0)
    schedule = Schedule(num_steps=8, learning_rate=0.1, bf16=False, warmup_steps=2)

    def run(path: Path, stop_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)

        def loss_of_step(step: int) -> torch.Tensor:
            if step == stop_at:
                raise _Interrupt
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            return (module(x) - x.sum(dim=1, keepdim=True)).square().mean()

        fit("test", module, loss_of_step, schedule, path)
        return module.weight.detach()

    whole = run(tmp_path / "whole.pt", None)
    with pytest.raises(_Interrupt):
        run(tmp_path / "stopped.pt", 5)
    assert torch.equal(run(tmp_path / "stopped.pt", None), whole)


def test_wrong_sizes_are_refused_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output-dir", str(tmp_path / "base"), "--hidden-size", "100"]) == 2
    assert "multiples of 32" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()
