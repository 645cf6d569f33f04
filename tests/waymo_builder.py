"""Tiny segments of Waymo's v2 release, written from its code and documentation and not from the adapter.

A world of a ground plane (z = 0) and a wall (y = 25 to the left of the drive); a car that drives along x on it. Images
are noise with panoptic labels that are ray-cast; range images are ray-cast too, every pixel of the top LiDAR from where
the car was at that pixel's time. So a label, a pixel and a return that belong together agree on what they see.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.spatial.transform import Rotation

F64 = npt.NDArray[np.float64]
SEGMENT = "10017090168044687777_6380_000_6400_000"
FIRST_TIME = 1550083467346370  # microseconds
ORIGIN = np.array([-3200.0, 12000.0, 0.0])  # metres: worlds are large
SPEED = 12.0  # metres per second
WALL = 25.0  # metres to the left of the drive
FARTHEST = 75.0  # metres: the LiDAR's range
UNDEFINED, EGO, BUILDING, ROAD, SKY = 0, 1, 19, 20, 25  # of camera_segmentation.proto
CAMERAS = {"FRONT": 1, "FRONT_LEFT": 2, "FRONT_RIGHT": 3, "SIDE_LEFT": 4, "SIDE_RIGHT": 5}
LASERS = {"TOP": 1, "FRONT": 2, "SIDE_LEFT": 3, "SIDE_RIGHT": 4, "REAR": 5}
STORED_ORDER = ("FRONT", "FRONT_LEFT", "SIDE_LEFT", "FRONT_RIGHT", "SIDE_RIGHT")  # as in the published sample
YAW = {"FRONT": 0.01, "FRONT_LEFT": 0.78, "FRONT_RIGHT": -0.79, "SIDE_LEFT": 1.58, "SIDE_RIGHT": -1.57}
EXPOSURE = {name: 0.002 * number for name, number in CAMERAS.items()}  # seconds after the frame's time
FLOAT32_16 = pa.list_(pa.float32(), 16)  # the published vehicle_pose; the code says float64
FLOAT64_16 = pa.list_(pa.float64(), 16)
IMAGES = pa.list_(pa.float32())


@dataclass(frozen=True)
class Segment:
    """What a tiny segment is like; times are multiples of 0.1 s."""

    name: str = SEGMENT
    moments: tuple[int, ...] = (0, 1, 2, 3)
    labelled: tuple[int, ...] = (1,)
    cameras: tuple[str, ...] = tuple(CAMERAS)
    names_as_strings: bool = False
    width: int = 96
    lidar: bool = True


def time_of(moment: int) -> int:
    """Timestamps are 0.1 s apart, give or take some microseconds."""
    return FIRST_TIME + 100_000 * moment + (moment * 37) % 80 - 40


def image_size(camera: str, width: int = 96) -> tuple[int, int]:
    """(height, width) in the proportions of the real cameras: 1920×1280 in front, 1920×886 at the sides."""
    return round(width * (886 if camera.startswith("SIDE") else 1280) / 1920), width


def intrinsics(camera: str, width: int = 96) -> tuple[float, float, float, float]:
    """f_u, f_v, c_u, c_v."""
    height, _ = image_size(camera, width)
    return 1.07 * width, 1.071 * width, 0.49 * width, 0.5 * height


def camera_to_vehicle(camera: str) -> F64:
    """Camera axes: x along the optical axis, y left, z up; tilted down a little."""
    return _transform(rotation(0.0, 0.1, YAW[camera]), (1.5, 0.2 * np.sign(YAW[camera]), 2.1))


def laser_to_vehicle(laser: str) -> F64:
    """The top LiDAR is turned by 148° about its axis, as the real one is."""
    if laser == "TOP":
        return _transform(rotation(0.004, -0.003, 2.58), (1.43, 0.0, 2.18))
    yaw = {"FRONT": 0.0, "SIDE_LEFT": 1.6, "SIDE_RIGHT": -1.6, "REAR": 3.1}[laser]
    return _transform(rotation(0.0, 0.0, yaw), (3.5 * np.cos(yaw), np.sin(yaw), 0.7))


def rotation(roll: float, pitch: float, yaw: float) -> F64:
    """Rotation (3, 3) by angles in radians about x, then y, then z."""
    return Rotation.from_euler("xyz", (roll, pitch, yaw)).as_matrix()


def vehicle_to_world(seconds: float) -> F64:
    """The vehicle's pose so many seconds after the first frame: it drives along x and sways."""
    turn = rotation(0.01 * np.sin(seconds), 0.008 * np.cos(seconds), 0.05 * seconds)
    return _transform(turn, ORIGIN + np.array([SPEED * seconds, 0.2 * seconds, 0.0]))


def waymo_tree(root: Path, segment: Segment | None = None, split: str = "training") -> Path:
    """Write one segment below `root`; call again for more."""
    segment = segment or Segment()
    rng = np.random.default_rng(0)
    tables = {
        "camera_image": _camera_image(segment, rng),
        "camera_calibration": _camera_calibration(segment),
        "camera_segmentation": _camera_segmentation(segment),
        "vehicle_pose": _vehicle_pose(segment),
    }
    if segment.lidar:
        tables |= {
            "lidar": _lidar(segment),
            "lidar_calibration": _lidar_calibration(segment),
            "lidar_pose": _lidar_pose(segment),
        }
    for component, table in tables.items():
        write_table(root / split / component / f"{segment.name}.parquet", table)
    return root


def component_file(root: Path, component: str, split: str = "training", segment: str = SEGMENT) -> Path:
    """The file of a segment's component."""
    return root / split / component / f"{segment}.parquet"


def write_table(path: Path, table: pa.Table) -> None:
    """As the release is written: Brotli, several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="BROTLI", compression_level=1, row_group_size=7)


def _transform(turn: F64, position: Sequence[float] | F64) -> F64:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = turn, position
    return out


def _keys(
    segment: Segment, rows: int, times: Sequence[int] | None = None, **names: Sequence[str]
) -> dict[str, pa.Array]:
    keys = {"key.segment_context_name": pa.array([segment.name] * rows, pa.string())}
    if times is not None:
        keys["key.frame_timestamp_micros"] = pa.array(times, pa.int64())
    for key, members in names.items():
        codes = CAMERAS if key == "camera_name" else LASERS
        as_string = segment.names_as_strings
        keys[f"key.{key}"] = (
            pa.array(members, pa.string()) if as_string else pa.array([codes[name] for name in members], pa.int8())
        )
    return keys


def _table(keys: dict[str, pa.Array], component: str, fields: dict[str, tuple[list, pa.DataType]]) -> pa.Table:
    columns = {f"[{component}].{name}": pa.array(values, kind) for name, (values, kind) in fields.items()}
    return pa.table({**keys, **columns})


def _seen(segment: Segment) -> list[tuple[int, str]]:
    return [(moment, name) for moment in segment.moments for name in STORED_ORDER if name in segment.cameras]


def exposure_pose(moment: int, camera: str) -> F64:
    """World from vehicle when the camera exposed."""
    return vehicle_to_world((time_of(moment) - FIRST_TIME) / 1e6 + EXPOSURE[camera])


def _camera_image(segment: Segment, rng: np.random.Generator) -> pa.Table:
    seen = _seen(segment)
    images = [_jpeg(image_size(name, segment.width), rng) for _, name in seen]
    poses = [exposure_pose(moment, name).ravel().tolist() for moment, name in seen]
    keys = _keys(segment, len(seen), [time_of(moment) for moment, _ in seen], camera_name=[name for _, name in seen])
    stamps = [time_of(moment) / 1e6 + EXPOSURE[name] for moment, name in seen]
    return _table(
        keys,
        "CameraImageComponent",
        {
            "image": (images, pa.binary()),
            "pose.transform": (poses, FLOAT64_16),
            "pose_timestamp": (stamps, pa.float64()),
        },
    )


def _camera_calibration(segment: Segment) -> pa.Table:
    names = [name for name in reversed(STORED_ORDER) if name in segment.cameras]
    numbers = np.array([intrinsics(name, segment.width) for name in names]).T.tolist()
    distortion = {name: ([value] * len(names), pa.float64()) for name, value in (("k1", 0.04), ("k2", -0.34))}
    sizes = [image_size(name, segment.width) for name in names]
    return _table(
        _keys(segment, len(names), camera_name=names),
        "CameraCalibrationComponent",
        {
            **{
                f"intrinsic.{key}": (v, pa.float64())
                for key, v in zip(("f_u", "f_v", "c_u", "c_v"), numbers, strict=True)
            },
            **{f"intrinsic.{key}": value for key, value in distortion.items()},
            "extrinsic.transform": ([camera_to_vehicle(name).ravel().tolist() for name in names], FLOAT64_16),
            "width": ([size[1] for size in sizes], pa.int32()),
            "height": ([size[0] for size in sizes], pa.int32()),
        },
    )


def _camera_segmentation(segment: Segment) -> pa.Table:
    seen = [(moment, name) for moment, name in reversed(_seen(segment)) if moment in segment.labelled]
    divisors = [1000 if index % 2 else 500 for index in range(len(seen))]
    labels = [
        _panoptic(semantic(moment, name, segment.width), divisor)
        for (moment, name), divisor in zip(seen, divisors, strict=True)
    ]
    keys = _keys(segment, len(seen), [time_of(moment) for moment, _ in seen], camera_name=[name for _, name in seen])
    return _table(
        keys,
        "CameraSegmentationLabelComponent",
        {
            "panoptic_label_divisor": (divisors, pa.int32()),
            "panoptic_label": (labels, pa.binary()),
            "sequence_id": (["0"] * len(seen), pa.string()),
        },
    )


def _vehicle_pose(segment: Segment) -> pa.Table:
    times = [time_of(moment) for moment in segment.moments]
    poses = [vehicle_to_world((time - FIRST_TIME) / 1e6).astype(np.float32).ravel().tolist() for time in times]
    keys = _keys(segment, len(times), times)
    return _table(keys, "VehiclePoseComponent", {"world_from_vehicle.transform": (poses, FLOAT32_16)})


def semantic(moment: int, camera: str, width: int = 96) -> npt.NDArray[np.uint8]:
    """Class ids (H, W) of what the camera sees: road, wall, sky, and a strip of the car itself at the bottom."""
    height, _ = image_size(camera, width)
    f_u, f_v, c_u, c_v = intrinsics(camera, width)
    row, column = np.mgrid[:height, :width]
    rays = np.stack([np.ones(row.shape), -(column - c_u) / f_u, -(row - c_v) / f_v], axis=-1)
    to_world = exposure_pose(moment, camera) @ camera_to_vehicle(camera)
    distance, is_wall = hit(to_world[:3, 3], rays @ to_world[:3, :3].T)
    ids = np.where(np.isinf(distance), SKY, np.where(is_wall, BUILDING, ROAD)).astype(np.uint8)
    ids[-max(height // 16, 1) :] = EGO
    return ids


def hit(origin: F64, direction: F64) -> tuple[F64, npt.NDArray[np.bool_]]:
    """Distance along each ray (…, 3), in its lengths, to the ground or the wall; inf beside both. And whether the wall."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = (0.0 - origin[..., 2]) / direction[..., 2]
        wall = (ORIGIN[1] + WALL - origin[..., 1]) / direction[..., 1]
    ground, wall = (np.where(distance > 0, distance, np.inf) for distance in (ground, wall))
    return np.minimum(ground, wall), wall < ground


BEAMS = {"TOP": np.sort(-0.31 + 0.35 * np.linspace(0, 1, 24) ** 0.8), "other": (-1.5, 0.5)}
TURN = 0.1  # seconds of the top LiDAR, centred on the frame's time


def beam_inclinations(laser: str, height: int) -> list[float]:
    """Of every row, the highest beam first."""
    if laser == "TOP":
        return BEAMS["TOP"][::-1].tolist()
    low, high = BEAMS["other"]
    return [low + (height - 1 - row + 0.5) / height * (high - low) for row in range(height)]


def grid(laser: str) -> tuple[int, int]:
    """Rows and columns of a range image."""
    return (24, 360) if laser == "TOP" else (12, 40)


def pixel_seconds(moment: int, laser: str) -> F64:
    """Seconds after the first frame (W,) at which each column was measured."""
    columns = grid(laser)[1]
    of_frame = (time_of(moment) - FIRST_TIME) / 1e6
    return of_frame + (np.linspace(-TURN / 2, TURN / 2, columns) if laser == "TOP" else np.zeros(columns))


def range_image(moment: int, laser: str) -> npt.NDArray[np.float32]:
    """(H, W, 4): range, intensity, elongation, in no-label zone; range −1 where nothing came back."""
    height, width = grid(laser)
    extrinsic = laser_to_vehicle(laser)
    turn = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
    inclination = np.array(beam_inclinations(laser, height))
    image = np.zeros((height, width, 4), np.float32)
    for column, seconds in enumerate(pixel_seconds(moment, laser)):
        azimuth = np.pi - (column + 0.5) / width * 2 * np.pi - turn
        flat = np.cos(inclination)
        rays = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(inclination)], axis=1)
        to_world = vehicle_to_world(seconds) @ extrinsic
        distance, _ = hit(to_world[:3, 3], rays @ to_world[:3, :3].T)
        image[:, column, 0] = np.where(distance < FARTHEST, distance, -1)
    image[..., 1] = 0.5
    return image


def pixel_pose(moment: int) -> npt.NDArray[np.float32]:
    """(H, W, 6): roll, pitch, yaw, x, y, z of vehicle → world at every pixel of the top LiDAR."""
    height, width = grid("TOP")
    out = np.zeros((height, width, 6), np.float32)
    for column, seconds in enumerate(pixel_seconds(moment, "TOP")):
        pose = vehicle_to_world(seconds)
        roll = np.arctan2(pose[2, 1], pose[2, 2])
        yaw = np.arctan2(pose[1, 0], pose[0, 0])
        out[:, column] = [roll, -np.arcsin(pose[2, 0]), yaw, *pose[:3, 3]]
    return out


def _lidar(segment: Segment) -> pa.Table:
    rows = [(moment, laser) for moment in segment.moments for laser in LASERS]
    images = [range_image(moment, laser) for moment, laser in rows]
    second = [np.full_like(image, -1) for image in images]
    keys = _keys(segment, len(rows), [time_of(moment) for moment, _ in rows], laser_name=[laser for _, laser in rows])
    fields = {}
    for name, members in (("range_image_return1", images), ("range_image_return2", second)):
        fields[f"{name}.values"] = ([image.ravel() for image in members], IMAGES)
        fields[f"{name}.shape"] = ([image.shape for image in members], pa.list_(pa.int32(), 3))
    return _table(keys, "LiDARComponent", fields)


def _lidar_calibration(segment: Segment) -> pa.Table:
    names = list(reversed(LASERS))
    low, high = BEAMS["other"]
    top = BEAMS["TOP"]
    return _table(
        _keys(segment, len(names), laser_name=names),
        "LiDARCalibrationComponent",
        {
            "extrinsic.transform": ([laser_to_vehicle(name).ravel().tolist() for name in names], FLOAT64_16),
            "beam_inclination.min": ([top[0] if name == "TOP" else low for name in names], pa.float64()),
            "beam_inclination.max": ([top[-1] if name == "TOP" else high for name in names], pa.float64()),
            "beam_inclination.values": (
                [top.tolist() if name == "TOP" else None for name in names],
                pa.list_(pa.float64()),
            ),
        },
    )


def _lidar_pose(segment: Segment) -> pa.Table:
    times = [time_of(moment) for moment in segment.moments]
    images = [pixel_pose(moment) for moment in segment.moments]
    return _table(
        _keys(segment, len(times), times, laser_name=["TOP"] * len(times)),
        "LiDARPoseComponent",
        {
            "range_image_return1.values": ([image.ravel() for image in images], IMAGES),
            "range_image_return1.shape": ([image.shape for image in images], pa.list_(pa.int32(), 3)),
        },
    )


def _jpeg(size: tuple[int, int], rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def _panoptic(ids: npt.NDArray[np.uint8], divisor: int) -> bytes:
    """uint16 PNG of class · divisor + instance; buildings get instances, to be divided away again."""
    instance = np.where(ids == BUILDING, np.arange(ids.shape[1]) % 7, 0)
    file = io.BytesIO()
    Image.fromarray((ids.astype(np.uint16) * divisor + instance).astype(np.uint16)).save(file, "PNG")
    return file.getvalue()
