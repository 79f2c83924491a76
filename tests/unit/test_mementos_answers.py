"""The four lists of an extractor's answer, however a model dresses them up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.mementos import world_words
from eval.mementos.answers import parse

PLAIN = """Object list 1: [girl, kite]
Action list 1: [run, let out]
Object list 2: [girl]
Action list 2: [fly]"""
WANTED = ({"object": ("girl", "kite"), "action": ("run", "let out")}, {"object": ("girl",), "action": ("fly",)})


def lists(answer):
    found = parse(answer)
    return found.reference, found.prediction


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN,
        f"```\n{PLAIN}\n```",
        f"```text\n{PLAIN.lower()}\n```\n",
        PLAIN.upper().replace("GIRL", "girl").replace("KITE", "kite").replace("RUN, LET OUT", "run, let out")
        .replace("FLY", "fly"),
        f"Sure! Here are the lists:\n\n{PLAIN}\n\nLet me know if you need [anything] else: I am here.",
        "\n".join(f"{number}. {line}" for number, line in enumerate(PLAIN.splitlines(), start=1)),
        "\n".join(f"- **{line.replace(':', ':**')}" for line in PLAIN.splitlines()),
        PLAIN.replace("[", "").replace("]", ""),
        PLAIN.replace("girl", '"girl"').replace("kite", "'kite'"),
        PLAIN.replace(": ", ":").replace("list ", "list #"),
        PLAIN.replace("Action", "Behaviour").replace("list 1", "list 1 (human)"),
        "\n\n".join(reversed(PLAIN.splitlines())),
        PLAIN.replace("[girl, kite]", "[girl,\n  kite]"),
        PLAIN.replace("[girl, kite]", "\n- girl\n- kite\n"),
        "{" + ", ".join(f'"{line.split(":")[0]}": {line.split(": ")[1]}' for line in PLAIN.splitlines()) + "}",
        PLAIN.replace("[girl, kite]", "[[girl], [kite]]"),
        PLAIN + "\n" + PLAIN,
    ],
)  # fmt: skip
def test_the_same_lists_are_read_from_any_dress(answer):
    assert lists(answer) == WANTED


def test_an_empty_list_is_one_empty_item_as_in_the_notebook():
    assert parse(PLAIN.replace("[fly]", "[]")).prediction["action"] == ("",)
    assert parse(PLAIN.replace("[fly]", "")).prediction["action"] == ("",)


def test_an_item_with_a_colon_is_no_error_as_it_is_upstream():
    assert parse(PLAIN.replace("fly", "say: hello, fly")).prediction["action"] == ("say: hello", "fly")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "Object list 1, Action list 1, Object list 2, Action list 2 not found"),
        ("I cannot help with that.", "not found"),
        (PLAIN.rsplit("\n", 1)[0], "Action list 2 not found"),
        (PLAIN[:-3], "cut off"),
        (PLAIN + "\nObject list 2: [dog]", "Object list 2 is there twice"),
        ("Liste d'objets 1 : [fille]\nListe d'actions 1 : [courir]", "not found"),
        (PLAIN.replace("list 2", "list 3"), "not found"),
    ],
)
def test_an_answer_that_lacks_a_list_is_refused_with_the_reason(answer, reason):
    with pytest.raises(ValueError, match=reason):
        parse(answer)


@given(st.text(alphabet=st.sampled_from("Object list 12:[],\n`-*action"), max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        found = parse(text)
    except ValueError:
        return
    assert all(found.reference.values()) and all(found.prediction.values())


def test_the_grammar_gives_the_words_of_the_worlds_sentences_in_the_same_form():
    human = (
        "The girl in the red skirt shoves the crate in the park. Then a ball is held up by the man in the blue shirt "
        "in the park. The man in the blue shirt starts to sit on a pail in the snow."
    )
    found = parse(world_words.answer(human, "A model said something else. The man in the blue shirt jumps over."))
    assert found.reference["object"] == ("girl", "crate", "man", "ball", "pail")
    assert found.reference["action"] == ("shove", "hold up", "sit on")
    assert found.prediction == {"object": ("",), "action": ("",)}


def test_the_worlds_synonyms_lead_from_every_word_to_its_group():
    graphs = world_words.synonyms()
    assert graphs["action"]["lift"] == graphs["action"]["hold up"] == {"": ["hold up", "lift"]}
    assert graphs["object"]["crate"] == {"": ["box", "crate"]}
