"""The square of a photo about a face, at the size that a network wants."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["face_square", "resized"]

Image = NDArray[np.uint8]


def face_square(box: tuple[float, float, float, float], factor: float, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The square (x, y, side) about a face's box (x0, y0, x1, y1), `factor` times as long as the box's longer side.

    It lies inside an image of `shape` [H, W, ...], so it is smaller in need.
    """
    height, width = shape[:2]
    x0, y0, x1, y1 = box
    side = min(round(factor * max(x1 - x0, y1 - y0)), height, width)
    left = min(max(round((x0 + x1 - side) / 2), 0), width - side)
    # The hair above belongs to the picture more than the chest below.
    top = min(max(round((y0 + y1) / 2 - 0.55 * side), 0), height - side)
    return left, top, side


def resized(image: Image, size: int) -> Image:
    """A square image at another size."""
    import cv2

    how = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size, size), interpolation=how), dtype=np.uint8)
