"""Statistics against scipy, statsmodels and simulation, and on the paper's own counts (190/999 against 175/999)."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import resampling, stats
from eval.resampling import clustered_interval
from eval.stats import wilson

np = pytest.importorskip("numpy")
COUNTS = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
PAPER = (190, 999, 175, 999)


@settings(deadline=None)
@given(
    st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_wilson_agrees_with_statsmodels(counts, confidence):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.proportion_confint(*counts, alpha=1 - confidence, method="wilson")
    assert wilson(*counts, confidence) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("k", "bounds"), [(190, (16.71, 21.57)), (175, (15.29, 20.0))])
def test_wilson_on_the_papers_overall_results(k, bounds):
    scipy_stats = pytest.importorskip("scipy.stats")
    expected = scipy_stats.binomtest(k, 999).proportion_ci(method="wilson")
    assert wilson(k, 999) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert [round(100 * bound, 2) for bound in wilson(k, 999)] == list(bounds)


def test_wilson_stays_inside_zero_and_one():
    assert wilson(0, 13)[0] == 0.0
    assert wilson(13, 13)[1] == 1.0


@pytest.mark.parametrize(("k", "n", "confidence"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_impossible_counts_are_refused(k, n, confidence):
    with pytest.raises(ValueError, match="wanted"):
        wilson(k, n, confidence)


@settings(deadline=None, max_examples=50)
@given(COUNTS, COUNTS)
def test_newcombe_agrees_with_statsmodels(first, second):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    expected = proportion.confint_proportions_2indep(*first, *second, method="newcomb", compare="diff")
    assert stats.newcombe(*first, *second) == pytest.approx(expected, abs=1e-9)


def test_the_papers_lead_over_standard_fine_tuning_is_not_shown_by_its_counts():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, high = stats.newcombe(*PAPER)
    assert (round(100 * low, 1), round(100 * high, 1)) == (-1.9, 4.9)
    assert proportion.proportions_ztest([190, 175], [999, 999])[1] == pytest.approx(0.385, abs=0.001)
    assert 100 * stats.detectable_unpaired(175 / 999, 999, 999) > 100 * (190 - 175) / 999


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_agrees_with_statsmodels(only_first, only_second):
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    expected = contingency.mcnemar([[5, only_first], [only_second, 7]], exact=True).pvalue
    assert stats.mcnemar(only_first, only_second) == pytest.approx(min(1.0, expected), rel=1e-9)


@pytest.mark.parametrize(("overlap", "p_value"), [(175, 6.1e-5), (160, 0.0357), (100, 0.2757), (33, 0.4182)])
def test_mcnemar_on_the_papers_counts_depends_on_the_stories_that_both_get_right(overlap, p_value):
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    only_first, only_second = 190 - overlap, 175 - overlap
    table = [[overlap, only_first], [only_second, 999 - overlap - only_first - only_second]]
    assert stats.mcnemar(only_first, only_second) == pytest.approx(contingency.mcnemar(table, exact=True).pvalue)
    assert stats.mcnemar(only_first, only_second) == pytest.approx(p_value, rel=0.01)


def test_mcnemar_without_discordant_stories_is_one():
    assert stats.mcnemar(0, 0) == 1.0


def paper_pairs(overlap):
    """Differences of 999 stories with the paper's counts, of which `overlap` are right in both."""
    return [1.0] * (190 - overlap) + [-1.0] * (175 - overlap) + [0.0] * (999 - 365 + 2 * overlap)


def test_an_interval_of_single_stories_agrees_with_scipys_bootstrap():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = paper_pairs(100)
    found = clustered_interval(values, range(999))
    expected = scipy_stats.bootstrap(
        (np.array(values),), np.mean, method="percentile", rng=np.random.default_rng(5), batch=500
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.0012)


def test_an_interval_of_videos_agrees_with_scipys_bootstrap_of_their_sums_and_sizes():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = paper_pairs(100)
    clusters = [i // 3 if i % 2 else i for i in range(999)]
    sums, sizes = (np.zeros(999), np.zeros(999))
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster], sizes[cluster] = sums[cluster] + value, sizes[cluster] + 1
    kept = sizes > 0
    expected = scipy_stats.bootstrap(
        (sums[kept], sizes[kept]), lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis), paired=True,
        method="percentile", rng=np.random.default_rng(5), batch=500,
    ).confidence_interval  # fmt: skip
    assert clustered_interval(values, clusters) == pytest.approx((expected.low, expected.high), abs=0.0015)


def test_stories_of_one_video_are_no_further_evidence():
    values = paper_pairs(100)
    once, copied = (
        clustered_interval(values, range(999)),
        clustered_interval(values * 4, [*range(999)] * 4),
    )
    assert copied == pytest.approx(once, abs=0.001)
    alone = clustered_interval(values * 4, range(4 * 999))
    assert alone[1] - alone[0] == pytest.approx((once[1] - once[0]) / 2, rel=0.05)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values, clusters = paper_pairs(50), [i // 2 for i in range(999)]
    assert clustered_interval(values, clusters, seed=1) == clustered_interval(values, clusters, seed=1)
    assert clustered_interval(values, clusters, seed=1) != clustered_interval(values, clusters, seed=2)


def test_draws_of_many_clusters_come_in_parts_without_changing_the_interval(monkeypatch):
    values = [float(number % 3 - 1) for number in range(100)]
    whole = clustered_interval(values, range(100))
    monkeypatch.setattr(resampling, "LARGEST_DRAW", 700)
    assert clustered_interval(values, range(100)) == whole


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], []), ([1.0], ["a", "b"])])
def test_an_interval_of_nothing_or_of_unlike_lists_is_refused(values, clusters):
    with pytest.raises(ValueError, match="wanted"):
        clustered_interval(values, clusters)


@pytest.mark.parametrize(("n", "discordant"), [(999, 165), (454, 45), (200, 60), (60, 20)])
def test_the_smallest_paired_difference_solves_connors_formula(n, discordant):
    difference, share = stats.detectable_paired(n, discordant), discordant / n
    z_alpha, z_beta = 1.959963985, 0.841621234
    needed = ((z_alpha * math.sqrt(share) + z_beta * math.sqrt(share - difference**2)) / difference) ** 2
    assert needed == pytest.approx(n, rel=1e-6)


@pytest.mark.parametrize(("n", "discordant"), [(999, 165), (454, 45), (454, 1)])
def test_mcnemar_finds_the_smallest_paired_difference_in_about_four_of_five_draws(n, discordant):
    difference = stats.detectable_paired(n, discordant)
    share = max(discordant / n, difference)
    chances = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    draws = np.random.default_rng(0).multinomial(n, chances, size=600)
    power = np.mean([stats.mcnemar(int(a), int(b)) < 0.05 for a, b, _ in draws])
    assert 0.72 < power < 0.86  # the exact test is a little less powerful than its normal approximation


def test_without_discordant_stories_about_eight_of_one_kind_are_needed():
    assert stats.detectable_paired(1000, 0) == pytest.approx(7.85 / 1000, rel=0.001)
    assert stats.detectable_paired(3, 0) == 1.0


def test_the_smallest_unpaired_difference_agrees_with_statsmodels():
    power = pytest.importorskip("statsmodels.stats.power")
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    difference = stats.detectable_unpaired(175 / 999, 999, 454)
    effect = proportion.proportion_effectsize(175 / 999 + difference, 175 / 999)
    found = power.NormalIndPower().solve_power(effect, nobs1=999, alpha=0.05, ratio=454 / 999)
    assert found == pytest.approx(0.8, abs=1e-4)
    assert stats.detectable_unpaired(0.9, 5, 5) == pytest.approx(0.1)  # no rate is above one


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]), ([0.6, 0.7], [1.0, 1.0]), ([0.02], [0.02]), ([], [])],
)
def test_holm_multiplies_by_the_number_of_tests_left_and_never_decreases(p_values, adjusted):
    assert stats.holm(p_values) == pytest.approx(adjusted)


def test_seeds_are_reported_as_mean_and_range():
    assert stats.mean_and_range([17.0, 20.0, 17.0]) == (18.0, 17.0, 20.0)
