"""From a video file and times to the frames on screen at those times.

One function, `decode`, over three libraries. A video is an untrusted local file: before any library decodes it, its
first bytes must be those of a known container (FFmpeg would follow a playlist renamed to .mp4), it must be whole, and
its size and duration must be sane. What the three libraries do with odd files: docs/data.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 8192 * 4320
MAX_DURATION_S = 6 * 3600.0
# A time this close before a frame counts as on it: containers round their clocks, floats round sums such as 3.0 + 0.2.
TOLERANCE_S = 1e-4
# First bytes of the containers that are read, as patterns at offset 0.
CONTAINERS: dict[str, re.Pattern[bytes]] = {
    "mov": re.compile(rb"....(ftyp|styp|moov|mdat|wide|free|skip|pnot)", re.DOTALL),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3"),
    "avi": re.compile(rb"RIFF....AVI[ \x19X]", re.DOTALL),
    "mpeg": re.compile(rb"\x00\x00\x01[\xba\xb3]"),
    "mpegts": re.compile(rb"(\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47.{191}\x47)", re.DOTALL),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    "flv": re.compile(rb"FLV\x01"),
    "ogg": re.compile(rb"OggS"),
}
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg"


class VideoError(ValueError):
    """A video that is refused or cannot be decoded; the message says what was found."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A decoded frame.

    Attributes:
        time_s: The time asked for; when the video ends before it, the time of the last frame.
        image: RGB, upright, at source resolution.
    """

    time_s: float
    image: Image.Image


def decode(path: Path | str, times_s: Sequence[float], decoder: str = "pyav", threads: int = 1) -> Iterator[Frame]:
    """Yield the frames that are on screen at the given times.

    Time 0 is where the file's clock starts. A time before the first frame gets the first, one after the end the last
    frame that can be decoded, whatever the header says.

    Args:
        path: A local video file.
        times_s: Seconds, ascending.
        decoder: A name in `DECODERS`.
        threads: Decoding threads, 0 for one per core.

    Yields:
        One frame per time, in order.

    Raises:
        VideoError: The file is refused, damaged, or holds no frame.
    """
    if any(later < earlier for earlier, later in itertools.pairwise(times_s)):
        raise ValueError("times must ascend")
    path = Path(path).resolve()
    check_container(path)
    with open_video(path, threads) as (container, stream):
        origin_s = (container.start_time or 0) / 1_000_000
        yield from DECODERS[decoder](_Source(path, container, stream, origin_s, threads), times_s)


@dataclasses.dataclass(frozen=True)
class _Source:
    path: Path
    container: Any
    stream: Any
    origin_s: float  # the container's first timestamp, which is time 0
    threads: int


def check_container(path: Path) -> None:
    """Refuse what is not a whole file of a known video container, by its bytes alone.

    Raises:
        VideoError: With what was found.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror}") from error
    if size == 0:
        raise VideoError("the file is empty (0 bytes)")
    kind = next((name for name, pattern in CONTAINERS.items() if pattern.match(head)), None)
    if kind is None:
        raise VideoError(
            f"not a video container: the file starts with {head[:12]!r}; wanted one of {', '.join(CONTAINERS)}"
        )
    missing = _missing_bytes(path, size) if kind == "mov" else 0
    if missing > 0:
        raise VideoError(f"the file is cut short: {size} bytes found, at least {missing} are missing")


def _missing_bytes(path: Path, size: int) -> int:
    """Return by how many bytes the last top-level box of an MP4 or MOV file passes the end of the file."""
    position = 0
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1 and len(header) == 16:
                length = int.from_bytes(header[8:], "big")
            if length < 8 or not header[4:8].isalnum():  # 0 is "to the end of the file"; else padding, not a box
                return 0
            position += length
    return position - size


@contextlib.contextmanager
def open_video(path: Path, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """Open a checked file with PyAV: local files only, known demuxers only, within the limits.

    Yields:
        The container and its video stream.

    Raises:
        VideoError: It cannot be opened or decoded, holds no video, or is too large or too long.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        with av.open(str(path), options=options, metadata_errors="replace") as container:
            streams = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not streams:
                raise VideoError("the file holds no video stream")
            stream = streams[0]
            pixels = stream.codec_context.width * stream.codec_context.height
            if pixels > MAX_PIXELS:
                raise VideoError(f"{pixels} pixels a frame found, at most {MAX_PIXELS} are read")
            duration_s = (container.duration or 0) / 1_000_000
            if duration_s > MAX_DURATION_S:
                raise VideoError(f"{duration_s:.0f} s of video found, at most {MAX_DURATION_S:.0f} are read")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream
    except av.error.FFmpegError as error:
        raise VideoError(f"cannot be decoded: {type(error).__name__}, {error.strerror}") from error


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _decode_pyav(source: _Source, times_s: Sequence[float]) -> Iterator[Frame]:
    """One sequential pass that stops at the last wanted time; only wanted frames are converted to RGB."""
    waiting = list(reversed(times_s))
    shown: Any = None
    shown_s = end_s = 0.0
    for frame in source.container.decode(source.stream):
        length_s = _length_of(frame, source.stream)
        stamp = frame.pts if frame.pts is not None else frame.dts
        begin_s = end_s if stamp is None else float(stamp * frame.time_base) - source.origin_s
        while waiting and shown is not None and waiting[-1] < begin_s - TOLERANCE_S:
            yield Frame(time_s=waiting.pop(), image=_upright(shown))
        if not waiting:
            return
        shown, shown_s, end_s = frame, begin_s, begin_s + length_s
    if shown is None:
        raise VideoError("no frame could be decoded")
    while waiting:
        time_s = waiting.pop()
        yield Frame(time_s=time_s if time_s < end_s else min(time_s, shown_s), image=_upright(shown))


def _length_of(frame: Any, stream: Any) -> float:
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _upright(frame: Any) -> Image.Image:
    """Convert a PyAV frame to RGB and apply the rotation tag, which PyAV leaves to its caller."""
    if frame.width * frame.height > MAX_PIXELS:
        raise VideoError(f"{frame.width}x{frame.height} pixels a frame found, at most {MAX_PIXELS} are read")
    image = frame.to_image()
    rotation = round(getattr(frame, "rotation", 0) / 90) * 90 % 360
    return image.rotate(rotation, expand=True) if rotation else image


def _decode_decord(source: _Source, times_s: Sequence[float]) -> Iterator[Frame]:
    """decord 0.6 (2021): FFmpeg of that year inside, no AV1, wrong times in files with an edit list."""
    import decord
    import numpy
    from PIL import Image

    start_s = float((source.stream.start_time or 0) * source.stream.time_base) - source.origin_s
    try:
        reader = decord.VideoReader(str(source.path), ctx=decord.cpu(0), num_threads=source.threads)
        spans = reader.get_frame_timestamp(range(len(reader))) + 0.0
        spans += start_s - spans[0, 0]
        chosen = numpy.searchsorted(spans[:, 0], numpy.asarray(times_s) + TOLERANCE_S, side="right") - 1
        chosen = chosen.clip(0, len(reader) - 1)
        unique = sorted(set(chosen.tolist()))
        pictures = dict(zip(unique, reader.get_batch(unique).asnumpy(), strict=True))
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise VideoError(f"decord cannot decode it: {_first_line(error)}") from error
    last_s, end_s = spans[-1].tolist()
    for time_s, index in zip(times_s, chosen.tolist(), strict=True):
        kept_s = time_s if time_s < end_s else min(time_s, last_s)
        yield Frame(time_s=kept_s, image=Image.fromarray(pictures[index]))


def _decode_torchcodec(source: _Source, times_s: Sequence[float]) -> Iterator[Frame]:
    """torchcodec in exact mode; it needs FFmpeg's libraries on the machine."""
    from PIL import Image
    from torchcodec.decoders import VideoDecoder

    try:
        reader = VideoDecoder(
            str(source.path), dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=source.threads
        )
        span: Any = reader.metadata
        begin_s, end_s = span.begin_stream_seconds, span.end_stream_seconds
        latest_s = max(begin_s, end_s - TOLERANCE_S)
        wanted = [min(max(time_s + source.origin_s + TOLERANCE_S, begin_s), latest_s) for time_s in times_s]
        batch = reader.get_frames_played_at(seconds=wanted)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise VideoError(f"torchcodec cannot decode it: {_first_line(error)}") from error
    for number, time_s in enumerate(times_s):
        shown_s = float(batch.pts_seconds[number]) - source.origin_s
        kept_s = time_s if time_s < end_s - source.origin_s else min(time_s, shown_s)
        yield Frame(time_s=kept_s, image=Image.fromarray(batch.data[number].numpy()))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


DECODERS: dict[str, Callable[[_Source, Sequence[float]], Iterator[Frame]]] = {
    "pyav": _decode_pyav,
    "decord": _decode_decord,
    "torchcodec": _decode_torchcodec,
}


def check_decoder(name: str) -> None:
    """Import a decoder's library.

    Raises:
        ValueError: It is not installed or cannot be loaded; the message says what to do.
    """
    module = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec.decoders"}[name]
    try:
        __import__(module)
    except (ImportError, OSError, RuntimeError) as error:
        advice = "; FFmpeg's shared libraries are needed too (apt-get install ffmpeg)" if name == "torchcodec" else ""
        raise ValueError(
            f"--decoder {name} cannot be loaded ({_first_line(error)}). bash scripts/setup.sh {name} installs it"
            f"{advice}; or use --decoder pyav."
        ) from error
