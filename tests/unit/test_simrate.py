"""eval.simrate against a real local server that is slow, failing, garbage, hanging or gone; and without a server."""

import http.server
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from eval import simrate
from eval.judge import client
from eval.runs import read_run

MODEL = "judge-model"


class JudgeServer(http.server.ThreadingHTTPServer):
    """Speaks /v1/models, /v1/chat/completions and /v1/completions; `behave(handler, text, number)` may misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.asked: list[dict] = []
        self.paths: list[str] = []
        self.keys: set[str | None] = set()
        self.now = self.most = 0
        self.models: object = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self.answer = lambda text: "Yes" if "same" in text.split("### Predicted caption:")[-1] else "No"
        self.behave = None
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.server.paths.append(self.path)
        status, body = self.server.models if isinstance(self.server.models, tuple) else (200, self.server.models)
        self.send(status, body)

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.paths.append(self.path)
            server.asked.append(body)
            server.keys.add(self.headers["Authorization"])
            number = len(server.asked)
            server.now += 1
            server.most = max(server.most, server.now)
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        try:
            if server.behave is None or not server.behave(self, text, number):
                answer = server.answer(text)
                choice = {"text": answer} if "prompt" in body else {"message": {"role": "assistant", "content": answer}}
                self.send(200, {"choices": [{"index": 0, "finish_reason": "stop", **choice}]})
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.now -= 1


@pytest.fixture
def server():
    judge = JudgeServer()
    yield judge
    judge.shutdown()
    judge.server_close()


@pytest.fixture
def judge_run(tmp_path, server):
    """Return a function that judges tmp_path/run with the test server and gives back (status, judgments)."""

    def run(*extra: str, url: str | None = None, model: str = MODEL):
        status = simrate.main(
            [
                "--predictions", str(tmp_path / "run" / "predictions.jsonl"), "--judge", "simrate",
                "--base-url", url or server.url, "--model", model, "--timeout-s", "60", "--max-retries", "2",
                "--cache", str(tmp_path / "cache.sqlite"), *extra,
            ]
        )  # fmt: skip
        return status, judgments(tmp_path / "run")

    return run


def predictions(folder, texts, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"s{i}", "variant": "imagechain", "train_context": "c2_7", "num_scenes": 2 + i % 5, "video_name": "v",
            "prediction": text, "reference": f"reference {i}", "dropped_scenes": 0, "control": None, **changes,
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def judgments(folder):
    path = folder / "judgments.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_verdicts_follow_the_server_and_a_second_run_makes_no_call(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["same a", "other", "same b"])
    status, rows = judge_run()
    assert status == 0
    assert [(row["id"], row["verdict"], row["parsed"]) for row in rows] == [
        ("s0", "yes", True),
        ("s1", "no", True),
        ("s2", "yes", True),
    ]
    assert "SimRate 66.67 % (2/3)" in capsys.readouterr().out
    facts = json.loads((tmp_path / "run" / "judge_run.json").read_text())
    assert facts["status"] == "success"
    assert facts["summary"]["yes"] == 2
    assert len(server.asked) == 3
    server.paths.clear()
    assert judge_run() == (0, rows)
    (tmp_path / "run" / "judgments.jsonl").unlink()
    assert judge_run() == (0, rows)  # from the cache
    (tmp_path / "cache.sqlite").unlink()
    assert judge_run() == (0, rows)  # from judgments.jsonl
    assert server.paths == []


def test_equal_comparisons_of_several_files_are_asked_once(tmp_path, server):
    for name in ("a", "b"):
        predictions(tmp_path / name, ["same", "same"], reference="one reference")
    files = [str(tmp_path / name / "predictions.jsonl") for name in ("a", "b")]
    settings = ["--base-url", server.url, "--model", MODEL, "--cache", str(tmp_path / "c.sqlite")]
    assert simrate.main(["--predictions", *files, *settings]) == 0
    assert len(server.asked) == 1
    assert [row["verdict"] for name in ("a", "b") for row in judgments(tmp_path / name)] == ["yes"] * 4


def test_the_paper_s_decoding_is_sent_and_raw_rendering_uses_completions(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same"])
    judge_run()
    judge_run("--rendering", "raw")
    chat, raw = server.asked
    assert (chat["temperature"], chat["max_tokens"], chat["model"]) == (0.0, 8, MODEL)
    assert chat["messages"][0]["role"] == "system"
    assert raw["prompt"].startswith("<|start_header_id|>system") and "messages" not in raw
    assert [path for path in server.paths if "models" not in path] == ["/v1/chat/completions", "/v1/completions"]


def test_requests_overlap_up_to_the_given_concurrency(tmp_path, server, judge_run):
    predictions(tmp_path / "run", [f"same {i}" for i in range(24)])
    together = threading.Barrier(6)
    server.behave = lambda handler, text, number: number <= 6 and together.wait(60) < 0  # six at once, or an error
    assert judge_run("--concurrency", "6")[0] == 0
    assert server.most == 6


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_retried(tmp_path, server, judge_run, status):
    predictions(tmp_path / "run", ["same"])
    server.behave = lambda handler, text, number: number == 1 and (handler.send(status, {"error": "busy"}) or True)
    code, rows = judge_run()
    assert (code, rows[0]["verdict"], len(server.asked)) == (0, "yes", 2)


def test_a_retry_waits_as_long_as_the_server_says(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same"])
    times = []

    def busy(handler, text, number):
        times.append(time.monotonic())
        return number == 1 and (handler.send(429, {"error": "busy"}, [("Retry-After", "1")]) or True)

    server.behave = busy
    assert judge_run()[0] == 0
    assert times[1] - times[0] >= 1.0


def hang(handler, text, number):
    handler.rfile.read(1)  # until the client hangs up
    handler.close_connection = True
    return True


@pytest.mark.parametrize(
    ("misbehave", "error"),
    [
        (lambda handler, text, number: handler.send(500, {"error": "boom"}) or True, "InternalServerError"),
        (lambda handler, text, number: handler.send(400, {"error": "too long"}) or True, "BadRequestError"),
        (lambda handler, text, number: handler.send(200, b"<html>not JSON") or True, "no JSON"),
        (lambda handler, text, number: handler.send(200, {"choices": []}) or True, "no answer text"),
        (lambda handler, text, number: handler.send(200, [1, 2]) or True, "no answer text"),
        (
            lambda handler, text, number: handler.send(200, {"choices": [{"message": {"content": None}}]}) or True,
            "no answer text",
        ),
        (hang, "APITimeoutError"),
    ],
    ids=["500", "400", "not JSON", "no choice", "a list", "null content", "hangs"],
)
def test_a_failed_call_leaves_its_row_unscored_and_only_it_is_asked_again(
    tmp_path, server, judge_run, misbehave, error, capsys
):
    predictions(tmp_path / "run", ["same", "bad", "other"])
    server.behave = lambda handler, text, number: "\nbad\n" in text and misbehave(handler, text, number)
    status, rows = judge_run("--timeout-s", "2" if misbehave is hang else "60", "--max-retries", "0")
    assert status == 1
    assert [row["verdict"] for row in rows] == ["yes", None, "no"]
    assert error in rows[1]["error"] and rows[1]["answer"] is None
    assert "unscored 1" in capsys.readouterr().out
    assert [judged.verdict for judged in read_run(tmp_path / "run").rows] == ["yes", None, "no"]
    server.behave, server.asked = None, []
    status, rows = judge_run()
    assert (status, [row["verdict"] for row in rows], len(server.asked)) == (0, ["yes", "no", "no"], 1)


def test_an_unparsed_answer_counts_as_no_and_is_shown(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["same", "odd"])
    server.answer = lambda text: "Je ne sais pas" if "odd" in text else "Yes"
    status, rows = judge_run()
    assert (status, rows[1]["verdict"], rows[1]["parsed"], rows[1]["answer"]) == (0, "no", False, "Je ne sais pas")
    assert "SimRate 50.00 % (1/2), unparsed 1" in capsys.readouterr().out


def test_a_judge_that_mostly_answers_something_else_is_warned_about(tmp_path, server, judge_run, caplog):
    predictions(tmp_path / "run", ["same", "odd"])
    server.answer = lambda text: "Ja" if "odd" in text else "Yes"
    assert judge_run()[0] == 0 and "neither Yes nor No" not in caplog.text
    server.answer = lambda text: "Ja"
    assert judge_run("--overwrite", "--cache", "off")[0] == 0 and "neither Yes nor No" in caplog.text


def test_verdicts_are_read_anew_from_the_kept_answers(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same"])
    judge_run()
    path = tmp_path / "run" / "judgments.jsonl"
    path.write_text(path.read_text().replace('"verdict": "yes"', '"verdict": "no"'))
    assert judge_run()[1][0]["verdict"] == "yes"
    assert len(server.asked) == 1


def test_a_changed_prediction_is_judged_again_and_until_then_unscored(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same", "same too"])
    judge_run()
    predictions(tmp_path / "run", ["other", "same too"])
    assert [judged.verdict for judged in read_run(tmp_path / "run").rows] == [None, "yes"]
    assert [row["verdict"] for row in judge_run()[1]] == ["no", "yes"]
    assert len(server.asked) == 3


def test_a_server_that_is_down_is_an_error_and_loses_nothing(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["same"])
    _, before = judge_run()
    predictions(tmp_path / "run", ["same", "new"])
    status, after = judge_run(url="http://127.0.0.1:9/v1")
    assert (status, after) == (2, before)
    assert "http://127.0.0.1:9/v1 does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((401, {"error": "who?"}), "JUDGE_API_KEY"),
        ((200, b"<html>hello"), "not as an OpenAI-compatible server"),
    ],
)
def test_an_unfit_server_is_an_error_before_anything_is_asked(tmp_path, server, judge_run, models, message, capsys):
    predictions(tmp_path / "run", ["same"])
    server.models = models
    assert judge_run()[0] == 2
    assert message in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_without_a_model_list_is_used_when_it_judges(tmp_path, server, judge_run, status, capsys):
    predictions(tmp_path / "run", ["same"])
    server.models = (status, {"error": "no such page"})
    assert judge_run()[0] == 0
    predictions(tmp_path / "run", ["same", "other"])
    server.behave = lambda handler, text, number: handler.send(503, {"error": "loading"}) or True
    assert judge_run()[0] == 2
    assert 'Error code: 503 ({"error": "loading"}); wait until it is healthy' in capsys.readouterr().err


def test_an_address_without_its_v1_is_told_to_be_one(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["same"])
    server.models = (404, {"detail": "Not Found"})
    server.behave = lambda handler, text, number: handler.send(404, {"detail": "Not Found"}) or True
    assert judge_run(url=server.url.removesuffix("/v1"))[0] == 2
    assert "check --base-url (mostly it ends in /v1)" in capsys.readouterr().err
    assert judge_run(url=server.url.replace("http:", "https:"))[0] == 2
    assert "a server without TLS has an address with http://" in capsys.readouterr().err


def test_a_model_that_the_server_does_not_list_is_a_warning(tmp_path, server, judge_run, caplog):
    predictions(tmp_path / "run", ["same"])
    server.models = {"data": [{"id": "another-model"}]}
    assert judge_run()[0] == 0
    assert "lists another-model and not 'judge-model'" in caplog.text


def test_a_server_that_dies_half_way_is_not_asked_for_ever(tmp_path, server, judge_run, monkeypatch, caplog):
    monkeypatch.setattr(client, "FAILURES_IN_A_ROW", 4)
    predictions(tmp_path / "run", [f"same {i}" for i in range(30)])
    server.behave = lambda handler, text, number: number > 10 and (handler.send(500, {}) or True)
    status, rows = judge_run("--concurrency", "2", "--max-retries", "0")
    assert status == 1
    assert sum(row["verdict"] == "yes" for row in rows) == 10
    assert len(server.asked) <= 16
    assert re.search(r"unscored after [45] calls failed in a row, the last with InternalServerError", caplog.text)
    server.behave = None
    status, rows = judge_run()
    assert (status, {row["verdict"] for row in rows}) == (0, {"yes"})


def test_the_key_is_sent_but_never_written(tmp_path, server, judge_run, monkeypatch, capsys):
    secret = "sk-very-secret-123"
    monkeypatch.setenv("JUDGE_API_KEY", secret)
    predictions(tmp_path / "run", ["same", "bad"])
    server.answer = lambda text: f"Yes {secret}"
    server.behave = lambda handler, text, number: (
        "\nbad\n" in text and (handler.send(400, {"error": f"the key {secret} is bad"}) or True)
    )
    judge_run()
    assert server.keys == {f"Bearer {secret}"}
    captured = capsys.readouterr()
    assert secret not in captured.out + captured.err
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_an_address_with_a_secret_in_it_is_refused(tmp_path, judge_run, capsys):
    predictions(tmp_path / "run", ["same"])
    assert judge_run(url="http://me:sk-hidden@127.0.0.1:9/v1")[0] == 2
    assert "sk-hidden" not in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, "interrupted"), (signal.SIGKILL, "started")])
def test_a_stopped_run_keeps_its_answers_and_the_next_finishes(tmp_path, server, stop, status):
    predictions(tmp_path / "run", [f"same {i}" for i in range(12)])
    server.behave = lambda handler, text, number: number > 6 and hang(handler, text, number)
    command = [
        sys.executable, "-m", "eval.simrate", "--predictions", str(tmp_path / "run" / "predictions.jsonl"),
        "--base-url", server.url, "--model", MODEL, "--concurrency", "1", "--cache", str(tmp_path / "c.sqlite"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ})
    deadline = time.monotonic() + 300
    while len(server.asked) < 7 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(stop)
    assert process.wait(300) == (130 if stop == signal.SIGINT else -stop)
    assert json.loads((tmp_path / "run" / "judge_run.json").read_text())["status"] == status
    assert [row["verdict"] for row in judgments(tmp_path / "run")] == ["yes"] * 6
    server.behave = None
    assert simrate.main(command[3:]) == 0
    assert len(judgments(tmp_path / "run")) == 12
    assert len(server.asked) == 7 + 6


def test_two_runs_share_one_cache_at_the_same_time(tmp_path, server):
    processes = []
    for name in ("a", "b"):
        predictions(tmp_path / name, [f"same {i}" for i in range(40)])
        command = [
            sys.executable, "-m", "eval.simrate", "--predictions", str(tmp_path / name / "predictions.jsonl"),
            "--base-url", server.url, "--model", MODEL, "--cache", str(tmp_path / "c.sqlite"),
        ]  # fmt: skip
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    assert [process.wait(300) for process in processes] == [0, 0], [process.stderr.read() for process in processes]
    assert judgments(tmp_path / "a") == judgments(tmp_path / "b")
    database = sqlite3.connect(tmp_path / "c.sqlite")
    assert database.execute("SELECT count(*) FROM answers").fetchone() == (40,)
    database.close()
    for process in processes:
        process.stderr.close()


def test_bad_rows_are_skipped_once_and_listed(tmp_path):
    rows = predictions(tmp_path / "run", ["reference 0", "x", "y"])
    bad = [{"id": "n"}, {**rows[0]}, {**rows[1], "id": "p", "prediction": 7}, {**rows[2], "id": "q", "num_scenes": "2"}]
    path = tmp_path / "run" / "predictions.jsonl"
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in bad))
    assert simrate.main(["--predictions", str(path), "--judge", "mock"]) == 0
    assert [row["verdict"] for row in judgments(tmp_path / "run")] == ["yes", "no", "no"]
    skipped = [json.loads(line) for line in (tmp_path / "run" / "judge_skipped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in skipped] == ["n", "s0", "p", "q"]
    assert "met before" in skipped[1]["reason"] and "text was wanted, found int" in skipped[2]["reason"]


def test_half_characters_in_a_prediction_do_not_stop_the_run(tmp_path, judge_run):
    predictions(tmp_path / "run", ["same \ud800"])
    assert judge_run()[0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("", "none usable"), ('{"id": 1\n{}\n', "line 1: not valid JSON"), ("[1]\n", "object")],
)
def test_unusable_predictions_are_an_error_that_names_the_file(tmp_path, content, message, capsys):
    path = tmp_path / "predictions.jsonl"
    if content is not None:
        path.write_text(content)
    assert simrate.main(["--predictions", str(path), "--judge", "mock"]) == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error


def test_a_file_with_two_variants_is_refused(tmp_path, capsys):
    rows = predictions(tmp_path, ["a", "b"])
    rows[1]["variant"] = "mllm"
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert simrate.main(["--predictions", str(tmp_path / "predictions.jsonl"), "--judge", "mock"]) == 2
    assert "rows of one run were wanted" in capsys.readouterr().err


def test_the_world_judge_reads_meanings_and_refuses_data_of_another_kind(tmp_path, capsys):
    grammar = pytest.importorskip("eval.judge.world.grammar")
    first, second = (random.Random(seed) for seed in (1, 2))
    action, item, place = (next(iter(names)) for names in (grammar.ACTIONS, grammar.OBJECTS, grammar.PLACES))
    meaning = grammar.Meaning(person="man", colour="red", action=action, object=item, place=place)
    texts = [grammar.describe(meaning, first), "nonsense"]
    predictions(tmp_path / "run", texts, reference=grammar.describe(meaning, second))
    command = ["--judge", "world", "--predictions", str(tmp_path / "run" / "predictions.jsonl")]
    assert simrate.main(command) == 0
    assert [(row["verdict"], row["parsed"]) for row in judgments(tmp_path / "run")] == [("yes", True), ("no", False)]
    predictions(tmp_path / "run", texts, reference="A man is riding a bicycle through a park.")
    assert simrate.main(command) == 2
    assert "exact judge cannot score it" in capsys.readouterr().err


def test_dry_run_counts_the_calls_and_asks_and_writes_nothing(tmp_path, server, judge_run, capsys):
    predictions(tmp_path / "run", ["a", "b", "c"])
    judge_run("--limit", "1")
    server.paths.clear()
    assert judge_run("--dry-run")[0] == 0
    assert "3 rows, 2 calls" in capsys.readouterr().out
    assert server.paths == [] and len(judgments(tmp_path / "run")) == 1


def test_a_limit_keeps_the_judgments_beyond_it(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same", "b", "c"])
    _, before = judge_run("--cache", "off")
    assert judge_run("--cache", "off", "--limit", "1") == (0, before)
    assert len(server.asked) == 3


def test_a_broken_or_unwritable_judgments_file_is_an_error_without_traceback(tmp_path, capsys):
    predictions(tmp_path / "run", ["same"])
    command = ["--judge", "mock", "--predictions", str(tmp_path / "run" / "predictions.jsonl")]
    file = tmp_path / "run" / "judgments.jsonl"
    file.write_text("{broken\n{}\n")
    assert simrate.main(command) == 2
    assert "judgments.jsonl, line 1: not valid JSON" in capsys.readouterr().err
    file.unlink()
    file.mkdir()
    assert simrate.main(command) == 2


def test_overwrite_drops_old_judgments_but_uses_the_cache(tmp_path, server, judge_run):
    predictions(tmp_path / "run", ["same"])
    judge_run("--cache", "off")
    judge_run("--overwrite")
    assert len(server.asked) == 2
    judge_run("--overwrite")
    assert len(server.asked) == 2


def test_a_cache_that_is_no_database_is_an_error_and_stays(tmp_path, judge_run, capsys):
    predictions(tmp_path / "run", ["same"])
    (tmp_path / "cache.sqlite").write_text("this is a text file, and long enough to be looked at" * 20)
    assert judge_run()[0] == 2
    assert "cache.sqlite cannot be used" in capsys.readouterr().err
    assert (tmp_path / "cache.sqlite").read_text().startswith("this is a text file")


def test_help_is_light():
    code = (
        "import sys\nfrom eval import simrate\ntry:\n    simrate.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'openai', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)


def test_the_predictions_file_in_place_of_its_folder_is_named(tmp_path, capsys):
    predictions(tmp_path / "run", ["same"])
    path = tmp_path / "run" / "predictions.jsonl"
    assert simrate.main(["--predictions", str(path / "predictions.jsonl"), "--judge", "mock"]) == 2
    assert f"{path} is a file; its run folder {tmp_path / 'run'} was wanted" in capsys.readouterr().err
