"""The report is complete, never raises, and names the mend."""

from __future__ import annotations

import importlib.metadata
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rw3d_prep import doctor
from rw3d_prep.doctor import Check, collect, report
from rw3d_prep.reconstruct.mapanything_model import WEIGHT_FILES
from rw3d_prep.reconstruct.models import KNOWN

NAMES = {"python", "numpy", "opencv", "open3d", "torch", "mapanything", "uniception", "MapAnything weights", "disk"}


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """Pretend that just these packages (with _ for -) are installed."""

    def version(name: str) -> str:
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)


def probes(monkeypatch: pytest.MonkeyPatch, **answers: tuple[int, str, str]) -> None:
    codes = {"open3d": doctor.OPEN3D, "torch": doctor.TORCH, "torchvision": doctor.TORCHVISION}
    known = {codes[name]: answer for name, answer in answers.items()}
    monkeypatch.setattr(doctor, "_probe", lambda code: known[code])


def found(version: str, cuda: str | None, *gpus: str) -> tuple[int, str, str]:
    return 0, json.dumps({"version": version, "cuda": cuda, "gpus": gpus}) + "\n", "a warning"


def test_every_check_has_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda code: (1, "", "not run in this test"))
    checks = collect(tmp_path / "not" / "yet" / "there")
    assert {check.name for check in checks} >= NAMES
    assert all(check.mend for check in checks if check.ok is False)
    screen = io.StringIO()
    Console(file=screen, width=200).print(report(checks))
    assert all(name in screen.getvalue() for name in NAMES)


def test_brackets_in_a_finding_are_no_markup() -> None:
    screen = io.StringIO()
    Console(file=screen, width=120).print(report([Check("x", False, "[red]", "pip install '.[prep]'")]))
    assert "[red]" in screen.getvalue() and "'.[prep]'" in screen.getvalue() and "mend" in screen.getvalue()


def test_open3d_without_its_system_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, open3d_cpu="0.20.0")
    probes(monkeypatch, open3d=(1, "", "Traceback …\nOSError: libusb-1.0.so.0: cannot open shared object file"))
    check = doctor._open3d()
    assert check.ok is False and "libusb-1.0.so.0" in check.found and check.mend.startswith("apt-get install")


def test_open3d_that_crashes_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.5)
    assert doctor._probe("import os; os.abort()")[2].startswith("killed by signal")
    assert doctor._probe("import time; time.sleep(60)") == (124, "", "no answer within 0.5 s")
    assert doctor._probe("print(1)")[:2] == (0, "1\n")


def test_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.13.0", torchvision="0.28.0")
    error = "RuntimeError: operator torchvision::nms does not exist"
    probes(monkeypatch, torch=found("2.13.0+cpu", None), torchvision=(1, "", f"Traceback\n{error}\n"))
    monkeypatch.setattr(doctor, "_nvidia_smi", lambda: "")
    torch, gpu, vision = doctor._torch()
    assert torch == Check("torch", True, "2.13.0+cpu, CPU build")
    assert gpu.ok is None and "--backend stereo" in gpu.mend
    assert vision.ok is False and error in vision.found and "--force-reinstall torch torchvision" in vision.mend


def test_cpu_build_of_torch_on_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.13.0")
    probes(monkeypatch, torch=found("2.13.0+cpu", None))
    monkeypatch.setattr(doctor, "_nvidia_smi", lambda: "NVIDIA X, 24564 MiB")
    assert doctor._torch()[1].ok is False and "CPU build" in doctor._torch()[1].found


def test_gpu_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.13.0")
    probes(monkeypatch, torch=found("2.13.0", "13.0", "NVIDIA X, 24 GiB, compute 8.9"))
    torch, gpu, vision = doctor._torch()
    assert torch.found == "2.13.0, CUDA 13.0 build" and gpu == Check("GPU", True, "NVIDIA X, 24 GiB, compute 8.9")
    assert vision.ok is None


def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.13.0")
    probes(monkeypatch, torch=(1, "", "ImportError: libcudnn.so.9: cannot open shared object file"))
    (check,) = doctor._torch()
    assert check.ok is False and "libcudnn.so.9" in check.found


def test_weights_in_the_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert doctor._weights().ok is None
    revision = KNOWN["facebook/map-anything"].revision
    for name, complete in ((revision, False), ("0" * 40, True)):
        folder = tmp_path / "models--facebook--map-anything" / "snapshots" / name
        folder.mkdir(parents=True)
        for file in WEIGHT_FILES[: 2 if complete else 1]:
            (folder / file).touch()
    other = doctor._weights()
    assert other.ok is None and other.found == "facebook/map-anything at 000000000000"
    (tmp_path / "models--facebook--map-anything" / "snapshots" / revision / "model.safetensors").touch()
    assert doctor._weights().ok is True and revision[:12] in doctor._weights().found


def test_dinov2_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert doctor._dinov2().ok is None
    folder = tmp_path / "hub" / "facebookresearch_dinov2_main"
    folder.mkdir(parents=True)
    (folder / "hubconf.py").touch()
    assert doctor._dinov2() == Check("DINOv2 code", True, str(folder))


def test_little_disk_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "ENOUGH_GB", 10**9)
    check = doctor._disk(tmp_path)
    assert check.ok is None and "--out" in check.mend


def test_nothing_heavy_is_imported() -> None:
    code, output, error = doctor._probe(
        f"import sys; sys.path[:] = {sys.path!r}; import rw3d_prep.doctor; "
        "print([name for name in ('torch', 'open3d', 'cv2', 'mapanything') if name in sys.modules])"
    )
    assert code == 0, error
    assert output == "[]\n"
