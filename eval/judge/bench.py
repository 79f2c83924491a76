"""Time eval.simrate against a plain loop over the openai client, on one local server that answers after 50 ms.

Launch: python -m eval.judge.bench --output-dir OUT

Every row judges the same comparisons with the same prompt, and starts with an empty cache. Rounds are interleaved and
the median is shown, with the processor time of the client beside it: where the machine has other work, that bounds the
rates at high concurrency. A second run of each is timed too and must make no call. The exit status is 1 when judging
at concurrency 32 is not at least 8 times as fast as the loop, when a second run calls, or when an answer differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval import simrate
from eval.judge import Judge, load_judge
from eval.judge.client import quiet_libraries
from eval.predict.bench import PEERS, load_peer
from llava.imagechain.command import run_command
from llava.imagechain.config import ConfigError, option, to_json
from llava.imagechain.files import read_jsonl, write_json, write_jsonl, write_text
from llava.imagechain.manifest import run_manifest

logger = logging.getLogger("eval.judge.bench")
MODEL = "slow-judge"
WANTED_SPEEDUP, AT_CONCURRENCY = 8.0, 32
LOOP = "a loop over the openai client, one call after the other"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of the benchmark."""

    output_dir: Path = option(help="folder for judge.json and judge.md")
    rows: int = option(400, help="comparisons that each row judges", minimum=1)
    loop_rows: int = option(
        100, help="comparisons of the plain loop, which has the same rate for any number", minimum=1
    )
    answer_ms: float = option(50.0, help="milliseconds after which the server answers", minimum=0)
    concurrency: list[int] = option([1, 8, 32, 64], help="requests at the same time, one row each")
    rounds: int = option(3, help="times that each row is measured", minimum=1)


@dataclasses.dataclass(kw_only=True)
class Row:
    """What was measured for one line of the table."""

    rates: list[float] = dataclasses.field(default_factory=list)  # comparisons per second
    processor_ms: list[float] = dataclasses.field(default_factory=list)  # of the client, per comparison
    second_run_s: list[float] = dataclasses.field(default_factory=list)
    second_run_calls: int = 0
    answers: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def slow_server(answer_ms: float) -> Iterator[str]:
    """Start the server in a process of its own and yield its address."""
    command = [sys.executable, str(PEERS / "slow_judge_server.py"), str(answer_ms / 1000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def calls_of(url: str) -> int:
    """Return how many completions the server was asked for."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/calls", timeout=10) as response:
        return json.load(response)["calls"]


def predictions(rows: int) -> list[dict[str, Any]]:
    """Return distinct rows whose texts have the length of StoryBench's descriptions."""
    sentence = "a man in a red shirt walks past the wooden bench and takes the ball"
    words = sentence.split()
    return [
        {
            "id": f"s{i}",
            "variant": "imagechain",
            "num_scenes": 2 + i % 5,
            "reference": f"Story {i}: " + " ".join(words),
            "prediction": f"Story {i}: " + " ".join(words[i % 7 :] + words[: i % 7]),
        }
        for i in range(rows)
    ]


def time_loop(judge: Judge, rows: list[dict[str, Any]], row: Row) -> None:
    """Judge with the peer's loop."""
    peer = load_peer("judge_one_by_one")
    pairs = [(one["reference"], one["prediction"]) for one in rows]
    started = clocks()
    row.answers = peer.judge_one_by_one(judge, pairs, "none")
    take(row, len(rows), started)


def clocks() -> tuple[float, float]:
    """Return the time and the processor time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def take(row: Row, rows: int, started: tuple[float, float]) -> None:
    """Write down what so many comparisons took since `started`."""
    wall, processor = clocks()
    row.rates.append(rows / (wall - started[0]))
    row.processor_ms.append(1000 * (processor - started[1]) / rows)


def time_simrate(url: str, rows: list[dict[str, Any]], concurrency: int, row: Row) -> None:
    """Judge with eval.simrate, all of it: files, cache, verdicts; then a second time."""
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "predictions.jsonl", rows)
        command = ["--predictions", f"{folder}/predictions.jsonl", "--base-url", f"{url}/v1", "--model", MODEL]
        command += ["--concurrency", str(concurrency), "--cache", f"{folder}/cache.sqlite"]
        started = clocks()
        run_simrate(command)
        take(row, len(rows), started)
        row.answers = [judgment["answer"] for judgment in read_jsonl(Path(folder) / "judgments.jsonl")]
        calls, started = calls_of(url), clocks()
        run_simrate(command)
        row.second_run_s.append(clocks()[0] - started[0])
        row.second_run_calls += calls_of(url) - calls


def run_simrate(command: list[str]) -> None:
    """Run the command in this process, its words put aside.

    Raises:
        ConfigError: It failed.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = simrate.main(command)
    if status:
        raise ConfigError(f"eval.simrate ended with status {status}: {said.getvalue()[-1000:]}")


def bench(config: BenchConfig) -> int:
    """Measure, write the table, return the exit status."""
    quiet_libraries()
    data = predictions(config.rows)
    table = {LOOP: Row(), **{f"eval.simrate --concurrency {number}": Row() for number in config.concurrency}}
    with run_manifest(config.output_dir, config=to_json(config), name="bench_run.json") as run:
        with slow_server(config.answer_ms) as url:
            judge = load_judge("simrate").with_settings(base_url=f"{url}/v1", model=MODEL)
            time_loop(judge, data[:8], Row())  # the library's import is nobody's
            for number in range(config.rounds):
                time_loop(judge, data[: config.loop_rows], table[LOOP])
                for concurrency in config.concurrency:
                    time_simrate(url, data, concurrency, table[f"eval.simrate --concurrency {concurrency}"])
                logger.info("round %d: %s", number + 1, ", ".join(f"{row.rates[-1]:.1f}" for row in table.values()))
        facts = {name: run.facts["packages"].get(name) for name in ("python", "openai")}
        facts |= {"commit": run.facts["git_revision"], "cpus": os.cpu_count()}
        facts["processes running or waiting, mean of 5 minutes"] = round(os.getloadavg()[1], 1)
    return report(config, facts, table)


def report(config: BenchConfig, facts: dict[str, Any], table: dict[str, Row]) -> int:
    """Print and write the table; 1 when the aim is missed."""
    base = statistics.median(table[LOOP].rates)
    columns = ("row", "comparisons/s", "speed", "processor ms each", "second run, s", "its calls")
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    for name, row in table.items():
        rate = statistics.median(row.rates)
        second = f"{statistics.median(row.second_run_s):.2f} | {row.second_run_calls}" if row.second_run_s else "- | -"
        work = statistics.median(row.processor_ms)
        lines.append(f"| {name} | {rate:.1f} | {rate / base:.2f}x | {work:.2f} | {second} |")
    facts |= {"rows": config.rows, "answer_ms": config.answer_ms, "rounds": config.rounds}
    lines += ["", ", ".join(f"{name} {value}" for name, value in facts.items())]
    rows = [{"row": name, **dataclasses.asdict(row)} for name, row in table.items()]
    for row_facts in rows:
        del row_facts["answers"]
    write_json(config.output_dir / "judge.json", {"facts": facts, "rows": rows})
    write_text(config.output_dir / "judge.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"-> {config.output_dir / 'judge.md'}")
    return 1 if problems(table, base) else 0


def problems(table: dict[str, Row], base: float) -> list[str]:
    """Say what is not as it must be."""
    found = []
    aim = table.get(f"eval.simrate --concurrency {AT_CONCURRENCY}")
    if aim and statistics.median(aim.rates) < WANTED_SPEEDUP * base:
        found.append(f"at concurrency {AT_CONCURRENCY} judging is not {WANTED_SPEEDUP:g} times as fast as the loop")
    wanted = table[LOOP].answers
    for name, row in table.items():
        if row.second_run_calls:
            found.append(f"{name}: the second run made {row.second_run_calls} calls")
        if row.answers[: len(wanted)] != wanted[: len(row.answers)]:
            found.append(f"{name}: the answers are not the loop's")
    for problem in found:
        logger.error(problem)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(BenchConfig, bench, argv, program="python -m eval.judge.bench", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
