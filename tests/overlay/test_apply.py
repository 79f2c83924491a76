"""scripts/apply_overlay.sh on a copy of a real checkout, with and without git."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

REPLACED = {
    "llava/__init__.py", "llava/constants.py", "llava/conversation.py", "llava/mm_utils.py", "llava/model/__init__.py",
    "llava/model/builder.py", "llava/model/llava_arch.py", "llava/model/language_model/llava_llama.py",
    "llava/train/train.py",
}  # fmt: skip


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture()
def checkout(unmodified, tmp_path):
    return Path(shutil.copytree(unmodified, tmp_path / "a checkout"))


def test_exactly_the_named_files_are_written_and_revert_takes_them_back(checkout, apply_overlay):
    before = contents(checkout)
    assert apply_overlay(checkout).returncode == 0
    after = contents(checkout)
    assert {name for name in before if after[name] != before[name]} == REPLACED
    assert {name for name in after if name not in before} == {n for n in after if n.startswith("llava/imagechain/")}
    assert apply_overlay("--check", checkout).returncode == 0
    assert apply_overlay("--revert", checkout).returncode == 0
    assert contents(checkout) == before


def test_copying_by_hand_gives_the_same_files_as_the_script(checkout, overlaid, apply_overlay):
    source = Path(__file__).parents[2] / "llava"
    subprocess.run(f"cp -r {source}/* '{checkout}/llava/'", shell=True, check=True)
    left_out = ("__pycache__", "/.replaced/", "/.written")
    by_hand, by_script = (
        {name: value for name, value in contents(folder).items() if not any(part in name for part in left_out)}
        for folder in (checkout, overlaid)
    )
    assert by_hand == by_script
    assert "by hand" in apply_overlay("--check", checkout).stdout


def test_an_unknown_commit_is_refused_unless_forced(checkout, apply_overlay):
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "another"]):
        subprocess.run([*git, *command], check=True)
    refused = apply_overlay(checkout)
    assert refused.returncode == 2 and "df17966" in refused.stderr and "--force" in refused.stderr
    assert not (checkout / "llava/imagechain").exists()
    assert apply_overlay("--force", checkout).returncode == 0
    assert apply_overlay("--revert", checkout).returncode == 0
    assert subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True).stdout == b""


def test_a_changed_file_without_git_is_refused(checkout, apply_overlay):
    with (checkout / "llava/mm_utils.py").open("a") as file:
        file.write("# mine\n")
    refused = apply_overlay(checkout)
    assert refused.returncode == 2 and "llava/mm_utils.py" in refused.stderr
    assert not (checkout / "llava/imagechain").exists()
