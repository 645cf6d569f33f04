"""The README's shell commands and then its Python run as they stand, in an empty working folder with data to find.

`make demo` and `make test` are run by .ci/run. Only the size of the rendered street and the length of training are
changed, to save minutes.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from builders import kitti360_tree, rgbd_tree

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line]
SHORTER = {
    "rw3d-prep demo": "--train-sequences 1 --val-sequences 1 --train-frames 4 --val-frames 2",
    "rw3d-train run": "--set run.epochs=2 --set run.batch_size=1 --set run.workers=0",
}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    module = {"rw3d-prep": "rw3d_prep.cli", "rw3d-train": "rw3d_train.cli"}[program]
    code = f"from {module} import main; main()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    kitti360_tree(path / "data" / "kitti360", size=(94, 352))
    rgbd_tree(path / "scans" / "office")
    return path


def test_every_command_works_in_the_order_of_the_readme(folder):
    assert len(COMMANDS) >= 12
    for command in COMMANDS:
        more = next((options for start, options in SHORTER.items() if command.startswith(start)), "")
        result = run(f"{command} {more}", folder)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    for python in re.findall(r"```python\n(.*?)```", README, re.S):
        command = [sys.executable, "-W", "error", "-c", python]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{python}\n{result.stderr}"


def test_every_file_that_the_readme_links_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
