"""The tour of a scene store runs from its first cell to its last, on a small store, and shows what it promises."""

import json
import sys
from pathlib import Path

import pytest

from builders import kitti360_tree
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct

NEEDS_VIEW = "the tour needs the extra `view`: pip install 'rw3d[view]'"
nbformat = pytest.importorskip("nbformat", reason=NEEDS_VIEW)
nbclient = pytest.importorskip("nbclient", reason=NEEDS_VIEW)
pytest.importorskip("ipykernel", reason=NEEDS_VIEW)
pytest.importorskip("matplotlib", reason=NEEDS_VIEW)

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "scene_tour.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel of this very interpreter, whatever Jupyter kernels the machine has; its files stay in `tmp_path`."""
    folder = tmp_path / "jupyter" / "kernels" / "tour"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "tour", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    return "tour"


@pytest.fixture
def stores(tmp_path):
    """Scenes of a drive with scribbles and truth, from its LiDAR scans."""
    root = kitti360_tree(tmp_path / "kitti360", frames=range(6), size=(48, 160))
    out = tmp_path / "stores"
    outcome = reconstruct(load_config("kitti360", None, "sensor", None, []), root, out, workers=1)
    assert outcome.written
    return out


def execute(notebook, kernel: str) -> None:
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=resources).execute()


def outputs(notebook) -> list[dict]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_every_cell_runs(notebook, kernel, stores, monkeypatch):
    monkeypatch.setenv("RW3D_STORES", str(stores))
    execute(notebook, kernel)
    shown = [output.get("data", {}) for output in outputs(notebook)]
    assert sum("image/png" in data for data in shown) >= 4
    html = "".join(data.get("text/html", "") for data in shown)
    assert str(stores) in html
    assert "train/2013_05_28_drive_0000_sync/0000000000-0000000005" in html
    complaints = [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert not complaints  # warnings of numpy or matplotlib have no place in a tour


def test_without_stores_it_says_what_to_do(notebook, kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("RW3D_STORES", str(tmp_path / "nothing"))
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="make demo"):
        execute(notebook, kernel)


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    assert not outputs(notebook)
    assert all(cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
