"""Convolutions over a nearest-upsampled map, computed from the map before it was upsampled.

Upsampled by s, row ``s i + p`` is row i of the map for each phase p < s. So the rows that output ``s i + p`` of a
convolution sees are few rows of the map, and the kernel's entries that meet the same row are summed beforehand: a 3-tap
axis has 2 taps per phase at s = 2, and 2, 1, 1, 2 at s = 4, where the two middle phases are one. In two dimensions 16
products instead of 36 at s = 2 and 25 instead of 144 at s = 4; in three, (1, 2, 2), 48 instead of 108. The zeros around
the upsampled map are zeros around the map, so borders are exact.

Where phases are equal the output too can be kept with one row for each distinct phase ("merged"), 3 instead of 4 at
s = 4, and a further 3x3 convolution, after any pointwise function, computed from that: 100 products instead of 144.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.nn import UpsampledConv, activate_
from fastface.ops import _memory

__all__ = ["PolyphaseConv", "merged_rows"]

_CONVOLVE = {4: F.conv2d, 5: F.conv3d}


class PolyphaseConv(nn.Module):
    """What `UpsampledConv` computes, from ``[B, C, h, w]`` (or 3D) to ``[B, K, s h, s w]``.

    Args:
        upsampled: the same as it is defined.
        rows: per axis, which row of its cell holds each of the s rows of the upsampled input, by which the input is
            ``[B, C, n h, n w]`` with ``n = max(rows) + 1``; None for a map that was only upsampled, n = 1.
        merge: keep one row for each distinct phase; `merged_rows` says which row holds what.
        activation, slope: None, "relu" or "leaky_relu", of the output.

    Raises:
        TypeError: an upsampled convolution that has been replaced by another form.
    """

    def __init__(
        self,
        upsampled: UpsampledConv,
        *,
        rows: Sequence[Sequence[int]] | None = None,
        merge: bool = False,
        activation: str | None = None,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        conv, scale = upsampled.conv, upsampled.scale
        if not isinstance(conv, (nn.Conv2d, nn.Conv3d)):
            raise TypeError(f"upsampled must hold a Conv2d or Conv3d, got {type(conv).__name__}")
        self.scale, self.activation, self.slope = scale, activation, slope
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        rows = [(0,) * s for s in scale] if rows is None else rows
        axes = [_phases(k, tuple(r)) for k, r in zip(conv.kernel_size, rows, strict=True)]
        self.stride = tuple(max(r) + 1 for r in rows)
        self.size = tuple(len(phases) if merge else s for (phases, _), s in zip(axes, scale, strict=True))
        self.kernel_size = conv.kernel_size
        self.parts: list[_Part] = []
        for group in itertools.product(*(_alike(phases, n) for (phases, _), n in zip(axes, self.stride, strict=True))):
            members = list(itertools.product(*group))
            weight = torch.cat([_merged_weight(conv.weight.detach(), member) for member in members])
            bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().repeat(len(members)), False)
            self.register_parameter(f"weight_{len(self.parts)}", nn.Parameter(weight, requires_grad=False))
            self.register_parameter(f"bias_{len(self.parts)}", bias)
            pad = tuple(phase.padding(n) for phase, n in zip(members[0], self.stride, strict=True))
            places = tuple(self._places(member, axes, pad, merge) for member in members)
            self.parts.append(_Part(pad, places))

    def _places(self, member: tuple[_Phase, ...], axes: list, pad: tuple[int, ...], merge: bool) -> _Places:
        """Where a phase's output starts in what is convolved, and which rows of an output cell it is."""
        skipped = tuple((p.start + q) // n for p, q, n in zip(member, pad, self.stride, strict=True))
        rows = [
            [phases.index(phase)] if merge else [row for row, p in enumerate(order) if p == phases.index(phase)]
            for phase, (phases, order) in zip(member, axes, strict=True)
        ]
        return _Places(skipped, tuple(itertools.product(*rows)))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != len(self.stride) + 2 or any(n % s for n, s in zip(x.shape[2:], self.stride, strict=True)):
            raise ValueError(f"x must be [B, C, *sizes] with sizes multiples of {self.stride}, got {list(x.shape)}")
        cells = tuple(n // stride for n, stride in zip(x.shape[2:], self.stride, strict=True))
        out = None
        for index, (pad, places) in enumerate(self.parts):
            weight, bias = getattr(self, f"weight_{index}"), getattr(self, f"bias_{index}")
            found = _CONVOLVE[x.dim()](x, weight, bias, self.stride, pad)
            found = activate_(found, self.activation, self.slope)
            if out is None:
                shape = (x.shape[0], self.out_channels, *(n * s for n, s in zip(cells, self.size, strict=True)))
                out = _memory.empty(shape, found, memory_format=_memory.memory_format(found))
            for (skipped, rows), phase in zip(places, found.split(self.out_channels, dim=1), strict=True):
                window = phase[_slices(slice(o, o + n) for o, n in zip(skipped, cells, strict=True))]
                for row in rows:
                    out[_slices(slice(r, None, s) for r, s in zip(row, self.size, strict=True))] = window
        assert out is not None
        return out

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, scale={self.scale}, size={self.size}"


def _slices(axes: Iterable[slice]) -> tuple[Any, ...]:
    """An index that takes batch and channels whole."""
    return (..., *axes)


def merged_rows(kernel: int, scale: int) -> tuple[int, ...]:
    """Which row of a merged output's cell holds each of the `scale` rows: (0, 1, 1, 2) for a 3-tap axis at scale 4."""
    return _phases(kernel, (0,) * scale)[1]


class _Places(NamedTuple):
    skipped: tuple[int, ...]  # leading rows of the convolution's output that belong to no cell of this phase
    rows: tuple[tuple[int, ...], ...]  # of a cell of the output, per axis


class _Part(NamedTuple):
    """One convolution: phases of the same kernel size and padding."""

    pad: tuple[int, ...]
    places: tuple[_Places, ...]


@dataclass(frozen=True)
class _Phase:
    """One axis of a phase: its window starts at row `start` of the cell, tap t sums the entries ``taps[t]``."""

    start: int
    taps: tuple[tuple[int, ...], ...]

    def padding(self, stride: int) -> int:
        """The least symmetric padding that the first and the last window need, and that puts windows on the stride."""
        least = max(0, -self.start, self.start + len(self.taps) - stride)
        return least + (-self.start - least) % stride


def _phases(kernel: int, rows: tuple[int, ...]) -> tuple[list[_Phase], tuple[int, ...]]:
    """The distinct phases of an axis, and which of them each row of the output is."""
    distinct: list[_Phase] = []
    order = []
    for row in range(len(rows)):
        seen: dict[int, tuple[int, ...]] = {}
        for tap in range(kernel):
            cell, inside = divmod(row + tap - kernel // 2, len(rows))
            at = cell * (max(rows) + 1) + rows[inside]
            seen[at] = (*seen.get(at, ()), tap)
        phase = _Phase(min(seen), tuple(seen.values()))
        if phase not in distinct:
            distinct.append(phase)
        order.append(distinct.index(phase))
    return distinct, tuple(order)


def _alike(phases: list[_Phase], stride: int) -> list[list[_Phase]]:
    """Phases that one convolution can compute."""
    groups: dict[tuple[int, int], list[_Phase]] = {}
    for phase in phases:
        groups.setdefault((len(phase.taps), phase.padding(stride)), []).append(phase)
    return list(groups.values())


def _merged_weight(weight: Tensor, phases: tuple[_Phase, ...]) -> Tensor:
    dtype, weight = weight.dtype, weight.double()
    for axis, phase in enumerate(phases, start=2):
        taps = [weight.index_select(axis, torch.tensor(taps, device=weight.device)).sum(axis) for taps in phase.taps]
        weight = torch.stack(taps, axis)
    return weight.to(dtype)
