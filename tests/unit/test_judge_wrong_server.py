"""A server that fails in every way, money that runs out, two processes on one folder; against a local server."""

import email.utils
import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eval import simrate
from eval.judge import client
from eval.judge.cache import AnswerCache
from eval.runs import read_run

# The local server, and the fixtures that judge tmp_path/run with it.
spec = importlib.util.spec_from_file_location("simrate_tests", Path(__file__).with_name("test_simrate.py"))
simrate_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(simrate_tests)
server, judge_run = simrate_tests.server, simrate_tests.judge_run
predictions, judgments, MODEL = simrate_tests.predictions, simrate_tests.judgments, simrate_tests.MODEL


def facts(tmp_path):
    return json.loads((tmp_path / "run" / "judge_run.json").read_text())


def with_usage(read, written, **more):
    """Answer Yes and say how many tokens that took."""

    def behave(handler, text, number):
        usage = {"prompt_tokens": read, "completion_tokens": written}
        handler.send(200, {"choices": [{"message": {"content": "Yes"}}], "usage": usage, **more})
        return True

    return behave


# The server fails


def test_a_server_that_goes_away_half_way_leaves_rows_that_a_second_run_finishes(
    tmp_path, server, judge_run, monkeypatch, caplog
):
    monkeypatch.setattr(client, "FAILURES_IN_A_ROW", 3)
    predictions(tmp_path / "run", [f"same {i}" for i in range(20)])

    def leave(handler, text, number):
        if number > 5:
            server.socket.close()  # nobody listens any more
            handler.close_connection = True
            threading.Thread(target=server.shutdown).start()
            return True
        return False

    server.behave = leave
    status, rows = judge_run("--concurrency", "2", "--max-retries", "0")
    done = sum(row["verdict"] == "yes" for row in rows)
    assert status == 1 and 4 <= done <= 6
    assert "calls failed in a row, the last with APIConnectionError" in caplog.text
    assert {row["error"] for row in rows if row["verdict"] is None} >= {"not asked"}
    assert sum(judged.verdict is None for judged in read_run(tmp_path / "run").rows) == 20 - done
    assert facts(tmp_path)["summary"]["unscored"] == 20 - done and "in a row" in facts(tmp_path)["stopped"]
    back = simrate_tests.JudgeServer()
    status, rows = judge_run(url=back.url)
    assert (status, {row["verdict"] for row in rows}, len(back.asked)) == (0, {"yes"}, 20 - done)
    back.shutdown()
    back.server_close()


def busy(handler, after):
    handler.send(429, {"error": {"message": "slow down"}}, [("Retry-After", after)])
    return True


def test_retry_after_may_be_a_date(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same"])
    times = []

    def behave(handler, text, number):
        times.append(time.time())
        return number == 1 and busy(handler, email.utils.formatdate(int(times[0]) + 2, usegmt=True))

    server.behave = behave
    assert judge_run()[0] == 0
    assert times[1] >= int(times[0]) + 2


@pytest.mark.parametrize("after", ["86400", "Fri, 31 Dec 2100 23:59:59 GMT", "1e999"])
def test_a_server_that_says_to_wait_for_hours_is_not_waited_for(tmp_path, server, judge_run, after):
    predictions(tmp_path / "run", ["same", "busy"])
    server.behave = lambda handler, text, number: "\nbusy\n" in text and busy(handler, after)
    started = time.monotonic()
    status, rows = judge_run("--max-retries", "1")
    assert status == 1 and time.monotonic() - started < 300
    assert [row["verdict"] for row in rows] == ["yes", None]
    assert rows[1]["error"].startswith("RateLimitError") and "slow down" in rows[1]["error"]


@pytest.mark.parametrize("after", ["soon", "-5", "nan", ""])
def test_a_retry_after_without_meaning_is_an_ordinary_retry(tmp_path, server, judge_run, after):
    predictions(tmp_path / "run", ["same"])
    server.behave = lambda handler, text, number: number == 1 and busy(handler, after)
    assert judge_run()[0] == 0 and len(server.asked) == 2


def cut_off(handler, text, number):
    """Promise more bytes than are sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message"')
    handler.close_connection = True
    return True


def hang_up(handler, text, number):
    handler.close_connection = True
    return True


@pytest.mark.parametrize("misbehave", [cut_off, hang_up])
def test_a_dropped_connection_is_tried_again_and_then_unscored(tmp_path, server, judge_run, misbehave):
    predictions(tmp_path / "run", ["same", "bad"])
    server.behave = lambda handler, text, number: number == 1 and misbehave(handler, text, number)
    assert [row["verdict"] for row in judge_run("--concurrency", "1")[1]] == ["yes", "no"]
    assert len(server.asked) == 3
    predictions(tmp_path / "run", ["same", "bad again"])
    server.behave = lambda handler, text, number: "\nbad again\n" in text and misbehave(handler, text, number)
    status, rows = judge_run("--max-retries", "0")
    assert (status, [row["verdict"] for row in rows]) == (1, ["yes", None])
    assert rows[1]["error"].startswith("APIConnectionError")


@pytest.mark.parametrize(
    ("status", "error"), [(401, "AuthenticationError"), (403, "PermissionDeniedError"), (404, "NotFoundError")]
)
def test_a_refused_key_or_model_stops_the_run_at_once(tmp_path, server, judge_run, status, error, caplog):
    predictions(tmp_path / "run", [f"same {i}" for i in range(20)])
    server.behave = lambda handler, text, number: (
        handler.send(status, {"error": {"message": f"The model `{MODEL}` does not exist."}}) or True
    )
    assert judge_run("--concurrency", "2")[0] == 1
    assert len(server.asked) <= 3
    assert f"20 rows are unscored after a call was refused: {error}" in caplog.text
    assert (
        "does not exist" in caplog.text
        and "check --base-url (mostly it ends in /v1), --model and the key in " in caplog.text
    )


@pytest.mark.parametrize(
    "body", [b'{"choices": [{"message": {"content": "Yes"', b"[" * 100_000, b"\xff\xfe", b"", b"null", b'"Yes"']
)
def test_malformed_json_is_no_answer_and_the_last_line_says_so(tmp_path, server, judge_run, body, caplog):
    predictions(tmp_path / "run", ["same", "bad"])
    server.behave = lambda handler, text, number: "\nbad\n" in text and (handler.send(200, body) or True)
    status, rows = judge_run()
    assert (status, [row["verdict"] for row in rows]) == (1, ["yes", None])
    assert rows[1]["error"] and rows[1]["answer"] is None
    assert f"1 rows are unscored (most often: {rows[1]['error']}); run" in caplog.text


@pytest.mark.parametrize(
    "answer", ["", "  \n", "Ja, beide beschreiben dasselbe.", "はい", "是", "Sí", "\u202eseY", "1"]
)
def test_an_empty_answer_or_one_in_another_language_is_an_unparsed_no(tmp_path, server, judge_run, answer, capsys):
    predictions(tmp_path / "run", ["same", "odd", "other"])
    server.answer = lambda text: answer if "\nodd\n" in text else "Yes" if "\nsame\n" in text else "No"
    status, rows = judge_run()
    assert (status, rows[1]["verdict"], rows[1]["parsed"], rows[1]["answer"]) == (0, "no", False, answer)
    assert "SimRate 33.33 % (1/3), unparsed 1 (50.00 % without them), unscored 0" in capsys.readouterr().out
    counts = facts(tmp_path)["summary"]
    assert (counts["simrate_percent"], counts["simrate_percent_without_unparsed"]) == (33.33, 50.0)


# Two processes, and files that do not fit


def test_a_folder_that_is_being_judged_is_left_alone(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["same"])
    with (tmp_path / "run" / ".judging").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, rows = judge_run()
        assert (status, rows, server.asked) == (2, [], [])
        assert "another process is judging" in capsys.readouterr().err
        assert judge_run("--dry-run")[0] == 0
    assert judge_run()[0] == 0


def test_two_processes_on_one_folder_judge_it_once(tmp_path, server):
    predictions(tmp_path / "run", [f"same {i}" for i in range(10)])
    refused = threading.Event()
    server.behave = lambda handler, text, number: not refused.wait(300)
    command = [
        sys.executable, "-m", "eval.simrate", "--predictions", str(tmp_path / "run" / "predictions.jsonl"),
        "--base-url", server.url, "--model", MODEL, "--concurrency", "1", "--cache", "off",
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, **quiet) for _ in range(2)]
    deadline = time.monotonic() + 300
    while all(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    refused.set()
    assert sorted(process.wait(300) for process in processes) == [0, 2]
    assert len(server.asked) == 10
    assert [row["verdict"] for row in judgments(tmp_path / "run")] == ["yes"] * 10


WRITER = """
import json, sys
from eval.judge.cache import AnswerCache
cache = AnswerCache(sys.argv[1])
print(json.dumps([cache.put(f"key {i}", sys.argv[2], "model") for i in range(400)]))
"""


def test_processes_that_write_one_cache_at_once_agree_on_every_answer(tmp_path):
    path = tmp_path / "cache.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE) for name in ("first", "second")]
    first, second = (json.loads(process.communicate(timeout=300)[0]) for process in writers)
    cache = AnswerCache(path)
    answers = cache.get_many(f"key {i}" for i in range(400))
    assert first == second == list(answers.values())
    assert cache.put("key 0", "third", "model") == first[0]
    cache.close()


def test_judgments_of_another_dataset_are_not_taken_over(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["same", "other"])
    judge_run("--cache", "off")
    predictions(tmp_path / "run", ["same", "other"], reference="a sentence of another dataset")  # the ids are the same
    capsys.readouterr()
    assert judge_run("--cache", "off")[0] == 0
    assert len(server.asked) == 4
    assert all(judged.verdict for judged in read_run(tmp_path / "run").rows)


def test_missing_and_doubled_ids_are_skipped_and_listed(tmp_path, server, judge_run, capsys):
    rows = predictions(tmp_path / "run", ["same", "other"])
    changed = [*rows, {**rows[0], "prediction": "another text"}, {**rows[1], "id": None}, {**rows[1], "id": 3}]
    changed.append({**rows[1], "id": "half a character \ud800"})
    (tmp_path / "run" / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    status, judged = judge_run()
    assert (status, [row["id"] for row in judged], len(server.asked)) == (0, ["s0", "s1"], 2)
    assert "skipped 4" in capsys.readouterr().out
    path = tmp_path / "run" / "judge_skipped.jsonl"
    reasons = [json.loads(line)["reason"] for line in path.read_text().splitlines()]
    assert "met before" in reasons[0] and "text was wanted" in reasons[1] and "found int" in reasons[2]
    assert reasons[3] == "id: whole characters were wanted, found 'half a character \\ud800'"


def test_judgments_with_rows_missing_or_foreign_are_completed(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same", "other", "third"])
    _, before = judge_run("--cache", "off")
    path = tmp_path / "run" / "judgments.jsonl"
    kept = [before[0], {"id": "stranger", "verdict": "yes", "answer": "Yes", "key": "k"}, {"answer": "Yes"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert judge_run("--cache", "off") == (0, before)
    assert len(server.asked) == 3 + 2


def refused(handler, text, number):
    handler.send(404, {"error": "no such model"})
    return True


def test_a_mistyped_model_is_refused_before_anything_is_written(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["same", "other"])
    judge_run("--cache", "off")
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    server.behave = refused
    assert judge_run("--cache", "off", model="judge-modle")[0] == 2
    assert "lists judge-model and refuses 'judge-modle'" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == files


@pytest.mark.parametrize("resume", [(), ("--no-resume",)])
def test_answers_of_an_earlier_judge_stay_beside_those_of_a_judge_that_refuses(tmp_path, server, judge_run, resume):
    predictions(tmp_path / "run", ["same", "other"])
    _, before = judge_run("--cache", "off")
    server.models = {"data": [{"id": MODEL}, {"id": "org/second model"}]}
    server.behave = refused
    status, rows = judge_run("--cache", "off", "--limit", "1", *resume, model="org/second model")
    assert (status, rows) == (1, [])  # nothing that another judge said passes for this one's
    [kept] = (tmp_path / "run").glob("judgments-*.jsonl")
    assert kept.name.startswith("judgments-simrate-judge-model-")
    assert [json.loads(line) for line in kept.read_text().splitlines()] == before
    server.behave = None
    assert judge_run("--cache", "off", model="org/second model")[0] == 0
    asked = len(server.asked)
    assert judge_run("--cache", "off") == (0, before)
    assert judge_run("--cache", "off", model="org/second model")[0] == 0
    assert len(server.asked) == asked and len(list((tmp_path / "run").glob("judgments-*.jsonl"))) == 2
    assert len(kept.read_text().splitlines()) == 2  # nothing is kept twice


def test_of_an_endless_answer_the_beginning_is_kept_and_said_once(tmp_path, server, judge_run, caplog):
    predictions(tmp_path / "run", ["same", "other"])
    server.answer = lambda text: "Yes " * 10_000
    status, rows = judge_run()
    assert (status, [len(row["answer"]) for row in rows]) == (0, [800, 800])
    assert [row["verdict"] for row in judge_run()[1]] == ["yes", "yes"] and len(server.asked) == 2
    assert caplog.text.count("an answer of 40000 characters to max_tokens 8") == 1


# What it costs, and who answered


def test_the_plan_names_calls_tokens_price_and_what_is_known(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["same", "b", "c", "c"], reference="one reference")
    judge_run("--limit", "1")
    (tmp_path / "run" / "judgments.jsonl").unlink()
    judge_run("--limit", "2")
    capsys.readouterr()
    assert judge_run("--dry-run", "--price", "0.5", "1000")[0] == 0
    out = capsys.readouterr().out
    assert "4 rows, 1 calls, 5" in out and "tokens read and 2 written (estimated" in out and "$0.00" in out
    assert "2 from judgments.jsonl, 0 from the cache" in out and "nothing was asked or written" in out
    judge_run("--dry-run", "--overwrite")
    out = capsys.readouterr().out
    assert "0 from judgments.jsonl, 2 from the cache" in out and "price unknown" in out
    judge_run("--dry-run", "--model", "another")
    assert "2 answers of another judge, model, prompt or revision do not count" in capsys.readouterr().out
    assert len(server.asked) == 2


def test_a_price_over_the_limit_stops_before_anything_is_asked_or_written(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", [f"same {i}" for i in range(10)])
    assert judge_run("--max-cost", "0.001", "--price", "1", "1")[0] == 2
    assert "this takes about $0.005" in capsys.readouterr().err
    assert judge_run("--max-cost", "100")[0] == 2
    assert "the price of 'judge-model' is unknown; pass --price" in capsys.readouterr().err
    assert server.paths == [] and not (tmp_path / "run" / "judge_run.json").exists()
    assert judge_run("--max-cost", "0.1", "--price", "1", "1")[0] == 0


def test_calls_stop_when_the_server_reports_more_tokens_than_the_limit_pays(tmp_path, server, judge_run, caplog):
    predictions(tmp_path / "run", [f"same {i}" for i in range(20)])
    server.behave = with_usage(5000, 10)  # ten times the estimate
    status, rows = judge_run("--max-cost", "0.0505", "--price", "1", "10", "--concurrency", "2")
    asked = len(server.asked)
    assert status == 1 and asked * 0.0051 <= 0.0505 and asked >= 7
    assert [row["verdict"] for row in rows].count("yes") == asked
    assert "of --max-cost $0.0505 were spent" in caplog.text
    spent = facts(tmp_path)["asked"][0]
    assert (spent["prompt_tokens"], spent["new_tokens"]) == (5000 * asked, 10 * asked)
    assert spent["usd"] == pytest.approx(asked * 0.0051)


def test_without_reported_usage_the_estimate_is_counted(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same", "other"])
    assert judge_run("--price", "1", "1")[0] == 0
    run = facts(tmp_path)
    assert run["asked"][0]["usage_reported"] == 0
    assert run["asked"][0]["usd"] == pytest.approx(run["expected"]["usd"], abs=1e-5)


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": "5"}, {"prompt_tokens": -1, "completion_tokens": True}])
def test_usage_of_the_wrong_kind_is_not_counted(tmp_path, server, judge_run, usage):
    predictions(tmp_path / "run", ["same"])
    body = {"choices": [{"message": {"content": "Yes"}}], "usage": usage, "system_fingerprint": 7}
    server.behave = lambda handler, text, number: handler.send(200, body) or True
    assert judge_run()[0] == 0
    assert facts(tmp_path)["asked"][0]["usage_reported"] == 0


def test_the_run_says_who_answered_and_a_rerun_does_not_forget_it(tmp_path, server, judge_run):
    commit = "0123456789" * 4
    card = {"id": MODEL, "root": f"/cache/models--a--b/snapshots/{commit}", "owned_by": "vllm"}
    server.models = {"data": [card]}
    server.behave = with_usage(500, 2, system_fingerprint="fp_1")
    predictions(tmp_path / "run", ["same"])
    judge_run()
    first = facts(tmp_path)
    assert first["config"]["prompt_sha256"] and first["config"]["judge_settings"]["temperature"] == 0.0
    assert [entry["revision"] for entry in first["asked"]] == [commit]
    assert first["asked"][0]["fingerprints"] == ["fp_1"] and first["asked"][0]["server"]["owned_by"] == "vllm"
    judge_run()
    assert facts(tmp_path)["asked"] == first["asked"]


def test_answers_of_another_revision_are_not_used(tmp_path, server, judge_run, monkeypatch):
    predictions(tmp_path / "run", ["same"])
    judge_run("--revision", "one")
    judge_run("--revision", "one")
    assert len(server.asked) == 1
    monkeypatch.setenv("JUDGE_REVISION", "two")
    judge_run()
    assert len(server.asked) == 2
    assert [entry["revision"] for entry in facts(tmp_path)["asked"]] == ["one", "two"]
    judge_run("--revision", "one")  # kept in the cache all the time
    monkeypatch.delenv("JUDGE_REVISION")
    judge_run("--cache", "off")  # no revision named: what is in the folder does
    assert len(server.asked) == 2
    judge_run("--cache", "off", "--revision", "two")  # kept beside judgments.jsonl
    assert len(server.asked) == 2
    judge_run("--cache", "off", "--revision", "three")
    assert len(server.asked) == 3


def test_the_environment_names_the_server_and_flags_win(tmp_path, server, judge_run, monkeypatch):
    predictions(tmp_path / "run", ["same"])
    for name, value in (("JUDGE_BASE_URL", "http://127.0.0.1:9/v1"), ("JUDGE_MODEL", "env-model")):
        monkeypatch.setenv(name, value)
    assert judge_run()[0] == 0
    assert server.asked[0]["model"] == MODEL
    monkeypatch.setenv("JUDGE_BASE_URL", server.url)
    command = ["--predictions", str(tmp_path / "run" / "predictions.jsonl"), "--cache", "off", "--overwrite"]
    assert simrate.main(command) == 0
    assert server.asked[1]["model"] == "env-model"


def test_a_key_in_the_place_of_its_variable_s_name_is_refused_unseen(tmp_path, judge_run, capsys):
    predictions(tmp_path / "run", ["same"])
    assert judge_run("--api-key-env", "sk-live-123")[0] == 2
    captured = capsys.readouterr()
    assert "the NAME of an environment variable" in captured.err
    assert "sk-live-123" not in captured.out + captured.err
    assert not any(b"sk-live" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_address_with_a_secret_is_refused_when_all_answers_are_known_too(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same"])
    judge_run()
    assert judge_run(url="http://me:sk-hidden@127.0.0.1:9/v1")[0] == 2
    assert "sk-hidden" not in (tmp_path / "run" / "judge_run.json").read_text()


def test_the_lock_ends_with_its_process(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same"])
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX); import os; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, os.fspath(tmp_path / "run" / ".judging")], check=False)
    assert judge_run()[0] == 0
