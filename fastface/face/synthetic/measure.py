"""Measures the face of the built-in head: the mean of a detector's points on many photographs.

MediaPipe's face mesh runs over the hundred faces of ``skimage.data.lfw_subset``. Its points are laid over each other by
similarities (generalised Procrustes, Gower 1975). What follows the opening of the lips and the height of the mouth's
corners is taken out by linear regression, so that the face is at rest though many of the people smile; then it is made
symmetric. Its frame is the mean of the photographs' own, so a face that looks into the camera has a pitch of 0 for the
same detector.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from fastface._files import replacing
from fastface.face.fitting import align
from fastface.face.landmarks import MediaPipeLandmarks, mediapipe_solutions
from fastface.face.synthetic.surface import Array, Index

FACE_POINTS = Path(__file__).parents[1] / "data" / "face_points.txt"
LANDMARKS = 468

_HEADER = """The built-in head's face: {points} points x y z in cm, then {triangles} triangles of them.
Measured by python -m fastface.face.synthetic --measure: the mean of MediaPipe's face mesh over {faces} photographs
(skimage.data.lfw_subset), mouth closed, symmetric, {between} cm between the outer corners of the eyes.
The points' order and the triangles are those of MediaPipe's face mesh. x to the person's left, y up, z to the front."""
_BETWEEN_EYES = 8.9
_EYES_AT = (0.0, 2.6, 3.2)  # the middle of their outer corners, which places the face on the head
_EYE_CORNERS = (33, 263)
_MOUTH_CORNERS, _MIDDLE_LIPS = [61, 291], [13, 14]
# Inner edges of the lips between the corners, from the person's right to the left.
_UPPER_LIP, _LOWER_LIP = [191, 80, 81, 82, 13, 312, 311, 310, 415], [95, 88, 178, 87, 14, 317, 402, 318, 324]
_SLIT = 0.02  # between closed lips, so that their edges stay apart
_FIRST = (9, 151, 108)  # one triangle, counter-clockwise


def read_face() -> tuple[Array, Index]:
    """The points ``[468, 3]`` and triangles ``[T, 3]`` as measured."""
    rows = np.loadtxt(FACE_POINTS)
    return rows[:LANDMARKS], rows[LANDMARKS:].astype(np.int64)


def write_face() -> None:
    """Measure the face anew. Needs MediaPipe, scikit-image and SciPy; deterministic."""
    faces = _detect()
    mirror = _mirror(_superimpose(faces).mean(0))
    both = np.concatenate([faces, faces[:, mirror] * [-1, 1, 1]])  # so that everything after is symmetric
    points = _close_lips(_place(_at_rest(_superimpose(both))))
    triangles = _triangles(points, mirror)
    header = _HEADER.format(points=LANDMARKS, triangles=len(triangles), faces=len(faces), between=_BETWEEN_EYES)
    with replacing(FACE_POINTS) as path, path.open("w") as file:
        np.savetxt(file, points, fmt="%.3f", header=header)
        np.savetxt(file, triangles, fmt="%d")


def _detect() -> Array:
    """Every face's points ``[F, 468, 3]``, in directions of model space."""
    import cv2
    from skimage.data import lfw_subset

    landmarks = MediaPipeLandmarks(max_faces=1)
    faces = []
    for grey in lfw_subset()[:100]:  # the others are no faces
        padded = np.pad((grey * 255).round().astype(np.uint8), 12, mode="edge")  # the detector wants some air
        found = landmarks(
            cv2.cvtColor(cv2.resize(padded, (512, 512), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2RGB)
        )
        faces += [face.points[:LANDMARKS] for face in found]
    return np.stack(faces).astype(np.float64) * [1, -1, -1]


def _superimpose(faces: Array) -> Array:
    """Faces ``[F, N, 3]`` laid over their mean, which keeps the mean orientation of the photographs."""
    faces = faces - faces.mean(1, keepdims=True)
    faces /= np.linalg.norm(faces, axis=(1, 2), keepdims=True)
    upright = mean = faces.mean(0)
    for _ in range(10):
        faces = _onto(faces, mean)
        mean = _onto(faces.mean(0)[None], upright)[0]
    return faces


def _onto(faces: Array, target: Array) -> Array:
    return align(torch.from_numpy(faces), torch.from_numpy(target)[None]).numpy()


def _at_rest(faces: Array) -> Array:
    """The face ``[N, 3]`` that linear regression predicts for closed lips and corners of the mouth level with them."""
    y = faces[:, :, 1]
    upper, lower = y[:, _MIDDLE_LIPS].T
    smile = y[:, _MOUTH_CORNERS].mean(1) - (upper + lower) / 2
    factors = np.stack([np.ones(len(faces)), upper - lower, smile], 1)
    return np.linalg.lstsq(factors, faces.reshape(len(faces), -1), rcond=None)[0][0].reshape(-1, 3)


def _mirror(points: Array) -> Index:
    """For each point the one on the other side: of a reflection laid over the points, the nearest pairs in total."""
    from scipy.optimize import linear_sum_assignment

    reflected = points * [-1, 1, 1]
    for _ in range(3):
        _, mirror = linear_sum_assignment(np.linalg.norm(reflected[:, None] - points, axis=-1))
        reflected = _onto(reflected[None], points[mirror])[0]
    return np.asarray(mirror)


def _place(points: Array) -> Array:
    right, left = points[list(_EYE_CORNERS)]
    return (points - (right + left) / 2) * (_BETWEEN_EYES / np.linalg.norm(left - right)) + _EYES_AT


def _close_lips(points: Array) -> Array:
    points = points.copy()
    middle = (points[_UPPER_LIP] + points[_LOWER_LIP]) / 2
    points[_UPPER_LIP], points[_LOWER_LIP] = middle + [0, _SLIT / 2, 0], middle - [0, _SLIT / 2, 0]
    return points


def _triangles(points: Array, mirror: Index) -> Index:
    """The face mesh's triangles ``[T, 3]``, counter-clockwise seen from outside; the left half mirrors the right one.

    MediaPipe names edges alone: the triangles are the cycles of three, without those around three other triangles.
    """
    neighbours: list[set[int]] = [set() for _ in range(LANDMARKS)]
    for a, b in mediapipe_solutions().face_mesh_connections.FACEMESH_TESSELATION:
        neighbours[a].add(b)
        neighbours[b].add(a)
    cycles = {
        frozenset((a, b, c)) for a in range(LANDMARKS) for b in neighbours[a] for c in neighbours[a] & neighbours[b]
    }
    shared = Counter(edge for cycle in cycles for edge in map(frozenset, combinations(cycle, 2)))
    waiting = {cycle for cycle in cycles if any(shared[frozenset(edge)] < 3 for edge in combinations(cycle, 2))}
    turned: list[tuple[int, ...]] = [_FIRST]
    waiting.remove(frozenset(_FIRST))
    for a, b, c in turned:  # grows: a neighbour runs through the common edge in the other direction
        for edge in ((b, a), (c, b), (a, c)):
            for other in [cycle for cycle in waiting if cycle.issuperset(edge)]:
                waiting.remove(other)
                turned.append((*edge, *other.difference(edge)))
    triangles = np.array(turned)
    right = triangles[points[triangles, 0].mean(1) < 0]
    return np.concatenate([right, mirror[right[:, ::-1]]])
