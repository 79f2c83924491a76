"""The three decoders give the frame that is on screen; each frame of the test videos shows its number as blocks."""

import bisect
import itertools
import random
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
import pytest
from PIL import Image

from stories.frames.decoders import DECODERS, VideoError, check_decoder, decode

WIDTH, HEIGHT, BLOCKS = 128, 64, 16
# What is known to be wrong in a library and cannot be helped from here; shown as XPASS once a release repairs it.
LIMITS = {
    ("decord", "edit_list.mp4"): "decord 0.6 takes wrong times from files with an edit list",
    ("torchcodec", "edit_list.mp4"): "torchcodec 0.13 gives the next key frame at the start of an edit list",
    ("decord", "ps.mpg"): "decord 0.6 cannot seek in an MPEG program stream",
    ("torchcodec", "ps.mpg"): "torchcodec 0.13 loses the last frames of an MPEG program stream",
    ("decord", "ts.ts"): "decord 0.6 cannot seek in an MPEG transport stream with one key frame",
    ("torchcodec", "ts.ts"): "torchcodec 0.13 loses the last frames of an MPEG transport stream",
}


def draw(number: int) -> numpy.ndarray:
    picture = numpy.zeros((HEIGHT, WIDTH, 3), numpy.uint8)
    for bit in range(BLOCKS):
        if number >> bit & 1:
            picture[:, bit * 8 : bit * 8 + 8] = 255
    return picture


def read(image: Image.Image) -> int:
    grey = numpy.asarray(image.convert("L"))
    return sum(int(grey[16:48, bit * 8 + 2 : bit * 8 + 6].mean() > 128) << bit for bit in range(BLOCKS))


def encode(
    path: Path, frames: int = 100, fps: Any = 25, codec: str = "libx264", gop: int = 250, b_frames: int = 2,
    pts: Sequence[int] | None = None, time_base: Fraction | None = None,
) -> Path:  # fmt: skip
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        if time_base:
            stream.codec_context.time_base = time_base
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            if pts and time_base:
                frame.pts, frame.time_base = pts[number], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_edit_list(source: Path, path: Path, first: int, fps: int = 25) -> Path:
    """Copy packets so that frame `first` is at time 0; the key frame before it stays, hidden by an edit list."""
    with av.open(str(source)) as inside, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as outside:
        stream = inside.streams.video[0]
        copy = outside.add_stream_from_template(stream)
        shift = round(first / fps / stream.time_base)
        kept = [packet for packet in inside.demux(stream) if packet.dts is not None]
        key = max(index for index, packet in enumerate(kept) if packet.is_keyframe and (packet.pts or 0) <= shift)
        for packet in kept[key:]:
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            outside.mux(packet)
    return path


STEPS = [0, *itertools.accumulate(random.Random(0).choices(range(1, 9), k=60))]  # hundredths of a second
AT_25 = [0, 0.04, 0.06, 0.2, 1.0, 1.02, 3.0 + 0.2, 3.96, 3.99]
FRAMES_25 = [0, 1, 1, 5, 25, 25, 80, 99, 99]
AT_VFR = [0.0, 0.1, 0.25, 0.333, 1.0, 1.5, 2.0]
FRAMES_VFR = [bisect.bisect_right(STEPS, time * 100 + 1e-6) - 1 for time in AT_VFR]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    encode(folder / "b_frames.mp4")
    encode(folder / "short_gop.mkv", gop=12, b_frames=0)
    encode(folder / "mpeg4.avi", codec="mpeg4", b_frames=0)
    encode(folder / "ps.mpg", codec="mpeg2video", gop=12)
    encode(folder / "ts.ts")
    encode(folder / "ntsc.mp4", fps=Fraction(30000, 1001))
    encode(folder / "one_frame.mp4", frames=1)
    for name in ("vfr.mp4", "vfr.mkv"):
        encode(folder / name, frames=61, pts=STEPS, time_base=Fraction(1, 100))
    with_edit_list(encode(folder / "plain.mp4", gop=12, b_frames=0), folder / "edit_list.mp4", first=30)
    return folder


@pytest.fixture(params=sorted(DECODERS))
def decoder(request: pytest.FixtureRequest) -> str:
    try:
        check_decoder(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize(
    ("name", "times", "frames"),
    [
        *[(name, AT_25, FRAMES_25) for name in ("b_frames.mp4", "short_gop.mkv", "mpeg4.avi", "ps.mpg", "ts.ts")],
        ("ntsc.mp4", [0, 1001 / 30000, 0.5, 2.0, 3.3], [0, 1, 14, 59, 98]),
        ("vfr.mp4", AT_VFR, FRAMES_VFR),
        ("vfr.mkv", AT_VFR, FRAMES_VFR),
        ("one_frame.mp4", [0.0, 0.01], [0, 0]),
        ("edit_list.mp4", [0.0, 0.1, 0.5, 1.0, 2.0], [30, 32, 42, 55, 80]),
    ],
)
def test_the_frame_on_screen_is_returned(
    request: pytest.FixtureRequest, videos: Path, decoder: str, name: str, times: list[float], frames: list[int]
) -> None:
    if reason := LIMITS.get((decoder, name)):
        request.applymarker(pytest.mark.xfail(reason=reason))
    found = list(decode(videos / name, times, decoder))
    assert [read(frame.image) for frame in found] == frames
    assert [frame.time_s for frame in found] == times


def test_a_time_after_the_end_gets_the_last_frame_and_its_time(videos: Path, decoder: str) -> None:
    found = list(decode(videos / "b_frames.mp4", [3.99, 4.0, 5.0, 500.0], decoder))
    assert [read(frame.image) for frame in found] == [99, 99, 99, 99]
    assert [frame.time_s for frame in found] == pytest.approx([3.99, 3.96, 3.96, 3.96])


def test_a_time_before_the_first_frame_gets_the_first(videos: Path, decoder: str) -> None:
    (frame,) = decode(videos / "short_gop.mkv", [-0.5], decoder)
    assert (read(frame.image), frame.time_s) == (0, -0.5)


def test_two_times_on_one_frame_give_it_twice(videos: Path, decoder: str) -> None:
    found = list(decode(videos / "b_frames.mp4", [1.201, 1.21, 1.21, 1.239], decoder))
    assert [read(frame.image) for frame in found] == [30, 30, 30, 30]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_the_rotation_tag_is_applied(videos: Path, decoder: str, degrees: int) -> None:
    data = bytearray((videos / "b_frames.mp4").read_bytes())
    one = 1 << 16
    matrix = {
        90: (0, one, 0, -one, 0, 0, HEIGHT * one, 0, 1 << 30),
        180: (-one, 0, 0, 0, -one, 0, WIDTH * one, HEIGHT * one, 1 << 30),
        270: (0, -one, 0, one, 0, 0, 0, WIDTH * one, 1 << 30),
    }[degrees]
    at = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 2 * 4 + 4 * 2
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path = videos / f"rotated_{degrees}_{decoder}.mp4"
    path.write_bytes(data)
    (frame,) = decode(path, [1.0], decoder)
    # 90 means: turn the stored picture clockwise by 90 degrees to show it.
    assert frame.image.size == ((HEIGHT, WIDTH) if degrees != 180 else (WIDTH, HEIGHT))
    assert read(frame.image.rotate(degrees, expand=True)) == 25


def lie_about_count(path: Path, target: Path, claimed: int) -> Path:
    """Write another frame count and duration into an AVI file's headers."""
    data = bytearray(path.read_bytes())
    at = data.index(b"avih") + 8
    data[at + 16 : at + 20] = struct.pack("<I", claimed)
    at = data.index(b"strh") + 8
    data[at + 32 : at + 36] = struct.pack("<I", claimed)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("claimed", [20, 444])
def test_a_container_that_lies_about_its_length_is_read_to_its_last_frame(videos: Path, claimed: int) -> None:
    path = lie_about_count(videos / "mpeg4.avi", videos / f"lie_{claimed}.avi", claimed)
    found = list(decode(path, [1.0, 3.0, 3.96, 12.0]))
    assert [read(frame.image) for frame in found] == [25, 75, 99, 99]
    assert found[-1].time_s == pytest.approx(3.96)


def test_a_clock_that_does_not_start_at_zero_is_shifted(videos: Path, decoder: str) -> None:
    path = videos / f"late_{decoder}.mkv"
    pts = [370 + 4 * number for number in range(50)]
    encode(path, frames=50, pts=pts, time_base=Fraction(1, 100))
    found = list(decode(path, [0.0, 0.5, 1.0], decoder))
    assert [read(frame.image) for frame in found] == [0, 12, 25]


def test_times_must_ascend(videos: Path) -> None:
    with pytest.raises(ValueError, match="ascend"):
        list(decode(videos / "b_frames.mp4", [1.0, 0.5]))


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 16000), numpy.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def wrong(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wrong")
    good = (videos / "b_frames.mp4").read_bytes()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{videos / 'ts.ts'}\n#EXT-X-ENDLIST\n"
    contents = {
        "zero": b"",
        "text": b"no video at all\n" * 100,
        "truncated": good[: len(good) * 2 // 3],
        "moov_lost": good[: good.index(b"moov") - 4] + b"\0\0\0\x10free" + b"\0" * 8,
        "playlist": playlist.encode(),
        "concat": f"ffconcat version 1.0\nfile '{videos / 'b_frames.mp4'}'\n".encode(),
        "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nHello\n",
        "damaged": good[:60] + random.Random(0).randbytes(len(good) // 2) + good[60 + len(good) // 2 :],
    }
    paths = {}
    for name, data in contents.items():
        paths[name] = folder / f"{name}.mp4"
        paths[name].write_bytes(data)
    paths["png"] = folder / "png.mp4"
    Image.new("RGB", (64, 64)).save(paths["png"], "PNG")
    paths["audio"] = audio_only(folder / "audio.mp4")
    paths["missing"] = folder / "missing.mp4"
    return paths


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero", "the file is empty"),
        ("text", "not a video container"),
        ("truncated", "the file is cut short"),
        ("moov_lost", "cannot be decoded"),
        ("playlist", "not a video container"),
        ("concat", "not a video container"),
        ("subtitles", "not a video container"),
        ("png", "not a video container"),
        ("audio", "no video stream"),
        ("missing", "cannot be read"),
    ],
)
def test_what_is_not_a_whole_video_file_is_refused(
    wrong: dict[str, Path], decoder: str, name: str, reason: str
) -> None:
    with pytest.raises(VideoError, match=reason):
        list(decode(wrong[name], [0.0, 1.0], decoder))


def test_a_damaged_stream_is_an_error_and_not_a_wrong_frame(wrong: dict[str, Path]) -> None:
    with pytest.raises(VideoError, match="cannot be decoded"):
        list(decode(wrong["damaged"], [3.0]))


def test_a_playlist_behind_a_containers_first_bytes_opens_no_other_file(videos: Path, tmp_path: Path) -> None:
    """The demuxer allow-list holds even if the check of the first bytes did not."""
    from stories.frames.decoders import open_video

    path = tmp_path / "list.mp4"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{videos / 'ts.ts'}\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError), open_video(path):
        pass


def test_a_frame_or_a_video_that_is_too_large_is_refused(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stories.frames.decoders.MAX_PIXELS", 1000)
    with pytest.raises(VideoError, match="pixels a frame"):
        list(decode(videos / "b_frames.mp4", [0.0]))
    monkeypatch.undo()
    monkeypatch.setattr("stories.frames.decoders.MAX_DURATION_S", 2.0)
    with pytest.raises(VideoError, match="s of video found"):
        list(decode(videos / "b_frames.mp4", [0.0]))


def test_a_decoder_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = builtins.__import__

    def without_decord(name: str, *rest: Any, **named: Any) -> Any:
        if name == "decord":
            raise ImportError("No module named 'decord'")
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_decord)
    with pytest.raises(ValueError, match=r"setup.sh decord installs it; or use --decoder pyav"):
        check_decoder("decord")
