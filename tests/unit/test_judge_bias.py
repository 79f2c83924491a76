"""Pairs whose verdict is known: exact in the story world, by stated rules elsewhere, never made where a rule fails."""

import collections
import random

import pytest

from eval.judge import load_judge
from eval.judge.world import grammar
from eval.judge_bias.__main__ import main
from eval.judge_bias.pairs import KINDS, WORLD_KINDS, Told, differs, make_pairs, negate
from eval.judge_bias.paraphrase import cleaned, read_paraphrases

EXPECTED = {name: kind.expected for name, kind in (KINDS | WORLD_KINDS).items()}


def world_told(videos=40, actors=2):
    """Return stories of the world, two actors a video, at the same time."""
    rng = random.Random(1)
    told = []
    for video in range(videos):
        people = rng.sample(sorted(grammar.CLOTHES), actors)
        for actor, person in enumerate(people):
            meaning = grammar.Meaning(
                person=person, colour=rng.choice(grammar.COLOURS), action=rng.choice(list(grammar.ACTIONS)),
                object=rng.choice(list(grammar.OBJECTS)), place=rng.choice(list(grammar.PLACES)),
            )  # fmt: skip
            text = grammar.describe(meaning, rng)
            told.append(one(f"s{video}_{actor}", text, video=f"v{video}"))
    return told


def one(story_id, text, *, video=None, start=3.0, end=5.0):
    return Told(
        story_id=story_id, video_name=video or story_id, num_scenes=2, text=text, start_s=start, end_s=end
    )  # fmt: skip


def texts_of(told, kind, **settings):
    pairs, skipped = make_pairs(told, **{"num": 100, "seed": 0, "paraphrases": {}, **settings})
    return {pair.told.story_id: pair.prediction for pair in pairs if pair.kind == kind}, [
        row for row in skipped if row["kind"] == kind
    ]


def test_the_worlds_judge_is_right_on_every_pair():
    pairs, _ = make_pairs(world_told(), num=50, seed=0, paraphrases={})
    judge = load_judge("world")
    made = collections.Counter(pair.kind for pair in pairs)
    assert set(made) == set(EXPECTED) and all(made[kind] == 50 for kind in EXPECTED if kind != "negated")
    wrong = [pair for pair in pairs if judge.parse(pair.prediction, pair.told.text).verdict != EXPECTED[pair.kind]]
    assert not wrong


def test_paraphrases_of_the_world_use_other_words():
    made, _ = texts_of(world_told(), "paraphrase")
    references = {told.story_id: told.text for told in world_told()}
    assert len(made) == 80
    assert all(text.casefold() != references[story_id].casefold() for story_id, text in made.items())


@pytest.mark.parametrize("slot", ["person", "colour", "action", "object", "place"])
def test_a_wrong_slot_leaves_the_others_right(slot):
    references = {told.story_id: told.text for told in world_told()}
    for story_id, text in texts_of(world_told(), f"wrong_{slot}")[0].items():
        right, wrong = grammar.parse(references[story_id]), grammar.parse(text)
        assert {name for name in vars(right) if getattr(right, name) != getattr(wrong, name)} == {slot}


def test_other_data_gets_no_pairs_of_the_worlds_kinds():
    told = [one("a", "A dog barks."), one("b", "A cat is sleeping."), world_told()[0]]
    pairs, _ = make_pairs(told, num=9, seed=0, paraphrases={})
    assert not {pair.kind for pair in pairs} & set(WORLD_KINDS)


def test_another_story_is_of_another_video_and_says_something_else():
    told = [
        one("a", "A dog barks.", video="v"),
        one("b", "A cat sleeps.", video="v"),
        one("c", "a DOG  barks", video="w"),
    ]
    made, skipped = texts_of(told, "other_story")
    assert made == {"b": "a DOG  barks", "c": "A cat sleeps."}
    assert [row["id"] for row in skipped] == ["a"]


def test_other_actor_is_of_the_same_video_and_overlaps_most():
    told = [
        one("a", "The man runs.", video="v", start=4, end=8),
        one("b", "The boy waves.", video="v", start=7, end=9),
        one("c", "The girl jumps.", video="v", start=5, end=8),
        one("d", "The man runs.", video="v", start=4, end=8),
        one("e", "The cat naps.", video="w"),
        one("f", "The sun sets.", video="v", start=20, end=21),
    ]
    made, skipped = texts_of(told, "other_actor")
    assert made == {"a": "The girl jumps.", "b": made["b"], "c": made["c"], "d": "The girl jumps."}
    assert {made["b"], made["c"]} <= {"The man runs.", "The girl jumps."}
    assert sorted(row["id"] for row in skipped) == ["e", "f"]


@pytest.mark.parametrize(
    "first, second, different",
    [
        ("The dog starts looking at the ball again.", "The dog starts looking towards the ball again.", False),
        ("The lady drops the girl on the grey floor.", "The girl is dropped on the grey floor by the lady.", False),
        ("The camera zooms out.", "the camera is zooming out", False),
        ("The girl hugs the man.", "The person closes the microwave.", True),
        ("A dog.", "A cat.", True),
        ("The man in the red shirt kicks the ball in the park.", "A man in red kicks a ball in the park.", False),
        (
            "The man in the red shirt kicks the ball in the park.",
            "The man in the red shirt kicks the box in the park.",
            True,
        ),
    ],
)
def test_texts_differ_by_meaning_in_the_world_and_by_words_elsewhere(first, second, different):
    assert differs(first, second) is differs(second, first) is different


@pytest.mark.parametrize(
    "text, negated",
    [
        ("The man is running.", "The man is not running."),
        ("the two girls ARE dancing on stage", "the two girls ARE not dancing on stage"),
        ("The ball has been kicked by the boy.", "The ball has not been kicked by the boy."),
        ("The man runs.", None),  # no auxiliary verb
        ("The man is not running.", None),
        ("The man is running without shoes.", None),
        ("The man isn't running.", None),
        ("The man who is tall runs.", None),
        ("The man is running while a dog barks.", None),
        ("The man is running and he is waving.", None),
        ("The man is running, the dog barks.", None),
        ("The girl is then leaning forward.", None),
        ("Is running.", None),
        ("The answer is", None),
        ("", None),
    ],
)
def test_negation_is_made_only_where_its_rule_fits(text, negated):
    assert negate(text) == negated


def test_paraphrases_are_taken_as_given_and_missing_ones_are_counted():
    told = [one("a", "A dog barks."), one("b", "A cat sleeps."), one("c", "A cow eats.")]
    given = {"A dog barks.": "A dog is barking.", "A cow eats.": "a cow, eats"}
    made, skipped = texts_of(told, "paraphrase", paraphrases=given)
    assert made == {"a": "A dog is barking."}
    assert {row["id"]: row["reason"] for row in skipped} == {
        "b": "no paraphrase is given",
        "c": "its paraphrase has the same words",
    }


def test_same_seed_same_pairs():
    runs = [make_pairs(world_told(), num=10, seed=seed, paraphrases={})[0] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    "answer, sentence",
    [
        (' "A dog is barking." \n', "A dog is barking."),
        ("", None),
        ("Sure! Here it is:\nA dog is barking.", None),
        ("blah " * 60, None),
    ],
)
def test_an_answer_that_is_no_single_sentence_is_no_paraphrase(answer, sentence):
    assert cleaned(answer, "A dog barks.") == sentence


def test_a_paraphrase_file_with_other_fields_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"reference": "a b", "paraphrase": "c"}\n{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"line 2: \{reference, paraphrase\}"):
        read_paraphrases(path)


def test_pairs_never_replace_the_predictions_of_a_run(tmp_path, capsys):
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text("{}\n")
    assert main(["--stories", str(tmp_path / "stories"), "--output-dir", str(tmp_path), "--judge", "world"]) == 2
    assert "holds the predictions.jsonl of a run; pairs need a folder of their own" in capsys.readouterr().err
    assert predictions.read_text() == "{}\n"
