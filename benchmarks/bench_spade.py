"""The `spade` hot path at the shapes of HeadGAN and LivePortrait: each backend against the eager and the compiled
reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fastface.ops._verify.spade import SHAPES, SpadeShape

from .harness import Case, Contenders, op_contenders

SLUG = "spade"
OPS = ("modulated_norm", "instance_stats")


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Cases for a device, `cpu` or `cuda`: maps at published shapes first, then layouts, 16-bit types, modulation per
    channel, batch and (on a CPU) threads.
    """
    main = torch.float32 if device == "cpu" else torch.float16
    make = partial(_case, device=device, compiled=compiled, dtype=main)
    for shape in ("headgan_64", "headgan_256", "live_portrait_128"):
        yield make("modulated_norm", shape)
    yield make("instance_stats", "headgan_256")
    if quick:
        return
    for shape in ("headgan_64", "headgan_256"):
        yield make("modulated_norm", shape, layout="channels_last", modulation="halves")
    yield make("instance_stats", "headgan_256", layout="channels_last")
    yield make("modulated_norm", "headgan_256", stats=True)
    yield make("modulated_norm", "headgan_64", modulation="channels")
    yield make("modulated_norm", "headgan_256", dtype=torch.bfloat16 if device == "cpu" else torch.float32)
    yield make("modulated_norm", "headgan_64", batch=4 if device == "cpu" else 16)
    if device == "cpu":
        yield make("modulated_norm", "headgan_64", threads=1)


def _case(
    op: str,
    shape: str,
    *,
    device: str,
    compiled: bool,
    dtype: torch.dtype,
    layout: str = "contiguous",
    batch: int = 1,
    threads: int | None = None,
    modulation: str = "maps",
    stats: bool = False,
) -> Case:
    sizes = replace(SHAPES[shape], batch=batch)
    contenders = _with_floor if op == "modulated_norm" and modulation == "maps" else op_contenders
    options: dict[str, Any] = {} if op == "instance_stats" else {"modulation": modulation, "stats": stats}
    return Case(
        op=op,
        shape=shape,
        variant="" if op == "instance_stats" else modulation + (" and stats" if stats else ""),
        dtype=str(dtype)[6:],
        layout=layout,
        batch=batch,
        device=device,
        make=partial(contenders, op, sizes, compiled, device=device, dtype=dtype, layout=layout, **options),
        bytes=bytes_moved(op, sizes, dtype, modulation, stats),
        threads=threads or torch.get_num_threads(),
    )


def _with_floor(op: str, shape: SpadeShape, compiled: bool, **options: Any) -> Contenders:
    """PyTorch's addcmul as another: it reads as many maps once and writes one, but takes no statistics."""
    contenders, checks = op_contenders(op, shape, compiled, **options)
    if shape.scale == 1:
        size = (shape.batch, shape.channels, shape.height, shape.width)
        x, gamma, beta = (torch.randn(size, device=options["device"], dtype=options["dtype"]) for _ in range(3))
        contenders["addcmul"] = partial(torch.addcmul, beta, x, gamma)
    return contenders, checks


def bytes_moved(op: str, shape: SpadeShape, dtype: torch.dtype, modulation: str, stats: bool) -> int:
    """Every tensor once, but `x` twice where its statistics must be known before it is normalised; what is per channel
    is too little to count.
    """
    pixels = shape.batch * shape.channels * shape.height * shape.width
    if op == "instance_stats":
        return pixels * dtype.itemsize
    maps = 0 if modulation == "channels" else 2 * pixels // shape.scale**2
    return ((2 if stats else 3) * pixels + maps) * dtype.itemsize
