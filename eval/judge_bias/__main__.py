"""Does a judge say Yes too easily? Both worked examples of the paper's prompt answer Yes.

Launch: python -m eval.judge_bias --stories STORYFRAMES --judge world|simrate|mock|FOLDER --output-dir OUT

Makes pairs that must be No (another story's text, another actor of the same video, negated) and pairs that must be Yes
(the reference itself, a paraphrase), writes them as predictions.jsonl, has eval.simrate judge them, and writes bias.md,
.csv, .tex and .json. One folder for each judge. On the story world paraphrases and wrong people, actions, objects and
places are exact; on other data paraphrases come from --paraphrases or from a server.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import simrate
from eval.judge import load_judge
from eval.judge.cache import cache_path
from eval.judge.client import ServerError
from eval.judge_bias.pairs import KINDS, WORLD_KINDS, Pair, Told, make_pairs, to_paraphrase, told_of
from eval.judge_bias.paraphrase import Server, ask_paraphrases, read_paraphrases
from eval.runs import PREDICTIONS, Judged, read_run
from eval.stats import wilson
from eval.tables.files import Sheet, to_markdown, write_tables
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.files import read_json, write_jsonl
from llava.imagechain.locks import only_one
from llava.imagechain.manifest import run_manifest
from llava.imagechain.story import CONTEXTS, SPLIT_FOLDERS, load_stories

BIAS_RUN = "bias_run.json"
logger = logging.getLogger("eval.judge_bias")
PASSED_ON = ("base_url", "model", "api_key_env", "rendering", "concurrency", "max_cost")
COLUMNS = ("Pairs", "Right", "n", "Yes", "Rate of Yes", "95 % interval", "Unparsed", "Unscored")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasConfig:
    """Settings of eval.judge_bias."""

    stories: str = option(help="StoryFrames folder, or the published dataset's name")
    judge: str = option("simrate", help="world, simrate, mock, or your own judge folder (its parser.py is run)")
    output_dir: Path = option(help="folder for the pairs, their judgments and bias.md, .csv, .tex, .json")
    split: str = option("validation", help="split of the stories", choices=list(SPLIT_FOLDERS))
    context: str = option("c2_7", help="numbers of scenes of the stories", choices=list(CONTEXTS))
    num: int = option(200, help="pairs of each kind", minimum=1)
    seed: int = option(0, help="source of chance: which stories, which other texts", minimum=0)
    paraphrases: Path | None = option(None, help='JSONL file of {"reference": ..., "paraphrase": ...}')
    paraphrase_base_url: str | None = option(None, help="OpenAI-compatible server that writes paraphrases")
    paraphrase_model: str | None = option(None, help="model name on it; better not the judge's own model")
    paraphrase_key_env: str = option("PARAPHRASE_API_KEY", help="name of the environment variable with its key")
    base_url: str | None = option(None, help="OpenAI-compatible server of the judge")
    model: str | None = option(None, help="the judge's model name on its server")
    api_key_env: str | None = option(None, help="name of the environment variable that holds the judge's key")
    rendering: str | None = option(None, help="chat messages, or the printed Llama 3 string", choices=("chat", "raw"))
    concurrency: int | None = option(None, help="requests at the same time", minimum=1)
    max_cost: float | None = option(None, help="US dollars for judging; ask nothing beyond them", minimum=0)
    cache: str = option("auto", help="file of kept answers; auto = the user's cache folder, off = none")
    judge_config: list[Path] = option([], help="YAML files with further settings of eval.simrate")
    resume: bool = option(True, help="use the judgments that are already there")
    overwrite: bool = option(False, help="drop the judgments that are already there (the cache stays)")
    dry_run: bool = option(False, help="count the pairs, ask and write nothing")


def known_paraphrases(config: BiasConfig, told: Sequence[Told]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return paraphrases of the references from the file and from the server, and what has none."""
    found = read_paraphrases(config.paraphrases) if config.paraphrases else {}
    if not config.paraphrase_base_url or config.dry_run:
        return found, []
    wanted = [text for text in to_paraphrase(told, config.num, config.seed) if text not in found]
    server = Server(
        base_url=config.paraphrase_base_url,
        model=config.paraphrase_model or "",
        api_key_env=config.paraphrase_key_env,
        concurrency=config.concurrency or 8,
    )
    asked, without = ask_paraphrases(wanted, server, cache_path(config.cache))
    return found | asked, without


def simrate_arguments(config: BiasConfig) -> list[str]:
    """Return the arguments with which eval.simrate judges the pairs."""
    words = ["--predictions", str(config.output_dir / PREDICTIONS), "--judge", config.judge, "--cache", config.cache]
    for name in PASSED_ON:
        if (value := getattr(config, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--config", *map(str, config.judge_config)] if config.judge_config else []
    return [*words, "--resume" if config.resume else "--no-resume", *(["--overwrite"] if config.overwrite else [])]


def count(title: str, expected: str, rows: Sequence[Judged]) -> dict[str, Any]:
    """Return the counts of one line of the table."""
    scored = [row for row in rows if row.verdict is not None]
    yes = sum(row.verdict == "yes" for row in scored)
    low, high = wilson(yes, len(scored)) if scored else (None, None)
    return {
        "pairs": title,
        "right": expected,
        "n": len(scored),
        "yes": yes,
        "rate_of_yes": yes / len(scored) if scored else None,
        "low_95": low,
        "high_95": high,
        "unparsed": sum(not row.parsed for row in scored),
        "unscored": len(rows) - len(scored),
    }


def bias_sheet(output_dir: Path, skipped: Sequence[dict[str, Any]]) -> Sheet:
    """Return the table of the judged pairs in a folder."""
    by_kind: dict[str, list[Judged]] = {}
    run = read_run(output_dir)
    for judged in run.rows:
        by_kind.setdefault(judged.row.story_id.partition("/")[0], []).append(judged)
    in_world = bool(by_kind.keys() & WORLD_KINDS)
    counts: dict[str, list[dict[str, Any]]] = {"yes": [], "no": []}
    for name, kind in (KINDS | WORLD_KINDS).items():
        if name in by_kind or name in KINDS:
            right = kind.expected if in_world or name != "other_actor" else f"mostly {kind.expected}"
            counts[kind.expected].append({"kind": name, **count(kind.title, right, by_kind.get(name, []))})
    lines: list[tuple[str, ...]] = []
    for expected, heading in (("no", "Must be No"), ("yes", "Must be Yes")):
        members = [row for one in counts[expected] if one["right"] == expected for row in by_kind.get(one["kind"], [])]
        counts[expected].append({"kind": f"all_{expected}", **count("together", expected, members)})
        lines += [(heading,), *(_line(one) for one in counts[expected])]
    facts = _judge_facts(output_dir)
    model = f", model {facts['model']}" if facts["model"] else ""
    reasons = collections.Counter((one["kind"], one["reason"]) for one in skipped)
    notes = [
        "A judge without bias has 0 % in the upper part and 100 % in the lower; the interval is Wilson's. Unparsed "
        "answers count as No; unscored pairs are in no count.",
        *([] if in_world else [
            "Two actors of a video may take part in the same happening, told from two sides: such a pair may rightly "
            "be Yes, so these pairs compare judges, and are not in the line \"together\"."
        ]),
        *(f"{(KINDS | WORLD_KINDS)[kind].title}: {many} stories make no pair: {reason}."
          for (kind, reason), many in reasons.items()),
    ]  # fmt: skip
    records = tuple(one for expected in ("no", "yes") for one in counts[expected])
    return Sheet(
        title=f"Judge {facts['judge']}{model}: how often it says Yes where the right answer is known",
        columns=COLUMNS,
        rows=tuple(lines),
        notes=tuple(notes),
        data={**facts, "pairs": records, "notes": notes},
        records=records,
    )


def _line(one: dict[str, Any]) -> tuple[str, ...]:
    rate = "–" if one["n"] == 0 else f"{100 * one['rate_of_yes']:.1f} %"
    interval = "–" if one["n"] == 0 else f"{100 * one['low_95']:.1f} to {100 * one['high_95']:.1f}"
    numbers = (str(one["n"]), str(one["yes"]), rate, interval, str(one["unparsed"]), str(one["unscored"]))
    return (one["pairs"], one["right"].replace("no", "No").replace("yes", "Yes"), *numbers)


def _judge_facts(output_dir: Path) -> dict[str, Any]:
    """Return who judged, as eval.simrate wrote it down."""
    config = read_json(output_dir / simrate.JUDGE_RUN).get("config", {})
    settings = config.get("judge_settings", {})
    facts = {name: settings.get(name) or None for name in ("model", "revision", "rendering", "temperature")}
    return {"judge": settings.get("name"), **facts, "prompt_sha256": config.get("prompt_sha256")}


def write_pairs(config: BiasConfig, pairs: Sequence[Pair], skipped: Sequence[dict[str, Any]]) -> None:
    """Write the pairs as eval.simrate reads them, what made none, and the paraphrases for people to check."""
    write_jsonl(config.output_dir / PREDICTIONS, (pair.to_row() for pair in pairs))
    write_jsonl(config.output_dir / "skipped.jsonl", skipped)
    rows = ({"reference": p.told.text, "paraphrase": p.prediction} for p in pairs if p.kind == "paraphrase")
    write_jsonl(config.output_dir / "paraphrases.jsonl", rows)


def check_folder(folder: Path) -> None:
    """Keep pairs from replacing the predictions of a run.

    Raises:
        ConfigError: The folder holds predictions that are no pairs.
    """
    if (folder / PREDICTIONS).exists() and not (folder / BIAS_RUN).is_file():
        raise ConfigError(f"output_dir: {folder} holds the {PREDICTIONS} of a run; pairs need a folder of their own")


def run(config: BiasConfig) -> int:
    """Make the pairs, have them judged, write the table; return the exit status."""
    check_folder(config.output_dir)
    if bool(config.paraphrase_base_url) != bool(config.paraphrase_model):
        raise ConfigError("--paraphrase-base-url and --paraphrase-model are wanted together")
    load_judge(config.judge)  # a wrong one is found out before anything is written
    told = told_of(load_stories(config.stories, config.split, config.context))
    paraphrases, without = known_paraphrases(config, told)
    pairs, skipped = make_pairs(told, num=config.num, seed=config.seed, paraphrases=paraphrases)
    made = collections.Counter(pair.kind for pair in pairs)
    for name in KINDS | WORLD_KINDS if any(kind in made for kind in WORLD_KINDS) else KINDS:
        print(f"  {(KINDS | WORLD_KINDS)[name].title}: {made[name]} pairs")
    if config.dry_run:
        print(f"{len(pairs)} pairs of {len(told)} stories; nothing was asked or written")
        return 0
    if without:
        logger.warning("%d references have no paraphrase, the first because of: %s", len(without), without[0]["reason"])
    inputs = [config.paraphrases] if config.paraphrases else []
    with (
        only_one(config.output_dir / ".measuring"),
        run_manifest(config.output_dir, config=to_json(config), inputs=inputs, name=BIAS_RUN) as manifest,
    ):
        write_pairs(config, pairs, skipped)
        manifest.record(pairs=dict(made), without_paraphrase=without)
        status = simrate.main(simrate_arguments(config))
        if status == 130:
            raise KeyboardInterrupt
        if status not in (0, 1):
            raise ConfigError("the pairs could not be judged (see above)")
        sheet = bias_sheet(config.output_dir, skipped)
        written = write_tables(config.output_dir / "bias", sheet)
    print(to_markdown(sheet))
    print(f"-> {written[0]} (and .csv, .tex, .json)")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        BiasConfig, run, argv, program="python -m eval.judge_bias", description=__doc__ or "",
        interrupted="the answers so far are kept, run the same command again", errors=(ServerError, sqlite3.Error),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
