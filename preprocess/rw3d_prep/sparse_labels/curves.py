"""Curves of scribbles: along the middle of a blob, smooth, trimmed by arc length, drawn without leaving their class.

A curve is an array (n, 2) float64 of (row, column) in pixels of the dense label; integers are pixel centres.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from rw3d_prep.sparse_labels.blobs import F32, Mask

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

CELLS = 32  # a blob is searched for its longest path on a grid of at most this many cells a side
CENTRING = 4.0  # a step along the rim costs this much more than one along the middle
OUTSIDE = 10.0  # and a step that leaves the blob this many times as much
SAMPLES = 50  # vertices of a curve
REACH = 0.1  # a hand starts and stops within this share of the path from its ends
SMOOTHNESS = (9.0, 5.0, 2.5, 1.0)  # standard deviations in vertices, smoothest first
WAVES = 3  # of the hand that swerves: half periods along the curve


def centre_curve(blob: Mask, depth: F32, rng: np.random.Generator) -> F64:
    """A smooth curve along the middle of `blob`, from one end of its longest path to the other.

    Args:
        blob: (h, w), one connected component with at least one pixel.
        depth: (h, w) pixels to the nearest pixel outside the region that the blob is part of; positive in the blob.

    Returns:
        (50, 2) float64. All of it lies in the blob, unless even the unsmoothed path has a corner that does not.
    """
    path = resample(longest_path(blob, depth, rng), rng.random(2) * [REACH, -REACH] + [0, 1])
    swerve = _swerve(path, depth, rng)
    for sigma in SMOOTHNESS:
        for amplitude in (1.0, 0.5, 0.0):
            # Reflecting about the end points keeps the curve from shrinking.
            bent = path + amplitude * swerve
            around = np.pad(bent, ((SAMPLES - 1, SAMPLES - 1), (0, 0)), "reflect", reflect_type="odd")
            curve = gaussian_filter1d(around, sigma, axis=0)[SAMPLES - 1 : 2 * SAMPLES - 1]
            if lies_in(curve, blob):
                return curve
    return path


def _swerve(path: F64, depth: F32, rng: np.random.Generator) -> F64:
    """(n, 2) offsets across the path, as of a hand that does not follow the middle exactly."""
    along = np.linspace(0, np.pi, len(path))[:, None] * np.arange(1, WAVES + 1)
    wave = np.sin(along + np.pi * rng.random(WAVES)) @ (rng.random(WAVES) - 0.5)
    room = depth[*np.round(path).astype(np.int64).T]
    tangent = np.gradient(path, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    return (room * wave)[:, None] * tangent[:, ::-1] * [1, -1]


def longest_path(blob: Mask, depth: F32, rng: np.random.Generator) -> F64:
    """(n, 2) pixels from one end of the blob to the end farthest from it, along the cheapest way, which is central.

    The blob is divided into cells; a node is the most central pixel of a cell. Double sweep: the node farthest from
    any node is an end, and the one farthest from that is the other.
    """
    nodes, graph = _cell_graph(blob, depth)
    if len(nodes) == 1:
        return nodes.astype(np.float64)
    start = int(np.argmax(dijkstra(graph, indices=int(rng.random() * len(nodes)))))
    cost, before = dijkstra(graph, indices=start, return_predecessors=True)
    node, path = int(np.argmax(cost)), []
    while node >= 0:
        path.append(node)
        node = before[node]
    return nodes[path].astype(np.float64)


def _cell_graph(blob: Mask, depth: F32) -> tuple[I64, csr_array]:
    """Nodes (n, 2) as pixels, and the costs of steps between those of neighbouring cells: connected, as the blob is."""
    rows, columns = np.nonzero(blob)
    side = -(-max(blob.shape) // CELLS)
    cell = (rows // side) * CELLS + columns // side
    order = np.lexsort((-depth[rows, columns], cell))
    used, first = np.unique(cell[order], return_index=True)
    nodes = np.stack([rows, columns], axis=1)[order[first]]
    number = np.full((CELLS + 2, CELLS + 2), -1)
    number[used // CELLS + 1, used % CELLS + 1] = np.arange(len(used))
    steps = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        beside = number[used // CELLS + 1 + down, used % CELLS + 1 + right]
        steps.append(np.stack([np.flatnonzero(beside >= 0), beside[beside >= 0]]))
    start, end = np.concatenate(steps, axis=1)
    centrality = depth[*nodes.T] / depth[rows, columns].max()
    rim = 1 - (centrality[start] + centrality[end]) / 2
    cost = np.linalg.norm(nodes[start] - nodes[end], axis=1) * (1 + CENTRING * rim**2)
    cost[~blob[*((nodes[start] + nodes[end]) // 2).T]] *= OUTSIDE
    graph = csr_array((np.tile(cost, 2), (np.r_[start, end], np.r_[end, start])), shape=(len(nodes),) * 2)
    return nodes, graph


def lies_in(curve: F64, blob: Mask) -> bool:
    """True where every vertex rounds to a pixel of the blob."""
    row, column = np.round(curve).astype(np.int64).T
    inside = (row >= 0) & (column >= 0) & (row < blob.shape[0]) & (column < blob.shape[1])
    return bool(inside.all() and blob[row, column].all())


def resample(curve: F64, part: F64) -> F64:
    """(50, 2) vertices at equal arc length from the share `part[0]` of the arc length to the share `part[1]`."""
    return _at(curve, np.linspace(part[0], part[1], SAMPLES))


def trim(curve: F64, length: float) -> F64:
    """The middle share `length` (0 to 1] of a curve by arc length; the vertices in between stay as they are."""
    if length >= 1:
        return curve
    way = _way(curve)
    low, high = (1 - length) / 2, (1 + length) / 2
    kept = way[(way > low) & (way < high)]
    return _at(curve, np.r_[low, kept, high])


def _way(curve: F64) -> F64:
    """Share of the arc length (n,) covered at each vertex."""
    way = np.r_[0, np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))]
    return way / max(way[-1], 1e-9)


def _at(curve: F64, share: F64) -> F64:
    way = _way(curve)
    return np.stack([np.interp(share, way, curve[:, axis]) for axis in (0, 1)], axis=1)


def drawn(curves: Sequence[F64], thickness: int, size: tuple[int, ...]) -> Mask:
    """The pixels of an image of `size` (H, W) that strokes along `curves` cover.

    OpenCV draws wider than asked: 3 is 5 px on horizontal strokes, 5 is 7 px; the published scribbles are drawn so.
    """
    canvas = np.zeros(size, np.uint8)
    lines = [np.round(curve[:, ::-1]).astype(np.int32)[:, None] for curve in curves]
    return cv2.polylines(canvas, lines, False, 1, thickness) != 0
