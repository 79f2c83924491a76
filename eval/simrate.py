"""Judge predictions: does each say what its reference says? (SimRate, paper section 5.4.)

Launch: python -m eval.simrate --predictions RUN/predictions.jsonl [...] --judge world|simrate|mock|FOLDER

Writes judgments.jsonl and judge_run.json beside each predictions file. Answers are kept in judgments.jsonl and in a
cache; a rerun asks only what was never answered, and always reads the verdicts anew from the raw answers.
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

from eval.judge import Judge, load_judge
from eval.judge.cache import AnswerCache, default_cache_path
from eval.judge.client import Reply, Request, ServerError, ask_all, check_server
from eval.runs import JUDGMENTS, Prediction, read_predictions
from llava.imagechain.config import ConfigError, option, parse_config, to_json
from llava.imagechain.files import JsonlAppender, read_jsonl, sha256_json, write_jsonl
from llava.imagechain.manifest import Run, run_manifest

logger = logging.getLogger("eval.simrate")
JUDGE_RUN = "judge_run.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimRateConfig:
    """Settings of eval.simrate; what is not given comes from the judge's settings.yaml."""

    predictions: list[Path] = option(help="predictions.jsonl files made by eval.predict")
    judge: str = option("simrate", help="world, simrate, mock, or your own judge folder (its parser.py is RUN)")
    base_url: str | None = option(None, help="OpenAI-compatible server of the judge, for example http://HOST:8000/v1")
    model: str | None = option(None, help="model name on the server")
    api_key_env: str | None = option(None, help="name of the environment variable that holds the server's key")
    rendering: str | None = option(None, help="chat messages, or the printed Llama 3 string", choices=("chat", "raw"))
    concurrency: int | None = option(None, help="requests at the same time", minimum=1)
    timeout_s: float | None = option(None, help="seconds for one request", minimum=0.1)
    max_retries: int | None = option(
        None, help="further tries after 429, 5xx, a timeout or a lost connection", minimum=0
    )
    cache: str = option("auto", help="file of kept answers; auto = the user's cache folder, off = none")
    limit: int | None = option(None, help="judge only the first N rows of each file", minimum=1)
    resume: bool = option(True, help="use the answers that are already in judgments.jsonl")
    overwrite: bool = option(False, help="drop the judgments that are already there (the cache stays)")
    dry_run: bool = option(False, help="count the calls that a run would make, ask and write nothing")


@dataclasses.dataclass(kw_only=True)
class Sheet:
    """One predictions file being judged."""

    path: Path
    rows: list[Prediction]
    later: list[Prediction]  # beyond --limit: nothing is asked for them, but judgments that they have are kept
    skipped: list[dict[str, Any]]
    answers: dict[str, str] = dataclasses.field(default_factory=dict)  # request key -> raw answer
    errors: dict[str, str] = dataclasses.field(default_factory=dict)  # request key -> why there is none

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.path.parent

    def judgment(self, judge: Judge, row: Prediction) -> dict[str, Any]:
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
        }


def read_sheets(config: SimRateConfig) -> list[Sheet]:
    """Read all predictions files; all problems in one message.

    Raises:
        ConfigError: A file is missing, empty, malformed, or given twice.
    """
    sheets: list[Sheet] = []
    problems: list[str] = []
    for path in config.predictions:
        try:
            rows, skipped, _ = read_predictions(path)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        sheets.append(
            Sheet(path=path, rows=rows[: config.limit], later=rows[len(rows[: config.limit]) :], skipped=skipped)
        )
    folders = [path.resolve().parent for path in config.predictions]
    if len(set(folders)) < len(folders):
        problems.append("predictions: each file needs a folder of its own, found two in one folder")
    if problems:
        raise ConfigError("\n  - ".join(["the predictions cannot be judged:", *problems]))
    return sheets


def known_answers(config: SimRateConfig, judge: Judge, sheets: Sequence[Sheet], cache: AnswerCache) -> None:
    """Fill in all answers that need no call: by the judge itself, from judgments.jsonl, from the cache."""
    for sheet in sheets:
        wanted = {judge.key(row.reference, row.prediction): row for row in sheet.rows}
        known = wanted.keys() | {judge.key(row.reference, row.prediction) for row in sheet.later}
        earlier = sheet.folder / JUDGMENTS
        if config.resume and not config.overwrite and earlier.is_file():
            for old in read_jsonl(earlier):
                if old.get("key") in known and isinstance(old.get("answer"), str):
                    sheet.answers[old["key"]] = old["answer"]
        if judge.settings.answers_from == "server":
            sheet.answers |= cache.get_many(wanted.keys() - sheet.answers.keys())
        else:
            sheet.answers |= {key: judge.local_answer(row.reference, row.prediction) for key, row in wanted.items()}


def pending_requests(judge: Judge, sheets: Sequence[Sheet]) -> list[Request]:
    """Return what has to be asked; equal comparisons are asked once."""
    pending: dict[str, Request] = {}
    for sheet in sheets:
        for row in sheet.rows:
            key = judge.key(row.reference, row.prediction)
            if key not in sheet.answers and key not in pending:
                pending[key] = Request(key=key, body=judge.request(row.reference, row.prediction))
    return list(pending.values())


def ask_pending(judge: Judge, sheets: Sequence[Sheet], requests: Sequence[Request], cache: AnswerCache) -> str | None:
    """Ask the server, writing each judgment down as it arrives.

    Returns:
        None, or why asking stopped early.
    """
    from tqdm import tqdm

    places: dict[str, list[tuple[int, Prediction]]] = {}
    for number, sheet in enumerate(sheets):
        for row in sheet.rows:
            places.setdefault(judge.key(row.reference, row.prediction), []).append((number, row))
    interval_s = 0.2 if sys.stderr.isatty() else 60
    counts = {"failed": 0, "unparsed": 0}
    with contextlib.ExitStack() as stack:
        for sheet in sheets:  # What is known stays whole on disk while the rest arrives.
            write_jsonl(sheet.folder / JUDGMENTS, finished(judge, sheet))
        logs = [stack.enter_context(JsonlAppender(sheet.folder / JUDGMENTS)) for sheet in sheets]
        progress = stack.enter_context(
            tqdm(total=len(requests), unit="call", desc="judge", mininterval=interval_s, maxinterval=interval_s)
        )

        def take(reply: Reply) -> None:
            for number, row in places[reply.key]:
                kind = sheets[number].errors if reply.answer is None else sheets[number].answers
                kind[reply.key] = str(reply.error if reply.answer is None else reply.answer)
                logs[number].write(judgment := sheets[number].judgment(judge, row))
            counts["failed"] += reply.answer is None
            counts["unparsed"] += reply.answer is not None and not judgment["parsed"]
            progress.set_postfix(counts, refresh=False)
            progress.update()

        return ask_all(judge, requests, cache, take)


def finished(judge: Judge, sheet: Sheet) -> list[dict[str, Any]]:
    """Return the judgments of all answered rows, in the order of the predictions."""
    return [row for row in (sheet.judgment(judge, row) for row in (*sheet.rows, *sheet.later)) if row["verdict"]]


def summary(judge: Judge, sheet: Sheet) -> dict[str, Any]:
    """Return the counts of one file."""
    rows = [sheet.judgment(judge, row) for row in sheet.rows]
    yes = sum(row["verdict"] == "yes" for row in rows)
    scored = sum(row["verdict"] is not None for row in rows)
    return {
        "rows": len(rows),
        "yes": yes,
        "no": scored - yes,
        "unparsed": sum(row["verdict"] is not None and not row["parsed"] for row in rows),
        "unscored": len(rows) - scored,
        "skipped": len(sheet.skipped),
        "simrate_percent": round(100 * yes / scored, 2) if scored else None,
    }


def judge_sheets(config: SimRateConfig, judge: Judge, sheets: Sequence[Sheet], cache: AnswerCache) -> int:
    """Judge, write, report; return the exit status."""
    known_answers(config, judge, sheets, cache)
    requests = pending_requests(judge, sheets)
    total = sum(len(sheet.rows) for sheet in sheets)
    if config.dry_run:
        print(f"{total} rows, {len(requests)} calls to a server; nothing was asked or written")
        return 0
    if requests:
        check_server(judge, requests[0])
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(_manifest(config, judge, sheet)) for sheet in sheets]
        stopped = ask_pending(judge, sheets, requests, cache) if requests else None
        unscored = 0
        for sheet, run in zip(sheets, runs, strict=True):
            judgments = [sheet.judgment(judge, row) for row in (*sheet.rows, *sheet.later)]
            write_jsonl(sheet.folder / JUDGMENTS, judgments if not sheet.later else finished(judge, sheet))
            if sheet.skipped:
                write_jsonl(sheet.folder / "judge_skipped.jsonl", sheet.skipped)
            counts = summary(judge, sheet)
            unscored += counts["unscored"]
            run.record(summary=counts, calls=len(requests), stopped=stopped)
            _print_summary(sheet, counts)
    if unscored:
        reason = f" after {stopped}" if stopped else ""
        logger.error("%d rows are unscored%s; run the same command again to ask for them only", unscored, reason)
    return 1 if unscored else 0


def _manifest(config: SimRateConfig, judge: Judge, sheet: Sheet) -> contextlib.AbstractContextManager[Run]:
    settings = dataclasses.asdict(judge.settings)
    facts = {
        **to_json(config),
        "judge_settings": settings,
        "prompt_sha256": sha256_json(list(judge.prompt)) if judge.prompt else None,
    }
    return run_manifest(sheet.folder, config=facts, inputs=[sheet.path], name=JUDGE_RUN)


def _print_summary(sheet: Sheet, counts: dict[str, Any]) -> None:
    rate = "-" if counts["simrate_percent"] is None else f"{counts['simrate_percent']:.2f} %"
    scored = counts["yes"] + counts["no"]
    print(
        f"{sheet.folder}: SimRate {rate} ({counts['yes']}/{scored}), unparsed {counts['unparsed']}, "
        f"unscored {counts['unscored']}, skipped {counts['skipped']} -> {sheet.folder / JUDGMENTS}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config = parse_config(SimRateConfig, argv, program="eval.simrate", description=__doc__ or "")
    cache = None
    try:
        judge = load_judge(config.judge).with_settings(
            base_url=config.base_url,
            model=config.model,
            api_key_env=config.api_key_env,
            rendering=config.rendering,
            concurrency=config.concurrency,
            timeout_s=config.timeout_s,
            max_retries=config.max_retries,
        )
        sheets = read_sheets(config)
        on_disk = judge.settings.answers_from == "server" and config.cache != "off"
        path = default_cache_path() if config.cache == "auto" else Path(config.cache).expanduser()
        cache = AnswerCache(path if on_disk else None)
        return judge_sheets(config, judge, sheets, cache)
    except (ValueError, ServerError, OSError, sqlite3.Error) as error:
        print(f"eval.simrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.simrate: interrupted; the answers so far are kept, run the same command again", file=sys.stderr)
        return 130
    finally:
        if cache is not None:
            cache.close()


if __name__ == "__main__":
    sys.exit(main())
