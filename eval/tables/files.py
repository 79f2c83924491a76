"""Write one table as Markdown, CSV, LaTeX and JSON. Every text is escaped for the format it goes into."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.imagechain.files import write_json, write_text

CONTINUED = "– "  # begins the first cell of a line that belongs to the line above it
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "–": "--", "—": "---", "−": r"$-$", "±": r"$\pm$", "×": r"$\times$",
    "≤": r"$\leq$", "≥": r"$\geq$", "Δ": r"$\Delta$", "κ": r"$\kappa$", "α": r"$\alpha$", "…": r"\ldots{}",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table as text.

    Attributes:
        title: One line above the table.
        columns: Column titles; the first column is aligned left, the others right.
        rows: One text per column. A row of a single cell is a heading above the rows that follow it; a row whose first
            cell begins with "– " goes on with the row above (an interval under its rate).
        notes: Footnotes.
        data: What the JSON file holds.
        records: What the CSV file holds, one flat record per line; without any it holds the columns and rows.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    data: Any
    records: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse rows that do not fit the columns."""
        for row in self.rows:
            if len(row) not in (1, len(self.columns)):
                raise ValueError(f"{self.title}: {len(self.columns)} cells were wanted, found {len(row)} in {row}")


def write_tables(stem: Path, sheet: Sheet) -> list[Path]:
    """Write `stem`.md, .csv, .tex and .json, each whole or not at all.

    Returns:
        The four paths.
    """
    texts = {".md": to_markdown(sheet), ".csv": to_csv(sheet), ".tex": to_latex(sheet, label=stem.name)}
    paths = [stem.with_name(stem.name + suffix) for suffix in (*texts, ".json")]
    for path, text in zip(paths, texts.values(), strict=False):
        write_text(path, text)
    write_json(paths[-1], sheet.data)
    return paths


def to_markdown(sheet: Sheet) -> str:
    """Return the table as aligned Markdown with its notes as a list."""
    parts, block = [f"# {plain(sheet.title)}\n"], [sheet.columns]
    for row in sheet.rows:
        if len(row) > 1:
            block.append(row)
            continue
        parts += [_aligned(block), ""] if len(block) > 1 else []
        parts.append(f"## {plain(row[0])}\n")
        block = [sheet.columns]
    parts += [_aligned(block), ""] if len(block) > 1 else []
    return "\n".join([*parts, *(f"- {plain(note)}" for note in sheet.notes)]) + "\n"


def plain(text: str) -> str:
    """Make a text harmless in Markdown and on a terminal: one line, no table border, no HTML, no control character."""
    bordered = re.sub(r"(\\*)\|", r"\1\1\|", _one_line(text))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", bordered)


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def to_csv(sheet: Sheet) -> str:
    """Return the records (or, without any, the rows) as CSV; no text begins like a spreadsheet formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(dict.fromkeys(name for record in sheet.records for name in record))
    writer.writerow(columns or sheet.columns)
    rows = [[record.get(name) for name in columns] for record in sheet.records] if columns else sheet.rows
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS) or value == "-":
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value


def to_latex(sheet: Sheet, label: str) -> str:
    """Return a LaTeX table environment (packages booktabs and adjustbox), shrunk to the text width where it is wider.

    Args:
        sheet: The table.
        label: Becomes \\label{tab:...}.
    """
    width = len(sheet.columns)
    caption = re.sub(r"^Table \d+: ", "", sheet.title)  # LaTeX counts by itself
    lines = [
        r"% \usepackage{booktabs,adjustbox}",
        r"\begin{table*}[t]",
        r"\centering",
        r"\small",
        r"\begin{adjustbox}{max width=\textwidth}",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        _tex_row(sheet.columns),
        r"\midrule",
    ]
    grouped = any(row[0].startswith(CONTINUED) for row in sheet.rows)
    for number, row in enumerate(sheet.rows):
        if len(row) == 1:
            lines += [r"\midrule"] if number else []
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_tex(row[0])}}}}} \\")
        elif row[0].startswith(CONTINUED):
            lines.append(r"\quad " + _tex_row((row[0].removeprefix(CONTINUED), *row[1:])))
        else:
            lines += [r"\addlinespace"] if grouped and number and len(sheet.rows[number - 1]) > 1 else []
            lines.append(_tex_row(row))
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}", rf"\caption{{{_tex(caption)}}}"]
    lines.append(rf"\label{{tab:{''.join(c for c in label if c.isalnum() or c == '-')}}}")
    if sheet.notes:
        lines += [
            r"\begin{flushleft}\footnotesize",
            *(rf"{_tex(note)}\par" for note in sheet.notes),
            r"\end{flushleft}",
        ]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


def _tex(text: str) -> str:
    text = re.sub(r"(?<!\S)-(?=\d)", "−", _one_line(text))
    # LaTeX makes a dash of two hyphens. After the end of a row, [ and * would be read as its options.
    escaped = re.sub(r"(-)(?=-)|.", lambda found: "-{}" if found[1] else TEX.get(found[0], found[0]), text)
    return ("{}" if text.startswith(("[", "*")) else "") + escaped
