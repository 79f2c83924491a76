"""Extract the objects and actions of human and predicted descriptions, as the Mementos benchmark does.

Launch: python -m eval.mementos.keywords --predictions RUN/predictions.jsonl [...] --extractor openai --base-url URL
        --model NAME

Writes keywords.jsonl (the raw answers) and keywords_run.json beside each predictions file. Both texts go in one
request, so an answer belongs to a sample AND its prediction; it is kept in keywords.jsonl and in the judge's cache, and
a rerun asks only what was never answered. `--extractor grammar` reads the story world's sentences without a server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.judge import asking
from eval.judge.asking import ask_pending, pending_rows, requests_of, why_unanswered
from eval.judge.base import Judge, JudgeSettings, Verdict
from eval.judge.cache import AnswerCache, cache_path
from eval.judge.client import ServerError, check_server
from eval.judge.cost import Cost, Spending, check_cost, estimate, price_of
from eval.judge.kept import keep, kept_rows
from eval.mementos import world_words
from eval.mementos.answers import parse
from eval.mementos.rows import KEYWORDS, KEYWORDS_RUN, Predictions, Row, read_all
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, build_config, option, to_json
from llava.imagechain.files import read_jsonl, sha256_json, write_jsonl
from llava.imagechain.locks import only_one
from llava.imagechain.manifest import run_manifest

logger = logging.getLogger("eval.mementos")
FOLDER = Path(__file__).resolve().parent / "extractor"
TOKENS_OF_AN_ANSWER = 150  # four labels and some thirty words
EXTRACTORS = ("openai", "grammar")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeywordsConfig:
    """Settings of eval.mementos.keywords; what is not given comes from eval/mementos/extractor/settings.yaml."""

    predictions: list[Path] = option(help="predictions.jsonl files made by eval.mementos.predict")
    extractor: str = option(
        "openai", help="a model behind an OpenAI-compatible server, or the story world's grammar", choices=EXTRACTORS
    )
    base_url: str | None = option(None, help="the server, for example http://HOST:8000/v1")
    model: str | None = option(None, help="model name on the server")
    api_key_env: str | None = option(None, help="name of the environment variable that holds the server's key")
    max_tokens: int | None = option(None, help="longest answer in tokens", minimum=1)
    concurrency: int | None = option(None, help="requests at the same time", minimum=1)
    timeout_s: float | None = option(None, help="seconds for one request", minimum=0.1)
    max_retries: int | None = option(None, help="further tries after 429, 5xx or a lost connection", minimum=0)
    max_cost: float | None = option(
        None, help="US dollars that asking may take, by the settings' price table", minimum=0
    )
    cache: str = option("auto", help="file of kept answers; auto = the user's cache folder, off = none")
    limit: int | None = option(None, help="only the first N rows of each file", minimum=1)
    resume: bool = option(True, help="use the answers that are already in keywords.jsonl")
    overwrite: bool = option(False, help="drop the answers that are already there (the cache stays)")
    dry_run: bool = option(False, help="count the calls that a run would make, ask and write nothing")


@dataclasses.dataclass(kw_only=True)
class Sheet(asking.Sheet):
    """One predictions file whose keywords are extracted."""

    predictions: Predictions

    def written(self, judge: Judge, row: Row) -> dict[str, Any]:
        """Return the row of keywords.jsonl."""
        key = judge.key(row.reference, row.prediction)
        answer = self.answers.get(key)
        return {
            "id": row.sample_id,
            "domain": row.domain,
            "extractor": judge.settings.name,
            "model": judge.settings.model or None,
            "answer": answer,
            "error": None if answer is not None else self.errors.get(key, "not asked"),
            "problem": None if answer is None else problem_of(answer),
            "pair_sha256": row.pair_sha256,
            "key": key,
        }


def load_extractor(config: KeywordsConfig) -> Judge:
    """Return the extractor's server, prompt and settings in the form the judges have."""
    loaded = yaml.safe_load((FOLDER / "settings.yaml").read_text(encoding="utf-8"))
    if config.extractor == "grammar":
        loaded |= {"name": "grammar", "answers_from": "prediction", "model": ""}
    settings = build_config(JudgeSettings, [loaded])
    prompt = yaml.safe_load((FOLDER / "prompt.yaml").read_text(encoding="utf-8"))
    extractor = Judge(settings=settings, folder=FOLDER, prompt=tuple(prompt), parse=_no_verdict)
    if config.extractor == "grammar":
        return extractor
    return extractor.with_environment().with_connection(config)


def _no_verdict(answer: str, reference: str) -> Verdict:
    raise NotImplementedError("an extractor gives lists; see eval.mementos.answers.parse")


def problem_of(answer: str) -> str | None:
    """Return why an answer cannot be read as four lists, or None."""
    try:
        parse(answer)
    except ValueError as error:
        return str(error)
    return None


def known_answers(config: KeywordsConfig, extractor: Judge, sheets: Sequence[Sheet], cache: AnswerCache) -> None:
    """Fill in what needs no call: by the grammar, from keywords.jsonl or beside it, from the cache."""
    for sheet in sheets:
        wanted = {extractor.key(row.reference, row.prediction): row for row in sheet.predictions.rows}
        pairs = {row.pair_sha256 for row in sheet.predictions.rows}
        earlier = read_jsonl(sheet.target) if sheet.target.is_file() and not config.overwrite else []
        sheet.leaving = [
            old for old in earlier
            if isinstance(old.get("answer"), str) and old.get("pair_sha256") in pairs
            and not (config.resume and old.get("key") in wanted)
        ]  # fmt: skip
        if config.extractor == "grammar":
            for key, row in wanted.items():
                if not any(world_words.extract(row.reference)):
                    raise ConfigError(
                        f"{sheet.predictions.path}, sample {row.sample_id}: a description in the story world's language"
                        f" was wanted, found {row.reference[:80]!r}; --extractor openai is for other data"
                    )
                sheet.answers[key] = world_words.answer(row.reference, row.prediction)
            continue
        if config.resume and not config.overwrite:
            for old in (*kept_rows(sheet.target), *earlier):
                if old.get("key") in wanted and isinstance(old.get("answer"), str):
                    sheet.answers[old["key"]] = old["answer"]
        asked = {extractor.key(row.reference, row.prediction) for row in sheet.rows}
        sheet.answers |= cache.get_many(asked - sheet.answers.keys())


def expected_cost(extractor: Judge, rows: Sequence[Row]) -> Cost:
    """Return what asking will take; the answers are longer than a judge's one word."""
    cost = estimate(extractor, [(row.reference, row.prediction) for row in rows])
    new_tokens = cost.calls * min(TOKENS_OF_AN_ANSWER, extractor.settings.max_tokens)
    usd = price_of(extractor, cost.prompt_tokens, new_tokens) if cost.calls else 0.0
    return dataclasses.replace(cost, new_tokens=new_tokens, usd=usd)


def extract(config: KeywordsConfig, extractor: Judge, sheets: Sequence[Sheet], cache: AnswerCache) -> int:
    """Extract, write, report; return the exit status."""
    with contextlib.ExitStack() as stack:
        for sheet in sheets if not config.dry_run else ():
            stack.enter_context(only_one(sheet.predictions.folder / ".judging", work="judging"))
        known_answers(config, extractor, sheets, cache)
        pending = {  # An empty prediction has no words: nothing is asked about it.
            key: row for key, row in pending_rows(extractor, sheets).items() if row.prediction.strip()
        }
        cost = expected_cost(extractor, list(pending.values()))
        print(f"{sum(len(sheet.rows) for sheet in sheets):,} rows, {cost}")
        if config.dry_run:
            print("nothing was asked or written")
            return 0
        check_cost(extractor, cost, config.max_cost)
        requests = requests_of(extractor, pending)
        if requests:
            check_server(extractor, requests[0])
        facts = {
            **to_json(config), "settings": dataclasses.asdict(extractor.settings),
            "prompt_sha256": sha256_json(list(extractor.prompt)) if config.extractor == "openai" else None,
        }  # fmt: skip
        for sheet in sheets:  # before keywords_run.json forgets who gave them
            keep(sheet.target, sheet.leaving, sheet.predictions.folder / KEYWORDS_RUN)
        runs = [
            stack.enter_context(
                run_manifest(
                    sheet.predictions.folder, config=facts, inputs=[sheet.predictions.path], name=KEYWORDS_RUN
                )
            )
            for sheet in sheets
        ]  # fmt: skip
        for sheet in sheets:  # What is known stays whole on disk while the rest arrives.
            write_jsonl(sheet.target, answered(extractor, sheet))
        spending = Spending(extractor, cost, config.max_cost)
        stopped = ask_pending(extractor, sheets, requests, cache, spending, lambda row: row["problem"] is None)
        unscored = 0
        for sheet, run in zip(sheets, runs, strict=True):
            rows = [sheet.written(extractor, row) for row in sheet.rows]
            unanswered = [row for row in rows if row["answer"] is None]
            write_jsonl(sheet.target, [*answered(extractor, sheet), *unanswered])
            counts = summary(sheet, rows)
            unscored += counts["unanswered"]
            run.record(summary=counts, stopped=stopped, calls=spending.facts())
            print(f"{sheet.predictions.folder}: {_listed(counts)} -> {sheet.target}")
            if counts["unparsed"] > sum(row["answer"] is not None for row in rows) / 2:
                logger.warning(
                    "%s: most answers are not the four lists that were asked for; read them in %s",
                    sheet.predictions.folder, sheet.target.name,
                )  # fmt: skip
    if unscored:
        reason = why_unanswered(sheets, stopped)
        logger.error("%d rows have no answer%s; run the same command again to ask for them only", unscored, reason)
    return 1 if unscored else 0


def answered(extractor: Judge, sheet: Sheet) -> list[dict[str, Any]]:
    """Return the rows that have an answer, those beyond --limit too, in the order of the predictions."""
    rows = (sheet.written(extractor, row) for row in sheet.predictions.rows)
    return [row for row in rows if row["answer"] is not None]


def summary(sheet: Sheet, rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the counts of one file."""
    empty = {row.sample_id for row in sheet.rows if not row.prediction.strip()}
    return {
        "rows": len(rows),
        "unparsed": sum(row["problem"] is not None for row in rows),
        "empty_predictions": len(empty),
        "unanswered": sum(row["answer"] is None and row["id"] not in empty for row in rows),
        "skipped": len(sheet.predictions.skipped),
    }


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in counts.items())


def run(config: KeywordsConfig) -> int:
    """Extract what the settings name; return the exit status."""
    extractor = load_extractor(config)
    sheets = [
        Sheet(predictions=found, target=found.folder / KEYWORDS, rows=found.rows[: config.limit])
        for found in read_all(config.predictions)
    ]
    for sheet in sheets:
        for row in sheet.predictions.skipped:
            logger.warning("%s: row %s is left out: %s", sheet.predictions.path, row["id"], row["reason"])
    asks = config.extractor == "openai"
    with contextlib.closing(AnswerCache(cache_path(config.cache) if asks else None)) as cache:
        return extract(config, extractor, sheets, cache)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        KeywordsConfig, run, argv, program="python -m eval.mementos.keywords", description=__doc__ or "",
        interrupted="the answers so far are kept, run the same command again", errors=(ServerError, sqlite3.Error),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
