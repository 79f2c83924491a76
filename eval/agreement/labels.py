"""Read labels.csv files as people send them back: any spreadsheet's separator, encoding, column order and spelling."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.agreement.sample import Item, KeyRow, texts_sha256

ANSWERS = {"yes": True, "y": True, "1": True, "true": True, "no": False, "n": False, "0": False, "false": False}
SEPARATORS = (",", ";", "\t")


def read_text(path: Path) -> str:
    """Decode a text file of a spreadsheet program: UTF-8 with or without mark, UTF-16 with mark, else Windows-1252.

    Raises:
        ValueError: It is no text file.
    """
    data = path.read_bytes()
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ValueError(f"{path}: a CSV file was wanted, found a spreadsheet document; save it as CSV")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def read_cells(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the column names and the rows (line number, cells by column) of a CSV file; empty rows are left out.

    Raises:
        ValueError: No CSV file, or not one with the columns `row` and `label`.
    """
    text = re.sub(r'\A"?sep=.(?:"?\r?\n|"?\r)', "", read_text(path))
    skipped_lines = int(text != read_text(path))
    found: list[str] = []
    for separator in SEPARATORS:
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            header = [cell.strip().lstrip("'").casefold() for cell in next(reader, [])]
            found = header if len(header) > len(found) else found
            if header.count("row") == 1 and header.count("label") == 1:
                cells = [(reader.line_num + skipped_lines, row) for row in reader]
                return header, [
                    (line, dict(zip(header, row, strict=False))) for line, row in cells if any(map(str.strip, row))
                ]
        except csv.Error as error:
            raise ValueError(f"{path} is no CSV file ({error}); save it as CSV again") from error
    shown = ", ".join(repr(name[:40]) for name in found[:8]) or "nothing"
    raise ValueError(
        f"{path}: the columns 'row' and 'label' were wanted, each once, found {shown}. Send back the labels.csv of the "
        "export with only the column 'label' filled in."
    )


def read_labels(path: Path, key: Mapping[str, KeyRow]) -> tuple[dict[Item, bool], list[dict[str, Any]]]:
    """Read one person's labels.

    Args:
        path: The filled CSV file.
        key: The rows of the export, by name.

    Returns:
        The usable labels, and every other row as {"file", "line", "row", "reason"}; rows that are missing count as
        empty.

    Raises:
        ValueError: No CSV file, other columns, or rows of another export only.
    """
    _, rows = read_cells(path)
    labels: dict[str, list[tuple[int, bool]]] = {}
    skipped: list[dict[str, Any]] = []
    seen: set[str] = set()
    for line, cells in rows:
        name = cells["row"].strip().lstrip("'").casefold()
        reason = _unusable(cells, key.get(name))
        seen |= {name} & key.keys()
        if reason:
            skipped.append({"file": str(path), "line": line, "row": name[:40], "reason": reason})
        else:
            labels.setdefault(name, []).append((line, _answer(cells)))  # type: ignore[arg-type]
    for name, answers in labels.items():
        differ = len({answer for _, answer in answers}) > 1
        reason = "twice in the file, with different labels" if differ else "twice in the file; the first row counts"
        for line, _ in answers[0 if differ else 1 :]:
            skipped.append({"file": str(path), "line": line, "row": name, "reason": reason})
    if rows and not seen:
        raise ValueError(f"{path}: none of its {len(rows)} rows is in the key; it belongs to another export")
    skipped += [
        {"file": str(path), "line": None, "row": name, "reason": "not in the file"} for name in key.keys() - seen
    ]
    usable = {name: answers[0][1] for name, answers in labels.items() if len({a for _, a in answers}) == 1}
    return {key[name].item: answer for name, answer in usable.items()}, sorted(
        skipped, key=lambda row: (row["line"] is None, row["line"] or 0, row["row"])
    )


def _answer(cells: Mapping[str, str]) -> bool | None:
    return ANSWERS.get((cells.get("label") or "").strip(" \t\r\n\xa0'\".!").casefold())


def _unusable(cells: Mapping[str, str], row: KeyRow | None) -> str | None:
    if row is None:
        return "unknown row name"
    texts = [cells.get(name) for name in ("reference", "prediction")]
    if None not in texts and texts_sha256(*map(str, texts)) != row.texts_sha256:
        return "its texts are not those of this row (was a column sorted by itself?)"
    label = (cells.get("label") or "").strip()
    if not label:
        return "empty label"
    return f"label {label[:40]!r} is neither yes nor no" if _answer(cells) is None else None


def named_files(words: Sequence[str], what: str) -> list[tuple[str | None, Path]]:
    """Split NAME=FILE words; a word without a name gives None.

    Raises:
        ValueError: With every file that is missing.
    """
    result: list[tuple[str | None, Path]] = []
    problems: list[str] = []
    for word in words:
        name, equals, rest = word.partition("=")
        named = bool(equals) and "/" not in name and not Path(word).exists()
        path = Path(rest if named else word).expanduser()
        if not path.is_file():
            problems.append(f"{path} is no file")
        result.append((name.strip() or None if named else None, path))
    if problems:
        raise ValueError("\n  - ".join([f"--{what}: FILE or NAME=FILE was wanted:", *problems]))
    return result
