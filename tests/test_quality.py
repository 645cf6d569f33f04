"""Lint, format and types are part of the tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("common", "preprocess", "train", "tests", "benchmarks")


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", *CODE),
        ("ruff", "format", "--check", *CODE),
        ("mypy", "common/rw3d_common", "preprocess/rw3d_prep", "train/rw3d_train"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_clean(command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_files_and_functions_stay_readable():
    for path in source_files():
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
        long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno > 60]
        assert not long, f"{path}: {long}"


def test_nothing_is_ever_unpickled():
    for path in source_files():
        text = path.read_text()
        assert "allow_pickle=True" not in text, path
        assert "import pickle" not in text, path


def source_files() -> list[Path]:
    return [path for folder in CODE[:3] for path in (ROOT / folder).rglob("*.py")]
