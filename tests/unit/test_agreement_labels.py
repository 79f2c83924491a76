"""labels.csv: no cell is a formula, and what a spreadsheet made of the file is read back or listed with a reason."""

import csv
import dataclasses
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.agreement.export import labels_csv, safe_cell
from eval.agreement.labels import named_files, read_labels
from eval.agreement.report import main
from eval.agreement.sample import KeyRow, texts_sha256

TEXTS = {
    "bcdfgh": ("The man runs.", "A man is running."),
    "jkmnpq": ("=1+1", "+cmd|' /C calc'!A0"),
    "rstvwx": ('He says "hi", then\nleaves; ok', "<img src=x onerror=alert(1)>"),
}


@pytest.fixture
def key():
    return {
        name: KeyRow(
            row=name, run="run", story_id=f"story {name}", video_name="v", pair_sha256="p", weight=1.0,
            texts_sha256=texts_sha256(*map(safe_cell, texts)),
        )
        for name, texts in TEXTS.items()
    }  # fmt: skip


def filled(labels, columns=("row", "picture", "reference", "prediction", "label"), separator=","):
    """Return the exported file with labels filled in, as a spreadsheet would save it."""
    rows = list(csv.DictReader(io.StringIO(labels_csv([(n, *t) for n, t in TEXTS.items()]).lstrip("\ufeff"))))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(columns)
    for row, label in zip(rows, labels, strict=False):
        row["label"] = label
        writer.writerow([row[name.strip().lower()] for name in columns])
    return text.getvalue()


def read(tmp_path, key, text, encoding="utf-8"):
    path = tmp_path / "anna.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    labels, skipped = read_labels(path, key)
    return {story_id.removeprefix("story "): label for (story_id, _), label in labels.items()}, skipped


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t=", "\r+", "\n-", " @", "＝", "＋", "－", "＠", "\x00=", "\x0b@"]
)
def test_no_cell_starts_a_formula(start):
    cell = safe_cell(f"{start}HYPERLINK(1)")
    assert cell.startswith("'") and "\t" not in cell and "\r" not in cell and "\n" not in cell


@given(st.text(st.sampled_from("=+-@;\"'\t\r\n ,a\x00＝\u2028"), max_size=12))
def test_no_part_of_a_cell_starts_a_formula_where_semicolons_separate(text):
    cell = safe_cell(text)
    assert not re.search(r"(^|[;\t\r\n])\s*[=+\-@＝＋－＠]", cell)
    assert [[cell, cell]] == [row[2:4] for row in csv.reader(io.StringIO(labels_csv([("n", text, text)])))][1:]


def test_ordinary_captions_stay_as_they_are():
    text = "The boy's dog (a red-haired one) jumps - and falls; he laughs, 1 + 1 = 2 @ home."
    assert safe_cell(text) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_any_separator_and_encoding_is_read(tmp_path, key, separator, encoding):
    text = filled(["yes", "NO", "y"], separator=separator)
    assert read(tmp_path, key, text, encoding) == ({"bcdfgh": True, "jkmnpq": False, "rstvwx": True}, [])


def test_column_order_case_and_a_separator_line_do_not_matter(tmp_path, key):
    text = "sep=;\r\n" + filled([" Yes ", "0", "1"], (" LABEL", "Prediction", "Row ", "Reference"), ";")
    assert read(tmp_path, key, text) == ({"bcdfgh": True, "jkmnpq": False, "rstvwx": True}, [])


@pytest.mark.parametrize(
    "word, label", [("YES", True), ("y", True), ("1", True), ("No.", False), ("n", False), ("0", False)]
)
def test_spellings_of_labels(tmp_path, key, word, label):
    assert read(tmp_path, key, f"row,label\nbcdfgh,{word}\n")[0] == {"bcdfgh": label}


def test_what_does_not_count_is_listed_with_its_reason(tmp_path, key):
    labels, skipped = read(tmp_path, key, "row,label\nbcdfgh,maybe\njkmnpq,\nzzzzzz,yes\n,,\n")
    assert labels == {}
    assert [(row["line"], row["row"], row["reason"]) for row in skipped] == [
        (2, "bcdfgh", "label 'maybe' is neither yes nor no"),
        (3, "jkmnpq", "empty label"),
        (4, "zzzzzz", "unknown row name"),
        (None, "rstvwx", "not in the file"),
    ]


def test_a_row_labelled_twice_counts_once_and_not_at_all_when_the_labels_differ(tmp_path, key):
    labels, skipped = read(tmp_path, key, "row,label\nbcdfgh,yes\nbcdfgh,Y\njkmnpq,yes\njkmnpq,no\nrstvwx,no\n")
    assert labels == {"bcdfgh": True, "rstvwx": False}
    assert [(row["line"], row["reason"].partition(";")[0]) for row in skipped] == [
        (3, "twice in the file"),
        (4, "twice in the file, with different labels"),
        (5, "twice in the file, with different labels"),
    ]


def test_texts_of_another_row_do_not_count(tmp_path, key):
    rows = list(csv.reader(io.StringIO(filled(["yes", "no", "yes"]))))
    rows[1][2], rows[2][2] = rows[2][2], rows[1][2]  # one column sorted by itself
    text = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    labels, skipped = read(tmp_path, key, text)
    assert labels == {"rstvwx": True}
    assert {row["row"] for row in skipped} == {"bcdfgh", "jkmnpq"} and "texts" in skipped[0]["reason"]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "found nothing"),
        (b"id,answer\n1,yes\n", "found 'id', 'answer'"),
        (b"row,label,label\nbcdfgh,yes,no\n", "each once"),
        (b"PK\x03\x04rest of an xlsx", "save it as CSV"),
        (b"row,label\nxxxxxx,yes\n", "another export"),
        (b'row,label\n"' + b"a" * 200_000 + b'",yes\n', "no CSV file"),
    ],
)
def test_a_file_that_is_no_filled_export_is_refused(tmp_path, key, data, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read(tmp_path, key, data)


def test_files_may_be_named_and_missing_ones_are_all_told(tmp_path):
    (tmp_path / "a=b.csv").write_text("")
    assert named_files([f"anna={tmp_path / 'a=b.csv'}"], "labels") == [("anna", tmp_path / "a=b.csv")]
    with pytest.raises(ValueError, match=r"x\.csv is no file(.|\n)*y\.csv is no file"):
        named_files(["x.csv", "bob=y.csv"], "labels")


def test_a_report_without_any_label_is_refused_with_the_reasons(tmp_path, key, capsys):
    (tmp_path / "key.jsonl").write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in key.values()))
    (tmp_path / "anna.csv").write_text(filled(["", "", "perhaps"]))
    arguments = ["--key", tmp_path / "key.jsonl", "--labels", tmp_path / "anna.csv", "--output-dir", tmp_path / "out"]
    assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert "found none (2 rows do not count: empty label; 1 rows do not count: label 'perhaps' is neither" in error
    assert not (tmp_path / "out").exists()
