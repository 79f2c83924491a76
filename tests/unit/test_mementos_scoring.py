"""Keyword lists compared as the benchmark's notebook does it, quirks and all, and as it should be counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.mementos.score import Scored
from eval.mementos.scoring import Score, is_synonym, normal, rewrite, score
from eval.mementos.tables import cell

GRAPH = {
    "add": {"": ["add"]},
    "look": {"": ["look"]},
    "glance": {"": ["look"]},
    "look up": {"": ["look"]},
    "pour": {"": ["pour", "splash"]},
    "splash": {"": ["splash", "pour"]},
    "reach": {"": ["reach"], "touch": ["grab"]},
    "put": {"down": []},
    "watch": {"": ["look"]},
}


def scores(mode, reference, prediction, kind="action"):
    graph = GRAPH if mode == "upstream" else normal(GRAPH)
    found = score(mode, kind, reference, prediction, graph)
    return found.recall, found.precision, found.f1


def test_upstream_counts_all_words_left_over_as_one_wrong_word():
    assert scores("upstream", ["add"], ["add", "x", "y", "z"]) == (1, 1 / 2, 2 / 3)
    assert scores("strict", ["add"], ["add", "x", "y", "z"]) == (1, 1 / 4, 2 / 5)


def test_words_that_match_nothing_while_the_reference_lasts_cost_one_each_in_both():
    assert scores("upstream", ["add", "look"], ["x", "y", "z", "add"]) == (1 / 2, 1 / 4, 1 / 3)
    assert scores("strict", ["add", "look"], ["x", "y", "z", "add"]) == (1 / 2, 1 / 4, 1 / 3)


def test_upstream_punishes_a_repeated_synonym_and_strict_does_not():
    assert scores("upstream", ["look"], ["glance", "look up", "look"]) == (1, 1 / 2, 2 / 3)
    assert scores("strict", ["look"], ["glance", "look up", "look"]) == (1, 1, 1)


def test_upstream_rewrites_an_equal_word_into_an_earlier_synonym_and_strict_takes_equal_words_first():
    # splash becomes pour, the first word that it may become; then pour may only become splash.
    assert rewrite(["pour", "splash"], ["splash", "pour"], GRAPH, pairs=True) == ["pour", "splash"]
    graph = {"splash": {"": ["pour"]}, "pour": {"": ["pour"]}}
    assert rewrite(["pour", "splash"], ["splash", "pour"], graph, pairs=True) == ["pour", "pour"]
    found = score("upstream", "action", ["pour", "splash"], ["splash", "pour"], graph)
    assert (found.recall, found.precision, found.f1) == (1 / 2, 1, 2 / 3)
    assert score("strict", "action", ["pour", "splash"], ["splash", "pour"], graph) == Score(
        recall=1.0, precision=1.0, f1=1.0
    )


def test_an_empty_list_is_one_empty_word_upstream_and_nothing_in_strict():
    assert scores("upstream", [""], [""]) == (1, 1, 1)
    assert scores("strict", [""], [""]) == (1, 1, 1)
    assert scores("upstream", ["add"], [""]) == (0, 0, 0)
    assert scores("strict", ["add", ""], ["add"]) == (1, 1, 1)
    assert scores("upstream", ["add", ""], ["add"]) == (1 / 2, 1, 2 / 3)
    assert scores("strict", [""], ["add"]) == scores("strict", ["add"], [""]) == (0, 0, 0)


def test_two_neighbours_stand_for_one_action_but_never_for_an_object():
    assert rewrite(["grab"], ["reach", "touch"], GRAPH, pairs=True) == ["grab"]
    assert rewrite(["grab"], ["reach", "touch"], GRAPH, pairs=False) == ["reach", "touch"]
    assert rewrite(["grab"], ["reach", "x", "touch"], GRAPH, pairs=True) == ["reach", "x", "touch"]
    assert scores("strict", ["grab"], ["reach", "touch"]) == (1, 1, 1)
    assert scores("strict", ["grab"], ["reach", "touch"], kind="object") == (0, 0, 0)


def test_neighbours_are_matched_together_only_where_neither_matches_alone_in_strict():
    # reach is in the reference itself, so touch is left over and wrong.
    assert scores("strict", ["grab", "reach"], ["reach", "touch"]) == (1 / 2, 1 / 2, 1 / 2)


def test_edges_lead_one_way_and_one_hop():
    assert is_synonym(GRAPH, "glance", "", "look")
    assert not is_synonym(GRAPH, "look", "", "glance")
    chain = {"a": {"": ["b"]}, "b": {"": ["c"]}}
    assert scores("upstream", ["look"], ["look"]) == (1, 1, 1)
    for mode in ("upstream", "strict"):
        assert score(mode, "action", ["c"], ["a"], chain).f1 == 0
        assert score(mode, "action", ["c"], ["b"], chain).f1 == 1


def test_strict_finds_the_most_reference_words_whatever_the_order_of_the_prediction():
    graph = {"splash": {"": ["pour", "spill"]}, "tip": {"": ["pour"]}}
    for said in (["splash", "tip"], ["tip", "splash"]):
        assert score("strict", "action", ["pour", "spill"], said, graph).f1 == 1
    assert score("upstream", "action", ["pour", "spill"], ["splash", "tip"], graph).f1 == 0.5


def test_case_and_white_space_count_upstream_only():
    assert scores("upstream", ["add"], ["Add"]) == (0, 0, 0)
    assert scores("strict", ["look  up"], ["Look up", "look up "]) == (1, 1, 1)
    assert score("strict", "object", ["cup"], ["Mug"], normal({"mug ": {"": ["Cup"]}})).f1 == 1


def test_the_rewritten_prediction_keeps_words_without_an_edge():
    assert rewrite(["add"], ["x", "add"], GRAPH, pairs=True) == ["x", "add"]
    left_over = rewrite(["add"], ["add", "x", "y"], GRAPH, pairs=True)
    assert left_over[0] == "add" and len(left_over) == 2 and not isinstance(left_over[1], str)


WORDS = st.lists(st.sampled_from(["", "a", "b", "c", "d", "e", "A"]), min_size=1, max_size=6)
GRAPHS = st.dictionaries(
    st.sampled_from("abcde"),
    st.dictionaries(st.sampled_from(["", "a", "b"]), st.lists(st.sampled_from("abcde"), max_size=3), max_size=2),
    max_size=5,
)


@given(WORDS, WORDS, GRAPHS, st.sampled_from(["upstream", "strict"]), st.sampled_from(["object", "action"]))
def test_every_score_lies_between_nothing_and_all(reference, prediction, graph, mode, kind):
    found = score(mode, kind, reference, prediction, normal(graph) if mode == "strict" else graph)
    assert 0 <= found.recall <= 1 and 0 <= found.precision <= 1
    assert min(found.recall, found.precision) <= found.f1 <= max(found.recall, found.precision)


@given(WORDS, GRAPHS)
def test_a_prediction_equal_to_the_reference_is_perfect_in_strict(words, graph):
    assert score("strict", "action", words, words, normal(graph)) == Score(recall=1.0, precision=1.0, f1=1.0)


@given(WORDS, WORDS, GRAPHS)
def test_one_more_word_that_nothing_knows_never_helps_in_strict(reference, prediction, graph):
    before = score("strict", "object", reference, prediction, normal(graph))
    after = score("strict", "object", reference, [*prediction, "unheard"], normal(graph))
    assert after.precision <= before.precision and after.recall <= before.recall


@given(WORDS, WORDS)
def test_without_synonyms_strict_is_the_comparison_of_sets(reference, prediction):
    wanted, said = ({word.casefold() for word in words} - {""} for words in (reference, prediction))
    found = score("strict", "action", reference, prediction, {})
    if wanted and said:
        assert found.recall == pytest.approx(len(wanted & said) / len(wanted))
        assert found.precision == pytest.approx(len(wanted & said) / len(said))


def test_a_single_sample_has_no_interval():
    found = Score(recall=1, precision=1, f1=1)
    samples = [
        Scored(sample_id=name, domain="comics", status="scored", scores={"strict": {"action": found}}) for name in "ab"
    ]
    alone, two = (cell(some, "strict", "action", 0) for some in (samples[:1], samples))
    assert (alone.shown(), alone.interval()) == ("100.00 (n=1)", "")
    assert two.interval() == "100.0 to 100.0"
