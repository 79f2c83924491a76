"""run.json: status, inputs, and no secret in it."""

import json
import sys

import pytest

from llava.imagechain.manifest import redact, run_manifest


def test_a_run_is_started_then_successful_with_its_inputs_hashed(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"id": 1}\n{"id": 2}\n')
    with run_manifest(tmp_path, config={"seed": 0}, inputs=[data]) as run:
        assert json.loads((tmp_path / "run.json").read_text())["status"] == "started"
        run.record(stories=2)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["status"] == "success"
    assert facts["inputs"][0]["rows"] == 2
    assert facts["stories"] == 2
    assert facts["seconds"] >= 0


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no videos"), "error"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_ends_early_says_how(tmp_path, error, status):
    with pytest.raises(type(error)), run_manifest(tmp_path, config={}):
        raise error
    assert json.loads((tmp_path / "run.json").read_text())["status"] == status


def test_keys_on_the_command_line_are_blanked(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--api-key", "sk-1", "--hub_token=abc", "--max-new-tokens", "8"])
    with run_manifest(tmp_path, config={}):
        pass
    command = json.loads((tmp_path / "run.json").read_text())["command"]
    assert command == ["x", "--api-key", "***", "--hub_token=***", "--max-new-tokens", "8"]
    assert redact(["--key"]) == ["--key"]
