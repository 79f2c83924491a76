"""The story world's language: every meaning and wording comes back, anything else does not."""

import itertools
import random

import pytest

from eval.judge import load_judge
from eval.judge.world import grammar
from eval.judge.world.grammar import ACTIONS, CLOTHES, COLOURS, OBJECTS, PLACES, Meaning, describe, parse


def judge(reference: str, prediction: str) -> str:
    verdict = load_judge("world").parse(prediction, reference)
    assert verdict.parsed or verdict.verdict == "no"
    return verdict.verdict if verdict.parsed else "unparsed"


MEANINGS = [
    Meaning(person=person, colour=colour, action=action, object=thing, place=place)
    for person, colour, action, thing, place in itertools.product(CLOTHES, COLOURS, ACTIONS, OBJECTS, PLACES)
]
MEANING = Meaning(person="woman", colour="red", action="kick", object="ball", place="park")


def test_every_meaning_comes_back_from_its_sentence() -> None:
    for number, meaning in enumerate(MEANINGS):
        for earlier in ([], [meaning]):
            text = describe(meaning, random.Random(number), earlier)
            assert parse(text) == meaning, text


def test_every_wording_of_a_meaning_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "RARE", 0.5)
    for action in ACTIONS:
        meaning = Meaning(person="girl", colour="blue", action=action, object="box", place="beach")
        texts = {describe(meaning, random.Random(seed), [meaning]) for seed in range(1500)}
        assert len(texts) > 300
        assert {parse(text) for text in texts} == {meaning}


def test_sentences_say_who_does_what_to_what_and_where_by_themselves() -> None:
    sentences = {describe(meaning, random.Random(0)) for meaning in MEANINGS}
    assert len(sentences) == len(MEANINGS) == 5184


def test_sentences_look_back_only_at_what_was_said() -> None:
    texts = [describe(MEANING, random.Random(seed)) for seed in range(200)]
    assert not any(word in text.lower() for text in texts for word in ("same", "again", "then"))
    later = " ".join(describe(MEANING, random.Random(seed), [MEANING]) for seed in range(200)).lower()
    assert all(word in later for word in ("the same ball", "again", "then"))


@pytest.mark.parametrize(
    "text",
    [
        "the woman in the red dress kicks the ball in the park",
        "  A woman in a red dress  kicks the same ball in the park. ",
        "In the park, the woman wearing a red dress is kicking the ball again.",
        "Then the ball is kicked by the woman in red in the park.",
        "THE WOMAN IN THE RED DRESS STARTS TO KICK A BALL IN THE PARK.",
    ],
)
def test_judge_accepts_paraphrases(text: str) -> None:
    assert judge("The woman in the red dress kicks the ball in the park.", text) == "yes"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("The woman in the blue dress kicks the ball in the park.", "no"),
        ("The man in the red shirt kicks the ball in the park.", "no"),
        ("The woman in the red dress pushes the ball in the park.", "no"),
        ("The woman in the red dress kicks the box in the park.", "no"),
        ("The woman in the red dress kicks the ball on the beach.", "no"),
        ("The woman in the red skirt kicks the ball in the park.", "unparsed"),
        ("The woman in the red dress kicks the ball.", "unparsed"),
        ("In the park, the woman in the red dress kicks the ball in the park.", "unparsed"),
        ("The woman in the red dress kicks the ball in the park. The man sits.", "unparsed"),
        ("Yes", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_judge_refuses_other_meanings_and_other_texts(text: str, verdict: str) -> None:
    assert judge("The woman in the red dress kicks the ball in the park.", text) == verdict


def test_judge_names_a_reference_of_another_data_set() -> None:
    with pytest.raises(ValueError, match="not a sentence of the story world"):
        judge("A man walks in from the left.", "The woman in the red dress kicks the ball in the park.")


def test_meaning_refuses_unknown_words() -> None:
    with pytest.raises(ValueError, match="found 'moon'"):
        Meaning(person="woman", colour="red", action="kick", object="ball", place="moon")
