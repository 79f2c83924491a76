"""A server that limits the rate: its words are passed on, and nobody is left out who only has to wait for a turn."""

import importlib.util
import threading
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "wrong_server_tests", Path(__file__).with_name("test_judge_wrong_server.py")
)
wrong_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wrong_server)
server, judge_run = wrong_server.server, wrong_server.judge_run
predictions, busy, facts = wrong_server.predictions, wrong_server.busy, wrong_server.facts


def test_more_calls_at_a_time_than_the_server_takes_leave_no_row_behind(tmp_path, server, judge_run):
    predictions(tmp_path / "run", [f"same {i}" for i in range(24)])
    lock, asked = threading.Lock(), {}

    def one_of_four(handler, text, number):
        with lock:
            asked[text] = asked.get(text, 0) + 1
            return number % 4 != 0 and busy(handler, "0.1")

    server.behave = one_of_four
    status, rows = judge_run("--concurrency", "12")
    assert (status, {row["verdict"] for row in rows}) == (0, {"yes"})
    assert max(asked.values()) > 3  # more than one call with its two retries


def test_a_server_that_serves_nobody_is_given_up(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same", "other", "third"])
    server.behave = lambda handler, text, number: number > 1 and busy(handler, "0.01")
    status, rows = judge_run("--concurrency", "1", "--max-retries", "0")
    assert (status, [row["verdict"] for row in rows], len(server.asked)) == (1, ["yes", None, None], 3)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("86400", "the server asks to wait 86,400 s, until 20"),
        ("Fri, 31 Dec 2100 23:59:59 GMT", "s, until 2100-12-31 23:59 UTC"),
        ("1e999", "the server asks to wait for ever"),
    ],
)
def test_a_wait_that_is_too_long_is_named(tmp_path, server, judge_run, after, said, caplog, monkeypatch):
    monkeypatch.setattr(wrong_server.client, "FAILURES_IN_A_ROW", 1)
    predictions(tmp_path / "run", ["same"])
    server.behave = lambda handler, text, number: busy(handler, after)
    status, rows = judge_run()
    assert (status, len(server.asked)) == (1, 1)
    assert said in rows[0]["error"] and said in caplog.text and said in facts(tmp_path)["stopped"]


@pytest.mark.parametrize("after", ["soon", "-5", "nan", "", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_wait_without_meaning_is_not_named(tmp_path, server, judge_run, after):
    predictions(tmp_path / "run", ["same"])
    server.behave = lambda handler, text, number: busy(handler, after)
    status, rows = judge_run("--max-retries", "0")
    assert status == 1 and "wait" not in rows[0]["error"]
