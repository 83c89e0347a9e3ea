"""Shapes, inputs and selftest cases of the `spade` ops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastface.ops._verify import Inputs, arrange

__all__ = ["SHAPES", "SpadeShape", "inputs", "selftest"]


@dataclass(frozen=True)
class SpadeShape:
    """Sizes of a `spade` call: an image ``[B, C, s h, s w]`` and maps ``[B, C, h, w]``."""

    batch: int
    channels: int
    height: int
    width: int
    scale: int = 1


SHAPES = {
    "headgan_64": SpadeShape(1, 512, 64, 64),
    "headgan_256": SpadeShape(1, 128, 256, 256),
    "live_portrait": SpadeShape(1, 512, 64, 64),
    "live_portrait_128": SpadeShape(1, 256, 128, 128, 2),
    "odd": SpadeShape(2, 5, 13, 19),
    "odd_low": SpadeShape(2, 7, 15, 21, 3),
    "tiny": SpadeShape(1, 3, 2, 3),
}


def inputs(
    op: str,
    shape: SpadeShape,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    layout: str = "contiguous",
    modulation: str | None = "maps",
    stats: bool = False,
    activation: str | None = "leaky_relu",
    residual: bool = False,
    mean: float = 0.3,
    seed: int = 0,
) -> Inputs:
    """Random arguments for `op`: channels of different mean (about `mean`) and deviation.

    `layout` is contiguous, sliced (every tensor is a view into a larger one, with odd strides) or channels_last;
    `modulation` is None, "channels" (AdaIN), "maps", or "halves" (maps that are halves of one tensor).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    def image(values: Tensor) -> Tensor:
        return arrange(values.to(device, dtype), layout)

    batch, channels, height, width = shape.batch, shape.channels, shape.height, shape.width
    spread = torch.rand(batch, channels, 1, 1, generator=generator) + 0.5
    x = image((normal(batch, channels, height, width) + normal(batch, channels, 1, 1)) * spread + mean)
    if op == "instance_stats":
        return Inputs(op, ((x,), {}), dtype)
    kwargs: dict[str, Any] = {"activation": activation}
    small = batch, channels, height // shape.scale, width // shape.scale
    if modulation == "maps":
        kwargs |= {"gamma": image(0.5 * normal(*small)), "beta": image(normal(*small))}
    elif modulation == "halves":
        both = image(0.5 * normal(batch, 2 * channels, *small[2:]))
        kwargs |= {"gamma": both[:, :channels], "beta": both[:, channels:]}
    elif modulation == "channels":
        kwargs |= {"gamma": 0.5 * normal(batch, channels).to(device), "beta": normal(batch, channels).to(device)}
    if stats:
        kwargs["stats"] = (normal(batch, channels).to(device), (1 + spread[:, :, 0, 0]).to(device))
    if residual:
        kwargs["residual"] = image(normal(batch, channels, height, width))
    return Inputs(op, ((x,), kwargs), dtype)


def selftest(op: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Shape and options of each case."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    layouts = ("contiguous", "sliced", "channels_last")
    for dtype, layout in itertools.product(dtypes, layouts):
        if op == "instance_stats":
            yield "odd", {"dtype": dtype, "layout": layout}
            continue
        for modulation, stats in itertools.product((None, "channels", "maps", "halves"), (False, True)):
            yield "odd", {"dtype": dtype, "layout": layout, "modulation": modulation, "stats": stats, "residual": stats}
        yield "odd_low", {"dtype": dtype, "layout": layout, "activation": "relu"}
    yield "tiny", {}
    yield "odd", {"mean": 1e4}
    yield "headgan_64", {}
