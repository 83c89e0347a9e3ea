"""The `spade` hot path in Triton. Formulas, costs and measurements: README.md.

A channel that fits the registers of one program is read once: statistics, then the output. Larger ones, and images with
their channels last, take three kernels: statistics of parts of a channel, their merger, and the output. All are cut
into tiles of channels x pixels; with the channels last a tile is transposed, so that lanes run along the memory.

Statistics are taken in two passes over what is in registers, else in one, relative to the channel's first pixel, by the
rule of Chan, Golub and LeVeque (1983) for merging sums of squares: no square of a mean is ever subtracted. A mean has
two parts, its float and what that left over, so that a channel far from zero loses nothing. A sum, not a mean, is
carried along, because infinities of one sign then stay infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from fastface.kernels.triton_device import INTERPRETED, processors, refuse_device

if TYPE_CHECKING:
    from fastface.ops.spade import SpadeCall

__all__ = ["INTERPRETED", "Config", "launches", "refuse", "run"]

_GRID_LIMIT = 65535  # CUDA's limit on the second and third grid axis


@dataclass(frozen=True)
class Config:
    """How the kernels are cut, in elements: a tile that is streamed, the channels of it where they lie last, and the
    largest tile that is kept in registers. Chosen from registers (no spills), not from timings: no GPU has run them.
    """

    tile: int = 1024
    channels: int = 64
    kept: int = 16384


@triton.jit
def _over_pixels(value, LAST: tl.constexpr):
    """[P] as [P, 1] of a tile with the channels last, or as [1, P]."""
    return value[:, None] if LAST else value[None, :]


@triton.jit
def _over_channels(value, LAST: tl.constexpr):
    """[N] as [1, N] of a tile with the channels last, or as [N, 1]."""
    return value[None, :] if LAST else value[:, None]


@triton.jit
def _places(image, strides, b, c, pixel, W, S, FLAT: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr):
    """Pointers to a tile of channels x pixels of a tensor [B, C, h, w] whose h and w are the image's divided by S.
    FLAT: S is 1 and rows follow one another, so that a pixel needs no division.
    """
    stride_b, stride_c, stride_y, stride_x = strides
    if WIDE:
        pixel = pixel.to(tl.int64)
    offset = pixel * stride_x if FLAT else (pixel // W // S) * stride_y + (pixel % W // S) * stride_x
    channel = b.to(tl.int64) * stride_b + _over_channels(c.to(tl.int64) * stride_c, LAST)
    return image + channel + _over_pixels(offset, LAST)


@triton.jit
def _pool(count, total, squares, AXIS: tl.constexpr):
    """Count, sum and sum of squared deviations of groups, taken together along an axis."""
    n = tl.sum(count, AXIS)
    everything = tl.sum(total, AXIS)
    deviation = total / tl.maximum(count, 1.0) - tl.expand_dims(everything / tl.maximum(n, 1.0), AXIS)
    return n, everything, tl.sum(squares + count * deviation * deviation, AXIS)


@triton.jit
def _rstd(variance, eps):
    return tl.div_rn(tl.full(variance.shape, 1.0, tl.float32), tl.sqrt_rn(variance + eps))


@triton.jit(do_not_specialize=["W", "steps", "parts"])
def partial_kernel(
    x,  # [B, C, H, W]
    partials,  # [B, C, parts, 3]: count, sum, sum of squared deviations, relative to the channel's first pixel
    C,
    W,
    pixels,  # H W
    steps,
    parts,
    x_b,
    x_c,
    x_y,
    x_x,
    FLAT: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Grid: (parts, channel tiles, B). A program goes through `steps` tiles."""
    part = tl.program_id(0)
    b = tl.program_id(2)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    shift = _over_channels(_first_pixel(x, b, c, C, x_b, x_c), LAST)
    pixel = part * steps * PIXELS + tl.arange(0, PIXELS)
    total = tl.zeros([PIXELS, CHANNELS] if LAST else [CHANNELS, PIXELS], tl.float32)
    squares = total
    seen = tl.zeros([PIXELS], tl.float32)
    count = tl.zeros([1, 1], tl.float32)  # of the pixels before this one, the same for every lane that still has one
    for _ in tl.range(0, steps):
        inside = pixel < pixels
        exists = _over_pixels(inside, LAST) & _over_channels(c < C, LAST)
        at = _places(x, (x_b, x_c, x_y, x_x), b, c, pixel, W, 1, FLAT, LAST, WIDE)
        value = tl.load(at, mask=exists, other=0.0).to(tl.float32) - shift
        deviation = value - total / tl.maximum(count, 1.0)
        squares += tl.where(exists, deviation * deviation * (count / (count + 1.0)), 0.0)
        total += tl.where(exists, value, 0.0)
        seen += inside.to(tl.float32)
        count += 1.0
        pixel += PIXELS
    seen = _over_pixels(seen, LAST) + tl.zeros_like(total)
    n, everything, squares = _pool(seen, total, squares, 0 if LAST else 1)
    at = partials + ((b * C + c).to(tl.int64) * parts + part) * 3
    tl.store(at, n, mask=c < C)
    tl.store(at + 1, everything, mask=c < C)
    tl.store(at + 2, squares, mask=c < C)


@triton.jit
def _first_pixel(x, b, c, C, x_b, x_c):
    """The first pixel of channels, or 0 where it is not finite: something near their mean, to be subtracted."""
    value = tl.load(x + b.to(tl.int64) * x_b + c.to(tl.int64) * x_c, mask=c < C, other=0.0).to(tl.float32)
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit(do_not_specialize=["B", "C", "parts"])
def merge_kernel(
    x,  # [B, C, H, W]
    partials,  # [B, C, parts, 3]
    mean,  # [B, C]
    low,  # [B, C]: what the mean's float leaves over
    rstd,  # [B, C]
    B,
    C,
    parts,
    x_b,
    x_c,
    eps,
    LOW: tl.constexpr,
    PLANES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Grid: blocks of channels of images. Without LOW the mean is the sum of its two parts, rounded."""
    plane = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    part = tl.arange(0, PARTS)
    exists = (plane < B * C)[:, None] & (part < parts)[None, :]
    at = partials + (plane.to(tl.int64)[:, None] * parts + part[None, :]) * 3
    count = tl.load(at, mask=exists, other=0.0)
    total = tl.load(at + 1, mask=exists, other=0.0)
    squares = tl.load(at + 2, mask=exists, other=0.0)
    n, total, squares = _pool(count, total, squares, 1)
    n = tl.maximum(n, 1.0)
    shift = _first_pixel(x, plane // C, plane % C, tl.where(plane < B * C, C, 0), x_b, x_c)
    further = tl.div_rn(total, n)
    whole = shift + further
    tl.store(mean + plane, whole, mask=plane < B * C)
    tl.store(rstd + plane, _rstd(tl.div_rn(squares, n), eps), mask=plane < B * C)
    if LOW:
        rest = tl.where(tl.abs(shift) > tl.abs(further), (shift - whole) + further, (further - whole) + shift)
        tl.store(low + plane, rest, mask=plane < B * C)


@triton.jit
def _own_stats(value, exists, pixels, eps, LAST: tl.constexpr):
    """Mean, what its float leaves over, and rstd of a tile that holds whole channels."""
    AXIS: tl.constexpr = 0 if LAST else 1
    n = tl.cast(pixels, tl.float32)
    mean = tl.expand_dims(tl.sum(tl.where(exists, value, 0.0), AXIS) / n, AXIS)
    deviation = tl.where(exists, value - mean, 0.0)
    low = tl.sum(deviation, AXIS) / n
    variance = tl.sum(deviation * deviation, AXIS) / n - low * low
    return mean, tl.expand_dims(low, AXIS), tl.expand_dims(_rstd(variance, eps), AXIS)


@triton.jit
def _act(value, slope, ACTIVATION: tl.constexpr):
    """Both let NaN through."""
    if ACTIVATION == 1:
        value = tl.where(value < 0.0, 0.0, value)
    if ACTIVATION == 2:
        value = tl.where(value > 0.0, value, value * slope)
    return value


@triton.jit(do_not_specialize=["W", "S"])
def norm_kernel(
    x,  # [B, C, H, W]
    gamma,  # [B, C, H / S, W / S] or [B, C]
    beta,  # like gamma
    residual,  # [B, C, H, W]
    out,  # [B, C, H, W]
    mean,  # [B, C]
    low,  # [B, C]
    rstd,  # [B, C]
    C,
    W,
    S,
    pixels,  # H W
    x_b,
    x_c,
    x_y,
    x_x,
    gamma_b,
    gamma_c,
    gamma_y,
    gamma_x,
    beta_b,
    beta_c,
    beta_y,
    beta_x,
    residual_b,
    residual_c,
    residual_y,
    residual_x,
    out_b,
    out_c,
    out_y,
    out_x,
    eps,
    slope,
    STATS: tl.constexpr,
    GAMMA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FLAT: tl.constexpr,
    FLAT_MAPS: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Grid: (pixel tiles, channel tiles, B). STATS: "own", from a tile of whole channels; "merged", from merge_kernel;
    "given", without `low`. GAMMA and BETA: "map", "channel" or "".
    """
    b = tl.program_id(2)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    real = c < C
    exists = _over_pixels(pixel < pixels, LAST) & _over_channels(real, LAST)
    at = _places(x, (x_b, x_c, x_y, x_x), b, c, pixel, W, 1, FLAT, LAST, WIDE)
    value = tl.load(at, mask=exists, other=0.0).to(tl.float32)
    plane = b * C + c
    if STATS == "own":
        m, rest, r = _own_stats(value, exists, pixels, eps, LAST)
    else:
        m = _over_channels(tl.load(mean + plane, mask=real, other=0.0), LAST)
        r = _over_channels(tl.load(rstd + plane, mask=real, other=0.0), LAST)
    if STATS == "merged":
        rest = _over_channels(tl.load(low + plane, mask=real, other=0.0), LAST)
    value = (value - m) * r
    if STATS != "given":
        value = value - rest * r
    if GAMMA == "map":
        at = _places(gamma, (gamma_b, gamma_c, gamma_y, gamma_x), b, c, pixel, W, S, FLAT_MAPS, LAST, WIDE)
        value = value * (1.0 + tl.load(at, mask=exists, other=0.0).to(tl.float32))
    if GAMMA == "channel":
        value = value * (1.0 + _over_channels(tl.load(gamma + plane, mask=real, other=0.0), LAST))
    if BETA == "map":
        at = _places(beta, (beta_b, beta_c, beta_y, beta_x), b, c, pixel, W, S, FLAT_MAPS, LAST, WIDE)
        value = value + tl.load(at, mask=exists, other=0.0).to(tl.float32)
    if BETA == "channel":
        value = value + _over_channels(tl.load(beta + plane, mask=real, other=0.0), LAST)
    value = _act(value, slope, ACTIVATION)
    if RESIDUAL:
        strides = (residual_b, residual_c, residual_y, residual_x)
        at = _places(residual, strides, b, c, pixel, W, 1, FLAT, LAST, WIDE)
        value = value + tl.load(at, mask=exists, other=0.0).to(tl.float32)
    at = _places(out, (out_b, out_c, out_y, out_x), b, c, pixel, W, 1, FLAT, LAST, WIDE)
    tl.store(at, value.to(out.dtype.element_ty), mask=exists)


_CONFIG = Config()
Launch = tuple[Any, tuple[int, ...], list[Any], dict[str, Any], dict[str, Any]]


def refuse(call: SpadeCall) -> str | None:
    """Why the Triton kernels cannot run `call`, or None. Device and dtypes have been checked."""
    batch, channels, height, width = call.x.shape
    if batch > _GRID_LIMIT or channels > _GRID_LIMIT or batch * channels >= 2**31:
        return f"batch {batch} and {channels} channels, it takes at most {_GRID_LIMIT} of each and 2^31 of both"
    if height * width >= 2**30:  # what the last program counts past the image stays below 2^31
        return f"an image of {height}x{width} pixels, it takes fewer than 2^30"
    return refuse_device(call.x.device)


def run(call: SpadeCall) -> None:
    """Run `call` into its outputs, on the current stream of its device."""
    if INTERPRETED:
        _launch(call, 1)
        return
    with torch.cuda.device(call.x.device):
        _launch(call, processors(call.x.device.index))


def _launch(call: SpadeCall, processors: int) -> None:
    for kernel, grid, arguments, constants, options in launches(call, processors, _CONFIG):
        kernel[grid](*arguments, **constants, **options)


def launches(call: SpadeCall, processors: int, cut: Config) -> list[Launch]:
    """(kernel, grid, arguments, constants, options) of each launch of `call`, in order."""
    if call.op == "instance_stats":
        assert call.mean is not None and call.rstd is not None
        return _stats_launches(call, processors, cut, call.mean, None, call.rstd)
    if call.mean is not None and call.rstd is not None:
        return [_norm_launch(call, "given", _tile(call, cut), (call.mean, call.mean, call.rstd))]
    kept = _kept_tile(call, cut)
    if kept is not None:
        return [_norm_launch(call, "own", kept, (call.x, call.x, call.x))]
    mean, low, rstd = call.x.new_empty((3, *call.x.shape[:2]), dtype=torch.float32)
    stats = _stats_launches(call, processors, cut, mean, low, rstd)
    return [*stats, _norm_launch(call, "merged", _tile(call, cut), (mean, low, rstd))]


def _last(call: SpadeCall) -> bool:
    """Whether lanes run along the channels: they are adjacent in memory, and pixels are not."""
    return call.x.stride(1) == 1 and call.x.shape[1] > 1 and call.x.stride(3) != 1


def _tile(call: SpadeCall, cut: Config) -> tuple[int, int]:
    """(pixels, channels) of a tile that streams."""
    channels = min(cut.channels, triton.next_power_of_2(call.x.shape[1])) if _last(call) else 1
    pixels = call.x.shape[2] * call.x.shape[3]
    return min(max(1, cut.tile // channels), triton.next_power_of_2(pixels)), channels


def _kept_tile(call: SpadeCall, cut: Config) -> tuple[int, int] | None:
    """(pixels, channels) of a tile that holds whole channels, or None where they are too large."""
    pixels = triton.next_power_of_2(call.x.shape[2] * call.x.shape[3])
    # A line of 128 bytes of every pixel; fewer would be read in vain.
    channels = min(128 // call.x.element_size(), triton.next_power_of_2(call.x.shape[1])) if _last(call) else 1
    # Where every pixel has pointers of its own, these take more registers than the pixels.
    simple = call.scale <= 1 and all(map(_flat, (call.x, call.gamma, call.beta, call.residual, call.out)))
    return (pixels, channels) if pixels * channels <= (cut.kept if simple else cut.kept // 4) else None


def _flat(image: torch.Tensor | None) -> bool:
    """Whether rows follow one another."""
    return (
        image is None or image.dim() == 2 or image.shape[2] == 1 or image.stride(2) == image.shape[3] * image.stride(3)
    )


def _wide(*images: torch.Tensor | None) -> bool:
    """Whether an offset inside a channel may need 64 bits."""
    reach = ((i.shape[2] - 1) * i.stride(2) + (i.shape[3] - 1) * i.stride(3) for i in images if i is not None)
    return any(each >= 2**31 for each in reach)


def _options(tile: tuple[int, int]) -> dict[str, Any]:
    """Eight elements a thread, one or two loads of 16 bytes, as long as a program can have that many threads."""
    return {"num_warps": max(1, min(32, tile[0] * tile[1] // 256)), "enable_fp_fusion": True}


def _stats_launches(
    call: SpadeCall, processors: int, cut: Config, mean: torch.Tensor, low: torch.Tensor | None, rstd: torch.Tensor
) -> list[Launch]:
    x = call.x
    batch, channels, height, width = x.shape
    tile = _tile(call, cut)
    tiles, groups = triton.cdiv(height * width, tile[0]), triton.cdiv(channels, tile[1])
    # Eight programs a processor; a program of the merger holds all parts of a channel.
    steps = triton.cdiv(tiles, min(tiles, 256, triton.cdiv(8 * processors, batch * groups)))
    parts = triton.cdiv(tiles, steps)
    partials = x.new_empty((batch, channels, parts, 3), dtype=torch.float32)
    layout = {"FLAT": _flat(x), "LAST": _last(call), "WIDE": _wide(x)}
    held = triton.next_power_of_2(parts)
    planes = max(1, 256 // held)
    return [
        (
            partial_kernel,
            (parts, groups, batch),
            [x, partials, channels, width, height * width, steps, parts, *x.stride()],
            {**layout, "PIXELS": tile[0], "CHANNELS": tile[1]},
            # Left to itself the assembler would rather spill than use more than 72.
            _options(tile) | {"maxnreg": 128},
        ),
        (
            merge_kernel,
            (triton.cdiv(batch * channels, planes),),
            [x, partials, mean, mean if low is None else low, rstd, batch, channels, parts, *x.stride()[:2], call.eps],
            {"LOW": low is not None, "PLANES": planes, "PARTS": held},
            {"num_warps": 4, "enable_fp_fusion": True},
        ),
    ]


def _norm_launch(
    call: SpadeCall, stats: str, tile: tuple[int, int], numbers: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> Launch:
    x, out = call.x, call.out
    assert out is not None
    batch, channels, height, width = x.shape
    optional = (call.gamma, call.beta, call.residual)
    maps = [m for m in optional[:2] if m is not None and m.dim() == 4]
    # An absent tensor is never read.
    tensors = [x, *(x if tensor is None else tensor for tensor in optional), out]
    strides = [s for tensor in tensors for s in (tensor.stride() if tensor.dim() == 4 else (0, 0, 0, 0))]
    constants = {
        "STATS": stats,
        "GAMMA": _kind(call.gamma),
        "BETA": _kind(call.beta),
        "RESIDUAL": call.residual is not None,
        "ACTIVATION": {None: 0, "relu": 1, "leaky_relu": 2}[call.activation],
        "FLAT": all(map(_flat, (x, call.residual, out))),
        "FLAT_MAPS": call.scale == 1 and all(map(_flat, maps)),
        "LAST": _last(call),
        "WIDE": _wide(x, call.residual, out, *maps),
        "PIXELS": tile[0],
        "CHANNELS": tile[1],
    }
    sizes = [channels, width, max(1, call.scale), height * width]
    grid = (triton.cdiv(height * width, tile[0]), triton.cdiv(channels, tile[1]), batch)
    return norm_kernel, grid, [*tensors, *numbers, *sizes, *strides, call.eps, call.slope], constants, _options(tile)


def _kind(modulation: torch.Tensor | None) -> str:
    return "" if modulation is None else "map" if modulation.dim() == 4 else "channel"
