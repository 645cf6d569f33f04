"""What is done to the workers of a Dask cluster, from within: `client.run(slow, 0.5)`."""

import time
from functools import partial
from typing import Any

from rw3d_prep import batch_scene
from rw3d_prep.batching import Batch
from sleeping_backend import OutOfMemoryError

_sound = batch_scene.reconstruct_batch


def mend() -> None:
    batch_scene.reconstruct_batch = _sound


def slow(seconds: float) -> None:
    """Scenes take so much longer, between the opening of their store and its publication."""
    mend()
    batch_scene.reconstruct_batch = partial(_slow, seconds)


def fits(frames: int) -> None:
    """Batches of more frames exhaust the GPU's memory."""
    mend()
    batch_scene.reconstruct_batch = partial(_fits, frames)


def lack_a_module(*_: Any) -> None:
    raise ModuleNotFoundError("No module named 'cv2'")


def _slow(seconds: float, batch: Batch, *task: Any) -> dict[str, Any]:
    write = batch_scene.SceneWriter.publish

    def publish(*arguments: Any) -> None:
        time.sleep(seconds)
        write(*arguments)

    batch_scene.SceneWriter.publish = publish
    try:
        return _sound(batch, *task)
    finally:
        batch_scene.SceneWriter.publish = write


def _fits(frames: int, batch: Batch, *task: Any) -> dict[str, Any]:
    if len(batch.frames) > frames:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return _sound(batch, *task)
