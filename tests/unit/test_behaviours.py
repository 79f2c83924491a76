"""Behaviour words: which are marked, and that marking never changes a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.report import behaviours

pytest.importorskip("HanTa", reason="HanTa is not installed (extra eval)")


def marked(text):
    return [piece for piece, is_behaviour in behaviours.mark_behaviours(text) if is_behaviour]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The man in the red shirt kicks the ball in the park.", ["kicks"]),
        (
            "A woman wearing a black dress is shoving the crate, then she leaps over it.",
            ["wearing", "shoving", "leaps"],
        ),
        ("A white bear is standing on the right side while holding a basketball.", ["standing", "holding"]),
        ("A park with a bench.", []),
        ("", []),
    ],
)
def test_full_verbs_are_marked_and_auxiliaries_and_nouns_are_not(text, expected):
    assert marked(text) == expected


@given(st.text(max_size=80))
def test_the_pieces_joined_are_the_text(text):
    assert "".join(piece for piece, _ in behaviours.mark_behaviours(text)) == text


def test_without_the_tagger_nothing_is_marked(monkeypatch):
    monkeypatch.setattr(behaviours, "_tagger", lambda: None)
    assert behaviours.mark_behaviours("She runs.") == [("She runs.", False)]
    assert not behaviours.available()
