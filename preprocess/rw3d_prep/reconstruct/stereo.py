"""The `stereo` backend: semi-global matching of rectified pairs (Hirschmüller, TPAMI 30(2), 2008; OpenCV's SGBM).

Needs poses, intrinsics and the right image; runs on any CPU. A right camera's own matching, its agreement with the
left one and the pictures' agreement make the confidence; pixels that may show sky never become points (`sky`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rw3d_common.cameras import F32, F64, PixelMap, unproject_depth
from rw3d_common.config import Section, config_hash
from rw3d_common.errors import UserError
from rw3d_common.images import read_image
from rw3d_common.labels import U8
from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct.base import ViewGeometry
from rw3d_prep.reconstruct.sky import sky_mask

FINE = 16  # OpenCV's disparities are whole sixteenths of a pixel, and its range a multiple of 16
REACH = 5.0  # pixels, standard deviation of the window that confidence is averaged over
GREY_SCALE = 10.0  # grey levels; a difference of that size after warping counts half
UNMATCHED = 1000.0  # pixels or grey levels: a misfit in full
FLOOR = 0.1  # doubt that even the best pixel has, so that confidence stays below 1 + 1 / FLOOR


class StereoConfig(Section):
    kind: Literal["stereo"] = "stereo"
    nearest: float = Field(3.0, gt=0)
    """Metres. With focal length and baseline it gives the largest disparity, and so the time per pair."""
    farthest: float = Field(50.0, gt=0)
    """Metres; at 50 m KITTI-360's disparity is 6.6 pixels, and an error of one pixel is one of 15 %."""
    block_size: int = Field(5, ge=1, le=11)
    """Pixels, odd; the right image's matching takes 4 more, so that the two are not the same opinion twice."""
    smoothing: float = Field(0.7, ge=0)
    """Pixels, standard deviation of the Gaussian before matching: sensor noise is not texture. 0 switches it off."""
    consistency: float = Field(1.0, gt=0)
    """Pixels by which the two images' disparities may differ; what only one of them sees differs by more."""
    min_confidence: float = Field(2.5, ge=1)
    """Confidence below which a pixel is no point (see `confidence_of` for its scale)."""

    @model_validator(mode="after")
    def _usable(self) -> StereoConfig:
        if self.block_size % 2 == 0:
            raise ValueError(f"block_size must be odd, not {self.block_size}")
        if self.nearest >= self.farthest:
            raise ValueError(f"nearest ({self.nearest} m) must be less than farthest ({self.farthest} m)")
        return self


class StereoBackend:
    """Depth of the left image at full resolution, from each frame's own pair: no frame sees another."""

    needs = ("camera_to_world", "intrinsics", "right")

    def __init__(self, config: StereoConfig) -> None:
        self.config = config

    def identity(self) -> dict[str, str]:
        """What made the geometry; the revision is the configuration's hash."""
        import cv2

        return {
            "name": "stereo",
            "model": "OpenCV SGBM, three paths, both ways, with a sky mask",
            "revision": config_hash(self.config.model_dump())[:12],
            "licence": "Apache-2.0 (OpenCV)",
            "version": cv2.__version__,
        }

    def require(self) -> None:
        """Raise UserError when OpenCV is not installed."""
        if find_spec("cv2") is None:
            raise UserError("the backend 'stereo' needs OpenCV: pip install 'rw3d[prep]'")

    def reconstruct(self, frames: Sequence[Frame], world_offset: F64) -> Iterator[ViewGeometry]:
        """Yield each frame's geometry; the world is the dataset's minus `world_offset`, points are NaN where invalid.

        Raises:
            UserError: a frame without pose, intrinsics or right image, an unreadable image, a pair of two sizes.
        """
        for frame in frames:
            yield self._view(frame, world_offset)

    def _view(self, frame: Frame, world_offset: F64) -> ViewGeometry:
        if frame.camera_to_world is None or frame.intrinsics is None or frame.right is None:
            raise UserError(f"{frame}: stereo needs a pose, intrinsics and a right image; use --backend mapanything")
        camera_to_world = frame.camera_to_world.astype(np.float64, copy=True)
        camera_to_world[:3, 3] -= world_offset
        left, right = _read_pair(frame)
        scale = float(frame.intrinsics[0, 0]) * frame.right.baseline  # metres × pixels of disparity
        with _one_thread():
            disparity, confidence, consistent = match(left, right, scale, self.config)
            sky = sky_mask(left, frame.intrinsics, camera_to_world)
        valid = consistent & ~sky & (confidence >= self.config.min_confidence)
        valid &= _whole_window(valid.shape, self.config.block_size)
        valid &= (disparity >= scale / self.config.farthest) & (disparity <= scale / self.config.nearest)
        depth = np.divide(scale, disparity, out=np.full(disparity.shape, np.nan), where=valid, dtype=np.float64)
        return ViewGeometry(
            points=unproject_depth(depth, frame.intrinsics, camera_to_world),
            confidence=confidence,
            valid=valid,
            intrinsics=frame.intrinsics,
            camera_to_world=camera_to_world,
            pixel_map=PixelMap(valid.shape, valid.shape),
        )


def _whole_window(size: tuple[int, ...], block: int) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) whose matching window lies inside the image; at the border half of it is made up."""
    whole = np.zeros(size, bool)
    whole[block // 2 : size[0] - block // 2, block // 2 : size[1] - block // 2] = True
    return whole


def _read_pair(frame: Frame) -> tuple[U8, U8]:
    assert frame.right is not None
    left, right = read_image(frame.image), read_image(frame.right.image)
    if left.shape != right.shape:
        raise UserError(
            f"{frame.right.image}: {right.shape[1]}×{right.shape[0]} pixels where its left image {frame.image} has "
            f"{left.shape[1]}×{left.shape[0]}; restore the rectified pair, both images of one size"
        )
    return left, right


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV on one thread: processes share the cores, one scene each."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def match(left: U8, right: U8, scale: float, config: StereoConfig) -> tuple[F32, F32, npt.NDArray[np.bool_]]:
    """Disparity (pixels, float32), confidence (float32) and consistency (bool) of the left image, each (H, W).

    `left`, `right` (H, W, 3) uint8 RGB, rectified; `scale` = focal length (pixels) × baseline (metres). Where both
    matchings agree the disparity is their mean. The right image's runs on the pair turned upside down: that swaps left
    and right, and it reverses the order in which SGBM's three paths sweep. Their pull along the sweep, 0.05–0.1 pixels
    on the ground, has the other sign there and cancels in the mean.
    """
    grey_left, grey_right = _grey(left, config.smoothing), _grey(right, config.smoothing)
    count = FINE * max(1, min(int(np.ceil(scale / config.nearest / FINE)), left.shape[1] // FINE))
    forth = _disparity(grey_left, grey_right, count, config.block_size)
    turned = _disparity(_turn(grey_right), _turn(grey_left), count, config.block_size + 4)
    back = _sampled(_turn(turned), forth, outside=-UNMATCHED)
    gap = np.where((forth < 0) | (back < 0), np.float32(UNMATCHED), np.abs(forth - back))
    consistent = (gap <= config.consistency) & (forth > 0)
    disparity = np.where(consistent, (forth + back) / 2, forth)
    grey_gap = _grey_gap(grey_left, grey_right, disparity, consistent)
    return disparity, confidence_of(gap, grey_gap), consistent


def _grey(image: U8, smoothing: float) -> U8:
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.GaussianBlur(grey, (0, 0), smoothing) if smoothing else grey


def _turn(image: npt.NDArray) -> npt.NDArray:
    """The image turned by 180°."""
    return np.ascontiguousarray(image[::-1, ::-1])


def _disparity(left: U8, right: U8, count: int, block: int) -> F32:
    """Disparity (H, W) float32 of grey images (H, W), 0 ≤ d < `count`; negative where there is none.

    SGBM leaves out the first `count` columns; columns repeated on the left keep what can be matched there. Penalties
    are OpenCV's advice for one channel, 8 and 32 times the block's area.
    """
    import cv2

    matcher = cv2.StereoSGBM.create(
        minDisparity=0,
        numDisparities=count,
        blockSize=block,
        P1=8 * block**2,
        P2=32 * block**2,
        disp12MaxDiff=-1,  # compared with the other image's own matching instead
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    left, right = (cv2.copyMakeBorder(image, 0, 0, count, 0, cv2.BORDER_REPLICATE) for image in (left, right))
    return matcher.compute(left, right)[:, count:].astype(np.float32) / FINE


def _sampled(values: npt.NDArray, disparity: F32, outside: float) -> F32:
    """Values (H, W) of the right image where the left image's pixels fall, linear between columns, float32."""
    import cv2

    height, width = disparity.shape
    column = np.arange(width, dtype=np.float32)[None, :] - disparity
    row = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None], disparity.shape)
    return cv2.remap(
        values.astype(np.float32), column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=outside
    )


def _grey_gap(left: U8, right: U8, disparity: F32, consistent: npt.NDArray[np.bool_]) -> F32:
    """Grey levels (H, W) by which the warped right image differs; the cameras' median difference is taken off."""
    difference = left - _sampled(right, disparity, outside=-UNMATCHED)
    return np.abs(difference - np.median(difference[consistent])) if consistent.any() else np.abs(difference)


def confidence_of(gap: F32, grey_gap: F32) -> F32:
    """Confidence (H, W) float32 in 1.5..11, larger is better.

    confidence = 1 + 1 / (0.1 + doubt), doubt = G₅ ∗ [ (a² / (a² + 1))² + r² / (r² + 10²) ], with a the left–right gap
    in pixels, r the grey-level gap of the matched pixels, and G₅ a Gaussian window of 5 pixels: each term tells 0 (fits)
    from 1 (does not) softly, and a neighbourhood full of misfits makes a pixel doubtful that fits by chance.
    """
    import cv2

    a, r = np.square(gap), np.square(grey_gap)
    misfit = np.square(a / (a + 1)) + r / (r + GREY_SCALE**2)
    doubt = cv2.GaussianBlur(misfit, (0, 0), REACH)
    return 1 + 1 / (np.float32(FLOOR) + doubt)
