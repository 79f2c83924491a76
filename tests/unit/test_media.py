"""Names of files in data that nobody has checked: each stays in its folder, or is the sample's reason."""

import pytest

from llava.imagechain.media import safe_path


@pytest.fixture()
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    return tmp_path / "images"


def test_a_name_in_the_folder_is_its_path(folder):
    assert safe_path(str(folder), "a.png", "image_folder") == folder / "a.png"


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "link.png", "b.png", "a.png/b.png", "", "\0", "x" * 5000, "http://x/a.png", 7],
)
def test_any_other_name_is_refused_with_its_reason(folder, name):
    with pytest.raises(ValueError, match=r"image_folder|file name|refused"):
        safe_path(str(folder), name, "image_folder")
