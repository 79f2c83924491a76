"""Which part of a split a process predicts, and on which of a machine's GPUs; known without loading torch.

A split is cut by video, so that stories which share frames and prompt starts stay together, and by the number of
scenes, so that all parts take about as long. The cut depends on the split alone: a limit does not move a story.
"""

from __future__ import annotations

import dataclasses
import heapq
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.imagechain.config import ConfigError
from llava.imagechain.story import StoryFrames

SHARDS = "shards"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `number` (from 0) of `of`."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}-of-{self.of}"

    def folder(self, output_dir: Path) -> Path:
        """Return this part's folder in a run folder."""
        return output_dir / SHARDS / str(self)


def find_shard(num_shards: int | None, shard: int | None, environment: Mapping[str, str]) -> Shard | None:
    """Return the part that is this process's; None when it does the whole.

    Args:
        num_shards: What the user asked for; None takes the launcher's number of processes.
        shard: The user's choice; None takes the process's number.
        environment: torchrun sets RANK and WORLD_SIZE, a step of srun SLURM_PROCID and SLURM_STEP_NUM_TASKS.

    Raises:
        ConfigError: The numbers do not fit together.
    """
    launched = _launched(environment)
    if num_shards is None:
        if shard is not None:
            raise ConfigError(f"shard: {shard} of how many? Give --num-shards, too")
        return launched
    if shard is None:
        if num_shards == 1:
            return None
        if launched is None or launched.of != num_shards:
            found = f"the launcher started {launched.of} processes" if launched else "no launcher numbers this process"
            raise ConfigError(f"num_shards: which of the {num_shards} is this? Give --shard ({found})")
        shard = launched.number
    if not 0 <= shard < num_shards:
        raise ConfigError(f"shard: 0 to {num_shards - 1} was wanted, found {shard}")
    return Shard(number=shard, of=num_shards)


def _launched(environment: Mapping[str, str]) -> Shard | None:
    """Return the process's number among those of torchrun, or of a step of srun."""
    for number, of in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if environment.get(number, "").isdigit() and environment.get(of, "").isdigit() and int(environment[of]) > 1:
            return Shard(number=int(environment[number]), of=int(environment[of]))
    return None


def own_gpus(environment: Mapping[str, str], per_process: int, installed: int | None = None) -> str | None:
    """Return the value of CUDA_VISIBLE_DEVICES for one of several processes on a machine; None leaves it as it is.

    Args:
        environment: LOCAL_RANK (torchrun) or SLURM_LOCALID (srun) is the process's number on its machine.
        per_process: GPUs that it needs.
        installed: GPUs of the machine; by default counted in /dev.

    Raises:
        ConfigError: There are fewer GPUs than the processes need.
    """
    local = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", ""))
    if installed is None:
        installed = sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in Path("/dev").glob("nvidia*"))
    if not local.isdigit() or _launched(environment) is None or not installed:
        return None
    given = environment.get("CUDA_VISIBLE_DEVICES")
    visible = (
        [str(number) for number in range(installed)] if given is None else [name for name in given.split(",") if name]
    )
    if given is not None and len(visible) <= per_process:
        return None  # the launcher has bound them already
    own = visible[int(local) * per_process : (int(local) + 1) * per_process]
    if len(own) < per_process:
        raise ConfigError(
            f"process {local} of this machine needs {per_process} GPU(s) of its own, but {len(visible)} are visible "
            "to all together; start fewer processes"
        )
    return ",".join(own)


def shard_of_rows(videos: Sequence[str], num_scenes: Sequence[int], of: int) -> list[int]:
    """Return the part of each story: whole videos, those with the most scenes first, to the part with the least."""
    scenes: dict[str, int] = {}
    for video, count in zip(videos, num_scenes, strict=True):
        scenes[video] = scenes.get(video, 0) + count
    loads = [(0, number) for number in range(of)]
    part: dict[str, int] = {}
    for video in sorted(scenes, key=lambda name: (-scenes[name], name)):
        load, number = heapq.heappop(loads)
        part[video] = number
        heapq.heappush(loads, (load + scenes[video], number))
    return [part[video] for video in videos]


def select_shard(stories: StoryFrames, shard: Shard | None, limit: int | None) -> StoryFrames:
    """Return the first `limit` stories of a split, or those of them that are one part's."""
    rows = range(len(stories) if limit is None else min(limit, len(stories)))
    if shard is None:
        return stories.select(rows)
    parts = shard_of_rows(list(stories.table["video_name"]), stories.num_scenes, shard.of)
    return stories.select([row for row in rows if parts[row] == shard.number])


def shard_folders(output_dir: Path) -> dict[Shard, Path]:
    """Return the parts that a run folder holds; anything else in its shards folder is passed over."""
    found = {}
    for folder in sorted((output_dir / SHARDS).glob("*-of-*")):
        number, _, of = folder.name.partition("-of-")
        if folder.is_dir() and number.isdigit() and of.isdigit() and int(number) < int(of):
            found[Shard(number=int(number), of=int(of))] = folder
    return found
