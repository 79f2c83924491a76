"""Who is drawn: evenly over runs and verdicts, the same for the same seed, and weighted back to all predictions."""

import collections
import json
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.agreement.export import find_stories
from eval.agreement.sample import LETTERS, Candidate, allocate, candidates, draw, read_key, row_names, weights
from eval.runs import Judged, Prediction, RunFolder


def run_of(path, name, verdicts, shared=0):
    """Return a run; its first `shared` predictions are word for word those of every other run."""
    rows = []
    for i, verdict in enumerate(verdicts):
        texts = {"reference": f"reference {i}", "prediction": "the same" if i < shared else f"{name} {i}"}
        row = Prediction(story_id=f"s{i}", num_scenes=2, dropped_scenes=0, **texts)
        rows.append(Judged(row=row, verdict=verdict, parsed=True, answer=None, error=None))
    return RunFolder(
        path=path / name, variant=name, train_context=None, control=None, rows=tuple(rows), judge="mock", stories=None,
        skipped=0, finished=True,
    )  # fmt: skip


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 300))
def test_shares_are_as_even_as_the_sizes_allow(sizes, total):
    shares = allocate(sizes, total)
    assert sum(shares) == min(total, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    unfilled = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert not unfilled or (max(shares) - min(unfilled) <= 1)


def test_rare_verdicts_are_drawn_as_often_as_common_ones(tmp_path):
    run = run_of(tmp_path, "mllm", ["yes"] * 10 + ["no"] * 190)
    rng = random.Random(0)
    drawn = draw(candidates([run], rng), 20, rng)
    assert collections.Counter(item.verdict for item in drawn) == {"yes": 10, "no": 10}


def test_weights_add_up_to_all_predictions_of_all_runs(tmp_path):
    runs = [run_of(tmp_path, name, ["yes"] * 30 + ["no"] * 70, shared=25) for name in ("mllm", "imagechain")]
    rng = random.Random(2)
    items = candidates(runs, rng)
    assert len(items) == 200 - 25
    assert sum(weights(items, items)) == 200
    drawn = draw(items, 60, rng)
    by_verdict = collections.Counter()
    for item, weight in zip(drawn, weights(items, drawn), strict=True):
        by_verdict[item.verdict] += weight
    assert sum(by_verdict.values()) == pytest.approx(200, rel=0.15)
    assert by_verdict["yes"] == pytest.approx(60, rel=0.3)


def test_a_prediction_that_several_runs_made_is_shown_once(tmp_path):
    runs = [run_of(tmp_path, name, ["yes"] * 5, shared=5) for name in ("a", "b", "c")]
    items = candidates(runs, random.Random(0))
    assert len(items) == 5 and {item.copies for item in items} == {3}


def test_unjudged_rows_are_a_stratum(tmp_path):
    items = candidates([run_of(tmp_path, "mllm", [None, None, "yes"])], random.Random(0))
    assert {item.stratum[1] for item in items} == {"not judged", "yes"}


def test_the_order_does_not_give_the_run_or_the_verdict_away(tmp_path):
    runs = [run_of(tmp_path, name, ["yes"] * 40 + ["no"] * 40) for name in ("a", "b")]
    orders = [draw(candidates(runs, rng), 40, rng) for rng in (random.Random(5), random.Random(5), random.Random(6))]
    assert orders[0] == orders[1] != orders[2]
    changes = sum(first.stratum != second.stratum for first, second in zip(orders[0], orders[0][1:], strict=False))
    assert changes > 15


def test_row_names_are_distinct_letters():
    names = row_names(500, random.Random(0))
    assert len(set(names)) == 500 and all(len(name) == 6 and set(name) <= set(LETTERS) for name in names)


@pytest.mark.parametrize(
    "row", [{}, {"row": "a"}, {"row": "a", "run": "r", "story_id": "s", "video_name": "v", "pair_sha256": "p",
                               "texts_sha256": "t", "weight": float("inf")}]
)  # fmt: skip
def test_a_key_of_something_else_is_refused(tmp_path, row):
    path = tmp_path / "key.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"key\.jsonl, line 1: not a row"):
        read_key(path)


def candidate(i, reference="reference"):
    texts = {"reference": reference, "prediction": "text", "pair_sha256": "hash"}
    return Candidate(run="run", verdict="yes", story_id=f"s{i}", num_scenes=2, copies=1, **texts)


def test_a_story_that_is_elsewhere_is_told_from_one_that_ends_otherwise():
    stories = SimpleNamespace(ids=["s0", "s1"], texts=lambda: [["a", "It ends."], ["b", "It goes on."]])
    found, places, lost = find_stories(
        [candidate(0, reference="It  ends."), candidate(1, reference="It is over."), candidate(2)], stories, "DIR"
    )
    assert ([item.story_id for item in found], places) == (["s0"], {"s0": 0})
    assert [(row["id"], row["reason"]) for row in lost] == [
        ("s1", "its reference is 'It is over.', but the story in DIR ends with 'It goes on.'"),
        ("s2", "its story is not in DIR"),
    ]
    with pytest.raises(
        ValueError, match=r"holds none of the 1 predicted stories .*\(first s2: its story is not in DIR"
    ):
        find_stories([candidate(2)], stories, "DIR")
