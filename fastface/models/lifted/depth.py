"""The depth of a head from its landmarks: a height field over the crop, smooth beyond the face."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fastface.face import topology as topo

Array = NDArray[np.float32]

_GAIN = 1.3  # the detector's depth is too flat: nose to ears is 0.9 face widths on people, 0.7 on its mesh


def farthest_points(points: Array, count: int, first: tuple[int, ...] = ()) -> list[int]:
    """Indices of `count` of the points ``[N, d]``, spread evenly: each is the farthest from those before it."""
    chosen = list(first) or [0]
    distance = np.full(len(points), np.inf, dtype=np.float32)
    for index in chosen:
        distance = np.minimum(distance, ((points - points[index]) ** 2).sum(1))
    while len(chosen) < min(count, len(points)):
        index = int(distance.argmax())
        chosen.append(index)
        distance = np.minimum(distance, ((points - points[index]) ** 2).sum(1))
    return chosen[: max(count, len(first))]


def grid(size: int, low: float = -1.0, high: float = 1.0) -> Array:
    """``[size, size, 2]`` of (x, y), both ends included."""
    axis = np.linspace(low, high, size, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, indexing="xy"), -1)


def centred_grid(size: int, pixels: int) -> Array:
    """``[size, size, 2]``: the centres of `size` equal cells of a crop, in its normalised coordinates.

    An image of cells is enlarged by `cv2.resize`, which keeps to such centres.
    """
    end = 1 - (pixels / size - 1) / (pixels - 1)
    return grid(size, -end, end)


def thin_plate(points: Array, values: Array, queries: Array, smoothing: float = 0.0) -> Array:
    """Interpolate `values` ``[N]`` at `points` ``[N, 2]`` by the thin plate ``r² log r`` plus a plane, at `queries`
    ``[M, 2]``.
    """
    count = len(points)

    def kernel(a: Array, b: Array) -> Array:
        squared = ((a[:, None] - b[None]) ** 2).sum(-1).astype(np.float32)
        return np.asarray(0.5 * squared * np.log(squared + 1e-12), dtype=np.float32)

    system = np.zeros((count + 3, count + 3), dtype=np.float64)
    system[:count, :count] = kernel(points, points) + smoothing * np.eye(count)
    system[:count, count:] = np.concatenate([np.ones((count, 1)), points], 1)
    system[count:, :count] = system[:count, count:].T
    right = np.concatenate([values, np.zeros(3)])
    solved = np.linalg.solve(system, right).astype(np.float32)
    affine = solved[count] + queries @ solved[count + 1 :]
    return np.asarray(kernel(queries, points) @ solved[:count] + affine, dtype=np.float32)


def height_field(landmarks: Array, outline: Array, face_width: float, nodes: Array) -> Array:
    """Depth of the visible surface over the crop, ``[size, size]``, in normalised units, smaller is nearer.

    Inside the face it follows the landmark mesh; the outline of the head (hair, ears) lies 0.36 face widths behind
    the mean landmark, the neck 0.28 behind the chin; a thin plate joins them. Rays always meet it, the matte says
    what is there.

    Args:
        landmarks: ``[N, 3]`` normalised.
        outline: ``[M, 2]`` on the border of the head's matte, above the jaw.
        nodes: ``[size, size, 2]``, where to know it.
    """
    size = len(nodes)
    mesh = landmarks[:468]
    middle = float(mesh[:, 2].mean())
    back = middle + 0.36 * face_width
    # The detector's cheeks fall off to the ears more steeply than one photo can be unfolded: flatten what lies far
    # back.
    depths = _flatten(_GAIN * (mesh[:, 2] - middle) / face_width) * face_width + middle
    chin = mesh[topo.CHIN]
    chosen = farthest_points(mesh[:, :2], 170, topo.FACE_OVAL + (1, 4, 195, 168, 13, 14, 17))
    neck = (
        np.array([(x, y) for y in (0.16, 0.35, 0.6) for x in (-0.32, 0.0, 0.32)], dtype=np.float32) * face_width
        + chin[:2]
    )
    neck_depth = np.full(len(neck), min(back, float(chin[2]) + 0.28 * face_width), dtype=np.float32)
    frame = grid(4, -1.15, 1.15).reshape(-1, 2)
    frame = frame[np.abs(frame).max(1) > 1]
    points = np.concatenate([mesh[chosen, :2], outline, neck, frame]).astype(np.float32)
    depth = np.concatenate([depths[chosen], np.full(len(outline), back), neck_depth, np.full(len(frame), back)]).astype(
        np.float32
    )
    field = thin_plate(points, depth, nodes.reshape(-1, 2), smoothing=1e-4)
    field = cv2.GaussianBlur(field.reshape(size, size), (0, 0), 0.018 * face_width * size)
    low, high = float(depths.min()) - 0.02 * face_width, back + 0.05 * face_width
    return np.clip(field, low, high)


def _flatten(depth: Array) -> Array:
    """The identity up to 0.05, then less and less steep."""
    beyond = np.clip(depth - 0.05, 0, None)
    return np.asarray(np.minimum(depth, 0.05) + 0.32 * (1 - np.exp(-beyond / 0.32)), dtype=np.float32)
