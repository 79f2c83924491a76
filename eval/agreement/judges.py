"""Compare judges on the predictions that both judged.

Launch: python -m eval.agreement judges --judgments A=RUN/judgments-a.jsonl B=RUN/judgments.jsonl --output-dir OUT

Files of the same name are one judge. Verdicts are matched by story and by the hash of the two texts that were judged.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.agreement.kappa import Agreement, Rater, compare
from eval.agreement.labels import named_files
from eval.agreement.sample import Item
from eval.agreement.table import agreement_sheet
from eval.runs import PREDICTIONS, read_predictions, storable
from eval.tables.files import to_markdown, write_tables
from llava.imagechain.command import run_command
from llava.imagechain.config import option, to_json
from llava.imagechain.files import read_jsonl
from llava.imagechain.manifest import run_manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgesConfig:
    """Settings of eval.agreement judges."""

    judgments: list[str] = option(help="judgments.jsonl files of at least two judges, as FILE or NAME=FILE")
    output_dir: Path = option(help="folder for agreement.md, .csv, .tex and .json")
    seed: int = option(0, help="source of chance of the bootstrap", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgments:
    """What judgments.jsonl files say: the judges, the videos of the stories, and remarks for the reader."""

    judges: tuple[Rater, ...]
    videos: Mapping[Item, str]
    notes: tuple[str, ...]


def read_judgments(files: Sequence[tuple[str | None, Path]]) -> Judgments:
    """Read judgments; a file without a given name is its rows' judge.

    Raises:
        ValueError: Files of one judge contradict each other and no name tells them apart.
    """
    labels: dict[str, dict[Item, bool]] = {}
    videos: dict[Item, str] = {}
    notes: list[str] = []
    for given, path in files:
        rows = read_jsonl(path)
        scored = [
            (item, row["verdict"] == "yes", storable(str(row.get("judge") or path.stem)))
            for row in rows
            if row.get("verdict") in ("yes", "no") and (item := _item(row))
        ]
        names = sorted({name for _, _, name in scored})
        if given is None and len(names) > 1:
            raise ValueError(f"{path}: one judge was wanted, found {', '.join(names)}; name the file: NAME={path}")
        if len(scored) < len(rows) or not rows:
            notes.append(f"{len(rows) - len(scored)} rows of {path} have no verdict and are left out.")
        if not scored:
            continue
        known = labels.setdefault(given or names[0], {})
        for item, verdict, _ in scored:
            if known.setdefault(item, verdict) != verdict and given is None:
                raise ValueError(
                    f"{path}: judge {names[0]!r} says both Yes and No to the same texts (story {item[0]}) in these "
                    f"files; where they come from different judges, name them: NAME={path}"
                )
        videos |= _videos(path.parent / PREDICTIONS)
    raters = tuple(Rater(name=name, kind="judge", labels=known) for name, known in labels.items())
    if any(item not in videos for rater in raters for item in rater.labels):
        notes.append("Some predictions.jsonl do not say which video a story is of; its own story is its cluster then.")
    return Judgments(judges=raters, videos=videos, notes=tuple(notes))


def _item(row: Mapping[str, object]) -> Item | None:
    story_id, pair = row.get("id"), row.get("pair_sha256")
    return (story_id, pair) if isinstance(story_id, str) and isinstance(pair, str) else None


def _videos(path: Path) -> dict[Item, str]:
    if not path.is_file():
        return {}
    rows, _, _ = read_predictions(path)
    return {(row.story_id, row.pair_sha256): row.video_name for row in rows if row.video_name}


def compare_judges(judgments: Judgments, seed: int) -> list[Agreement]:
    """Compare each two judges on all predictions that both judged."""
    pairs = itertools.combinations(judgments.judges, 2)
    return [compare(first, second, judgments.videos, seed=seed) for first, second in pairs]


def report(config: JudgesConfig) -> None:
    """Compare the judges, write and print the table."""
    files = named_files(config.judgments, "judgments")
    judgments = read_judgments(files)
    if len(judgments.judges) < 2:
        notes = "".join(f" {note}" for note in judgments.notes if "have no verdict" in note)
        raise ValueError(
            f"verdicts of two judges were wanted, found {[judge.name for judge in judgments.judges]}; files of "
            f"different judges that call themselves the same are told apart by NAME=FILE.{notes}"
        )
    agreements = compare_judges(judgments, config.seed)
    if not any(one.n for one in agreements):
        raise ValueError("the judges have no prediction in common; the same stories with the same texts were wanted")
    paths = [path for _, path in files]
    with run_manifest(config.output_dir, config=to_json(config), inputs=paths, name="agreement_run.json"):
        sheet = agreement_sheet(agreements, notes=judgments.notes)
        written = write_tables(config.output_dir / "agreement", sheet)
    print(to_markdown(sheet))
    print(f"-> {written[0]} (and .csv, .tex, .json)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(JudgesConfig, report, argv, program="python -m eval.agreement judges", description=__doc__ or "")
