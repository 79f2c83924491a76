"""Keywords of the story world's sentences, by its grammar: what a language model extracts from the real benchmark."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.judge.world.grammar import ACTIONS, OBJECTS, Verb, parse


def extract(text: str) -> tuple[list[str], list[str]]:
    """Return the object and action words of a text, each once, in order.

    Objects are the people and the things, actions the base forms with their particle ("hold up"). The words are those
    of the text: synonyms stay different. A sentence that is not of the world's language has no words.
    """
    objects: dict[str, None] = {}
    actions: dict[str, None] = {}
    for sentence in re.split(r"[.!?]+", text):
        if meaning := parse(sentence):
            words = set(sentence.lower().replace(",", " ").split())
            nouns = (noun for noun in OBJECTS[meaning.object] if noun in words)
            verbs = (verb for verb in ACTIONS[meaning.action] if words & forms(verb))
            objects |= {meaning.person: None, next(nouns, meaning.object): None}
            actions[base_form(next(verbs, ACTIONS[meaning.action][0]))] = None
    return list(objects), list(actions)


def forms(verb: Verb) -> set[str]:
    """Return the forms that a verb has in a sentence."""
    return {form for form in (verb.base, verb.third, verb.progressive, verb.passive) if form}


def base_form(verb: Verb) -> str:
    """Return the base form with its particle."""
    return f"{verb.base} {verb.particle}".strip()


def synonyms() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Return the world's synonym graphs ("object", "action") in the benchmark's form: each word to all of its group."""
    groups = {
        "object": [(name, *others) for name, others in OBJECTS.items()],
        "action": [tuple(map(base_form, verbs)) for verbs in ACTIONS.values()],
    }
    return {kind: {word: {"": list(group)} for group in found for word in group} for kind, found in groups.items()}


def answer(reference: str, prediction: str) -> str:
    """Return the four lists as a language model is asked to write them."""
    return "\n".join(
        line for number, text in enumerate((reference, prediction), start=1) for line in _lines(number, *extract(text))
    )


def _lines(number: int, objects: Sequence[str], actions: Sequence[str]) -> tuple[str, str]:
    return f"Object list {number}: [{', '.join(objects)}]", f"Action list {number}: [{', '.join(actions)}]"
