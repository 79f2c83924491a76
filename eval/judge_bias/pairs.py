"""Pairs of texts that a judge must say No to, and pairs that it must say Yes to.

In the story world every meaning is known, so that paraphrases and changed meanings are exact. On other data only stated
rules are used; a text that a rule does not fit makes no pair, and is counted.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.judge.world import grammar
from eval.judge.world.grammar import Meaning
from llava.imagechain.story import StoryFrames, clean_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """The last scene of a story as text, and when it happens."""

    story_id: str
    video_name: str
    num_scenes: int
    text: str
    start_s: float
    end_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to make a pair; `make` returns the second text, or None with the reason."""

    title: str
    expected: str
    make: Callable[[Told, Context, random.Random], tuple[str | None, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What the makers draw from."""

    told: Sequence[Told]
    by_video: Mapping[str, Sequence[Told]]
    paraphrases: Mapping[str, str]  # reference -> paraphrase, from a file or a server


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A reference and what stands in a prediction's place."""

    kind: str
    told: Told
    prediction: str

    def to_row(self) -> dict[str, Any]:
        """Return the row in the form of predictions.jsonl."""
        return {
            "id": f"{self.kind}/{self.told.story_id}",
            "variant": "judge_bias",
            "train_context": None,
            "num_scenes": self.told.num_scenes,
            "video_name": self.told.video_name,
            "prediction": self.prediction,
            "reference": self.told.text,
            "dropped_scenes": 0,
            "control": None,
            "kind": self.kind,
        }


def told_of(stories: StoryFrames) -> list[Told]:
    """Return the last scene of every story, without reading any frame."""
    columns = stories.table.select_columns(["video_name", "start_times", "end_times"])
    rows = zip(stories.ids, stories.num_scenes, stories.texts(), columns, strict=True)
    return [
        Told(
            story_id=story_id,
            video_name=row["video_name"],
            num_scenes=count,
            text=texts[-1],
            start_s=row["start_times"][-1],
            end_s=row["end_times"][-1],
        )
        for story_id, count, texts, row in rows
        if texts and texts[-1]
    ]


def same_words(first: str, second: str) -> bool:
    """Say whether two texts differ in case, punctuation and white space only."""
    return re.findall(r"\w+", first.casefold()) == re.findall(r"\w+", second.casefold())


def differs(first: str, second: str) -> bool:
    """Say whether two texts mean different things: by the world's grammar where both are its, else by their words.

    By their words: at most half of the longer words of the text that has fewer (four letters or more, compared by the
    first four) are in the other.
    """
    meanings = grammar.parse(first), grammar.parse(second)
    if None not in meanings:
        return meanings[0] != meanings[1]
    stems = [{word[:4] for word in re.findall(r"\w{4,}", text.casefold())} for text in (first, second)]
    fewest = min(map(len, stems))
    return not same_words(first, second) and 2 * len(stems[0] & stems[1]) <= fewest


def the_same(told: Told, context: Context, rng: random.Random) -> tuple[str | None, str]:
    """Return the reference itself."""
    return told.text, ""


def paraphrase(told: Told, context: Context, rng: random.Random) -> tuple[str | None, str]:
    """Say the same in other words: by the world's grammar, else as given."""
    if meaning := grammar.parse(told.text):
        words = Counter(re.findall(r"\w+", told.text.casefold()))
        drawn = [grammar.describe(meaning, rng) for _ in range(24)]
        best = max(drawn, key=lambda text: (Counter(re.findall(r"\w+", text.casefold())) - words).total())
        return (best, "") if not same_words(best, told.text) else (None, "no other wording was drawn")
    given = context.paraphrases.get(told.text)
    if given is None:
        return None, "no paraphrase is given"
    return (None, "its paraphrase has the same words") if same_words(given, told.text) else (given, "")


def other_story(told: Told, context: Context, rng: random.Random) -> tuple[str | None, str]:
    """Return the last scene of a story of another video."""
    for other in rng.sample(context.told, min(20, len(context.told))):
        if other.video_name != told.video_name and differs(other.text, told.text):
            return other.text, ""
    return None, "no story of another video says something else"


def other_actor(told: Told, context: Context, rng: random.Random) -> tuple[str | None, str]:
    """Return what another story of the same video says about the same time: StoryBench has one story for each actor.

    Outside the world such a pair need not be a No: one happening can be told from two sides ("the ring hits the lamp",
    "the woman breaks the lamp").
    """
    overlaps = [
        (min(told.end_s, other.end_s) - max(told.start_s, other.start_s), other.text)
        for other in context.by_video[told.video_name]
        if other.story_id != told.story_id and differs(other.text, told.text)
    ]
    longest = max(overlaps, default=(0.0, ""))
    return (
        (longest[1], "")
        if longest[0] > 0
        else (None, "no other actor of the video is described differently at that time")
    )


AUXILIARY = re.compile(r"\b(is|are|was|were|has been|have been|can|will)\b(?!\s+not\b)", re.IGNORECASE)
ANY_AUXILIARY = re.compile(r"\b(is|are|was|were|am|be|been|has|have|had|can|could|will|would|do|does|did)\b", re.I)
NEGATION = re.compile(r"\b(not|no|never|nobody|nothing|none|neither|nor|without|cannot|\w+n['’]t)\b", re.IGNORECASE)
# These open another clause, which the negation would leave as it was (or negate in place of what the sentence says).
CLAUSE = re.compile(
    r"\b(who|whom|whose|which|that|where|while|when|as|if|because|after|before|and|but|then|again|still|also|only)\b"
    r"|[,;]",
    re.IGNORECASE,
)


def negate(text: str) -> str | None:
    """Put "not" behind the one auxiliary verb of a sentence: "The man is running." -> "The man is not running."

    Returns:
        None where the rule does not fit: no auxiliary verb or several, a negation, a word or mark that joins clauses.
    """
    found = list(AUXILIARY.finditer(text))
    others = ANY_AUXILIARY.findall(text)
    if len(found) != 1 or len(others) != len(found[0][1].split()) or NEGATION.search(text) or CLAUSE.search(text):
        return None
    verb = found[0]
    if not text[: verb.start()].strip():
        return None
    first_word = verb.start(1) + len(verb[1].split()[0])
    return f"{text[:first_word]} not{text[first_word:]}" if text[verb.end() :].strip(" .") else None


def negated(told: Told, context: Context, rng: random.Random) -> tuple[str | None, str]:
    """Return the negated reference."""
    text = negate(told.text)
    return text, "" if text else "the rule for negation does not fit (one clause with one auxiliary verb)"


SLOTS: dict[str, Sequence[str]] = {
    "person": tuple(grammar.CLOTHES),
    "colour": grammar.COLOURS,
    "action": tuple(grammar.ACTIONS),
    "object": tuple(grammar.OBJECTS),
    "place": tuple(grammar.PLACES),
}


def _wrong(slot: str) -> Callable[[Told, Context, random.Random], tuple[str | None, str]]:
    def make(told: Told, context: Context, rng: random.Random) -> tuple[str | None, str]:
        meaning = grammar.parse(told.text)
        if meaning is None:
            return None, "not a sentence of the story world"
        other = rng.choice([value for value in SLOTS[slot] if value != getattr(meaning, slot)])
        changed: Meaning = dataclasses.replace(meaning, **{slot: other})
        return grammar.describe(changed, rng), ""

    return make


KINDS: dict[str, Kind] = {
    "same": Kind(title="the reference itself", expected="yes", make=the_same),
    "paraphrase": Kind(title="paraphrase", expected="yes", make=paraphrase),
    "other_story": Kind(title="text of another story", expected="no", make=other_story),
    "other_actor": Kind(title="other actor of the same video", expected="no", make=other_actor),
    "negated": Kind(title="negated", expected="no", make=negated),
}
WORLD_KINDS: dict[str, Kind] = {
    f"wrong_{slot}": Kind(title=f"wrong {slot}, the rest right", expected="no", make=_wrong(slot)) for slot in SLOTS
}


def make_pairs(
    told: Sequence[Told], *, num: int, seed: int, paraphrases: Mapping[str, str]
) -> tuple[list[Pair], list[dict[str, Any]]]:
    """Make up to `num` pairs of each kind; which stories are used is drawn anew for each kind.

    Args:
        told: The last scenes of all stories.
        num: Pairs of each kind.
        seed: Source of chance.
        paraphrases: Paraphrases of references that are not the world's.

    Returns:
        The pairs, and the stories that made none, as {"id", "kind", "reason"}.
    """
    by_video: dict[str, list[Told]] = {}
    for one in told:
        by_video.setdefault(one.video_name, []).append(one)
    context = Context(told=told, by_video=by_video, paraphrases=paraphrases)
    in_world = all(grammar.parse(one.text) for one in told)
    pairs: list[Pair] = []
    skipped: list[dict[str, Any]] = []
    for name, kind in (KINDS | WORLD_KINDS if in_world else KINDS).items():
        made = 0
        for one in shuffled(told, seed, name):
            if made == num:
                break
            prediction, reason = kind.make(one, context, random.Random(f"{seed} {name} {one.story_id}"))
            if prediction is None:
                skipped.append({"id": one.story_id, "kind": name, "reason": reason})
            else:
                pairs.append(Pair(kind=name, told=one, prediction=prediction))
                made += 1
    return pairs, skipped


def shuffled(told: Sequence[Told], seed: int, kind: str) -> list[Told]:
    """Return the stories in the order in which a kind uses them."""
    return random.Random(f"{seed} {kind}").sample(list(told), len(told))


def to_paraphrase(told: Sequence[Told], num: int, seed: int) -> list[str]:
    """Return the references that a server should paraphrase: those that the kind would use, without the world's."""
    wanted = [one.text for one in shuffled(told, seed, "paraphrase") if grammar.parse(one.text) is None]
    return [clean_text(text) for text in dict.fromkeys(wanted)][:num]
