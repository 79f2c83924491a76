"""scripts/apply_overlay.sh: states, refusals and edits, on a stand-in for a checkout."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/apply_overlay.sh"


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "LLAVA_NEXT_DIR"}
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture()
def checkout(tmp_path):
    """A folder of the right shape whose files are not LLaVA-NeXT's."""
    root = tmp_path / "check out"
    names = [
        "__init__.py",
        "mm_utils.py",
        "model/llava_arch.py",
        "model/multimodal_encoder/builder.py",
        "train/train.py",
    ]
    for name in [*names, "model/language_model/llava_qwen.py"]:
        (root / "llava" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "llava" / name).write_text(f"# theirs: {name}\n")
    return root


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_files_of_another_version_are_refused_and_nothing_is_written(checkout):
    before = files(checkout)
    refused = run(checkout)
    assert refused.returncode == 2 and "llava/model/llava_arch.py" in refused.stderr and "--force" in refused.stderr
    assert files(checkout) == before


def test_force_keeps_what_it_replaces_and_revert_brings_it_back(checkout):
    before = files(checkout)
    assert run("--force", checkout).returncode == 0
    after = files(checkout)
    assert after["llava/model/llava_arch.py"] != before["llava/model/llava_arch.py"]
    assert after["llava/model/multimodal_encoder/builder.py"] == before["llava/model/multimodal_encoder/builder.py"]
    assert after["llava/imagechain.edited-1/llava/mm_utils.py"] == before["llava/mm_utils.py"]
    assert run("--revert", checkout).returncode == 0
    left = {name: value for name, value in files(checkout).items() if "imagechain.edited" not in name}
    assert left == before


def test_a_second_apply_changes_nothing(checkout):
    run("--force", checkout)
    before = {path: path.stat().st_mtime_ns for path in checkout.rglob("*") if path.is_file()}
    again = run(checkout)
    assert again.returncode == 0 and "already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in checkout.rglob("*") if path.is_file()} == before


def test_check_tells_the_states_apart(checkout):
    assert run("--check", checkout).returncode == 1
    run("--force", checkout)
    assert run("--check", checkout).returncode == 0
    (checkout / "llava/imagechain/splice.py").unlink()
    assert run("--check", checkout).returncode == 1
    (checkout / "llava/mm_utils.py").write_text("# mine\n")
    edited = run("--check", checkout)
    assert edited.returncode == 3 and "llava/mm_utils.py" in edited.stdout


def test_dry_run_writes_nothing_and_lists_the_files(checkout):
    before = files(checkout)
    shown = run("--dry-run", "--force", checkout)
    assert shown.returncode == 0 and "replace  llava/model/llava_arch.py" in shown.stdout
    assert "add      llava/imagechain/splice.py" in shown.stdout and files(checkout) == before


@pytest.mark.parametrize("words", [["--help", "--force"], ["--revert", "--force"]])
def test_what_has_nothing_to_do_writes_nothing_also_when_nobody_listens(checkout, words):
    before = files(checkout)
    command = ["bash", str(SCRIPT), *words, str(checkout)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode != 0 and files(checkout) == before


@pytest.mark.parametrize("edited", ["llava/train/train.py", "llava/imagechain/splice.py", "llava/imagechain/mine.py"])
def test_edits_made_after_applying_are_never_lost(checkout, edited):
    run("--force", checkout)
    (checkout / edited).write_text("# mine\n")
    refused = run("--revert", checkout)
    assert refused.returncode == 2 and edited in refused.stderr
    assert (checkout / edited).read_text() == "# mine\n"
    assert run("--revert", "--force", checkout).returncode == 0
    assert (checkout / "llava/imagechain.edited-2" / edited).read_text() == "# mine\n"
    assert not (checkout / "llava/imagechain").exists()


def test_an_interrupted_apply_is_finished_by_the_next(checkout):
    before = files(checkout)
    run("--force", checkout)
    (checkout / "llava/imagechain/.written").unlink()  # as if it had stopped before its last step
    (checkout / "llava/mm_utils.py").write_bytes(before["llava/mm_utils.py"])
    (checkout / "llava/imagechain/splice.py").unlink()
    assert run(checkout).returncode == 0
    assert run("--check", checkout).returncode == 0
    assert run("--revert", checkout).returncode == 0
    assert files(checkout)["llava/mm_utils.py"] == before["llava/mm_utils.py"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "LLAVA_NEXT_DIR"),
        (["/no/such/folder"], "not a folder"),
        ([SCRIPT.parent], "not a LLaVA-NeXT checkout"),
        ([SCRIPT.parents[1]], "ImageChain itself"),
        (["--chek", "."], "--chek"),
        (["--check", "--revert", "."], "cannot be combined"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, words):
    refused = run(*arguments)
    assert refused.returncode == 2 and words in refused.stderr


def test_a_repository_without_a_commit_is_recognised_by_its_files(checkout):
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    refused = run(checkout)
    assert (
        refused.returncode == 2
        and "llava/model/llava_arch.py" in refused.stderr
        and "commit HEAD" not in refused.stderr
    )
