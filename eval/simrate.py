"""Judge predictions: does each say what its reference says? (SimRate, paper section 5.4.)

Launch: python -m eval.simrate --predictions RUN/predictions.jsonl [...] --judge world|simrate|mock|FOLDER

Writes judgments.jsonl and judge_run.json beside each predictions file. Answers are kept in judgments.jsonl and in a
cache; a rerun asks only what was never answered, and always reads the verdicts anew from the raw answers. Before it
asks, it says how many calls, tokens and dollars that takes; --max-cost stops it before they are spent.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import sqlite3
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from eval.judge import Judge, asking, load_judge
from eval.judge.asking import ask_pending, pending_rows, requests_of, why_unanswered
from eval.judge.cache import AnswerCache, cache_path
from eval.judge.client import ServerError, check_server, check_url
from eval.judge.cost import Cost, Spending, check_cost, estimate
from eval.judge.kept import keep, kept_rows
from eval.runs import JUDGMENTS, Prediction, read_predictions
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, all_problems, option, to_json
from llava.imagechain.files import read_json, read_jsonl, sha256_json, write_jsonl
from llava.imagechain.locks import only_one
from llava.imagechain.manifest import Run, run_manifest

logger = logging.getLogger("eval.simrate")
JUDGE_RUN = "judge_run.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimRateConfig:
    """Settings of eval.simrate; what is not given comes from JUDGE_BASE_URL, JUDGE_MODEL and JUDGE_REVISION in the
    environment (scripts/eval/serve_judge.sh sets them), then from the judge's settings.yaml."""

    predictions: list[Path] = option(help="predictions.jsonl files made by eval.predict")
    judge: str = option("simrate", help="world, simrate, mock, or your own judge folder (its parser.py is run)")
    base_url: str | None = option(None, help="OpenAI-compatible server of the judge, for example http://HOST:8000/v1")
    model: str | None = option(None, help="model name on the server")
    revision: str | None = option(None, help="version of that model; answers of another revision are not used")
    api_key_env: str | None = option(None, help="name of the environment variable that holds the server's key")
    rendering: str | None = option(None, help="chat messages, or the printed Llama 3 string", choices=("chat", "raw"))
    concurrency: int | None = option(None, help="requests at the same time", minimum=1)
    timeout_s: float | None = option(None, help="seconds for one request", minimum=0.1)
    max_retries: int | None = option(
        None, help="further tries after 429, 5xx, a timeout or a lost connection", minimum=0
    )
    cache: str = option("auto", help="file of kept answers; auto = the user's cache folder, off = none")
    price: list[float] | None = option(
        None, help="US dollars per million tokens read and per million written, instead of the judge's price table"
    )
    max_cost: float | None = option(None, help="US dollars; ask nothing beyond them", minimum=0)
    limit: int | None = option(None, help="judge only the first N rows of each file", minimum=1)
    resume: bool = option(True, help="use the answers that are already in judgments.jsonl")
    overwrite: bool = option(False, help="drop the judgments that are already there (the cache stays)")
    dry_run: bool = option(False, help="count the calls that a run would make, ask and write nothing")


@dataclasses.dataclass(kw_only=True)
class Sheet(asking.Sheet):
    """One predictions file being judged."""

    path: Path
    later: list[Prediction]  # beyond --limit: nothing is asked for them, but judgments that they have are kept
    skipped: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.path.parent

    def written(self, judge: Judge, row: Prediction) -> dict[str, Any]:
        """Return the row of judgments.jsonl, its verdict read from the raw answer."""
        key = judge.key(row.reference, row.prediction)
        answer, error = self.answers.get(key), self.errors.get(key)
        try:
            verdict = judge.parse(answer, row.reference) if answer is not None else None
        except ValueError as wrong:
            raise ConfigError(f"{self.path}, story {row.story_id}: {wrong}") from wrong
        return {
            "id": row.story_id,
            "verdict": verdict.verdict if verdict else None,
            "parsed": verdict.parsed if verdict else False,
            "answer": answer,
            "error": None if verdict else error or "not asked",
            "judge": judge.settings.name,
            "pair_sha256": row.pair_sha256,
            "key": key,
            "request": judge.request_key(row.reference, row.prediction),
        }


def read_sheets(config: SimRateConfig) -> list[Sheet]:
    """Read all predictions files; all problems in one message.

    Raises:
        ConfigError: A file is missing, empty, malformed, or given twice.
    """
    sheets: list[Sheet] = []
    problems: list[str] = []
    for path in config.predictions:
        if path.parent.is_file():
            problems.append(f"{path.parent} is a file; its run folder {path.parent.parent} was wanted")
            continue
        try:
            rows, skipped, _ = read_predictions(path)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        within, later = rows[: config.limit], rows[len(rows[: config.limit]) :]
        sheets.append(Sheet(path=path, target=path.parent / JUDGMENTS, rows=within, later=later, skipped=skipped))
    folders = [path.resolve().parent for path in config.predictions]
    if len(set(folders)) < len(folders):
        problems.append("predictions: each file needs a folder of its own, found two in one folder")
    if problems:
        raise ConfigError(all_problems("the predictions cannot be judged", problems))
    return sheets


def known_answers(
    config: SimRateConfig, judge: Judge, sheets: Sequence[Sheet], cache: AnswerCache
) -> collections.Counter[str]:
    """Fill in all answers that need no call: by the judge itself, from judgments.jsonl or beside it, from the cache.

    Returns:
        How many came from `judgments` and from the `cache`, and how many rows have an answer of `others` only: of
        another judge, model, prompt or revision.
    """
    counts: collections.Counter[str] = collections.Counter()
    # Who names no revision takes what is in the folder, of whichever revision.
    field = "key" if judge.settings.revision else "request"
    for sheet in sheets:
        pairs = {row.pair_sha256 for row in (*sheet.rows, *sheet.later)}
        wanted = {judge.key(row.reference, row.prediction): row for row in sheet.rows}
        known = wanted.keys() | {judge.key(row.reference, row.prediction) for row in sheet.later}
        earlier = read_jsonl(sheet.target) if sheet.target.is_file() and not config.overwrite else []
        for old in earlier:
            if not isinstance(old.get("answer"), str):
                continue
            if config.resume and (key := old.get(field, old.get("key"))) in known:
                sheet.answers[str(key)] = old["answer"]
            elif old.get("pair_sha256") in pairs:
                sheet.leaving.append(old)
        for old in kept_rows(sheet.target) if config.resume and not config.overwrite else ():
            if (key := old.get(field, old.get("key"))) in known and isinstance(old.get("answer"), str):
                sheet.answers.setdefault(str(key), old["answer"])
        counts["others"] += len(sheet.leaving)
        if judge.settings.answers_from == "server":
            counts["judgments"] += len(wanted.keys() & sheet.answers.keys())
            cached = cache.get_many(wanted.keys() - sheet.answers.keys())
            counts["cache"] += len(cached)
            sheet.answers |= cached
        else:
            sheet.answers |= {key: judge.local_answer(row.reference, row.prediction) for key, row in wanted.items()}
    return counts


def finished(judge: Judge, sheet: Sheet) -> list[dict[str, Any]]:
    """Return the judgments of all answered rows, in the order of the predictions."""
    return [row for row in (sheet.written(judge, row) for row in (*sheet.rows, *sheet.later)) if row["verdict"]]


def summary(judge: Judge, sheet: Sheet) -> dict[str, Any]:
    """Return the counts of one file, and the rate with unparsed answers as No (the paper's way) and without them."""
    rows = [sheet.written(judge, row) for row in sheet.rows]
    yes = sum(row["verdict"] == "yes" for row in rows)
    scored = sum(row["verdict"] is not None for row in rows)
    unparsed = sum(row["verdict"] is not None and not row["parsed"] for row in rows)
    return {
        "rows": len(rows),
        "yes": yes,
        "no": scored - yes,
        "unparsed": unparsed,
        "unscored": len(rows) - scored,
        "skipped": len(sheet.skipped),
        "simrate_percent": round(100 * yes / scored, 2) if scored else None,
        "simrate_percent_without_unparsed": round(100 * yes / (scored - unparsed), 2) if scored > unparsed else None,
    }


def judge_sheets(config: SimRateConfig, judge: Judge, sheets: Sequence[Sheet], cache: AnswerCache) -> int:
    """Judge, write, report; return the exit status."""
    with contextlib.ExitStack() as stack:
        for sheet in sheets if not config.dry_run else ():
            stack.enter_context(only_one(sheet.folder / ".judging", work="judging"))
        known = known_answers(config, judge, sheets, cache)
        pending = pending_rows(judge, sheets)
        cost = estimate(judge, [(row.reference, row.prediction) for row in pending.values()])
        _print_plan(judge, sheets, cost, known)
        if config.dry_run:
            print("nothing was asked or written")
            return 0
        check_cost(judge, cost, config.max_cost)
        requests = requests_of(judge, pending)
        server = check_server(judge, requests[0]) if requests else {}
        asked = {
            "asked_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "revision": judge.settings.revision or server.get("revision"),
            "server": server,
        }
        earlier = [_asked_before(config, sheet) for sheet in sheets]
        for sheet in sheets:  # before judge_run.json forgets who gave them
            keep(sheet.target, sheet.leaving, sheet.folder / JUDGE_RUN)
        runs = [stack.enter_context(_manifest(config, judge, sheet)) for sheet in sheets]
        for run, before in zip(runs, earlier, strict=True):
            run.record(expected=dataclasses.asdict(cost), known=dict(known), asked=[*before, *[asked] * bool(requests)])
        spending = Spending(judge, cost, config.max_cost)
        for sheet in sheets:  # What is known stays whole on disk while the rest arrives.
            write_jsonl(sheet.target, finished(judge, sheet))
        try:
            stopped = ask_pending(judge, sheets, requests, cache, spending, lambda row: row["parsed"])
        finally:
            asked |= spending.facts()
        return _finish(judge, sheets, runs, stopped)


def _finish(judge: Judge, sheets: Sequence[Sheet], runs: Sequence[Run], stopped: str | None) -> int:
    unscored = 0
    for sheet, run in zip(sheets, runs, strict=True):
        judgments = [sheet.written(judge, row) for row in (*sheet.rows, *sheet.later)]
        write_jsonl(sheet.target, judgments if not sheet.later else finished(judge, sheet))
        if sheet.skipped:
            write_jsonl(sheet.folder / "judge_skipped.jsonl", sheet.skipped)
        counts = summary(judge, sheet)
        unscored += counts["unscored"]
        run.record(summary=counts, stopped=stopped if counts["unscored"] else None)
        _print_summary(sheet, counts)
    if unscored:
        reason = why_unanswered(sheets, stopped)
        logger.error("%d rows are unscored%s; run the same command again to ask for them only", unscored, reason)
    return 1 if unscored else 0


def _print_plan(judge: Judge, sheets: Sequence[Sheet], cost: Cost, known: collections.Counter[str]) -> None:
    line = f"{sum(len(sheet.rows) for sheet in sheets):,} rows, {cost}"
    if judge.settings.answers_from == "server":
        line += f"; known: {known['judgments']:,} from {JUDGMENTS}, {known['cache']:,} from the cache"
    if known["others"]:
        line += f"; {known['others']:,} answers of another judge, model, prompt or revision do not count, and are kept"
    print(line)


def _asked_before(config: SimRateConfig, sheet: Sheet) -> list[Any]:
    """Return who gave the answers that are there already, so that a rerun without a call does not forget it."""
    path = sheet.folder / JUDGE_RUN
    if config.overwrite or not config.resume or not path.is_file():
        return []
    earlier = read_json(path)
    asked = earlier.get("asked") if isinstance(earlier, dict) else None
    return asked if isinstance(asked, list) else []


def _manifest(config: SimRateConfig, judge: Judge, sheet: Sheet) -> contextlib.AbstractContextManager[Run]:
    settings = dataclasses.asdict(judge.settings)
    facts = {
        **to_json(config),
        "judge_settings": settings,
        "prompt_sha256": sha256_json(list(judge.prompt)) if judge.prompt else None,
    }
    return run_manifest(sheet.folder, config=facts, inputs=[sheet.path], name=JUDGE_RUN)


def _print_summary(sheet: Sheet, counts: dict[str, Any]) -> None:
    rate, without = (
        "-" if value is None else f"{value:.2f} %"
        for value in (counts["simrate_percent"], counts["simrate_percent_without_unparsed"])
    )
    scored = counts["yes"] + counts["no"]
    unparsed = f"{counts['unparsed']} ({without} without them)" if counts["unparsed"] else "0"
    print(
        f"{sheet.folder}: SimRate {rate} ({counts['yes']}/{scored}), unparsed {unparsed}, "
        f"unscored {counts['unscored']}, skipped {counts['skipped']} -> {sheet.target}"
    )
    if counts["unparsed"] > scored / 2:
        logger.warning(
            "%s: most answers begin with neither Yes nor No, and count as No; read them in %s",
            sheet.folder, sheet.target.name,
        )  # fmt: skip


def chosen_judge(config: SimRateConfig) -> Judge:
    """Return the judge with the settings of this run.

    Raises:
        ConfigError: A setting is wrong.
        ServerError: The server's address is wrong, or holds a secret.
    """
    judge = load_judge(config.judge).with_environment().with_connection(config)
    if config.price is not None:
        judge = judge.with_settings(prices={**judge.settings.prices, judge.settings.model: config.price})
    if judge.settings.answers_from == "server":
        check_url(judge.settings.base_url)
    return judge


def run(config: SimRateConfig) -> int:
    """Judge the files that the settings name; return the exit status."""
    judge = chosen_judge(config)
    sheets = read_sheets(config)
    asks = judge.settings.answers_from == "server"
    with contextlib.closing(AnswerCache(cache_path(config.cache) if asks else None)) as cache:
        return judge_sheets(config, judge, sheets, cache)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        SimRateConfig, run, argv, program="python -m eval.simrate", description=__doc__ or "",
        interrupted="the answers so far are kept, run the same command again", errors=(ServerError, sqlite3.Error),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
