"""scripts/eval/serve_judge.sh with a stand-in for vllm: started, waited for, used by eval.simrate, stopped."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "eval" / "serve_judge.sh"
# Wants its key on /v1, as vLLM does, is healthy after a while, and has a child of its own to leave behind.
FAKE_VLLM = """
import http.server, json, os, pathlib, subprocess, sys, time
here = pathlib.Path({folder!r})
(here / "argv.json").write_text(json.dumps(sys.argv[1:]))
(here / "key").write_text(os.environ.get("VLLM_API_KEY", ""))
if os.environ.get("FAKE") == "dies":
    sys.exit("CUDA out of memory")
child = subprocess.Popen(["sleep", "300"])
(here / "pids.new").write_text(f"{{os.getpid()}} {{child.pid}}")
(here / "pids.new").rename(here / "pids")
healthy_at = time.monotonic() + (1000 if os.environ.get("FAKE") == "hangs" else 0.3)
flags = dict(zip(sys.argv[3::2], sys.argv[4::2]))
name = flags["--served-model-name"]


class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def allowed(self):
        return self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]

    def do_GET(self):
        if self.path == "/health":
            self.reply(200 if time.monotonic() > healthy_at else 503, {{}})
        elif not self.allowed():
            self.reply(401, {{"error": "Unauthorized"}})
        else:
            self.reply(200, {{"object": "list", "data": [{{"id": name, "root": name}}]}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return self.reply(401, {{"error": "Unauthorized"}})
        answer = "Yes" if "twin" in body["messages"][-1]["content"] else "No"
        choice = {{"index": 0, "finish_reason": "stop", "message": {{"role": "assistant", "content": answer}}}}
        self.reply(200, {{"choices": [choice], "usage": {{"prompt_tokens": 500, "completion_tokens": 2}}}})


port = int(dict(zip(sys.argv, sys.argv[1:]))["--port"])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def work(tmp_path):
    """A folder with a vllm in bin, and a run to be judged."""
    vllm = tmp_path / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.with_suffix(".py").write_text(FAKE_VLLM.format(folder=str(tmp_path)))
    vllm.write_text(f'#!/bin/sh\necho loading weights\nexec "{sys.executable}" "$0.py" "$@"\n')
    vllm.chmod(0o755)
    (tmp_path / "the run").mkdir()
    with (tmp_path / "the run" / "predictions.jsonl").open("w") as file:
        for i, text in enumerate(["twin", "other"]):
            row = {"id": f"s{i}", "variant": "mllm", "num_scenes": 2, "prediction": text, "reference": "r"}
            file.write(json.dumps(row) + "\n")
    yield tmp_path
    if (tmp_path / "pids").exists():
        for pid in map(int, (tmp_path / "pids").read_text().split()):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def environment(work, **settings):
    keep = {name: value for name, value in os.environ.items() if not name.startswith("JUDGE_")}
    paths = {"PATH": f"{work / 'bin'}:{os.environ['PATH']}", "STATE_DIR": str(work / "state"), "PYTHON": sys.executable}
    cache = {"XDG_CACHE_HOME": str(work / "cache"), "HF_HOME": str(work / "hub")}
    # Port 0 is any free one: the usual first choice, 8000, would be shared with other tests at work.
    return {**keep, **paths, **cache, "NUM_GPUS": "0", "PORT": "0", "TIMEOUT_S": "300", "MODEL": "a/judge", **settings}


def serve(work, *arguments, **settings):
    """Run the script to its end."""
    with (work / "out").open("w") as out, (work / "err").open("w") as err:  # a pipe would wait for the server
        status = subprocess.run(
            ["bash", str(SCRIPT), *arguments], cwd=work, env=environment(work, **settings), stdout=out, stderr=err,
            timeout=600, check=False,
        ).returncode  # fmt: skip
    return status, (work / "out").read_text(), (work / "err").read_text()


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def server_pids(work):
    return list(map(int, (work / "pids").read_text().split()))


def test_a_command_finds_the_server_in_its_environment_and_leaves_none_behind(work):
    job = ["bash", str(ROOT / "scripts" / "eval" / "simrate.sh"), "the run"]
    status, out, err = serve(work, "--", *job)
    assert status == 0, err
    assert "SimRate 50.00 % (1/2)" in out
    facts = json.loads((work / "the run" / "judge_run.json").read_text())
    assert facts["config"]["judge_settings"]["model"] == "a/judge"
    assert facts["asked"][0]["prompt_tokens"] == 1000
    assert not any(map(alive, server_pids(work)))
    assert sorted(path.name for path in (work / "state").iterdir()) == ["server.log"]
    assert serve(work, "--", "sh", "-c", "exit 7")[0] == 7


def test_the_key_is_random_and_secret_and_the_revision_is_the_commit_on_disk(work):
    for hub, commit in (("hub/hub", "0123abc"), (".cache/huggingface/hub", "4567def")):
        reference = work / hub / "models--a--judge" / "refs" / "main"
        reference.parent.mkdir(parents=True)
        reference.write_text(commit)
    keys = set()
    at_home = {"HOME": str(work), "HF_HOME": "", "XDG_CACHE_HOME": ""}
    for quantization, revision, places in (("", "0123abc", {}), ("fp8", "4567def+fp8", at_home)):
        job = ["sh", "-c", 'printf "%s" "$JUDGE_API_KEY" > key_of_the_job; echo "$JUDGE_REVISION"']
        status, out, err = serve(work, "--", *job, QUANTIZATION=quantization, **places)
        key = (work / "key").read_text()
        assert (status, out, len(key), (work / "key_of_the_job").read_text()) == (0, revision + "\n", 64, key)
        assert key not in err + (work / "argv.json").read_text() + (work / "state" / "server.log").read_text()
        keys.add(key)
    assert len(keys) == 2


def test_without_a_command_the_server_stays_up_until_it_is_stopped(work):
    status, out, err = serve(work, REVISION="main")
    assert status == 0, err
    file = work / "state" / "environment"
    assert shlex.split(out) == ["source", str(file)]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, file.parent)] == [0o600, 0o700]
    job = f"{out.strip()} && '{sys.executable}' -m eval.simrate --predictions 'the run/predictions.jsonl'"
    judged = subprocess.run(
        ["bash", "-c", job], cwd=work, env=environment(work, PYTHONPATH=str(ROOT)), capture_output=True, check=False
    )
    assert b"SimRate 50.00 % (1/2)" in judged.stdout, judged.stderr
    assert serve(work)[0] == 2 and "a server is up already" in (work / "err").read_text()
    assert all(map(alive, server_pids(work)))
    assert serve(work, "--stop")[0] == 0
    assert not any(map(alive, server_pids(work))) and not file.exists()
    status, _, err = serve(work, "--stop")
    assert status == 2 and "no server is up" in err


def test_a_number_that_another_process_has_by_now_is_not_stopped(work):
    (work / "state").mkdir()
    (work / "state" / "process").write_text(f"{os.getpid()}\n12345\n")
    status, _, err = serve(work, "--stop")
    assert status == 2 and "no server is up" in err


@pytest.mark.parametrize(
    ("fake", "limit", "message"), [("dies", "300", "the server died while it started"), ("hangs", "1", "after 1 s")]
)
def test_a_server_that_does_not_come_up_shows_its_last_words(work, fake, limit, message):
    status, out, err = serve(work, "--", "echo", "ran", FAKE=fake, TIMEOUT_S=limit)
    assert status == 1 and out == ""
    assert message in err and "loading weights" in err
    assert ("CUDA out of memory" in err) == (fake == "dies")
    assert not (work / "pids").exists() or not any(map(alive, server_pids(work)))


@pytest.mark.parametrize("moment", ["loading", "judging"])
def test_ctrl_c_stops_the_server_too(work, moment):
    settings = environment(work, FAKE="hangs" if moment == "loading" else "")
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "--", "sh", "-c", "touch judging; sleep 60"], cwd=work, env=settings,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (work / ("pids" if moment == "loading" else "judging")).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(300) == 130
    assert not any(map(alive, server_pids(work)))


def test_the_cards_decide_parallelism_and_precision(work):
    def shown(**settings):
        status, out, _ = serve(work, "--dry-run", **settings)
        assert status == 0 and not (work / "state").exists()
        return out

    llama = "meta-llama/Meta-Llama-3-70B-Instruct"
    one = shown(MODEL=llama, NUM_GPUS="1")
    assert one.startswith(f"vllm serve {llama} --host 127.0.0.1 --port ")
    assert "--enable-prefix-caching" in one and "--quantization fp8" in one
    six = shown(MODEL=llama, NUM_GPUS="6", REVISION="abc", VLLM_FLAGS="--seed 1 --enforce-eager")
    assert "--tensor-parallel-size 4" in six and "fp8" not in six
    assert six.rstrip().endswith("--seed 1 --enforce-eager") and "--revision abc" in six
    assert "--tensor-parallel-size 2 " in shown(NUM_GPUS="", CUDA_VISIBLE_DEVICES="3,5")
    assert "fp8" not in shown(MODEL="a/Llama-8B", NUM_GPUS="1") + shown(MODEL=llama, NUM_GPUS="1", QUANTIZATION="none")


def test_without_a_port_8000_is_taken_or_a_free_one(work):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # somebody has it already
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        status, out, err = serve(work, "--dry-run", PORT="")
    words = shlex.split(out)
    assert status == 0 and words[words.index("--port") + 1] not in ("8000", "0"), err


def test_wrong_use_says_what_to_do(work):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, err = serve(work, PORT=str(taken.getsockname()[1]))
        assert status == 2 and re.search(r"port \d+ of 127.0.0.1 is taken", err)
    for arguments, settings, message in (
        (["--"], {}, "a command was wanted after --"),
        (["--background"], {}, "unknown option --background"),
        ([], {"NUM_GPUS": "two"}, "whole numbers were wanted, found 'two'"),
        ([], {"PATH": "/usr/bin:/bin"}, "pip install '.[vllm]'"),
    ):
        status, _, err = serve(work, *arguments, **settings)
        assert status == 2 and message in err, err
    assert "usage: bash scripts/eval/serve_judge.sh" in serve(work, "--help")[1]
