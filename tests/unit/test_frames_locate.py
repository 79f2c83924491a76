"""Looking videos up by untrusted names."""

from pathlib import Path

import pytest

from stories.frames.locate import VideoFinder, VideoRefusedError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    return path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.mov", "a.mov"),
        ("-dash", "-dash.mp4"),
        ("-dash.mp4", "-dash.mp4"),
        ("it's a  name (Ep. 3)12", "it's a  name (Ep. 3)12.webm"),
        ("9@N03_x.mov", "9@N03_x.mov.mp4"),  # DiDeMo keeps the first extension in the name
        ("9@N03_x.mov", "9@N03_x.mp4"),
        ("9@N03_y.", "9@N03_y..mp4"),
        ("9@N03_y.", "9@N03_y.mp4"),
        ("UPPER", "UPPER.MOV"),
        ("sub/clip", "sub/clip.mkv"),
    ],
)
def test_a_video_is_found_by_name_extension_or_stem(tmp_path: Path, name: str, file: str) -> None:
    path = touch(tmp_path / "b" / file)
    (tmp_path / "a").mkdir()
    assert VideoFinder([tmp_path / "a", tmp_path / "b"]).find(name) == path


def test_an_exact_name_in_a_later_folder_wins_over_a_guess_in_an_earlier_one(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "x.mov.mp4")
    exact = touch(tmp_path / "b" / "x.mov")
    assert VideoFinder([tmp_path / "a", tmp_path / "b"]).find("x.mov") == exact


def test_a_file_that_is_another_storys_video_is_not_taken_by_its_stem(tmp_path: Path) -> None:
    touch(tmp_path / "x.mp4")
    assert VideoFinder([tmp_path], ["x.mov", "x.mp4"]).find("x.mov") is None
    assert VideoFinder([tmp_path], ["x.mov"]).find("x.mov") == tmp_path / "x.mp4"


def test_dots_inside_a_name_are_not_extensions(tmp_path: Path) -> None:
    touch(tmp_path / "Fails (Ep.mp4")
    touch(tmp_path / "v1.mp4")
    finder = VideoFinder([tmp_path])
    assert finder.find("Fails (Ep. 3)") is None
    assert finder.find("v1.5") is None


def test_folders_and_other_files_are_not_videos(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").mkdir()
    touch(tmp_path / "y.txt")
    assert VideoFinder([tmp_path]).find("x") is None
    assert VideoFinder([tmp_path]).find("y") is None


@pytest.mark.parametrize(
    "name",
    ["../../x", "a/../../x", "/etc/passwd", "http://host/x.mp4", "file:///x.mp4", "concat://x", "", "x\0y", "n" * 5000],
)
def test_a_name_that_leads_out_of_the_folders_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "x.mp4")
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    with pytest.raises(VideoRefusedError):
        VideoFinder([tmp_path / "videos" / "deep"]).find(name)


def test_a_link_out_of_the_folders_is_refused_and_between_them_followed(tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside" / "x.mp4")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "x.mp4").symlink_to(outside)
    with pytest.raises(VideoRefusedError, match="link out of the given folders"):
        VideoFinder([tmp_path / "videos"]).find("x")
    assert VideoFinder([tmp_path / "videos", tmp_path / "outside"]).find("x") == outside
