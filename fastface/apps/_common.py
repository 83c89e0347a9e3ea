"""What the commands share: one-line errors, checks of paths, the clock, the frames of a contact sheet."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Image = NDArray[np.uint8]


class UserError(Exception):
    """A mistake of the user's: one line, exit code 2."""


def guarded(name: str, command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command: its exit status, 2 with one line on stderr for bad input, 130 when interrupted."""
    from fastface.ops import BackendUnavailable

    try:
        return command(args)
    except (UserError, ValueError, ImportError, BackendUnavailable) as error:
        print(f"fastface {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        print(f"fastface {name}: {error.strerror or error}{place}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastface {name}: interrupted; no half-written file is left", file=sys.stderr)
        return 130


def check_places(inputs: list[str | None], *outputs: Path | None) -> None:
    """Refuse outputs that would replace an input or one another."""
    written = [path for path in outputs if path is not None]
    for index, output in enumerate(written):
        for other in written[:index]:
            if _inside(output, other) or _inside(other, output):
                raise UserError(f"the outputs {other} and {output} would overwrite one another")
        for path in inputs:
            if path is not None and _inside(Path(path), output):
                raise UserError(f"the output would overwrite the input {path}")


def _inside(path: Path, other: Path) -> bool:
    """Whether replacing `other` replaces `path`: the same file by any name, or a file in that folder."""
    if path.exists() and other.exists() and os.path.samefile(path, other):
        return True
    return path.resolve().is_relative_to(other.resolve())


def within(option: str, value: float | None, low: float, high: float) -> None:
    """Refuse a number outside [low, high]."""
    if value is not None and not low <= value <= high:
        raise UserError(f"{option} must be from {low:g} to {high:g}, got {value:g}")


def check_seconds(value: float | None) -> None:
    """Refuse a length that is none."""
    if value is not None and not 0 < value <= 3600:
        raise UserError(f"--seconds must be above 0 and at most 3600, got {value:g}")


def torch_device(name: str | None) -> torch.device:
    """The device of that name; by default a GPU where there is one."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device must be one that torch can use here, got {name}") from error


def tell_notes(notes: list[str]) -> None:
    """What went otherwise than asked, on stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def demo_portrait() -> Image:
    """The public-domain portrait that scikit-image ships."""
    try:
        from skimage import data
    except ImportError as error:
        raise UserError(
            "the built-in portrait needs scikit-image: pip install 'fastface-kernels[demo]', or name a PORTRAIT"
        ) from error
    return np.asarray(data.astronaut())


@dataclass
class Clock:
    """Milliseconds per stage, one entry per frame."""

    stages: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments)
        self.stages.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
        return result

    def medians(self) -> dict[str, float]:
        return {name: float(np.median(times)) for name, times in self.stages.items()}


class Sampler:
    """About `count` of the frames of a stream of unknown length, evenly spread, in bounded memory."""

    def __init__(self, count: int) -> None:
        self._count, self._stride, self._seen = count, 1, 0
        self._kept: list[Image] = []

    def add(self, frame: Image) -> None:
        if self._seen % self._stride == 0:
            self._kept.append(frame.copy())
            if len(self._kept) >= 4 * self._count:
                self._kept, self._stride = self._kept[::2], self._stride * 2
        self._seen += 1

    def frames(self) -> list[Image]:
        wanted = min(self._count, len(self._kept))
        return [self._kept[round(i)] for i in np.linspace(0, len(self._kept) - 1, wanted)] if wanted else []


def beside(*images: Image) -> Image:
    """Images next to each other, at the height of the last."""
    import cv2

    height = images[-1].shape[0]

    def fit(image: Image) -> Image:
        if image.shape[0] == height:
            return image
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        how = cv2.INTER_AREA if image.shape[0] > height else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)

    return np.concatenate([fit(image) for image in images], axis=1)


def labelled(tile: Image, label: str) -> Image:
    """The tile with a line of text below it."""
    import cv2

    scale = tile.shape[0] / 640
    height = max(14, round(32 * scale))
    strip = np.full((height, tile.shape[1], 3), 255, dtype=np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    size = min(max(0.35, 0.8 * scale), 0.35 * tile.shape[1] / max(1, 7 * len(label)) * 2)
    cv2.putText(strip, label, (4, height - height // 4), font, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([tile, strip], 0)
