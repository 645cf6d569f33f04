"""Lint, format and types are part of the tests."""

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
    long_files = {str(path): lines for path in source_files() if (lines := len(path.read_text().splitlines())) > 400}
    assert not long_files


def test_no_pickle_and_no_machine_paths():
    for path in source_files():
        text = path.read_text()
        assert "allow_pickle=True" not in text, path
        assert "import pickle" not in text, path


def source_files() -> list[Path]:
    return [path for folder in CODE[:3] for path in (ROOT / folder).rglob("*.py")]
