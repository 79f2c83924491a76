"""The shape of the code: imports go one way, the overlay stands alone, help stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = {"llava": 0, "eval": 1, "stories": 2}
SOURCES = sorted(path for top in ORDER for path in (ROOT / top).rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert not any(alias.name == "*" for alias in node.names), f"{path}: wildcard import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_from_stories_to_eval_to_llava(path):
    rank = ORDER[path.relative_to(ROOT).parts[0]]
    against = {name for name in imported_modules(path) if ORDER.get(name.split(".")[0], rank) > rank}
    assert not against


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_five_hundred_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in SOURCES
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8") and "train/train" not in str(path)
]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_is_answered_without_loading_torch(module):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert end.code in (0, None), end.code\n"
        "loaded = {'torch', 'transformers', 'vllm'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "usage" in result.stdout.lower()
