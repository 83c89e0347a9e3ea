"""The square about a face that the networks see, level with its eyes; and a rendered frame put back into its photo."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from fastface.face import topology as topo

__all__ = ["FaceCrop", "outline_size"]

Image = NDArray[np.uint8]
Array = NDArray[np.float64]

# From the brows down: the outline by which the field's crops are measured has no forehead.
_OUTLINE = (*topo.BROW_RIGHT_UPPER, *topo.BROW_LEFT_UPPER, *topo.FACE_OVAL[8:29])
_FEATHER = 0.1  # of a frame's side, over which it fades into the photo


@dataclass(frozen=True)
class FaceCrop:
    """A square of a photo, turned and resized. Points are at pixel centres, the first pixel's is (0, 0).

    Attributes:
        matrix: ``[2, 3]``, from pixels of the photo to pixels of the crop.
        size: side of the crop.
        photo_size: (H, W) of the photo.
    """

    matrix: Array
    size: int
    photo_size: tuple[int, int]

    @classmethod
    def around(
        cls,
        points: NDArray[np.float32],
        photo_shape: tuple[int, ...],
        size: int = 512,
        *,
        scale: float = 2.3,
        shift: float = -0.125,
        level: bool = True,
    ) -> FaceCrop:
        """About landmarks ``[N, 3]`` of MediaPipe's topology, in pixels of a photo of that shape.

        Args:
            scale: the square's side in sides of the face from its brows to its chin. 2.3 for portraits, 2.2 for driving
                videos, as the public weights are used.
            shift: of the centre down the face, in sides of the square.
            level: turn the square with the eyes.
        """
        flat = points[:, :2].astype(np.float64)
        axes = _axes(flat) if level else np.eye(2)
        low, high = _extent(flat @ axes.T)
        side = scale * float((high - low).max())
        centre = (low + high) / 2 + (0, shift * side)  # along the axes
        factor = size / side
        matrix = np.column_stack([factor * axes, (size - 1) / 2 - factor * centre])
        return cls(matrix, size, (photo_shape[0], photo_shape[1]))

    @cached_property
    def inverse(self) -> Array:
        """``[2, 3]``, from the crop to the photo."""
        back = np.linalg.inv(self.matrix[:, :2])
        return np.column_stack([back, -back @ self.matrix[:, 2]])

    def points(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points ``[N, 3]`` of the photo in pixels of the crop, z in the same unit."""
        factor = float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))
        flat = points[:, :2] @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.column_stack([flat, points[:, 2] * factor]).astype(np.float32)

    def cut(self, photo: Image) -> Image:
        """The crop ``[S, S, 3]`` of ``[H, W, 3]``; beyond the photo its border goes on."""
        self._check_photo(photo)
        return _sample(photo, self.inverse, (self.size, self.size))

    def paste(self, frame: Image, photo: Image) -> Image:
        """The photo with a frame ``[S, S, 3]`` laid over its square, feathered at the border; a new array.

        Only the square's own part of the photo is worked on; a pixel beyond it stays exactly what it was.

        Raises:
            ValueError: a frame or a photo of another size.
        """
        self._check_photo(photo)
        if frame.shape != (self.size, self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"frame must be [{self.size}, {self.size}, 3] uint8, got {list(frame.shape)} {frame.dtype}"
            )
        out = photo.copy()
        (x0, y0, x1, y1), share = self._place
        if share.size:
            over = _sample(frame, self._from(x0, y0), (x1 - x0, y1 - y0))
            out[y0:y1, x0:x1] = cv2.blendLinear(over, out[y0:y1, x0:x1], share, 1 - share)
        return out

    @cached_property
    def _place(self) -> tuple[tuple[int, int, int, int], NDArray[np.float32]]:
        """The part of the photo that the square covers (x0, y0, x1, y1), and the frame's share of its pixels."""
        ends = np.array([-0.5, self.size - 0.5])
        corners = np.stack(np.meshgrid(ends, ends), -1).reshape(4, 2) @ self.inverse[:, :2].T + self.inverse[:, 2]
        limit = np.array(self.photo_size[::-1])
        (x0, y0), (x1, y1) = (
            np.clip(edge, 0, limit).astype(int) for edge in (np.floor(corners.min(0)), np.ceil(corners.max(0)) + 1)
        )
        ramp = np.minimum(np.arange(self.size) + 0.5, self.size - 0.5 - np.arange(self.size))
        ramp = np.clip(ramp / (_FEATHER * self.size), 0, 1)
        ramp = ramp * ramp * (3 - 2 * ramp)
        share = np.minimum(ramp, ramp[:, None]).astype(np.float32)
        if x1 <= x0 or y1 <= y0:
            return (x0, y0, x1, y1), np.zeros((0, 0), dtype=np.float32)
        mask = cv2.warpAffine(
            share, self._from(x0, y0), (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        return (int(x0), int(y0), int(x1), int(y1)), mask

    def _from(self, x0: int, y0: int) -> Array:
        """From pixels of a part of the photo that starts at (x0, y0) to pixels of the crop."""
        return np.column_stack([self.matrix[:, :2], self.matrix @ (x0, y0, 1)])

    def _check_photo(self, photo: Image) -> None:
        if photo.shape != (*self.photo_size, 3) or photo.dtype != np.uint8:
            raise ValueError(f"photo must be {[*self.photo_size, 3]} uint8, got {list(photo.shape)} {photo.dtype}")


def outline_size(points: NDArray[np.floating]) -> float:
    """The larger extent of a face ``[N, 2]`` or ``[N, 3]``, upright, from its brows to its chin."""
    low, high = _extent(points[:, :2])
    return float((high - low).max())


def _extent(flat: NDArray[np.floating]) -> tuple[Array, Array]:
    outline = flat[list(_OUTLINE)].astype(np.float64)
    return outline.min(0), outline.max(0)


def _axes(flat: Array) -> Array:
    """Unit vectors along the eyes and down the face, ``[2, 2]`` rows, a right angle between them."""
    right, left = flat[topo.EYE_OUTER_RIGHT], flat[topo.EYE_OUTER_LEFT]
    down = flat[[topo.MOUTH_CORNERS[0], topo.MOUTH_CORNERS[1]]].mean(0) - (right + left) / 2
    across = left - right
    # Seen from the side the eyes fall together, and the mouth tells better where down is.
    if np.linalg.norm(across) < 0.5 * np.linalg.norm(down):
        across = np.array([down[1], -down[0]])
    across = across / np.linalg.norm(across)
    return np.array([across, [-across[1], across[0]]])


def _sample(image: Image, matrix: Array, size: tuple[int, int]) -> Image:
    """``image(matrix(p))`` at every pixel p of a picture of (width, height); the image is reduced first where samples
    would lie further apart than its pixels.
    """
    step = int(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if step >= 2:
        height, width = image.shape[:2]
        small = max(1, width // step), max(1, height // step)
        image = np.asarray(cv2.resize(image, small, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        ratio = np.array([[small[0] / width], [small[1] / height]])
        matrix = matrix * ratio + np.column_stack([np.zeros((2, 2)), 0.5 * ratio - 0.5])
    how = cv2.INTER_CUBIC if step == 0 else cv2.INTER_LINEAR
    return np.asarray(
        cv2.warpAffine(image, matrix, size, flags=how | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    )
