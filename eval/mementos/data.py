"""The benchmark's files as users have them: three CSVs that name their columns differently, and pictures of two kinds.

A sample's pictures are a composite (`rw_12.png`), single frames in a folder of its name (`rw_12/3.png`), or single
frames beside each other (`rw_12_3.png`), anywhere under the data folder.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.config import ConfigError, all_problems
from llava.imagechain.media import IMAGE_SUFFIXES
from llava.imagechain.story import clean_text

logger = logging.getLogger("eval.mementos")
IMAGE_COLUMNS = ("image_name", "image")
TEXT_COLUMNS = ("description", "gt_description")
_NUMBERED = re.compile(r"(.+?)[-_ ]\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """One of the benchmark's three parts.

    Attributes:
        name: Key of `DOMAINS`.
        title: The paper's column.
        prefix: How its image names begin, also the name of its part of a data folder made here.
        csv_name: File of its human descriptions.
        columns: That file's names for the image and the description.
        graph: How the names of its synonym graphs begin.
    """

    name: str
    title: str
    prefix: str
    csv_name: str
    columns: tuple[str, str]
    graph: str


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain(
            name="comics", title="Comics", prefix="cmc", csv_name="cmc_description.csv",
            columns=("image_name", "gt_description"), graph="cmc",
        ),
        Domain(
            name="dailylife", title="DL", prefix="rw", csv_name="dl_description.csv",
            columns=("image_name", "description"), graph="dl",
        ),
        Domain(
            name="robotics", title="Robo", prefix="rb", csv_name="robo_description.csv",
            columns=("image", "description"), graph="robo",
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A sequence with its human description; which pictures there are is not checked yet."""

    sample_id: str
    domain: str
    reference: str
    composites: tuple[Path, ...]
    frames: tuple[Path, ...]

    def pictures(self, composite: bool) -> tuple[Path, ...]:
        """Return the files to be shown.

        Raises:
            ValueError: They are not there, or not clear.
        """
        if not composite:
            if not self.frames:
                has = "a composite only (--frames composite)" if self.composites else "nothing"
                raise ValueError(f"single frames {self.sample_id}/N or {self.sample_id}_N were wanted, found {has}")
            folders = sorted({path.parent for path in self.frames})
            if len(folders) > 1:
                raise ValueError(f"single frames in one folder were wanted, found some in {_named(folders)}")
            return self.frames
        if len(self.composites) != 1:
            found = _named(self.composites) or ("single frames only" if self.frames else "nothing")
            raise ValueError(f"one composite {self.sample_id}.png was wanted, found {found}")
        return self.composites


def _named(paths: Iterable[Path]) -> str:
    return " and ".join(f"{path.parent.name}/{path.name}" for path in paths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a data folder holds.

    Attributes:
        samples: Usable rows of the CSVs, in the order of the domains and of the rows.
        skipped: The other rows as {"id", "domain", "reason"}.
        files: Every file by name, for the synonym graphs.
    """

    root: Path
    samples: tuple[Sample, ...]
    skipped: tuple[dict[str, Any], ...]
    files: dict[str, tuple[Path, ...]]

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each domain that has some."""
        found = [sample.domain for sample in self.samples]
        return {name: found.count(name) for name in DOMAINS if name in found}


def load_benchmark(root: Path, domains: Sequence[str] = tuple(DOMAINS)) -> Benchmark:
    """Read the descriptions under a folder and find the pictures that belong to them.

    Args:
        root: Folder with the CSVs, the pictures and the graphs in any arrangement.
        domains: Which of the three parts; one without a CSV is left out with a warning.

    Raises:
        ConfigError: No folder, no CSV, or CSVs that are not the benchmark's; all problems in one message.
    """
    if not root.is_dir():
        raise ConfigError(f"data: a folder with {', '.join(d.csv_name for d in DOMAINS.values())} was wanted: {root}")
    files = _files(root)
    rows: list[tuple[str, str | None, str]] = []
    problems: list[str] = []
    for domain in (domain for name, domain in DOMAINS.items() if name in domains):
        found = files.get(domain.csv_name, ())
        if not found:
            logger.warning("%s: no %s, %s is left out", root, domain.csv_name, domain.title)
            continue
        try:
            if len(found) > 1:
                raise ConfigError(f"one {domain.csv_name} was wanted, found {_named(found)}")
            rows += [(domain.name, name, text) for name, text in read_descriptions(found[0])]
        except ConfigError as error:
            problems.append(str(error))
    if not rows and not problems:
        problems.append(f"data: no description of {', '.join(domains)} under {root}; the CSVs are the benchmark's own")
    if problems:
        raise ConfigError(all_problems("the data cannot be used", problems))
    usable, skipped = _usable(rows)
    composites, frames = _pictures(files, {sample_id for _, sample_id, _ in usable})
    samples = tuple(
        Sample(
            sample_id=sample_id, domain=domain, reference=text,
            composites=tuple(composites.get(sample_id, ())), frames=tuple(frames.get(sample_id, ())),
        )
        for domain, sample_id, text in usable
    )  # fmt: skip
    return Benchmark(root=root, samples=samples, skipped=tuple(skipped), files=files)


def read_descriptions(path: Path) -> list[tuple[str | None, str]]:
    """Read (image name, description) from one of the CSVs, whichever of the three spellings its columns have.

    Bytes that are not UTF-8 (the daily-life file holds half a full-width comma) become a space.

    Raises:
        ConfigError: The columns are others, or there is no row.
    """
    data = path.read_bytes()
    text = data.decode("utf-8-sig", errors="replace")
    if replaced := text.count("\ufffd") - data.count("\ufffd".encode()):
        logger.warning("%s: %d places are not UTF-8; each is read as a space", path.name, replaced)
    reader = csv.DictReader(io.StringIO(text.replace("\ufffd", " "), newline=""))
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    columns = [[name for name in known if name in names] for known in (IMAGE_COLUMNS, TEXT_COLUMNS)]
    if any(len(found) != 1 for found in columns):
        raise ConfigError(
            f"{path}: a column {' or '.join(IMAGE_COLUMNS)} and a column {' or '.join(TEXT_COLUMNS)} were wanted, "
            f"found {', '.join(names) or 'nothing'}"
        )
    try:
        rows = [(row[columns[0][0]], clean_text(row[columns[1][0]] or "")) for row in reader]
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: no CSV ({error})") from error
    if not rows:
        raise ConfigError(f"{path}: rows under its column names were wanted, found none")
    return rows


def _usable(
    rows: Sequence[tuple[str, str | None, str]],
) -> tuple[list[tuple[str, str, str]], list[dict[str, Any]]]:
    """Return rows as (domain, sample id, description), and the others with the reason why they cannot be used."""
    usable: dict[str, tuple[str, str, str]] = {}
    skipped = []
    for domain, image_name, text in rows:
        # The benchmark's id: the image's name without its suffix.
        sample_id = Path((image_name or "").strip()).stem
        reason = None
        if not sample_id:
            reason = "no image is named"
        elif sample_id in usable:
            reason = "the image was named before; the first row counts"
        elif not text:
            reason = "the description is empty"
        if reason:
            skipped.append({"id": sample_id or None, "domain": domain, "reason": reason})
        else:
            usable[sample_id] = (domain, sample_id, text)
    return list(usable.values()), skipped


def _files(root: Path) -> dict[str, tuple[Path, ...]]:
    """Return all files under a folder by name; links to folders, and links that lead out of it, are not followed.

    Names that begin with a dot are no data: macOS leaves a `._3.png` beside every picture that it packs.
    """
    found: dict[str, list[Path]] = {}
    outside: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for path in (Path(folder) / name for name in sorted(names) if not name.startswith(".")):
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                outside.append(path)
            else:
                found.setdefault(path.name, []).append(path)
    if outside:
        logger.warning("%d links lead out of %s and are not followed, such as %s", len(outside), root, outside[0])
    return {name: tuple(paths) for name, paths in found.items()}


def _pictures(
    files: dict[str, tuple[Path, ...]], sample_ids: set[str]
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return composites and frames by sample id, the frames in the order of the numbers in their names."""
    composites: dict[str, list[Path]] = {}
    frames: dict[str, list[Path]] = {}
    for path in (path for paths in files.values() for path in paths if path.suffix.lower() in IMAGE_SUFFIXES):
        numbered = _NUMBERED.fullmatch(path.stem)
        if path.stem in sample_ids:
            composites.setdefault(path.stem, []).append(path)
        elif path.parent.name in sample_ids:
            frames.setdefault(path.parent.name, []).append(path)
        elif numbered and numbered[1] in sample_ids:
            frames.setdefault(numbered[1], []).append(path)
    return composites, {name: sorted(paths, key=_by_number) for name, paths in frames.items()}


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort "2" before "10", whatever stands around the numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)], path.name
