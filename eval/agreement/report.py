"""Read the labels that people sent back and report how people and judges agree.

Launch: python -m eval.agreement import --key OUT/key/key.jsonl --labels anna.csv NAME=FILE [...] --output-dir OUT

Judges are those of the exported runs; --judgments adds others (judgments.jsonl files about the same predictions).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.agreement.judges import Judgments, compare_judges, read_judgments
from eval.agreement.kappa import Agreement, Rater, compare, share
from eval.agreement.labels import named_files, read_labels
from eval.agreement.sample import KeyRow, read_key
from eval.agreement.table import agreement_sheet, percent, percent_interval
from eval.resampling import estimate
from eval.runs import JUDGMENTS
from eval.tables.files import to_markdown, write_tables
from llava.imagechain.command import run_command
from llava.imagechain.config import all_problems, option, to_json
from llava.imagechain.files import write_jsonl
from llava.imagechain.manifest import run_manifest

SKIPPED = "labels_skipped.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Settings of eval.agreement import."""

    key: Path = option(help="key.jsonl that eval.agreement export wrote")
    labels: list[str] = option(help="filled labels.csv files, one for each person, as FILE or NAME=FILE")
    output_dir: Path = option(help="folder for agreement.md, .csv, .tex and .json")
    judgments: list[str] = option([], help="further judgments.jsonl files, as FILE or NAME=FILE")
    seed: int = option(0, help="source of chance of the bootstrap", minimum=0)


def read_people(
    files: Sequence[tuple[str | None, Path]], key: Mapping[str, KeyRow]
) -> tuple[list[Rater], list[dict[str, Any]]]:
    """Read all people's labels; without a given name a person is called like the file.

    Raises:
        ValueError: With every file that cannot be read, or a name met twice.
    """
    people: list[Rater] = []
    skipped: list[dict[str, Any]] = []
    problems: list[str] = []
    stems = Counter(path.stem for _, path in files)
    for given, path in files:
        name = given or (path.stem if stems[path.stem] == 1 else f"{path.resolve().parent.name}/{path.stem}")
        if any(person.name == name for person in people):
            problems.append(f"{path}: two people are called {name!r}; name the file: NAME={path}")
            continue
        try:
            labels, unusable = read_labels(path, key)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        people.append(Rater(name=name, kind="person", labels=labels))
        skipped += [{"rater": name, **row} for row in unusable]
    if problems:
        raise ValueError(all_problems("some labels cannot be read", problems))
    return people, skipped


def judgments_of(config: ImportConfig, key: Mapping[str, KeyRow]) -> tuple[Judgments, list[Path]]:
    """Read the judgments of the exported runs, as far as they are there, and those given."""
    paths = sorted({Path(row.run) / JUDGMENTS for row in key.values()})
    files = [(None, path) for path in paths if path.is_file()] + named_files(config.judgments, "judgments")
    read = read_judgments(files)
    missing = [str(path) for path in paths if not path.is_file()]
    notes = [f"Without verdicts, as their files are not there: {', '.join(missing)}."] if missing else []
    return dataclasses.replace(read, notes=(*read.notes, *notes)), [path for _, path in files]


def rates(raters: Sequence[Rater], key: Mapping[str, KeyRow], seed: int) -> list[dict[str, Any]]:
    """Return what share of the sample, and (weighted) of all predictions, each rater says Yes to."""
    rows = {row.item: row for row in key.values()}
    result = []
    for rater in raters:
        labelled = sorted(rater.labels.keys() & rows.keys())
        sums = np.array([[rater.labels[item], not rater.labels[item]] for item in labelled], float).reshape(-1, 2)
        factors = np.array([rows[item].weight for item in labelled]).reshape(-1, 1)
        clusters = [rows[item].video_name for item in labelled]
        made = [estimate(part, clusters, share(0), undefined="no row", seed=seed) for part in (sums, sums * factors)]
        result.append(
            {"rater": rater.name, "kind": rater.kind, "labels": len(labelled), "yes": made[0], "yes_weighted": made[1]}
        )
    return result


def compare_all(people: Sequence[Rater], judgments: Judgments, key: Mapping[str, KeyRow], seed: int) -> list[Agreement]:
    """Compare people with judges and with each other on the sample, and judges on all that both judged."""
    videos = {row.item: row.video_name for row in key.values()}
    weights = {row.item: row.weight for row in key.values()}
    pairs = [*itertools.product(people, judgments.judges), *itertools.combinations(people, 2)]
    made = [compare(first, second, videos, weights, seed) for first, second in pairs]
    return [*made, *compare_judges(judgments, seed)]


def summary_notes(people_rates: Sequence[dict[str, Any]], skipped: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each rater and for each reason why rows do not count."""
    lines = [
        f"{one['rater']} ({one['kind']}): {one['labels']} labels, Yes to {percent(one['yes'])} of them; weighted, to "
        f"{percent(one['yes_weighted'])} ({percent_interval(one['yes_weighted'])}) of all predictions of the runs."
        if one["labels"]
        else f"{one['rater']} ({one['kind']}): no usable label."
        for one in people_rates
    ]
    reasons = Counter((row["rater"], row["reason"]) for row in skipped)
    return lines + [f"{rater}: {count} rows do not count: {reason}." for (rater, reason), count in reasons.items()]


def make_report(config: ImportConfig) -> None:
    """Read the labels, compare, write and print the table."""
    files = named_files(config.labels, "labels")
    key = read_key(config.key)
    people, skipped = read_people(files, key)
    if not any(person.labels for person in people):
        reasons = Counter(row["reason"] for row in skipped).most_common(3)
        why = "; ".join(f"{count} rows do not count: {reason}" for reason, count in reasons)
        raise ValueError(f"labels yes or no were wanted in the column 'label', found none ({why or 'no row'})")
    judgments, judged = judgments_of(config, key)
    inputs = [config.key, *(path for _, path in files), *judged]
    with run_manifest(config.output_dir, config=to_json(config), inputs=inputs, name="agreement_run.json"):
        found = rates([*people, *judgments.judges], key, config.seed)
        agreements = compare_all(people, judgments, key, config.seed)
        notes = [*summary_notes(found, skipped), *judgments.notes]
        facts = [{**one, "yes": dataclasses.asdict(one["yes"]),
                  "yes_weighted": dataclasses.asdict(one["yes_weighted"])} for one in found]  # fmt: skip
        sheet = agreement_sheet(agreements, notes, {"raters": facts, "rows": len(key), "skipped": skipped})
        write_jsonl(config.output_dir / SKIPPED, skipped)
        written = write_tables(config.output_dir / "agreement", sheet)
    print(to_markdown(sheet))
    if skipped:
        print(f"{len(skipped)} rows do not count -> {config.output_dir / SKIPPED}")
    print(f"-> {written[0]} (and .csv, .tex, .json)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        ImportConfig, make_report, argv, program="python -m eval.agreement import", description=__doc__ or ""
    )
