"""Cohen's kappa and its intervals against statsmodels; what cannot be computed is said, never a division by zero."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.agreement.kappa import CELLS, Rater, compare, kappa
from eval.agreement.table import agreement_sheet, percent_interval
from eval.resampling import Estimate, estimate
from eval.tables.files import to_markdown


def rater(name, labels, kind="person"):
    return Rater(name=name, kind=kind, labels={(f"s{i}", "pair"): label for i, label in enumerate(labels)})


def raters_of(both_yes, first_only, second_only, both_no):
    first = [True] * (both_yes + first_only) + [False] * (second_only + both_no)
    second = [True] * both_yes + [False] * first_only + [True] * second_only + [False] * both_no
    return rater("anna", first), rater("judge", second, "judge")


def own_videos(first):
    return {item: item[0] for item in first.labels}


@given(st.lists(st.integers(0, 60), min_size=4, max_size=4))
def test_kappa_is_statsmodels(cells):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    table = np.array(cells, float).reshape(2, 2)
    value = float(kappa(np.array(cells, float)))
    if not table.sum() or (first := table.sum(1)).max() == table.sum() == table.sum(0)[first.argmax()]:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(inter_rater.cohens_kappa(table, return_results=False), abs=1e-12)


def test_interval_of_independent_videos_is_near_the_asymptotic_one():
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    first, second = raters_of(40, 10, 15, 135)
    found = compare(first, second, own_videos(first)).kappa
    theirs = inter_rater.cohens_kappa(np.array([[40, 10], [15, 135]]))
    assert found.value == pytest.approx(theirs.kappa)
    assert (found.low, found.high) == pytest.approx((theirs.kappa_low, theirs.kappa_upp), abs=0.03)


def test_repeating_every_row_within_its_video_does_not_narrow_the_interval():
    first, second = raters_of(20, 5, 7, 30)
    once = compare(first, second, own_videos(first))
    labels = [{(f"{item[0]}-{k}", "pair"): label for item, label in one.labels.items() for k in range(9)}
              for one in (first, second)]  # fmt: skip
    many = [Rater(name=one.name, kind=one.kind, labels=made) for one, made in zip((first, second), labels, strict=True)]
    ninefold = compare(*many, {item: item[0].partition("-")[0] for item in labels[0]})
    assert ninefold.n == 9 * once.n and ninefold.videos == once.videos
    assert ninefold.kappa.high - ninefold.kappa.low == pytest.approx(once.kappa.high - once.kappa.low, rel=0.15)


def test_confusion_names_who_said_yes():
    found = compare(*raters_of(4, 3, 2, 1), {})
    assert found.counts == dict(zip(CELLS, (4, 3, 2, 1), strict=True))
    assert [round(found.shares[name].value, 6) for name in CELLS] == [0.4, 0.3, 0.2, 0.1]
    assert found.agreement.value == 0.5


@pytest.mark.parametrize("cells", [(7, 0, 0, 0), (0, 0, 0, 7)])
def test_one_label_for_everything_has_agreement_but_no_kappa(cells):
    found = compare(*raters_of(*cells), {})
    assert found.agreement.value == 1.0
    assert found.kappa.value is None and "one and the same label" in found.kappa.remark
    assert "κ is not defined" in to_markdown(agreement_sheet([found]))


def test_one_constant_rater_has_kappa_zero():
    assert compare(*raters_of(5, 4, 0, 0), {}).kappa.value == 0.0


def test_no_shared_row_is_said_in_the_table():
    found = compare(rater("anna", []), rater("bob", [True, False]), {}, weights={})
    assert (found.n, found.kappa.value, found.agreement.value, found.weighted_kappa) == (0, None, None, None)
    text = to_markdown(agreement_sheet([found]))
    assert "anna / bob: no prediction has a label of both" in text and "nan" not in text


def test_a_single_video_gives_no_interval():
    first, second = raters_of(4, 1, 2, 3)
    found = compare(first, second, dict.fromkeys(first.labels, "one video"))
    assert found.kappa.value is not None and found.kappa.low is None
    assert "all rows are of one video" in found.kappa.remark


def test_weights_bring_back_the_population():
    rng = random.Random(1)
    population = [(truth, truth if rng.random() < 0.9 else not truth) for truth in [True] * 100 + [False] * 900]
    full = compare(rater("p", [a for a, _ in population]), rater("j", [b for _, b in population], "judge"), {})
    strata = {verdict: [pair for pair in population if pair[1] == verdict] for verdict in (True, False)}
    drawn = [(pair, len(group) / 80) for group in strata.values() for pair in rng.sample(group, 80)]
    first, second = rater("p", [a for (a, _), _ in drawn]), rater("j", [b for (_, b), _ in drawn], "judge")
    weights = {(f"s{i}", "pair"): weight for i, (_, weight) in enumerate(drawn)}
    found = compare(first, second, {}, weights)
    assert found.weighted_agreement.value == pytest.approx(full.agreement.value, abs=0.05)
    assert found.weighted_kappa.value == pytest.approx(full.kappa.value, abs=0.12)
    assert abs(found.kappa.value - full.kappa.value) > 0.12  # without weights the sample says something else


def test_same_seed_same_interval():
    first, second = raters_of(9, 3, 2, 8)
    runs = [compare(first, second, {}, seed=seed).kappa for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_estimate_of_nothing_says_so():
    found = estimate(np.zeros((0, 4)), [], kappa, undefined="because")
    assert (found.value, found.remark) == (None, "not defined: there is no row")


def test_hostile_names_stay_text():
    first, second = raters_of(3, 1, 1, 3)
    evil = Rater(name="=1+1|<script>\n", kind="person", labels=first.labels)
    text = to_markdown(agreement_sheet([compare(evil, second, {})]))
    assert "<script>" not in text and "=1+1|" not in text.replace(r"\|", "")


def test_intervals_are_written_as_in_the_other_tables():
    assert percent_interval(Estimate(value=0.5, low=0.25, high=0.75)) == "25.0 to 75.0"
    assert percent_interval(Estimate(value=0.5)) == "–"
