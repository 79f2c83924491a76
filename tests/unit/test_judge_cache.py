"""The file of kept answers on one machine's disk and on a network's."""

import sqlite3

import pytest

from eval.judge import cache


@pytest.mark.parametrize(
    ("kind", "journal"), [("ext4", "wal"), ("nfs4", "delete"), ("lustre", "delete"), ("fuse.sshfs", "delete")]
)
def test_a_network_s_disk_gets_no_write_ahead_log(tmp_path, monkeypatch, kind, journal):
    home = tmp_path / "my home"
    home.mkdir()
    mounts = tmp_path / "mounts"
    mounts.write_text(f"dev / ext4 rw 0 0\nserver:/export {str(home).replace(' ', chr(92) + '040')} {kind} rw 0 0\n")
    monkeypatch.setattr(cache, "MOUNTS", mounts)
    kept = cache.AnswerCache(home / "deep" / "judge.sqlite")
    assert kept.put("key", "Yes", "model") == "Yes"
    kept.close()
    database = sqlite3.connect(home / "deep" / "judge.sqlite")
    assert database.execute("PRAGMA journal_mode").fetchone() == (journal,)
    database.close()


def test_a_machine_that_names_no_disks_is_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MOUNTS", tmp_path / "nothing")
    assert not cache.is_shared(tmp_path)
    (tmp_path / "nothing").write_text("")
    assert cache.is_shared(tmp_path)  # unknown: the safe way
