"""Controls: stories spoilt on purpose. A model that reads what it claims to read must get worse with them.

- `blank_images`: every frame is the flat mean colour; texts stay.
- `other_text`: the earlier scenes keep their frames and get the descriptions of another story with as many scenes, from
  another video; the last scene and the reference stay.
- `shuffled_scenes`: the earlier scenes, frames and texts together, stand in another order; the last scene stays last.
  A story with fewer than two earlier scenes has no other order and stays as it is.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from llava.imagechain.config import ConfigError
from llava.imagechain.story import Story
from llava.imagechain.variants import Variant

CONTROLS = ("none", "blank_images", "other_text", "shuffled_scenes")
Edit = Callable[[Story], Story]


def check_control(control: str, variant: Variant) -> None:
    """Refuse a control that cannot change what a variant shows.

    Raises:
        ConfigError: The variant shows no earlier text, or no earlier scene at all.
    """
    shown = ("image", "description") if variant.scene_turns else variant.earlier_parts
    if (control == "other_text" and "description" not in shown) or (control == "shuffled_scenes" and not shown):
        raise ConfigError(
            f"control {control} changes nothing for {variant.title}: it shows no earlier text of that kind"
        )


def edit_of(control: str, stories: Sequence[Story], seed: int) -> Edit:
    """Return what a control does to a story.

    Args:
        control: One of `CONTROLS`; "none" and "blank_images" leave the scenes as they are.
        stories: Where other stories' texts come from (their frames are not needed).
        seed: Chooses orders and donors, the same ones for a story in every run.
    """
    if control == "shuffled_scenes":
        return lambda story: shuffle_earlier(story, seed)
    if control == "other_text":
        donors: dict[int, list[Story]] = {}
        for story in stories:
            donors.setdefault(story.num_scenes, []).append(story)
        return lambda story: borrow_earlier_text(story, donors.get(story.num_scenes, []), seed)
    return lambda story: story


def shuffle_earlier(story: Story, seed: int) -> Story:
    """Return the story with its earlier scenes in another order, where there is one."""
    *earlier, last = story.scenes
    if len(earlier) < 2:
        return story
    generator = random.Random(f"{seed}:{story.story_id}")
    order = list(range(len(earlier)))
    while order == sorted(order):
        generator.shuffle(order)
    return dataclasses.replace(story, scenes=(*(earlier[number] for number in order), last))


def borrow_earlier_text(story: Story, donors: Sequence[Story], seed: int) -> Story:
    """Return the story with the earlier descriptions of another story.

    Args:
        story: The story.
        donors: Stories with as many scenes.
        seed: Chooses the donor.

    Raises:
        ValueError: No donor comes from another video.
    """
    others = [donor for donor in donors if donor.video_name != story.video_name]
    if story.num_scenes > 1 and not others:
        raise ValueError(f"no story of {story.num_scenes} scenes from another video to borrow text from")
    if not others:
        return story
    donor = random.Random(f"{seed}:{story.story_id}").choice(others)
    borrowed = [
        dataclasses.replace(scene, description=other.description)
        for scene, other in zip(story.scenes[:-1], donor.scenes[:-1], strict=True)
    ]
    return dataclasses.replace(story, scenes=(*borrowed, story.scenes[-1]))
