"""Compare two keyword lists: as the benchmark's notebook does it, with all its quirks, and as it should be counted."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Sequence

from eval.mementos.graphs import Graph

MODES = ("upstream", "strict")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Recall, precision and F1 of one sample, fractions."""

    recall: float
    precision: float
    f1: float


def score(mode: str, kind: str, reference: Sequence[str], prediction: Sequence[str], graph: Graph) -> Score:
    """Compare a model's words with a person's.

    Args:
        mode: "upstream" or "strict".
        kind: "object" or "action"; only actions are matched two at a time.
        reference: The person's list as it was cut at its commas, so that [] is one empty item.
        prediction: The model's list.
        graph: Synonyms; for "strict" as `normal` gives them.
    """
    if mode == "strict":
        return strict(reference, prediction, graph, pairs=kind == "action")
    rewritten = rewrite(reference, prediction, graph, pairs=kind == "action")
    return compare_sets(set(reference), set(rewritten))


def compare_sets(reference: set[str], prediction: set[Hashable]) -> Score:
    """Return the notebook's formula: each part is 0 where its denominator is 0."""
    return _score(len(reference & prediction), len(prediction - reference), len(reference - prediction))


def _score(hits: int, extra: int, missed: int) -> Score:
    recall = hits / (hits + missed) if hits + missed else 0.0
    precision = hits / (hits + extra) if hits + extra else 0.0
    both = recall + precision
    return Score(recall=recall, precision=precision, f1=2 * precision * recall / both if both else 0.0)


def is_synonym(graph: Graph, item: str, following: str, word: str) -> bool:
    """Return whether an item (with the item after it, or "") has an edge to a word: one hop, in this direction only."""
    return word in graph.get(item, {}).get(following, ())


# --- upstream ---------------------------------------------------------------------------------------------------------


def rewrite(reference: Sequence[str], prediction: Sequence[str], graph: Graph, *, pairs: bool) -> list[Hashable]:
    """Rewrite a prediction in the reference's words exactly as the notebook does.

    Item by item, the first remaining reference word with an edge is written and used up, even where the item itself
    stands later in the reference. As soon as the reference is used up, everything left becomes ONE item that equals
    nothing (the notebook appends a generator object by mistake).
    """
    remaining = list(reference)
    result: list[Hashable] = []
    at = 0
    while at < len(prediction) and remaining:
        for word in remaining:
            if is_synonym(graph, prediction[at], "", word):
                step = 1
            elif pairs and at + 1 < len(prediction) and is_synonym(graph, prediction[at], prediction[at + 1], word):
                step = 2
            else:
                continue
            result.append(word)
            remaining.remove(word)
            at += step
            break
        else:
            result.append(prediction[at])
            at += 1
    if at < len(prediction):
        result.append(object())
    return result


# --- strict -----------------------------------------------------------------------------------------------------------


def strict(reference: Sequence[str], prediction: Sequence[str], graph: Graph, *, pairs: bool) -> Score:
    """Count right: every wrong word costs one, a word that is there counts first, an empty list is empty.

    Words are compared without regard to case and white space. What is left after equal words are taken is matched
    through the graph so that most reference words are found; then two neighbours that matched nothing may do it
    together. A word that only repeats or is a synonym of a word of the reference is no error. Two empty lists agree.

    Args:
        reference: The person's list.
        prediction: The model's list.
        graph: From `normal`.
        pairs: Match two neighbours as well.
    """
    wanted = list(dict.fromkeys(_words(reference)))
    said = list(dict.fromkeys(_words(prediction)))
    if not wanted and not said:
        return Score(recall=1.0, precision=1.0, f1=1.0)
    found = {word: word for word in wanted if word in said}  # reference word -> item of the prediction
    related = {item: [word for word in wanted if word == item or is_synonym(graph, item, "", word)] for item in said}
    for item in said:
        if item not in found:
            _match(item, related, found, set())
    excused = {item for item in said if related[item]}
    if pairs:
        for first, second in itertools.pairwise(said):
            if not {first, second} & excused:
                for word in wanted:
                    if is_synonym(graph, first, second, word):
                        found.setdefault(word, first)
                        excused |= {first, second}
                        break
    return _score(len(found), len(said) - len(excused), len(wanted) - len(found))


def _match(item: str, related: dict[str, list[str]], found: dict[str, str], tried: set[str]) -> bool:
    """Give an item a reference word, moving earlier matches where that helps (augmenting path); equal words stay."""
    for word in related[item]:
        holder = found.get(word)
        if word in tried or holder == word:
            continue
        tried.add(word)
        if holder is None or _match(holder, related, found, tried):
            found[word] = item
            return True
    return False


def _words(items: Sequence[str]) -> list[str]:
    return [word for item in items if (word := _one(item))]


def _one(item: str) -> str:
    return " ".join(item.casefold().split())


def normal(graph: Graph) -> Graph:
    """Return a graph without regard to case and white space."""
    normal: Graph = {}
    for item, following in graph.items():
        for then, words in following.items():
            normal.setdefault(_one(item), {}).setdefault(_one(then), []).extend(map(_one, words))
    return normal
