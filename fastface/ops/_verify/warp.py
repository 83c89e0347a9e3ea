"""Shapes, inputs and selftest cases of the `warp` ops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastface.ops._verify import Inputs, arrange

__all__ = ["SHAPES", "WarpShape", "inputs", "selftest"]


@dataclass(frozen=True)
class WarpShape:
    """Sizes of a `warp` call: `packed` channels for pack_motions, `channels` for the compositions."""

    batch: int
    packed: int
    channels: int
    keypoints: int
    size: tuple[int, int, int]


SHAPES = {
    "live_portrait": WarpShape(1, 4, 32, 21, (16, 64, 64)),
    "face_vid2vid": WarpShape(1, 4, 32, 15, (16, 64, 64)),
    "odd": WarpShape(2, 3, 5, 7, (5, 13, 19)),
    "tiny": WarpShape(1, 2, 3, 2, (2, 3, 5)),
}


def inputs(
    op: str,
    shape: WarpShape,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    layout: str = "contiguous",
    linear: str | None = None,
    occlusion: bool = False,
    align_corners: bool = False,
    logits_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Inputs:
    """Random arguments for `op`: keypoints inside and a little outside the volume, motions of a few voxels and some
    large ones.

    `layout` is contiguous, sliced (every tensor is a view into a larger one, with odd strides) or channels_last;
    `linear` is None, "image" or "keypoint".
    """
    generator = torch.Generator().manual_seed(seed)
    batch, count, size = shape.batch, shape.keypoints, shape.size
    channels = shape.packed if op == "pack_motions" else shape.channels

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    kp_source = 0.6 * normal(batch, count, 3)
    kp_driving = kp_source + 0.15 * normal(batch, count, 3)
    kwargs: dict[str, Any] = {}
    if linear is not None:
        lead = (batch,) if linear == "image" else (batch, count)
        kwargs["linear"] = (torch.eye(3) + 0.2 * normal(*lead, 3, 3)).to(device)
    feature = arrange(normal(batch, channels, *size).to(device, dtype), layout)
    logits = arrange((2 * normal(batch, count + 1, *size)).to(device, logits_dtype or dtype), layout)
    keypoints = (kp_source.to(device), kp_driving.to(device))
    if op == "motion_field":
        return Inputs(op, ((logits, *keypoints), kwargs), dtype)
    kwargs["align_corners"] = align_corners
    if op == "pack_motions":
        return Inputs(op, ((feature, *keypoints), kwargs), dtype)
    if occlusion:
        mask = torch.rand(batch, 1, *size[1:], generator=generator).to(device, dtype)
        kwargs["occlusion"] = arrange(mask, layout)
    return Inputs(op, ((feature, logits, *keypoints), kwargs), dtype)


def selftest(op: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Shape and options of each case."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    layouts = ("contiguous", "sliced", "channels_last")
    for dtype, layout, linear in itertools.product(dtypes, layouts, (None, "image", "keypoint")):
        yield "odd", {"dtype": dtype, "layout": layout, "linear": linear, "occlusion": op.startswith("compose")}
    yield "tiny", {}
    yield "live_portrait", {}
