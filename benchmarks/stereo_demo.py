"""The stereo backend against the exact depth of the built-in street: `python benchmarks/stereo_demo.py ROOT`.

ROOT is a tree made by `rw3d-prep demo`. Prints one JSON object; "deciles" run from the most to the least confident
points of all frames together, "bad" is a disparity off by more than one pixel, sky is where the true depth is infinite.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import project
from rw3d_common.errors import UserError
from rw3d_prep.datasets.kitti360 import read_calibration, read_poses
from rw3d_prep.frames import Frame, StereoPartner
from rw3d_prep.reconstruct.stereo import StereoBackend, StereoConfig

SKY = 23  # raw id of KITTI-360
F32 = npt.NDArray[np.float32]


def demo_frames(root: Path) -> list[tuple[Frame, F32]]:
    """Every frame of a demo tree with its true depth (H, W), metres, inf for sky.

    Raises:
        UserError: no true depth under `root`.
    """
    calibration = read_calibration(root / "calibration")
    frames = []
    for file in sorted(root.glob("demo_truth/*/depth/*.npy")):
        sequence, name = file.parts[-3], f"{file.stem}.png"
        poses, _ = read_poses(root / "data_poses" / sequence / "poses.txt")
        raw = root / "data_2d_raw" / sequence
        frame = Frame(
            split="demo",
            sequence=sequence,
            id=int(file.stem),
            camera="image_00",
            image=raw / "image_00" / "data_rect" / name,
            camera_to_world=poses[int(file.stem)] @ calibration.camera_to_imu["image_00"],
            intrinsics=calibration.intrinsics["image_00"],
            truth=root / "data_2d_semantics" / "train" / sequence / "image_00" / "semantic" / name,
            right=StereoPartner(raw / "image_01" / "data_rect" / name, calibration.baseline),
        )
        frames.append((frame, np.load(file, allow_pickle=False)))
    if not frames:
        raise UserError(f"{root}: no demo_truth/*/depth/*.npy; make the tree with `rw3d-prep demo`")
    return frames


def measure(root: Path, config: StereoConfig, near: float = 30.0) -> dict[str, object]:
    """The backend's errors and speed over all frames of a demo tree; `near` in metres."""
    backend, offset = StereoBackend(config), np.zeros(3)
    sky_points = points = pixels = near_valid = near_pixels = 0
    relative, bad, confidence, seconds = [], [], [], []
    for frame, truth in demo_frames(root):
        start = time.process_time()
        (view,) = backend.reconstruct([frame], offset)
        seconds.append(time.process_time() - start)
        assert frame.right is not None and frame.intrinsics is not None
        scale = frame.intrinsics[0, 0] * frame.right.baseline
        real = view.valid & np.isfinite(truth)
        _, _, depth = project(view.points[real], view.intrinsics, view.camera_to_world)
        close = truth[real] < near
        relative.append(np.abs(depth / truth[real] - 1)[close])
        bad.append(np.abs(scale / depth - scale / truth[real]) > 1)
        confidence.append(view.confidence[real])
        sky_points += int((view.valid & np.isinf(truth)).sum())
        points += int(view.valid.sum())
        pixels += int(np.isfinite(truth).sum())
        near_valid += int(close.sum())
        near_pixels += int((truth < near).sum())
    error, wrong = np.concatenate(relative), np.concatenate(bad)
    order = np.argsort(-np.concatenate(confidence), kind="stable")
    return {
        "frames": len(seconds),
        "points": points,
        "sky_points": sky_points,
        "median_relative_error": round(float(np.median(error)), 5),
        "p90_relative_error": round(float(np.percentile(error, 90)), 5),
        "valid_share_near": round(near_valid / near_pixels, 4),
        "valid_share": round((points - sky_points) / pixels, 4),
        "bad_share": round(float(wrong.mean()), 4),
        "bad_share_by_confidence_decile": [round(float(part.mean()), 4) for part in np.array_split(wrong[order], 10)],
        "ms_per_pair": round(float(np.median(seconds)) * 1e3, 1),
    }


def main() -> None:
    """Measure the tree named on the command line and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--near", type=float, default=30.0, help="metres within which depth errors are measured")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.root, StereoConfig(), arguments.near), indent=2))


if __name__ == "__main__":
    main()
