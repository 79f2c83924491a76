"""Find a story's video: exact name, then name plus a known extension, then the same stem; never outside the roots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from llava.imagechain.files import inside

EXTENSIONS = (
    ".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".3gp", ".3g2", ".wmv", ".asf", ".flv", ".mts",
    ".m2ts", ".ts", ".ogv", ".vob",
)  # fmt: skip


class VideoRefusedError(ValueError):
    """A video name that is a URL, absolute, or leads out of the given folders."""


class VideoFinder:
    """Look videos up in several folders, which are listed once.

    Args:
        roots: Folders, searched in this order for each of the three rules.
        video_names: All annotated names. A file that carries one of them is never taken for another by its stem
            (DiDeMo has pairs such as X.mov and X.mp4 that are two videos).
    """

    def __init__(self, roots: Sequence[Path], video_names: Iterable[str] = ()) -> None:
        self.roots = [root.resolve() for root in roots]
        self._names = set(video_names)
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, video_name: str) -> Path | None:
        """Return the video's absolute path, or None.

        Raises:
            VideoRefusedError: The name or the file it links to lies outside the folders.
        """
        try:
            wanted = [inside(root, video_name) for root in self.roots]
            return self._find(video_name, wanted)
        except (ValueError, OSError) as error:  # OSError: the name is too long for the file system
            raise VideoRefusedError(str(error)) from error

    def _find(self, video_name: str, wanted: Sequence[Path]) -> Path | None:
        names = [video_name.rpartition("/")[2]]
        names += [names[0] + extension for extension in EXTENSIONS]
        for name in names:
            for path in wanted:
                if (found := path.parent / name).is_file():
                    return self._checked(found)
        stem = _stem(names[0])
        for path in wanted:
            for candidate in self._listing(path.parent).get(stem, []):
                if candidate not in self._names and (found := path.parent / candidate).is_file():
                    return self._checked(found)
        return None

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """Return stem -> names of the video files in a folder."""
        if folder not in self._listings:
            stems: dict[str, list[str]] = {}
            names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
            for name in names:
                if name.lower().endswith(EXTENSIONS):
                    stems.setdefault(_stem(name), []).append(name)
            self._listings[folder] = stems
        return self._listings[folder]

    def _checked(self, path: Path) -> Path:
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in self.roots):
            raise VideoRefusedError(
                f"{path.name!r} is a link out of the given folders; add the folder it leads to to --videos."
            )
        return target


def _stem(name: str) -> str:
    """Drop a known extension, or the bare dot in which 27 DiDeMo names end; other dots belong to the name."""
    for extension in (*EXTENSIONS, "."):
        if name.lower().endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)]
    return name
