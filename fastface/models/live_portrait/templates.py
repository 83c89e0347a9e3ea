"""Motion templates: a clip's motions in a file, to drive any portrait without the clip.

Ours are .safetensors. The public ones are pickles, which can hold code; they are read by an unpickler that knows
NumPy arrays and plain containers, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastface._files import save_safetensors
from fastface._unpickling import ArrayUnpickler, Refused
from fastface.models.live_portrait.motion import LivePortraitMotion

__all__ = ["MotionTemplate", "load_template", "save_template"]

_FORMAT = "fastface live_portrait motion template 1"


@dataclass(frozen=True)
class MotionTemplate:
    """The motions of a clip.

    Attributes:
        motions: absolute, one a frame.
        fps: frames per second.

    Raises:
        ValueError: no frames, relative motions, or an fps that is not positive.
    """

    motions: LivePortraitMotion
    fps: float

    def __post_init__(self) -> None:
        if not len(self.motions) or self.motions.relative:
            raise ValueError(f"motions must be absolute, at least one, got {len(self.motions)}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be positive, got {self.fps}")

    def __len__(self) -> int:
        return len(self.motions)

    @cached_property
    def changes(self) -> LivePortraitMotion:
        """The motions relative to the first frame's."""
        return self.motions.relative_to(self.motions.frames(slice(1)))

    def at(self, seconds: float) -> LivePortraitMotion:
        """The change at a time since the first frame: that of the frame shown then, after the end that of the last."""
        index = min(max(int(seconds * self.fps + 1e-6), 0), len(self) - 1)
        return self.changes.frames(slice(index, index + 1))

    def smoothed(self, seconds: float) -> MotionTemplate:
        """Calmed over time by a Gaussian of that standard deviation, without delay."""
        return replace(self, motions=self.motions.smoothed(seconds * self.fps))


def save_template(template: MotionTemplate, path: str | Path) -> None:
    """Write a .safetensors file, whole or not at all. Raises ValueError for another extension."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a motion template's extension must be .safetensors, got {path.suffix or 'none'}: {path}")
    tensors = {name: tensor.contiguous() for name, tensor in template.motions.tensors().items()}
    save_safetensors(tensors, path, {"format": _FORMAT, "fps": repr(float(template.fps))})


def load_template(path: str | Path) -> MotionTemplate:
    """Read a template of ours (.safetensors), or a public one (.pkl) without running what is in it.

    Raises:
        ValueError: no such file, another kind of file, a pickle that asks for more than arrays (it is named), or
            contents that are no template.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such motion template: {path}")
    try:
        if path.suffix == ".safetensors":
            return _read(path)
        if path.suffix in (".pkl", ".pickle"):
            return _of_public(ArrayUnpickler.load_file(path))
    except Refused as error:
        raise ValueError(f"the motion template {path} is refused: {error}") from None
    except Exception as error:  # a broken file fails in many ways, none of which says which file it was
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the motion template {path} cannot be read: {reason}") from None
    raise ValueError(f"a motion template's extension must be .safetensors or .pkl, got {path.suffix or 'none'}: {path}")


def _read(path: Path) -> MotionTemplate:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
        if about.get("format") != _FORMAT:
            raise ValueError(f"expected the format {_FORMAT!r}, got {about.get('format')!r}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    return MotionTemplate(LivePortraitMotion(**tensors), float(about["fps"]))


def _of_public(data: object) -> MotionTemplate:
    """A template from what the public ones hold: a list of frames, each with scale, R (or R_d), exp and t."""
    if not isinstance(data, Mapping) or not isinstance(data.get("motion"), Sequence) or not data["motion"]:
        raise ValueError("it must hold a dict with a list 'motion' of frames")
    frames = [_frame(index, frame) for index, frame in enumerate(data["motion"])]
    counts = {len(frame["expression"]) for frame in frames}
    if len(counts) > 1:
        raise ValueError(f"every frame must have as many keypoints, got {sorted(counts)}")
    parts: dict[str, Any] = {name: torch.stack([frame[name] for frame in frames]) for name in frames[0]}
    for name, keys, size in (("eyes", ("c_eyes_lst", "c_d_eyes_lst"), 2), ("lips", ("c_lip_lst", "c_d_lip_lst"), 1)):
        values = next((data[key] for key in keys if key in data), None)
        parts[name] = _ratios(values, len(frames), size)
    return MotionTemplate(LivePortraitMotion(**parts), float(data.get("output_fps", 25)))


def _frame(index: int, frame: object) -> dict[str, Tensor]:
    if not isinstance(frame, Mapping):
        raise ValueError(f"frame {index} must be a dict, got {type(frame).__name__}")
    parts = {}
    for ours, names, shape in (
        ("rotation", ("R", "R_d"), (3, 3)),
        ("expression", ("exp",), (-1, 3)),
        ("scale", ("scale",), (1,)),
        ("translation", ("t",), (3,)),
    ):
        value = next((frame[name] for name in names if name in frame), None)
        if value is None:
            raise ValueError(f"frame {index} has no {' or '.join(names)}")
        parts[ours] = _numbers(f"frame {index}: {names[0]}", value, shape)
    return parts


def _numbers(what: str, value: object, shape: tuple[int, ...]) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{what} must be numbers, got {array.dtype}")
    if array.size == 0 or array.size % abs(math.prod(shape)) or (-1 not in shape and array.size != math.prod(shape)):
        raise ValueError(f"{what} must hold {list(shape)} numbers, got {list(array.shape)}")
    return torch.from_numpy(array.astype(np.float32).reshape(shape))


def _ratios(values: object, frames: int, size: int) -> Tensor | None:
    """Openings of every frame ``[T, size]``, or None where the template does not have them all."""
    if not isinstance(values, (Sequence, np.ndarray)) or len(values) != frames:
        return None
    try:
        return torch.stack([_numbers("ratio", value, (size,)) for value in values])
    except ValueError:
        return None
