"""Wilson's interval against statsmodels, and on the paper's own counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.stats import wilson


@settings(deadline=None)
@given(
    st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_wilson_agrees_with_statsmodels(counts, confidence):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(*counts, alpha=1 - confidence, method="wilson")
    assert wilson(*counts, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_on_the_papers_overall_result():
    low, high = wilson(190, 999)
    assert (round(100 * low, 2), round(100 * high, 2)) == (16.71, 21.57)


def test_wilson_stays_inside_zero_and_one():
    assert wilson(0, 13)[0] == 0.0
    assert wilson(13, 13)[1] == 1.0


@pytest.mark.parametrize(("k", "n", "confidence"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_impossible_counts_are_refused(k, n, confidence):
    with pytest.raises(ValueError, match="wanted"):
        wilson(k, n, confidence)
