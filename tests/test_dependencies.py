"""prep → common ← train: checked in fresh interpreters in which the other side cannot be imported."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Block())
"""
PREP_ONLY = ("rw3d_prep", "cv2", "open3d", "numba", "scipy", "plyfile", "h5py", "pyarrow", "dask", "mapanything")
WALK = """
import importlib, pkgutil
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
    importlib.import_module(module.name)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "blocked"),
    [
        ("rw3d_common", (*PREP_ONLY, "rw3d_train", "torch", "torchvision")),
        ("rw3d_train", PREP_ONLY),
        ("rw3d_prep", ("rw3d_train", "torch", "torchvision", "mapanything", "dask")),
    ],
)
def test_every_module_imports_without_the_other_side(package, blocked):
    result = run(BLOCK.format(blocked=blocked) + WALK.format(package=package))
    assert result.returncode == 0, result.stderr


def test_the_block_works():
    assert "blocked: dask" in run(BLOCK.format(blocked=("dask",)) + "import dask").stderr


@pytest.mark.parametrize("program", ["rw3d_prep.cli", "rw3d_train.cli"])
def test_help_needs_no_heavy_package(program):
    heavy = ("cv2", "open3d", "numba", "scipy", "torch", "zarr", "matplotlib", "dask")
    result = run(
        BLOCK.format(blocked=heavy) + f"import sys; sys.argv = ['x', '--help']; from {program} import main; main()"
    )
    assert result.returncode == 0, result.stderr


def needed(requirement: str) -> tuple[str, bool]:
    """The package of a requirement, and whether an extra alone asks for it."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-"), "extra ==" in requirement


def test_the_trainer_installs_nothing_of_preparation():
    """All that `pip install .[train]` brings, through the requirements of what is installed here."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo, found = [*project["dependencies"], *project["optional-dependencies"]["train"]], set()
    while todo:
        name, optional = needed(todo.pop())
        if optional or name in found:
            continue
        found.add(name)
        try:
            todo += requires(name) or []
        except PackageNotFoundError:  # of another platform
            continue
    assert {"torch", "transformers", "safetensors", "zarr", "numpy"} <= found
    assert not found & {"dask", "distributed", "open3d", "open3d-cpu", "opencv-python-headless", "mapanything"}
    assert not found & {"numba", "scipy", "h5py", "pyarrow", "torchvision", "timm", "spconv", "torch-scatter"}
