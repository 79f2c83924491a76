"""The language of the story world: meanings, the sentences that say them, and the parser that reads them back.

A sentence always says by itself who does what to what and where, so that two texts are enough to compare two meanings.
Words that look back at earlier scenes ("then", "again", "the same ball") are part of the language, not of the meaning.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Wording = TypeVar("Wording")

# Person -> the piece of clothing whose colour tells persons apart.
CLOTHES = {"man": "shirt", "woman": "dress", "boy": "sweater", "girl": "skirt"}
COLOURS = ("red", "blue", "green", "yellow", "purple", "black")
OBJECTS = {"ball": (), "box": ("crate",), "drum": (), "bucket": ("pail",), "pillow": ("cushion",), "book": ()}
# Place -> how it is said, the usual wording first.
PLACES = {
    "park": ("in the park",),
    "beach": ("on the beach", "at the beach"),
    "kitchen": ("in the kitchen",),
    "street": ("on the street", "in the street"),
    "snow": ("in the snow",),
    "desert": ("in the desert",),
}


@dataclass(frozen=True, kw_only=True)
class Verb:
    """The forms of one verb; `particle` follows the verb ("up", "on"), `passive` is None where English has none."""

    base: str
    third: str
    progressive: str
    passive: str | None
    particle: str = ""


# Action -> verbs that say it, the usual one first.
ACTIONS: dict[str, tuple[Verb, ...]] = {
    "kick": (Verb(base="kick", third="kicks", progressive="kicking", passive="kicked"),),
    "lift": (
        Verb(base="hold", third="holds", progressive="holding", passive="held", particle="up"),
        Verb(base="lift", third="lifts", progressive="lifting", passive="lifted"),
    ),
    "carry": (Verb(base="carry", third="carries", progressive="carrying", passive="carried"),),
    "sit": (Verb(base="sit", third="sits", progressive="sitting", passive=None, particle="on"),),
    "jump": (
        Verb(base="jump", third="jumps", progressive="jumping", passive=None, particle="over"),
        Verb(base="leap", third="leaps", progressive="leaping", passive=None, particle="over"),
    ),
    "push": (
        Verb(base="push", third="pushes", progressive="pushing", passive="pushed"),
        Verb(base="shove", third="shoves", progressive="shoving", passive="shoved"),
    ),
}
LINKS = ("then", "next,", "after that,", "now", "later,")
RARE = 0.12  # how often a story uses another wording than the usual one


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What one sentence says: who (person and colour of the clothing), does what, to what, where."""

    person: str
    colour: str
    action: str
    object: str
    place: str

    def __post_init__(self) -> None:
        known = {
            "person": CLOTHES,
            "colour": COLOURS,
            "action": ACTIONS,
            "object": OBJECTS,
            "place": PLACES,
        }
        for slot, values in known.items():
            if getattr(self, slot) not in values:
                raise ValueError(f"{slot}: one of {', '.join(values)} was wanted, found {getattr(self, slot)!r}.")

    @property
    def actor(self) -> tuple[str, str]:
        """Person and colour together: who is meant."""
        return self.person, self.colour


def actor_phrase(person: str, colour: str) -> str:
    """Return the usual way to name an actor: "the woman in the red dress"."""
    return f"the {person} in the {colour} {CLOTHES[person]}"


def describe(meaning: Meaning, rng: random.Random, earlier: Sequence[Meaning] = ()) -> str:
    """Say a meaning in one English sentence.

    Args:
        meaning: What to say.
        rng: Chooses among the wordings.
        earlier: What the same story said before; adds "then", "again", "the same ball" where they are true.

    Returns:
        One sentence with a capital and a final period; `parse` gives the meaning back.
    """
    actor = _choose(rng, actor_forms(meaning))
    verb = _choose(rng, ACTIONS[meaning.action])
    place = _choose(rng, PLACES[meaning.place])
    noun = _choose(rng, (meaning.object, *OBJECTS[meaning.object]))
    known = any(past.object == meaning.object for past in earlier)
    thing = f"the same {noun}" if known and rng.random() < 0.5 else f"{_choose(rng, ('the', 'a'))} {noun}"
    adverb = ""
    if any((past.action, past.object) == (meaning.action, meaning.object) for past in earlier) and rng.random() < 0.5:
        adverb = " again"
    style = rng.random()
    if verb.passive and style < 0.04:
        particle = f" {verb.particle}" if verb.particle else ""
        core = f"{thing} is {verb.passive}{particle} by {actor} {place}{adverb}"
    elif style < 0.16:
        core = f"{place}, {actor} {_verb_phrase(verb, rng)} {thing}{adverb}"
    else:
        core = f"{actor} {_verb_phrase(verb, rng)} {thing} {place}{adverb}"
    if earlier and rng.random() < 0.3:
        core = f"{rng.choice(LINKS)} {core}"
    return core[0].upper() + core[1:] + "."


def actor_forms(meaning: Meaning) -> tuple[str, ...]:
    """Return the ways to name the actor of a meaning, the usual one first."""
    clothing = f"{meaning.colour} {CLOTHES[meaning.person]}"
    return (
        actor_phrase(*meaning.actor),
        f"a {meaning.person} in a {clothing}",
        f"the {meaning.person} wearing a {clothing}",
        f"the {meaning.person} in {meaning.colour}",
    )


def _choose(rng: random.Random, wordings: Sequence[Wording]) -> Wording:
    """Choose the usual (first) wording mostly, now and then another."""
    if len(wordings) > 1 and rng.random() < RARE:
        return rng.choice(wordings[1:])
    return wordings[0]


def _verb_phrase(verb: Verb, rng: random.Random) -> str:
    phrase = rng.choices((verb.third, f"is {verb.progressive}", f"starts to {verb.base}"), weights=(0.8, 0.12, 0.08))[0]
    return f"{phrase} {verb.particle}" if verb.particle else phrase


def parse(text: str) -> Meaning | None:
    """Read the meaning of a sentence of the world's language.

    Args:
        text: Any text.

    Returns:
        The meaning, or None when the text is not one sentence of the language. Case, white space, commas and the
        final period do not matter; a contradiction (a woman in a skirt) is no sentence of the language.
    """
    words = " ".join(text.replace(",", " ").lower().split()).removesuffix(".").rstrip()
    for pattern in _patterns():
        if match := pattern.fullmatch(words):
            found = {key.rstrip("12"): value for key, value in match.groupdict().items() if value is not None}
            if found.pop("clothing", CLOTHES[found["person"]]) != CLOTHES[found["person"]]:
                return None
            return Meaning(
                person=found["person"],
                colour=found["colour"],
                action=_action_of()[found["verb"]],
                object=_object_of()[found["noun"]],
                place=_place_of()[found["place"]],
            )
    return None


@functools.cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    def one_of(values: Sequence[str]) -> str:
        return "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))

    actor = (
        rf"(?:the|a) (?P<person>{one_of(tuple(CLOTHES))}) (?:in|wearing)(?: (?:the|a))? (?P<colour>{one_of(COLOURS)})"
        rf"(?: (?P<clothing>{one_of(tuple(CLOTHES.values()))}))?"
    )
    active = one_of([phrase for phrase in _action_of() if " by" not in phrase])
    passive = one_of([phrase for phrase in _action_of() if " by" in phrase])
    thing = rf"(?:the same|the|a|another) (?P<noun>{one_of(tuple(_object_of()))})"
    place = rf"(?P<place>{one_of(tuple(_place_of()))})"
    link = rf"(?:(?:{one_of([word.rstrip(',') for word in LINKS])}) )?"
    again = r"(?: again)?"
    return tuple(
        re.compile(link + pattern + again)
        for pattern in (
            rf"{actor} (?P<verb>{active}) {thing} {place}",
            rf"{place} {actor} (?P<verb>{active}) {thing}",
            rf"{thing} (?P<verb>{passive}) {actor} {place}",
        )
    )


@functools.cache
def _action_of() -> dict[str, str]:
    phrases = {}
    for action, verbs in ACTIONS.items():
        for verb in verbs:
            particle = f" {verb.particle}" if verb.particle else ""
            for form in (verb.third, f"is {verb.progressive}", f"starts to {verb.base}"):
                phrases[form + particle] = action
            if verb.passive:
                phrases[f"is {verb.passive}{particle} by"] = action
    return phrases


@functools.cache
def _object_of() -> dict[str, str]:
    return {noun: name for name, others in OBJECTS.items() for noun in (name, *others)}


@functools.cache
def _place_of() -> dict[str, str]:
    return {wording: name for name, wordings in PLACES.items() for wording in wordings}
