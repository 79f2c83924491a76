"""Tables 1 and 2 of the paper from judged runs, and the comparison of two runs, with how sure each number is.

Launch: python -m eval.tables --runs RUN [RUN ...] --output-dir OUT [--table 1|2] [--paper]
        python -m eval.tables --compare RUN_A RUN_B [--context c2_6]

Writes table1.md, .csv, .tex and .json with table1_pairs beside them, or table2. A cell is yes / scored stories with a
95 % Wilson interval; an unparsed answer is a No, an unscored story is in no count. C4-6 and C2-6 are total yes / total
stories. Several runs of one variant are its training seeds: each is shown, then their mean and range.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.runs import RunFolder, column_title, read_runs, refuse_run_folder
from eval.tables import table2
from eval.tables.cells import COLUMNS, Cell
from eval.tables.compare import compare, comparison_sheet, verdict
from eval.tables.files import Sheet, to_markdown, write_tables
from eval.tables.table1 import Row, Table, build_table, pairs_sheet, to_sheet
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.manifest import run_manifest
from llava.imagechain.story import CONTEXTS

__all__ = ["COLUMNS", "Cell", "Row", "Table", "build_table", "column_title", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Settings of eval.tables."""

    runs: list[Path] = option([], help="run folders with predictions.jsonl and judgments.jsonl")
    output_dir: Path | None = option(None, help="folder for the tables; with --compare it may be left out")
    table: int = option(1, help="number of the paper's table", choices=(1, 2))
    train_context: str = option("c2_7", help="training context of Table 1's trained variants", choices=list(CONTEXTS))
    paper: bool = option(False, help="the stories are StoryFrames: show the paper's numbers beside ours")
    compare: list[Path] = option([], help="two run folders: is the first better, and how sure is that?")
    context: str = option("c2_6", help="stories that --compare and the pairs are about", choices=list(CONTEXTS))
    seed: int = option(0, help="of the bootstrap over videos", minimum=0)


def check(config: TablesConfig) -> None:
    """Refuse settings that do not fit together.

    Raises:
        ConfigError: With what was found and wanted.
    """
    if bool(config.runs) == bool(config.compare):
        raise ConfigError("either --runs RUN ... or --compare RUN_A RUN_B is wanted")
    if config.compare and len(config.compare) != 2:
        raise ConfigError(f"--compare: two run folders were wanted, found {len(config.compare)}")
    if config.runs and config.output_dir is None:
        raise ConfigError("--output-dir is required with --runs: folder for the tables")
    if config.output_dir is not None:
        refuse_run_folder(config.output_dir)


def build_sheets(config: TablesConfig, runs: Sequence[RunFolder]) -> dict[str, Sheet]:
    """Return the sheets to write by file name; the first is the one to print."""
    if config.table == 2:
        return {"table2": table2.build_sheet(runs, paper=config.paper, seed=config.seed)}
    table = build_table(runs, train_context=config.train_context, paper=config.paper)
    pairs = pairs_sheet(table, config.context, config.seed)
    return {"table1": to_sheet(table)} | ({"table1_pairs": pairs} if pairs else {})


def compare_runs(config: TablesConfig, runs: Sequence[RunFolder]) -> dict[str, Sheet]:
    """Print whether run A is better than run B; return the sheet to write."""
    comparison = compare(runs[0], runs[1], config.context, config.seed)
    title = f"{comparison.a} against {comparison.b} on {column_title(config.context)}"
    sheet = comparison_sheet([comparison], title, comparison.remarks)
    print(f"{to_markdown(sheet)}\n{verdict(comparison)}")
    return {"comparison": sheet}


def make_tables(config: TablesConfig) -> None:
    """Build the tables, write them where they are wanted, and print."""
    check(config)
    runs = read_runs(config.runs or config.compare)
    sheets = compare_runs(config, runs) if config.compare else build_sheets(config, runs)
    if config.output_dir is not None:
        inputs = [path for run in runs for path in run.files]
        with run_manifest(config.output_dir, config=to_json(config), inputs=inputs, name="tables_run.json"):
            for name, sheet in sheets.items():
                write_tables(config.output_dir / name, sheet)
    if config.runs:
        print(to_markdown(next(iter(sheets.values()))))
    if config.output_dir is not None:
        names = " and ".join(str(config.output_dir / f"{name}.md") for name in sheets)
        print(f"-> {names} (and .csv, .tex, .json)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(TablesConfig, make_tables, argv, program="python -m eval.tables", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
