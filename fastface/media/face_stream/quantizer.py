"""From face parameters to whole numbers and back.

A frame is the vector of `fastface.face.FaceParameters`, ``[E + 7]``: expression (E), scale, rotation (3), translation
(3). What is quantised is the coded vector c, which does not depend on the picture's resolution: expression and rotation
as they are, ``log(scale / side)`` and ``translation / side``, side the longer one of the image. Then

    level = round((c - offset) / step),  c' = offset + step · level
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

CAMERA = 7  # scale, rotation, translation
MAX_EXPRESSIONS = 255
MAX_LEVEL = 1 << 24  # with these two no packet can outgrow the 65535 bytes of a datagram
# The C library's exp differs between platforms in its last bit; decimal's is correctly rounded everywhere.
_EXACT = Context(prec=25, traps=[])


@dataclass(frozen=True)
class Quantizer:
    """A uniform quantiser for each coefficient.

    Attributes:
        image_size: (width, height) in pixels of the images that the cameras belong to.
        step, offset: ``E + 7`` numbers in units of the coded vector, kept as float32.

    Raises:
        ValueError: sizes or steps that are not positive, lengths that differ, numbers that are not finite.
    """

    image_size: tuple[int, int]
    step: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 < side < 1 << 16 for side in self.image_size):
            raise ValueError(f"image_size must be positive and below 65536, got {self.image_size}")
        if not CAMERA <= len(self.step) <= CAMERA + MAX_EXPRESSIONS:
            raise ValueError(f"step must be {CAMERA} to {CAMERA + MAX_EXPRESSIONS} numbers, got {len(self.step)}")
        if len(self.offset) != len(self.step):
            raise ValueError(f"offset must be {len(self.step)} numbers like step, got {len(self.offset)}")
        for name in ("step", "offset"):
            object.__setattr__(self, name, float32_tuple(name, getattr(self, name)))
        if min(self.step) <= 0:
            raise ValueError(f"step must be positive, got {min(self.step)}")

    @classmethod
    def physical(
        cls,
        expressions: int,
        image_size: tuple[int, int],
        *,
        expression: float = 0.01,
        degrees: float = 0.05,
        pixels: float = 0.05,
    ) -> Quantizer:
        """Steps that are small to the eye, for live use.

        Args:
            expressions: E.
            image_size: as the attribute.
            expression: the step of an expression coefficient, whose full motion is about 1.
            degrees: the step of a rotation vector's component.
            pixels: the step of a translation in an image of 256 pixels, and of a scale at the edge of a face that
                fills it.
        """
        step = [expression] * expressions + [pixels / 128] + [math.radians(degrees)] * 3 + [pixels / 256] * 3
        return cls(image_size, tuple(step), (0.0,) * (expressions + 4) + (0.5, 0.5, 0.0))

    @classmethod
    def adaptive(cls, vectors: ArrayLike, image_size: tuple[int, int], *, share: float = 0.01) -> Quantizer:
        """Steps for a recording ``[T, E + 7]``: each error at most `share` of that coefficient's own range.

        A coefficient then takes at most ``1 / (2 share)`` levels, however little it moves; one that does not move at
        all keeps the step of `physical`, and its offset is its value.

        Raises:
            ValueError: not ``[T, E + 7]``, not finite, a scale that is not positive, or `share` outside (0, 1).
        """
        values = np.asarray(vectors, dtype=np.float64)
        if values.ndim != 2 or len(values) == 0 or values.shape[1] < CAMERA:
            raise ValueError(f"vectors must be [T, expressions + {CAMERA}], got {list(values.shape)}")
        if not 0 < share < 1:
            raise ValueError(f"share must be between 0 and 1, got {share}")
        plain = cls.physical(values.shape[1] - CAMERA, image_size)
        coded = plain._coded(values)
        span = np.ptp(coded, 0)
        scale = values[:, plain.expressions]
        # An error e of the logarithm is one of scale · (exp(e) - 1), largest at the largest scale.
        span[plain.expressions] = math.log1p(share * np.ptp(scale) / scale.max()) / share
        step = np.where(span > 0, 1.98 * share * span, plain.step)  # just under 2: float32 rounds once more
        middle = (coded.min(0) + coded.max(0)) / 2
        return cls(image_size, tuple(step.tolist()), tuple(middle.tolist()))

    @property
    def expressions(self) -> int:
        return len(self.step) - CAMERA

    @property
    def groups(self) -> dict[str, slice]:
        """Where each kind of coefficient lies in a vector."""
        e = self.expressions
        return {
            "expression": slice(0, e),
            "scale": slice(e, e + 1),
            "rotation": slice(e + 1, e + 4),
            "translation": slice(e + 4, e + CAMERA),
        }

    def name(self, index: int) -> str:
        """Coefficient `index` in words, such as "expression 3"."""
        kind, place = next((kind, place) for kind, place in self.groups.items() if index < place.stop)
        return f"{kind} {index - place.start}"

    def levels(self, vector: ArrayLike) -> list[int]:
        """The levels of a vector ``[E + 7]``.

        Raises:
            ValueError: another shape, values that are not finite or beyond 2^24 steps, a scale that is not positive.
        """
        values = np.asarray(vector, dtype=np.float64)
        if values.shape != (len(self.step),):
            raise ValueError(f"vector must be [{len(self.step)}], got {list(values.shape)}")
        levels = np.rint((self._coded(values) - self._offset) / self._step)
        if np.abs(levels).max() > MAX_LEVEL:
            worst = int(np.abs(levels).argmax())
            raise ValueError(f"{self.name(worst)} must lie within 2^24 steps of its offset, got {values[worst]}")
        return [int(level) for level in levels]

    def vector(self, levels: Sequence[int]) -> NDArray[np.float32]:
        """The vector ``[E + 7]`` of levels, to the same bit on every machine."""
        coded = self._offset + self._step * np.array(levels, dtype=np.float64)
        e, side = self.expressions, max(self.image_size)
        coded[e] = float(_EXACT.exp(Decimal(coded[e]))) * side
        coded[e + 4 :] *= side
        return coded.astype(np.float32)

    def _coded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        e, side = self.expressions, max(self.image_size)
        if not np.isfinite(values).all():
            raise ValueError(f"vector must be finite, got {int((~np.isfinite(values)).sum())} values that are not")
        if values[..., e].min() <= 0:
            raise ValueError(f"scale must be positive, got {values[..., e].min()}")
        coded = values.copy()
        coded[..., e] = np.log(values[..., e] / side)
        coded[..., e + 4 :] /= side
        return coded

    @cached_property
    def _step(self) -> NDArray[np.float64]:
        return np.array(self.step)

    @cached_property
    def _offset(self) -> NDArray[np.float64]:
        return np.array(self.offset)


def float32_tuple(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Numbers as a header can hold them. Raises ValueError where one is not finite in float32."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(values, dtype=np.float32)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{name} must be finite, got {list(values)}")
    return tuple(rounded.tolist())
