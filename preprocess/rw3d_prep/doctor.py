"""What preparation finds on this machine, and the mend for what is missing: the `doctor` command.

Versions come from package metadata; what can crash or take long when imported (Open3D, torch) is imported in a
subprocess with a time limit, so that the report always comes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rw3d_prep.reconstruct.mapanything_model import GUIDE, WEIGHT_FILES, dinov2_code, package_version, torch_home
from rw3d_prep.reconstruct.models import KNOWN

if TYPE_CHECKING:
    from rich.table import Table

SECONDS = 120  # for one import in a subprocess; a cold network disk needs most of them
ENOUGH_GB = 20  # free disk; below it even the weights of MapAnything (4.9 GB) and a small dataset get tight
PREP_EXTRA = "install the extra: pip install '.[prep]'"
REQUIRED = ("numpy", "zarr", "pydantic", "typer", "rich", "pillow", "numba", "scipy", "plyfile", "h5py", "pyarrow")
SYSTEM_LIBRARIES = "apt-get install -y libusb-1.0-0 libgl1 libegl1 libgomp1 libx11-6"
OPEN3D = "import open3d; print(open3d.__version__)"
TORCH = """
import json, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
found = [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute {gpu.major}.{gpu.minor}" for gpu in gpus]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": found}))
"""
TORCHVISION = "import torch, torchvision; torchvision.ops.nms; print(torchvision.__version__)"


@dataclass(frozen=True)
class Check:
    """One line of the report: `ok` is True, False (something must be mended) or None (only a note)."""

    name: str
    ok: bool | None
    found: str
    mend: str = ""


def collect(folder: Path = Path()) -> list[Check]:
    """All checks; `folder` is where stores will be written. Nothing here raises: a failed check is its result."""
    checks = [_python(), *(_package(name) for name in REQUIRED), _opencv(), _open3d()]
    return [*checks, *_torch(), *_mapanything(), _weights(), _dinov2(), _disk(folder)]


def report(checks: list[Check]) -> Table:
    """The checks as a table for the terminal."""
    from rich.table import Table

    marks = {True: "[green]ok[/]", False: "[red]mend[/]", None: "[yellow]note[/]"}
    table = Table("", "what", "found", "mend", box=None, pad_edge=False)
    for check in checks:
        table.add_row(marks[check.ok], check.name, _plain(check.found), _plain(check.mend))
    return table


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check(
        "python", good, f"{platform.python_version()} {sys.executable}", "" if good else "use Python 3.11 or newer"
    )


def _version(*names: str) -> str | None:
    """`name version` of the first that is installed."""
    for name in names:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _package(name: str) -> Check:
    version = _version(name)
    mend = "" if version else PREP_EXTRA
    return Check(name, version is not None, version.split()[1] if version else "not installed", mend)


def _opencv() -> Check:
    version = _version("opencv-python-headless", "opencv-contrib-python-headless", "opencv-python")
    if version is None:
        return Check("opencv", False, "not installed", "pip install opencv-python-headless")
    if "headless" in version:
        return Check("opencv", True, version)
    return Check("opencv", None, version, "on a machine without a display, opencv-python-headless is the safer choice")


def _open3d() -> Check:
    version = _version("open3d-cpu", "open3d")
    if version is None:
        return Check("open3d", False, "not installed", PREP_EXTRA)
    code, output, error = _probe(OPEN3D)
    if code == 0:
        return Check("open3d", True, f"{version}, imports")
    return Check("open3d", False, f"{version}, but importing it fails: {_last_line(error or output)}", SYSTEM_LIBRARIES)


def _torch() -> list[Check]:
    """torch, its GPUs, and whether torchvision is of the same build; notes only, for stereo and sensor need none."""
    if _version("torch") is None:
        return [Check("torch", None, "not installed", "only backend mapanything needs it: pip install torch")]
    code, output, error = _probe(TORCH)
    if code != 0:
        return [Check("torch", False, f"importing it fails: {_last_line(error or output)}", "install torch anew")]
    found: dict[str, Any] = json.loads(_last_line(output))
    build = f"CUDA {found['cuda']} build" if found["cuda"] else "CPU build"
    return [Check("torch", True, f"{found['version']}, {build}"), _gpu(found), _torchvision()]


def _gpu(found: dict[str, Any]) -> Check:
    if found["gpus"]:
        return Check("GPU", True, "; ".join(found["gpus"]))
    cards = _nvidia_smi()
    if cards and not found["cuda"]:
        return Check(
            "GPU", False, f"{cards}, but this torch is a CPU build", "install torch from a CUDA index of pytorch"
        )
    if cards:
        return Check(
            "GPU", False, f"{cards}, but torch sees none", "check the driver's version and CUDA_VISIBLE_DEVICES"
        )
    return Check("GPU", None, "none", "backend mapanything needs one; --backend stereo, sensor and images do not")


def _nvidia_smi() -> str:
    """Names and memory of the cards that the driver lists, or ''."""
    if (program := shutil.which("nvidia-smi")) is None:
        return ""
    try:
        answer = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(answer.stdout.split("\n")).strip("; ") if answer.returncode == 0 else ""


def _torchvision() -> Check:
    version = _version("torchvision")
    if version is None:
        return Check("torchvision", None, "not installed", "only backend mapanything needs it: pip install torchvision")
    code, output, error = _probe(TORCHVISION)
    if code == 0:
        return Check("torchvision", True, f"{version}, same build as torch")
    return Check(
        "torchvision",
        False,
        f"{version} does not fit torch: {_last_line(error or output)}",
        "install both from one index: pip install --force-reinstall torch torchvision",
    )


def _mapanything() -> list[Check]:
    mend = f"only backend mapanything needs it: {GUIDE} has the commands"
    version, parts = package_version(), _version("uniception")
    return [
        Check("mapanything", None, version, mend)
        if version == "not installed"
        else Check("mapanything", True, version),
        Check("uniception", True, parts) if parts else Check("uniception", None, "not installed", mend),
    ]


def _weights() -> Check:
    """Weights of known models in the hub's cache; a folder passed as `backend.weights` is not looked for."""
    snapshots = [folder for name in KNOWN for folder in _hub().glob(f"models--{name.replace('/', '--')}/snapshots/*")]
    whole = [folder for folder in snapshots if all((folder / file).is_file() for file in WEIGHT_FILES)]
    if not whole:
        return Check("MapAnything weights", None, f"none in {_hub()}", f"{GUIDE} tells how to fetch them once")
    pinned = {model.revision for model in KNOWN.values()}
    names = [
        f"{folder.parts[-3].removeprefix('models--').replace('--', '/')} at {folder.name[:12]}" for folder in whole
    ]
    if any(folder.name in pinned for folder in whole):
        return Check("MapAnything weights", True, ", ".join(names))
    return Check(
        "MapAnything weights",
        None,
        ", ".join(names),
        "none of these is a revision that this version pins; name theirs with --revision",
    )


def _hub() -> Path:
    """huggingface_hub's cache, by the rules that it documents."""
    home = Path(os.environ.get("HF_HOME", f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def _dinov2() -> Check:
    code = dinov2_code()
    if code is not None:
        return Check("DINOv2 code", True, str(code))
    mend = f"needed offline by backend mapanything: {GUIDE}"
    return Check("DINOv2 code", None, f"not in {torch_home() / 'hub'}", mend)


def _disk(folder: Path) -> Check:
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    good = free >= ENOUGH_GB
    mend = "" if good else "free some space or choose another --out; `rw3d-prep plan` says how much a dataset takes"
    return Check("disk", True if good else None, f"{free:,.0f} GB free at {existing}", mend)


def _probe(code: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `code` in a fresh interpreter; 124 when it takes too long."""
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer within {SECONDS} s"
    error = answer.stderr
    if answer.returncode < 0 and not error.strip():
        error = f"killed by signal {-answer.returncode}"
    return answer.returncode, answer.stdout, error


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
