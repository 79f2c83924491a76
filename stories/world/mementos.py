"""Make data in the Mementos benchmark's format from the story world: Table 3 without the benchmark, exactly scored.

    python -m stories.world.mementos --world runs/world --output-dir runs/mementos --num-samples 100

Writes composites/*.png, frames/ID/N.png, the three CSVs with their own column names, the synonym graphs as JSON and
run.json. The sequences are videos that the world planned but never rendered: no training has seen them. A description
says what both people of the pictures do, scene by scene.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from eval.mementos.data import DOMAINS
from eval.mementos.world_words import synonyms
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.files import atomic_path, read_json, write_json, write_text
from llava.imagechain.manifest import run_manifest
from stories.world.plan import PlannedVideo, plan_video

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger("stories.world.mementos")
SETTINGS_FILE = "mementos.json"
# Domain -> numbers of scenes, frames of each scene. The world has no comics and no robots: its three parts differ in
# length and in frames per scene, as the benchmark's do.
PARTS = {"comics": (range(3, 4), 1), "dailylife": (range(4, 7), 2), "robotics": (range(2, 3), 3)}
COLUMNS = 4  # frames in a row of a composite
GAP = 4  # pixels between frames


@dataclass(frozen=True, kw_only=True)
class MementosWorldConfig:
    """Settings of `python -m stories.world.mementos`."""

    world: Path = option(help="folder made by stories.world.make")
    output_dir: Path = option(help="folder for pictures, CSVs and graphs")
    num_samples: int = option(100, help="sequences of each of the three domains", minimum=1)
    frame_size: int = option(128, help="width and height of a frame, pixels", minimum=32)
    resume: bool = option(True, help="keep the pictures that are already there")
    overwrite: bool = option(False, help="draw everything again")
    dry_run: bool = option(False, help="print what would be made and stop")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A sequence to be drawn."""

    sample_id: str
    video: PlannedVideo
    frames_per_scene: int

    @property
    def description(self) -> str:
        """What both people do, scene by scene."""
        return " ".join(text for scene in zip(*self.video.texts, strict=True) for text in scene)

    def frames(self, size: int) -> list[Image.Image]:
        """Draw the frames, evenly spaced in each scene's repeating movement."""
        from stories.world.draw import draw_frame

        phases = [(number + 0.5) / self.frames_per_scene for number in range(self.frames_per_scene)]
        return [draw_frame(scene.place, scene.figures, phase, size) for scene in self.video.scenes for phase in phases]


def plan(world: Path, num_samples: int) -> dict[str, list[Planned]]:
    """Plan the sequences of each domain from videos after the world's last one.

    Raises:
        ConfigError: There is no world.
    """
    settings = world / "world.json"
    found = read_json(settings) if settings.is_file() else None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), int) for name in ("num_videos", "seed")):
        raise ConfigError(f"world: a folder made by stories.world.make was wanted (no usable world.json in {world})")
    parts: dict[str, list[Planned]] = {name: [] for name in PARTS}
    for video in _videos(found["num_videos"], found["seed"]):
        for name, (lengths, frames_per_scene) in PARTS.items():
            if len(video.scenes) in lengths and len(parts[name]) < num_samples:
                sample_id = f"{DOMAINS[name].prefix}_{video.number}"
                parts[name].append(Planned(sample_id=sample_id, video=video, frames_per_scene=frames_per_scene))
        if all(len(samples) == num_samples for samples in parts.values()):
            break
    return parts


def _videos(start: int, seed: int) -> Iterator[PlannedVideo]:
    return (plan_video(number, seed) for number in count(start))


def composite(frames: Sequence[Image.Image]) -> Image.Image:
    """Put frames side by side, at most four in a row, on white."""
    from PIL import Image

    step = frames[0].width + GAP
    width, rows = min(COLUMNS, len(frames)), -(-len(frames) // COLUMNS)
    canvas = Image.new("RGB", (width * step - GAP, rows * step - GAP), "white")
    for number, frame in enumerate(frames):
        canvas.paste(frame, (number % COLUMNS * step, number // COLUMNS * step))
    return canvas


def make(config: MementosWorldConfig, parts: dict[str, list[Planned]]) -> dict[str, int]:
    """Draw what is missing and write the CSVs and graphs.

    Returns:
        Counts for run.json.
    """
    from tqdm import tqdm

    write_json(config.output_dir / SETTINGS_FILE, _settings(config))
    samples = [sample for found in parts.values() for sample in found]
    interval_s = 0.2 if sys.stderr.isatty() else 60.0
    drawn = 0
    for sample in tqdm(samples, desc="drawing", unit="sample", mininterval=interval_s):
        # The composite comes last: where it is, the frames are.
        path = config.output_dir / "composites" / f"{sample.sample_id}.png"
        if config.overwrite or not path.is_file():
            frames = sample.frames(config.frame_size)
            for number, frame in enumerate(frames, start=1):
                _save(frame, config.output_dir / "frames" / sample.sample_id / f"{number}.png")
            _save(composite(frames), path)
            drawn += 1
    for name, found in parts.items():
        domain = DOMAINS[name]
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(domain.columns)
        writer.writerows((f"{sample.sample_id}.png", sample.description) for sample in found)
        write_text(config.output_dir / domain.csv_name, text.getvalue())
        for kind, graph in synonyms().items():
            path = config.output_dir / "sym_graphs" / f"{domain.graph}_{kind}_graph_v1.json"
            write_json(path, {"adjacency": graph})
    return {"num_drawn": drawn, "num_kept": len(samples) - drawn, **{name: len(found) for name, found in parts.items()}}


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def _settings(config: MementosWorldConfig) -> dict[str, object]:
    world = read_json(config.world / "world.json")
    return {"world": world, "num_samples": config.num_samples, "frame_size": config.frame_size}


def check_earlier(config: MementosWorldConfig) -> None:
    """Refuse a folder that holds other data of this kind.

    Raises:
        ConfigError: With what differs.
    """
    path = config.output_dir / SETTINGS_FILE
    if config.overwrite or not path.is_file():
        return
    if not config.resume:
        raise ConfigError(f"{config.output_dir} holds such data already; choose another --output-dir or --overwrite")
    if (found := read_json(path)) != _settings(config):
        raise ConfigError(
            f"{config.output_dir} holds other data: found {found}, wanted {_settings(config)}; choose another "
            "--output-dir or add --overwrite"
        )


def write(config: MementosWorldConfig) -> None:
    """Render the sequences, or say what would be rendered."""
    parts = plan(config.world, config.num_samples)
    check_earlier(config)
    if config.dry_run:
        frames = sum(len(one.video.scenes) * one.frames_per_scene for found in parts.values() for one in found)
        listed = ", ".join(f"{name} {len(found)}" for name, found in parts.items())
        print(f"{listed}: {frames} frames would go to {config.output_dir}")
        return
    with run_manifest(config.output_dir, config=to_json(config)) as run:
        run.record(**make(config, parts))
    logger.info("%d sequences -> %s", sum(map(len, parts.values())), config.output_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        MementosWorldConfig, write, argv, program="python -m stories.world.mementos", description=__doc__ or ""
    )


if __name__ == "__main__":
    sys.exit(main())
