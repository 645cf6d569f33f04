"""A video file becomes a folder of PNG frames, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rw3d_common.errors import UserError, disk_errors
from rw3d_common.log import log
from rw3d_prep.write import Lock


def unpack_video(video: Path) -> Path:
    """Decode every frame of `video` into `<stem>_frames/<index>.png` beside it and return that folder.

    The frame id is the index in the stream, `timestamps.json` holds each frame's time in seconds (so variable frame
    rates stay known), and rotation metadata is applied. The folder appears only when it is complete.

    Raises:
        UserError: the file cannot be decoded, or holds no frame.
    """
    folder = video.with_name(f"{video.stem}_frames")
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    with disk_errors(partial):
        lock = Lock(folder)
        try:
            if folder.is_dir():  # another run unpacked it while this one waited
                return folder
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            partial.mkdir()
            seconds = _decode(video, partial)
            (partial / "timestamps.json").write_text(json.dumps(seconds))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            lock.release()
    log.info(f"{video}: {len(seconds):,} frames unpacked into {folder}")
    return folder


def _decode(video: Path, folder: Path) -> list[float]:
    """Write the frames; returns the time of each in seconds."""
    import cv2

    capture = cv2.VideoCapture(str(video))
    seconds: list[float] = []
    try:
        while capture.isOpened():
            read, frame = capture.read()
            if not read:
                break
            written, png = cv2.imencode(".png", frame)
            if not written:
                raise UserError(f"{video}: frame {len(seconds)} cannot be encoded as PNG; re-encode the video as 8-bit")
            (folder / f"{len(seconds):06d}.png").write_bytes(png.tobytes())
            seconds.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    finally:
        capture.release()
    if not seconds:
        raise UserError(
            f"{video}: no frame can be decoded; it is no video, damaged, or in an unsupported codec (re-encode it as H.264 MP4)"
        )
    return seconds
