"""Images, videos and frame lists named by a dataset file, read from the folders they have to lie in."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.imagechain.files import inside

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video are taken (LLaVA-NeXT's rule).

    Attributes:
        fps: Frames a second of the video's time.
        most: Most frames; more than these become `most` evenly spaced ones. 0 is no bound.
        always_most: Take `most` evenly spaced frames of every video.
    """

    fps: int = 1
    most: int = 0
    always_most: bool = False

    def indices(self, count: int, rate: float) -> list[int]:
        """Return the frames to take of `count` frames at `rate` a second."""
        if count < 1:
            raise ValueError("the video has no frames")
        found = list(range(0, count, max(round(rate / self.fps), 1)))
        if self.most and (self.always_most or len(found) > self.most):
            found = [int(number * (count - 1) / max(self.most - 1, 1)) for number in range(self.most)]
        return found


def safe_path(root: str | None, name: Any, setting: str) -> Path:
    """Return the path of a named file.

    Args:
        root: The folder of `setting`.
        name: The file's name from the dataset, not trusted.
        setting: "image_folder" or "video_folder", for messages.

    Raises:
        ValueError: The name is no text, leaves the folder (also by a link), or nothing is there.
    """
    if not root:
        raise ValueError(f"--{setting} is not set, but the sample names {name!r}")
    if not isinstance(name, str):
        raise ValueError(f"a file name was wanted, found {type(name).__name__}")
    path = inside(root, name)
    try:
        path.stat()
    except OSError as error:  # also a name that is too long, a folder that may not be read
        raise ValueError(f"{name[:200]} is not in {setting} ({error.strerror})") from error
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"{name} leads out of {setting} through a link")
    return path


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image after making sure that it can be read; whole JPEG files are not decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image, path.open("rb") as file:
                file.seek(-min(64, path.stat().st_size), 2)
                if image.format != "JPEG" or b"\xff\xd9" not in file.read():
                    image.load()
                return image.size
    except Exception as error:  # Pillow raises many kinds on damaged files; each is the sample's skip reason
        raise ValueError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error


def read_image(path: Path) -> Image.Image:
    """Return an image as RGB."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def video_facts(path: Path) -> tuple[int, float]:
    """Return the number of frames of a video file, and how many there are in a second.

    Raises:
        ValueError: It is no video that can be read.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 25)
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            return int(stream.frames or round(seconds * rate)), rate
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error


def frame_files(folder: Path) -> list[Path]:
    """Return the images of a folder of frames, by name."""
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"{folder.name} holds no frames ({', '.join(IMAGE_SUFFIXES)})")
    return found


def read_video(path: Path, indices: Sequence[int]) -> list[Image.Image]:
    """Return frames of a video file by number, in one pass; the last one stands in for numbers after the end."""
    import av

    wanted, frames = set(indices), {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted or number == 0:
                frames[number] = frame.to_image()
            if number >= indices[-1]:
                break
    if not frames:
        raise ValueError(f"{path.name}: no frame can be decoded")
    last = frames[max(frames)]
    return [frames.get(index, last) for index in indices]
