"""What happens in each video of the story world: two people, the scenes of both, when and where; all from a seed.

Every scene shows both people, each doing something else, so the last picture alone cannot say whose story is told.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from eval.judge.world.grammar import ACTIONS, CLOTHES, COLOURS, OBJECTS, PLACES, Meaning, describe
from stories.world.draw import Figure

TICKS_PER_SECOND = 8  # StoryBench's times are eighths of a second
NUM_SCENES_WEIGHTS = {1: 3, 2: 27, 3: 24, 4: 18, 5: 13, 6: 8, 7: 4, 8: 2, 9: 1}
# Total seconds of a story -> weight. All five frame budgets of the paper, and their bounds met exactly.
DURATIONS_S: tuple[tuple[float, float, float], ...] = (
    (2.0, 4.875, 14), (5.0, 5.0, 6), (5.125, 9.875, 40), (10.0, 10.0, 14), (10.125, 14.875, 11),
    (15.0, 15.0, 2), (15.125, 29.875, 9), (30.0, 30.0, 1), (30.125, 36.0, 3),
)  # fmt: skip
MIN_SCENE_TICKS = 4
ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class PlannedScene:
    """One scene of a video, the same segment for both people."""

    start_tick: int
    end_tick: int
    figures: tuple[Figure, Figure]  # in the order of the video's actors

    @property
    def place(self) -> str:
        """Where the scene plays."""
        return self.figures[0].meaning.place


@dataclass(frozen=True, kw_only=True)
class PlannedVideo:
    """One video and the two stories in it."""

    number: int
    name: str
    split: str  # "valid" or "test"
    scenes: tuple[PlannedScene, ...]
    texts: tuple[tuple[str, ...], tuple[str, ...]]  # per actor, per scene
    plain_texts: tuple[tuple[str, ...], tuple[str, ...]]  # the same without looking back

    def meanings(self, actor: int) -> list[Meaning]:
        """Return what one of the two people does, scene by scene."""
        return [scene.figures[actor].meaning for scene in self.scenes]

    def story_id(self, actor: int) -> str:
        """Return the annotation's id (StoryBench's `question_info`)."""
        return f"world_{self.split}_{self.number}_{actor}"

    def annotation(self, actor: int) -> dict[str, Any]:
        """Return the row of StoryBench's raw format for one of the two people."""
        return {
            "video_name": self.name,
            "question_info": self.story_id(actor),
            "background_description": f"In the background, there is {BACKGROUNDS[self.scenes[0].place]}.",
            "sentence_parts": list(self.texts[actor]),
            "start_times": [scene.start_tick / TICKS_PER_SECOND for scene in self.scenes],
            "end_times": [scene.end_tick / TICKS_PER_SECOND for scene in self.scenes],
            "num_actors_in_video": 2,
            "caption": " ".join(self.texts[actor]),
            "sentence_parts_nocontext": list(self.plain_texts[actor]),
        }


BACKGROUNDS = {
    "park": "green grass with three trees",
    "beach": "the blue sea under a yellow sun",
    "kitchen": "a tiled floor and a row of cupboards",
    "street": "a road in front of coloured houses",
    "snow": "a row of white mountains",
    "desert": "brown sand with a cactus",
}


def plan_video(number: int, seed: int) -> PlannedVideo:
    """Plan one video; the same number and seed always give the same plan, whatever the other videos are."""
    rng = random.Random(f"world {seed} {number}")
    people = rng.sample(sorted(CLOTHES), 2)
    colours = rng.sample(COLOURS, 2)
    actors = tuple(zip(people, colours, strict=True))
    num_scenes = rng.choices(list(NUM_SCENES_WEIGHTS), weights=list(NUM_SCENES_WEIGHTS.values()))[0]
    scenes: list[PlannedScene] = []
    for start, end in _segments(num_scenes, rng):
        figures = plan_figures(actors, rng, scenes[-1].figures if scenes else None)
        scenes.append(PlannedScene(start_tick=start, end_tick=end, figures=figures))
    texts, plain_texts = [], []
    for actor in range(2):
        meanings = [scene.figures[actor].meaning for scene in scenes]
        texts.append(tuple(describe(meaning, rng, meanings[:index]) for index, meaning in enumerate(meanings)))
        plain_texts.append(tuple(describe(meaning, rng) for meaning in meanings))
    return PlannedVideo(
        number=number,
        name=_video_name(number, people[0], scenes[0].place),
        split="valid" if number % 2 == 0 else "test",
        scenes=tuple(scenes),
        texts=(texts[0], texts[1]),
        plain_texts=(plain_texts[0], plain_texts[1]),
    )


def plan_figures(
    actors: tuple[tuple[str, str], ...], rng: random.Random, previous: tuple[Figure, Figure] | None = None
) -> tuple[Figure, Figure]:
    """Choose what two people do in one scene, with different actions and objects, in one place.

    Args:
        actors: Person and colour of each.
        rng: Source of chance.
        previous: The scene before; people like to stay where they are and to keep their object.
    """
    place = previous[0].meaning.place if previous and rng.random() < 0.5 else rng.choice(sorted(PLACES))
    actions = rng.sample(sorted(ACTIONS), 2)
    objects = rng.sample(sorted(OBJECTS), 2)
    if previous and rng.random() < 0.4:
        keeper = rng.randrange(2)
        objects[keeper] = previous[keeper].meaning.object
        if objects[0] == objects[1]:
            objects[1 - keeper] = rng.choice(sorted(set(OBJECTS) - {objects[keeper]}))
    sides = [0.26, 0.74] if rng.random() < 0.5 else [0.74, 0.26]
    figures = [
        Figure(
            meaning=Meaning(person=person, colour=colour, action=actions[i], object=objects[i], place=place),
            x=sides[i] + rng.uniform(-0.03, 0.03),
            facing=rng.choice((-1, 1)),
        )
        for i, (person, colour) in enumerate(actors)
    ]
    return figures[0], figures[1]


def _segments(num_scenes: int, rng: random.Random) -> list[tuple[int, int]]:
    """Return start and end ticks: mostly touching, some small gaps, now and then a first scene that starts late."""
    for _ in range(ATTEMPTS):
        low, high, _weight = rng.choices(DURATIONS_S, weights=[weight for *_, weight in DURATIONS_S])[0]
        total = round(rng.uniform(low, high) * TICKS_PER_SECOND)
        if total >= num_scenes * MIN_SCENE_TICKS:
            break
    else:
        total = num_scenes * MIN_SCENE_TICKS
    shares = [rng.uniform(0.6, 1.6) for _ in range(num_scenes)]
    spare = total - num_scenes * MIN_SCENE_TICKS
    lengths = [MIN_SCENE_TICKS + int(spare * share / sum(shares)) for share in shares]
    lengths[0] += total - sum(lengths)
    if num_scenes > 1 and rng.random() < 0.02:  # StoryBench's shortest scenes: a quarter of a second, never the first
        lengths[0] += lengths[-1] - 2
        lengths[-1] = 2
    tick = rng.randint(1, 24) if rng.random() < 0.17 else 0
    segments = []
    for length in lengths:
        segments.append((tick, tick + length))
        tick += length + (rng.randint(1, 4) if rng.random() < 0.06 else 0)
    return segments


def _video_name(number: int, person: str, place: str) -> str:
    """Return a name without extension; StoryBench's are full of spaces, apostrophes, leading dashes and final dots."""
    styles = {
        0: f"a {person} at the {place} {number:05d}",
        3: f"-{place}{number:05d}",
        6: f"the {person}'s day {number:05d}",
        8: f"{place}_{number:05d}.",
    }
    return styles.get(number % 10, f"{place}_{number:05d}")
