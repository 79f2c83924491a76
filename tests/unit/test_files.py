"""Atomic files, JSONL after an interruption, and names that may not leave their root."""

import json

import pytest

from llava.imagechain.files import (
    JsonlAppender,
    atomic_path,
    inside,
    read_json,
    read_jsonl,
    sha256_json,
    sha256_model,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "table.json"
    write_json(target, {"rows": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"rows": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_line_cut_off_by_an_interruption_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n{"id": 2, "te')
    assert read_jsonl(path) == [{"id": 1}]
    with JsonlAppender(path) as rows:
        rows.write({"id": 2})
    assert read_jsonl(path) == [{"id": 1}, {"id": 2}]


def test_a_malformed_complete_line_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\nnot json\n{"id": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_jsonl(path)


@pytest.mark.parametrize("name", ["", "../x", "a/../../x", "/etc/passwd", "http://host/x.mp4", "file://x", "a\0b"])
def test_names_that_leave_their_root_are_refused(tmp_path, name):
    with pytest.raises(ValueError):
        inside(tmp_path, name)


def test_ordinary_odd_names_are_kept(tmp_path):
    for name in ("-abc.mp4", "it's a name.", "a b..c.mp4", "sub/x.mp4"):
        assert inside(tmp_path, name) == tmp_path / name


def test_the_hash_of_a_config_does_not_depend_on_key_order():
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})


def test_the_hash_of_a_model_covers_its_vision_tower_and_not_its_checkpoints(tmp_path):
    for name in ("model.safetensors", "vision_tower/model.safetensors", "checkpoint-5/adapter_model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"weights")
    before = sha256_model(tmp_path)
    (tmp_path / "checkpoint-5/adapter_model.safetensors").write_bytes(b"others!")
    assert sha256_model(tmp_path) == before
    write_json(tmp_path / "run/run.json", {})
    write_json(tmp_path / "run/adapter_config.json", {})
    assert sha256_model(tmp_path) == before  # its own base's hash tells whether a run may go on
    (tmp_path / "vision_tower/model.safetensors").write_bytes(b"others!")
    assert sha256_model(tmp_path) != before


@pytest.mark.parametrize(("name", "read"), [("a.json", read_json), ("a.jsonl", read_jsonl)])
def test_json_that_is_nested_without_end_is_an_error_of_that_file(name, read, tmp_path):
    (tmp_path / name).write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=name):
        read(tmp_path / name)
