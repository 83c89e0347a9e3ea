"""Face landmarks: the protocol, MediaPipe's detector behind it, and points computed elsewhere.

Points are ``[N, 3]`` in pixels of the image, (x, y) at pixel centres (the first pixel is 0, 0), z in the same unit,
smaller is nearer, zero near the middle of the head. The models of this package read MediaPipe's 468-point topology,
with ten iris points behind it where the detector gives them.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Image = NDArray[np.uint8]

_DETECTION_SIDE = 1280  # longer images are reduced for the detector; its network sees 192 px of face anyway
_INSTALL = "MediaPipe is not installed: pip install 'fastface-kernels[face]'"


@dataclass(frozen=True)
class Face:
    """One face: `points` ``[N, 3]`` in pixels, a `score` in [0, 1], the `box` (x0, y0, x1, y1) around the points."""

    points: FloatArray  # [N, 3]
    score: float = 1.0

    @property
    def box(self) -> tuple[float, float, float, float]:
        low, high = self.points[:, :2].min(0), self.points[:, :2].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


class Landmarks(Protocol):
    """Anything that finds faces: called with an ``[H, W, 3]`` uint8 RGB image, it returns the faces, none when there is
    none.
    """

    def __call__(self, image: Image) -> list[Face]: ...


def largest_face(faces: Sequence[Face]) -> int:
    """The index of the face with the largest box. Raises ValueError for an empty sequence."""
    if not faces:
        raise ValueError("no face found, expected at least one")
    return max(range(len(faces)), key=lambda index: faces[index].area)


class PrecomputedLandmarks:
    """Points computed elsewhere: one ``[N, 3]`` array per face, given back for every image.

    Raises:
        ValueError: points that are not ``[N, 3]`` with N >= 468, or not finite.
    """

    def __init__(self, *points: Any) -> None:
        faces = []
        for array in points:
            values = np.asarray(array, dtype=np.float32)
            if values.ndim != 2 or values.shape[1] != 3 or values.shape[0] < 468:
                raise ValueError(
                    f"points must be [N, 3] with N >= 468 (MediaPipe's topology), got {list(values.shape)}"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"points must be finite, got {int((~np.isfinite(values)).sum())} values that are not")
            faces.append(Face(values))
        self._faces = faces

    def __call__(self, image: Image) -> list[Face]:
        return list(self._faces)


class MediaPipeLandmarks:
    """MediaPipe's face mesh, 478 points (468 and ten of the irises), on the CPU.

    Args:
        video: track from frame to frame (about 5 ms a frame) instead of searching every image anew.
        max_faces: how many faces to report at most.
        min_confidence: of the detection, and in a video of the tracking.

    A face that is small in its image is searched for by the long-range detector, at last in parts of the image, and
    meshed in a crop.

    Raises:
        ImportError: MediaPipe is not installed; the message names the extra.
    """

    def __init__(self, *, video: bool = False, max_faces: int = 8, min_confidence: float = 0.5) -> None:
        solutions = mediapipe_solutions()
        self._video, self._max_faces = video, max_faces
        self._mesh: Any = None
        self._finder: Any = None

        def mesh() -> Any:
            return solutions.face_mesh.FaceMesh(
                static_image_mode=not video,
                max_num_faces=max_faces,
                refine_landmarks=True,
                min_detection_confidence=min_confidence,
                min_tracking_confidence=min_confidence,
            )

        def finder() -> Any:
            return solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=min_confidence)

        self._make_mesh: Callable[[], Any] = mesh
        self._make_finder: Callable[[], Any] = finder

    def __call__(self, image: Image) -> list[Face]:
        """The faces of an ``[H, W, 3]`` uint8 RGB image. Raises ValueError for any other array."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image must be [H, W, 3] uint8, got {list(image.shape)} {image.dtype}")
        reduced, scale = _reduce(image, _DETECTION_SIDE)
        faces = self._detect(reduced)
        if not self._video:
            faces = self._with_small(reduced, faces)
        return [Face(_unreduce(face.points, scale), face.score) for face in faces]

    def close(self) -> None:
        """Free the networks; the object makes new ones when it is called again."""
        for part in (self._mesh, self._finder):
            if part is not None:
                part.close()
        self._mesh = self._finder = None

    def _detect(self, image: Image) -> list[Face]:
        image = np.ascontiguousarray(image)
        if self._mesh is None:
            with silence:  # MediaPipe logs from C++ when a graph starts, before any Python setting could reach it
                self._mesh = self._make_mesh()
                result = self._mesh.process(image)
        else:
            result = self._mesh.process(image)
        height, width = image.shape[:2]
        size = np.array([width, height, width], dtype=np.float32)
        faces = []
        for found in result.multi_face_landmarks or ():
            points = np.array([(p.x, p.y, p.z) for p in found.landmark], dtype=np.float32) * size
            points[:, :2] -= 0.5  # MediaPipe counts from the corner of the first pixel
            faces.append(Face(points))
        return faces

    def _with_small(self, image: Image, faces: list[Face]) -> list[Face]:
        """`faces` and those that the mesh's own search is too short-sighted for."""
        height, width = image.shape[:2]
        found = list(faces)
        for x, y, size in self._find(image) or (() if faces else self._find_in_tiles(image)):
            if len(found) >= self._max_faces:
                break
            if any(box[0] < x < box[2] and box[1] < y < box[3] for box in (face.box for face in found)):
                continue
            x0, y0 = int(max(0.0, x - size)), int(max(0.0, y - size))
            crop = image[y0 : int(min(height, y + size)), x0 : int(min(width, x + size))]
            if min(crop.shape[:2]) < 16:
                continue
            enlarged, scale = _resize_to(crop, 512)
            for face in self._detect(enlarged)[:1]:
                points = _unreduce(face.points, scale)
                points[:, :2] += (x0, y0)
                found.append(Face(points, face.score))
        return found

    def _find(self, image: Image) -> list[tuple[float, float, float]]:
        """The long-range detector's faces: centre x, y and size in pixels."""
        image = np.ascontiguousarray(image)
        if self._finder is None:
            with silence:
                self._finder = self._make_finder()
                result = self._finder.process(image)
        else:
            result = self._finder.process(image)
        height, width = image.shape[:2]
        boxes = [detection.location_data.relative_bounding_box for detection in result.detections or ()]
        return [
            (
                (box.xmin + box.width / 2) * width,
                (box.ymin + box.height / 2) * height,
                max(box.width * width, box.height * height),
            )
            for box in boxes
        ]

    def _find_in_tiles(self, image: Image) -> list[tuple[float, float, float]]:
        """The same in overlapping halves and quarters of the image, until one level shows a face."""
        height, width = image.shape[:2]
        for parts in (2, 4):
            tile_h, tile_w = height // parts, width // parts
            if min(tile_h, tile_w) < 64:
                break
            found = []
            for row in range(2 * parts - 1):
                for column in range(2 * parts - 1):
                    y0, x0 = row * tile_h // 2, column * tile_w // 2
                    found += [(x + x0, y + y0, s) for x, y, s in self._find(image[y0 : y0 + tile_h, x0 : x0 + tile_w])]
            if found:
                return found
        return []


def _reduce(image: Image, side: int) -> tuple[Image, float]:
    longest = max(image.shape[:2])
    return (image, 1.0) if longest <= side else _resize_to(image, side)


def _resize_to(image: Image, side: int) -> tuple[Image, float]:
    import cv2

    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=np.uint8), size[0] / image.shape[1]


def _unreduce(points: FloatArray, scale: float) -> FloatArray:
    if scale == 1.0:
        return points
    full = points / np.float32(scale)
    full[:, :2] += 0.5 / scale - 0.5  # pixel centres
    return np.asarray(full, dtype=np.float32)


def mediapipe_solutions() -> Any:
    """`mediapipe.solutions`, imported quietly."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with silence:
            import mediapipe
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return mediapipe.solutions


class _Silence:
    """Sends the process's stderr (file descriptor 2, so C++ logs as well) to nowhere while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            try:
                sys.stderr.flush()
                self._kept = os.dup(2)
            except (OSError, ValueError, AttributeError):  # no stderr to silence, as under pythonw
                return
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._kept is not None:
                os.dup2(self._kept, 2)
                os.close(self._kept)
                self._kept = None


silence = _Silence()  # there is one file descriptor 2, so one of these
