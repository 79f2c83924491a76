"""A table in four files: the same cells everywhere, and no text that means something to the format it goes into."""

import csv
import io
import json

import pytest

from eval.tables.files import Sheet, to_csv, to_latex, to_markdown, write_tables

HOSTILE = "a|b <script>x</script> {\\input{/etc/passwd}} 5 % of $x_1^2$ & #1 ~\n# next"


def sheet(*rows, columns=("name", "rate"), notes=(), **more):
    return Sheet(title="A title", columns=columns, rows=rows, notes=notes, data={"rows": len(rows)}, **more)


def test_four_files_are_written_beside_each_other(tmp_path):
    paths = write_tables(tmp_path / "deep" / "table9", sheet(("a", "1")))
    assert [path.name for path in paths] == ["table9.md", "table9.csv", "table9.tex", "table9.json"]
    assert json.loads(paths[3].read_text()) == {"rows": 1}
    assert all(path.stat().st_size for path in paths)


def test_markdown_columns_are_aligned_the_first_left_the_others_right():
    text = to_markdown(sheet(("long name", "1"), ("a", "100.00"), notes=("A note.",)))
    assert text.splitlines() == [
        "# A title", "",
        "| name      |   rate |", "| --------- | -----: |", "| long name |      1 |", "| a         | 100.00 |", "",
        "- A note.",
    ]  # fmt: skip


def test_a_row_of_one_cell_is_a_heading_over_a_table_of_its_own():
    shown = sheet(("a", "1"), ("Controls",), ("b", "2"))
    text = to_markdown(shown)
    assert text.index("| a ") < text.index("## Controls") < text.index("| b ")
    assert text.count("| name") == 2
    assert r"\multicolumn{2}{l}{\emph{Controls}} \\" in to_latex(shown, "t")


def test_a_heading_may_come_first():
    shown = sheet(("Objects",), ("a", "1"))
    assert to_markdown(shown).count("| name") == 1
    assert to_latex(shown, "t").count(r"\midrule") == 1


def test_markdown_texts_make_no_column_no_html_and_no_line():
    text = to_markdown(sheet((HOSTILE, "p < 0.05"), notes=(HOSTILE,)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3 and all(line.replace(r"\|", "").count("|") == 3 for line in table)
    assert "<script" not in text and "p < 0.05" in text
    assert not any(line.startswith("# next") for line in text.splitlines())


def test_a_backslash_before_a_border_does_not_free_it():
    assert "| a\\\\\\|b |" in to_markdown(sheet(("a\\|b", "1")))


def test_control_characters_reach_neither_a_terminal_nor_latex():
    hostile = "a\x1b[2Jb\u202ec\ud800"
    for text in (to_markdown(sheet((hostile, "1"), notes=(hostile,))), to_latex(sheet((hostile, "1")), "t")):
        assert text.replace("\n", "").isprintable() and "a\ufffd[2Jb\ufffdc\ufffd" in text


def test_latex_makes_no_dash_of_a_flag():
    assert r"-{}-paper, C2--C6, a-{}-{}-b" in to_latex(sheet(("--paper, C2–C6, a---b", "1")), "t")


def test_latex_texts_run_no_command():
    text = to_latex(sheet((HOSTILE, "1"), notes=(HOSTILE,)), "t_1}")
    assert r"\input" not in text and "<" not in text
    cell = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert r"\textbackslash{}input\{/etc/passwd\}" in cell and r"5 \% of \$x\_1\textasciicircum{}2\$ \& \#1" in cell
    assert r"\label{tab:t1}" in text


def test_latex_counts_tables_by_itself_and_sets_minus_signs():
    shown = Sheet(title="Table 2: Gains", columns=("a", "b"), rows=(("C4-6", "-1.5 to -0.5"),), notes=(), data=None)
    text = to_latex(shown, "t")
    assert r"\caption{Gains}" in text and "C4-6 & $-$1.5 to $-$0.5" in text


@pytest.mark.parametrize("cell", ["[3pt]", "* star"])
def test_a_first_cell_is_no_option_of_the_row_before_it(cell):
    assert "{}" + cell in to_latex(sheet(("a", "1"), (cell, "2")), "t")


def test_latex_has_booktabs_rules_and_as_many_cells_as_columns():
    text = to_latex(sheet(("a", "18.30 (95/519)"), ("– 95 % interval", "15.2 to 21.9"), ("b", "–")), "table1")
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lr}", r"\quad 95 \% interval & 15.2 to"):
        assert word in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [line.count(" & ") for line in body] == [1] * 4
    assert text.count(r"\addlinespace") == 1
    assert text.count(r"\begin{") == text.count(r"\end{")


@pytest.mark.parametrize("cell", ["=1+1", "+SUM(A1)", "-1 to 2", "@x", "\tx"])
def test_no_csv_text_is_a_formula(cell):
    (_, row) = csv.reader(io.StringIO(to_csv(sheet((cell, "1")))))
    assert row[0] == "'" + cell


@pytest.mark.parametrize("cell", ["-1.5", "+2.30", "-", "–", "1,000"])
def test_csv_numbers_and_dashes_stay_as_they_are(cell):
    assert list(csv.reader(io.StringIO(to_csv(sheet(("a", cell)))))) == [["name", "rate"], ["a", cell]]


def test_csv_holds_the_records_where_there_are_some():
    records = ({"variant": "a", "yes": 1}, {"variant": "=b", "yes": None, "seed": 3})
    rows = list(csv.DictReader(io.StringIO(to_csv(sheet(("A", "1 %"), records=records)))))
    assert rows == [{"variant": "a", "yes": "1", "seed": ""}, {"variant": "'=b", "yes": "", "seed": "3"}]


def test_rows_that_do_not_fit_the_columns_are_refused():
    with pytest.raises(ValueError, match="2 cells were wanted, found 3"):
        sheet(("a", "1", "2"))
