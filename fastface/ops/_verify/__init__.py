"""Random inputs, and the one rule by which a backend's result is right: for tests, for `selftest` and for the
benchmarks.

The truth is the reference in float64 on the same numbers. A result may lose at most twice what the reference itself
loses when it runs in the result's dtype, plus one rounding of that dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastface import ops
from fastface.kernels.warp import warp_reference

__all__ = ["Inputs", "SHAPES", "Verdict", "WarpShape", "compare", "inputs", "verify"]

_REFERENCES: dict[str, Callable[..., Tensor]] = {
    "pack_motions": warp_reference.pack_motions,
    "compose_flow": warp_reference.compose_flow,
    "compose_volumes": warp_reference.compose_volumes,
    "motion_field": warp_reference.motion_field,
}


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


@dataclass(frozen=True)
class Inputs:
    """The arguments of one op call. `arguments` is ``(args, kwargs)``."""

    op: str
    arguments: tuple[tuple[Tensor, ...], dict[str, Any]]
    dtype: torch.dtype = field(default=torch.float32)

    def run(self, backend: str | None = None) -> Tensor:
        """The public op on these inputs."""
        args, kwargs = self.arguments
        return getattr(ops, self.op)(*args, backend=backend, **kwargs)

    def reference(self) -> Tensor:
        """The eager reference, called directly."""
        args, kwargs = self.arguments
        return _REFERENCES[self.op](*args, **kwargs)

    def truth(self) -> Tensor:
        """The reference in float64 on the same numbers."""
        args, kwargs = self.arguments
        wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in kwargs.items()}
        return _REFERENCES[self.op](*(value.double() for value in args), **wide)


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
    if op not in _REFERENCES:
        raise ValueError(f"op must be one of {', '.join(_REFERENCES)}, got {op!r}")
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


def arrange(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in another memory layout: contiguous, sliced or channels_last."""
    if layout == "contiguous":
        return tensor
    if layout == "channels_last":
        last = torch.channels_last_3d if tensor.dim() == 5 else torch.channels_last
        return tensor.contiguous(memory_format=last)
    if layout == "sliced":
        larger = torch.full([size + 2 for size in tensor.shape], float("nan"), dtype=tensor.dtype, device=tensor.device)
        inside = larger[tuple(slice(1, 1 + size) for size in tensor.shape)]
        return inside.copy_(tensor)
    raise ValueError(f"layout must be contiguous, sliced or channels_last, got {layout!r}")


@dataclass(frozen=True)
class Verdict:
    """`error` and `limit` are largest absolute differences; `where` names the worst element of a wrong result."""

    error: float
    limit: float
    ok: bool
    where: str = ""

    def __str__(self) -> str:
        return f"error {self.error:.2e}, limit {self.limit:.2e}" + (f", {self.where}" if self.where else "")


def compare(result: Tensor, truth: Tensor, yardstick: Tensor, lost: float = 0.0) -> Verdict:
    """Judge `result` against the float64 `truth`; `yardstick` is what the reference gives in the dtype of `result`.

    `lost` is what the reference is known to lose on inputs like these; where `yardstick` loses more, that counts.
    """
    if result.shape != truth.shape:
        return Verdict(float("inf"), 0.0, False, f"shape {list(result.shape)} instead of {list(truth.shape)}")
    unwanted = result.isnan() != yardstick.isnan()
    if bool(unwanted.any()):
        index = [int(i) for i in unwanted.nonzero()[0]]
        found = "NaN" if bool(result[tuple(index)].isnan()) else "a number"
        return Verdict(
            float("inf"), 0.0, False, f"{int(unwanted.sum())} elements, first at {index}: {found}, unlike the reference"
        )
    difference = _difference(result, truth)
    scale = truth.nan_to_num(0.0, 0.0, 0.0).abs().max()
    lost = max(lost, float(_difference(yardstick, truth).max()))
    limit = 2 * lost + float(torch.finfo(result.dtype).eps * scale)
    error = float(difference.max())
    if error <= limit:
        return Verdict(error, limit, True)
    worst = [int(i) for i in torch.unravel_index(difference.argmax(), difference.shape)]
    return Verdict(
        error, limit, False, f"worst at {worst}: {float(result[tuple(worst)])!r} for {float(truth[tuple(worst)])!r}"
    )


def _difference(result: Tensor, truth: Tensor) -> Tensor:
    """``|result - truth|``, zero where both are NaN or the same infinity."""
    same = (result == truth) | (result.isnan() & truth.isnan())
    return (result.double() - truth).abs().masked_fill(same, 0.0)


def verify(case: Inputs, backend: str | None = None, peers: Sequence[Inputs] = ()) -> Verdict:
    """Run one case on a backend and judge it.

    `peers` are cases of the same shape and kind: what the reference loses on them counts too, as on a few voxels it may
    be lucky once.
    """
    lost = max((float(_difference(peer.reference(), peer.truth()).max()) for peer in peers), default=0.0)
    return compare(case.run(backend), case.truth(), case.reference(), lost)
