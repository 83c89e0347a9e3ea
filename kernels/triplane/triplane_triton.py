"""The `triplane` hot path in Triton. Formulas, costs and layout of the work: README.md.

A program takes a ray from its depths to its colours: a look at the coarse samples for their density alone, the fine
depths, then all samples in the order of their depth. Coarse samples are read twice, so that nothing has to be carried
through the sort but depths; nothing of a sample leaves the program. Sizes are padded to powers of two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from fastface.kernels.triplane.triplane_reference import AXES
from fastface.kernels.triton_device import INTERPRETED, refuse_device

if TYPE_CHECKING:
    from fastface.ops.triplane import TriplaneCall

__all__ = ["INTERPRETED", "launches", "refuse", "run"]

_MOST_SAMPLES = 128  # of a pass
_MOST_WIDE = 128  # channels, hidden units, colours
_LEAST = 16  # rows and columns of a matrix product


@triton.jit
def _shifted(values, by: tl.constexpr):
    """values[i + by], the last or first one repeated."""
    N: tl.constexpr = values.shape[0]
    at = tl.arange(0, N) + by
    return tl.gather(values, tl.minimum(tl.maximum(at, 0), N - 1), 0)


@triton.jit
def _softplus(x):
    """NaN stays NaN."""
    return tl.where(x > 0.0, x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _between(coordinate, size):
    """The pixel below a coordinate in [-1, 1], and how far beyond its centre that is."""
    at = ((coordinate + 1.0) * size - 1.0) * 0.5
    # Far outside any pixel is; the bound keeps the conversion to an integer defined.
    at = tl.where(at > -2.0, tl.where(at < size + 1.0, at, size + 1.0), -2.0)
    low = tl.floor(at)
    return low.to(tl.int32), at - low


@triton.jit
def _read(planes, k, point, grid, AXES: tl.constexpr, CHANNELS: tl.constexpr, DEEP: tl.constexpr):
    """[N, CHANNELS] of plane k at points, bilinear, or trilinear where it is DEEP; zeros outside."""
    C, D, H, W, plane_stride, z_stride, y_stride, x_stride = grid
    c = tl.arange(0, CHANNELS)
    x, right = _between(_on_plane(point, k, AXES, 0), W)
    y, below = _between(_on_plane(point, k, AXES, 1), H)
    if DEEP:
        z, behind = _between(_on_plane(point, k, AXES, 2), D)
    total = tl.zeros([x.shape[0], CHANNELS], tl.float32)
    for corner in tl.static_range(8 if DEEP else 4):
        i = x + corner % 2
        j = y + corner // 2 % 2
        weight = (right if corner % 2 else 1.0 - right) * (below if corner // 2 % 2 else 1.0 - below)
        inside = (i >= 0) & (i < W) & (j >= 0) & (j < H)
        at = j * y_stride + i * x_stride
        if DEEP:
            level = z + corner // 4
            weight *= behind if corner // 4 else 1.0 - behind
            inside &= (level >= 0) & (level < D)
            at += level * z_stride
        at = planes + k * plane_stride + at[:, None] + c[None, :]
        value = tl.load(at, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        total += weight[:, None] * value
    return total


@triton.jit
def _coordinate(point, AXIS: tl.constexpr):
    if AXIS == 0:
        return point[0]
    return point[1] if AXIS == 1 else point[2]


@triton.jit
def _on_plane(point, k, AXES: tl.constexpr, WHICH: tl.constexpr):
    """The coordinate of points along the width (0), height (1) or depth (2) of plane k."""
    one = _coordinate(point, AXES[WHICH])
    two = _coordinate(point, AXES[3 + WHICH])
    three = _coordinate(point, AXES[6 + WHICH])
    return tl.where(k == 0, one, tl.where(k == 1, two, three))


@triton.jit
def _features(planes, point, factor, grid, AXES: tl.constexpr, CHANNELS: tl.constexpr, DEEP: tl.constexpr):
    """[N, CHANNELS] summed over the planes; `grid` holds sizes and strides. NaN where a point is not finite."""
    nothing = (point[0] - point[0]) + (point[1] - point[1]) + (point[2] - point[2])
    total = tl.zeros([nothing.shape[0], CHANNELS], tl.float32) + nothing[:, None]
    for k in tl.range(3):  # unrolled, the loads of all planes would not fit the registers
        total += _read(planes, k, point, grid, AXES, CHANNELS, DEEP)
    return total * factor


@triton.jit
def _decode(x, decoder, sizes, SEEN: tl.constexpr, HIDDEN: tl.constexpr, PART: tl.constexpr, COLOURS: tl.constexpr):
    """Raw density [N] and raw colours [N, COLOURS], which stay the biases unless SEEN, of features [N, CHANNELS]. PART
    of the hidden layer at a time, as all of it would not fit the registers. Products take operands as sums of TF32
    numbers: float32's precision.
    """
    w1, b1, w2, b2 = decoder
    C, units, F = sizes
    c = tl.arange(0, x.shape[1])
    f = tl.arange(0, COLOURS)
    density = tl.zeros([x.shape[0]], tl.float32) + tl.load(b2)
    colours = tl.zeros([x.shape[0], COLOURS], tl.float32) + tl.load(b2 + 1 + f, mask=f < F, other=0.0)[None, :]
    for start in tl.range(0, HIDDEN, PART):
        h = start + tl.arange(0, PART)
        real = h < units
        weight = tl.load(w1 + h[None, :] * C + c[:, None], mask=real[None, :] & (c < C)[:, None], other=0.0)
        bias = tl.load(b1 + h, mask=real, other=0.0)
        hidden = _softplus(tl.dot(x, weight, input_precision="tf32x3") + bias[None, :])
        density += tl.sum(hidden * tl.load(w2 + h, mask=real, other=0.0)[None, :], 1)
        if SEEN:
            at = w2 + (f[None, :] + 1) * units + h[:, None]
            weight = tl.load(at, mask=(f < F)[None, :] & real[:, None], other=0.0)
            colours += tl.dot(hidden, weight, input_precision="tf32x3")
    return density, colours


@triton.jit
def _absorbed(x):
    """1 - e^-x. The exponential's few last places would be most of a small difference, so that is a series; below 2^-25
    it is 0, as where 1 is rounded.
    """
    series = 1.0 - x * (1.0 / 7.0)
    for n in tl.static_range(6, 1, -1):
        series = 1.0 - x * series * (1.0 / n)
    small = tl.where(tl.abs(x) < 2.0**-25, 0.0, x * series)
    return tl.where(tl.abs(x) < 0.25, small, 1.0 - tl.exp(-x))


@triton.jit
def _composite(depths, density, COUNT: tl.constexpr):
    """Weights of the COUNT - 1 intervals, and zeros."""
    i = tl.arange(0, depths.shape[0])
    middle = (density + _shifted(density, 1)) / 2.0 - 1.0
    alpha = _absorbed(_softplus(middle) * (_shifted(depths, 1) - depths))
    alpha = tl.where(i < COUNT - 1, alpha, 0.0)
    through = _shifted(tl.cumprod(1.0 - alpha + 1e-10, 0), -1)
    return alpha * tl.where(i == 0, 1.0, through)


@triton.jit
def _fine_depths(depths, weights, u, COARSE: tl.constexpr):
    """Depths where the coarse weights are; see `importance_depths` of the reference."""
    j = tl.arange(0, depths.shape[0])
    after = _shifted(weights, 1)
    share = (tl.maximum(weights, after) + tl.maximum(after, _shifted(weights, 2))) / 2.0 + 0.01 + 1e-5
    share = tl.where(j < COARSE - 3, share, 0.0)
    share = tl.div_rn(share, tl.zeros_like(share) + tl.sum(share, 0))
    cumulated = tl.where(j == 0, 0.0, _shifted(tl.cumsum(share, 0), -1))
    middles = (depths + _shifted(depths, 1)) / 2.0
    low = tl.zeros(u.shape, tl.int32)  # up to the first entry above u
    high = low + (COARSE - 2)
    for _ in tl.static_range(8):  # halves of at most 126 entries
        at = (low + high) // 2
        beyond = tl.gather(cumulated, tl.minimum(at, COARSE - 3), 0) > u
        low, high = tl.where(beyond | (low >= high), low, at + 1), tl.where(beyond, at, high)
    below = tl.maximum(low - 1, 0)
    above = tl.minimum(low, COARSE - 3)
    low = tl.gather(cumulated, below, 0)
    width = tl.gather(cumulated, above, 0) - low
    width = tl.where(width < 1e-5, 1.0, width)
    start = tl.gather(middles, below, 0)
    return start + tl.div_rn(u - low, width) * (tl.gather(middles, above, 0) - start)


@triton.jit
def _joined(coarse, fine, COARSE: tl.constexpr, FINE: tl.constexpr, SAMPLES: tl.constexpr):
    """Nearest first, infinities behind."""
    i = tl.arange(0, SAMPLES)
    one = tl.gather(coarse, tl.minimum(i, coarse.shape[0] - 1), 0)
    other = tl.gather(fine, tl.minimum(tl.maximum(i - COARSE, 0), fine.shape[0] - 1), 0)
    return tl.sort(tl.where(i < COARSE, one, tl.where(i < COARSE + FINE, other, float("inf"))))


@triton.jit
def _points(ray, origins, directions, depths, scale):
    """x, y and z of the samples of a ray, scaled to [-1, 1]."""
    at = ray.to(tl.int64) * 3
    x = (tl.load(origins + at) + depths * tl.load(directions + at)) * scale
    y = (tl.load(origins + at + 1) + depths * tl.load(directions + at + 1)) * scale
    z = (tl.load(origins + at + 2) + depths * tl.load(directions + at + 2)) * scale
    return x, y, z


@triton.jit
def render_kernel(
    planes,  # [B, 3, C, H, W] or [B, 3, C, D, H, W], channels next to each other
    origins,  # [B, R, 3]
    directions,  # [B, R, 3]
    w1,  # [h, C]
    b1,  # [h]
    w2,  # [1+F, h]
    b2,  # [1+F]
    near,  # [B, R]
    far,  # [B, R]
    jitter,  # [B, R, coarse]
    u,  # [B, R, fine]
    features,  # [B, R, F]
    depth,  # [B, R]
    opacity,  # [B, R]
    R,
    C,
    D,
    H,
    W,
    HIDDEN_SIZE,
    F,
    batch_stride,
    plane_stride,
    z_stride,
    y_stride,
    x_stride,
    scale,  # of points, 2 / box
    factor,  # of the sum of planes
    COARSE: tl.constexpr,
    FINE: tl.constexpr,
    AXES: tl.constexpr,
    DEEP: tl.constexpr,  # planes have a depth, D
    JITTER: tl.constexpr,
    U: tl.constexpr,
    WHITE: tl.constexpr,
    DISPARITY: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    PART: tl.constexpr,  # of HIDDEN
    COLOURS: tl.constexpr,
    FIRST: tl.constexpr,  # COARSE padded
    SECOND: tl.constexpr,  # FINE padded
    SAMPLES: tl.constexpr,  # both padded
):
    """Grid: (B R). A program is a ray."""
    ray = tl.program_id(0)
    image = planes + (ray // R).to(tl.int64) * batch_stride
    grid = (C, D, H, W, plane_stride, z_stride, y_stride, x_stride)

    k = tl.arange(0, FIRST)
    offset = tl.full([FIRST], 0.5, tl.float32)
    if JITTER:
        offset = tl.load(jitter + ray.to(tl.int64) * COARSE + k, mask=k < COARSE, other=0.5)
    last = tl.full([FIRST], COARSE - 1.0, tl.float32)
    share = tl.div_rn(k.to(tl.float32), last) + tl.div_rn(offset, last)
    start = tl.load(near + ray) + tl.zeros_like(share)
    end = tl.load(far + ray)
    if DISPARITY:
        depths = tl.div_rn(
            tl.zeros_like(share) + 1.0, tl.div_rn(1.0 - share, start) + tl.div_rn(share, start * 0 + end)
        )
    else:
        depths = start + share * (end - start)

    decoder = (w1, b1, w2, b2)
    sizes = (C, HIDDEN_SIZE, F)
    if FINE > 0:
        point = _points(ray, origins, directions, depths, scale)
        value = _features(image, point, factor, grid, AXES, CHANNELS, DEEP)
        density, _ = _decode(value, decoder, sizes, False, HIDDEN, PART, COLOURS)
        weights = _composite(depths, density, COARSE)
        i = tl.arange(0, SECOND)
        share = tl.div_rn(i.to(tl.float32) + 0.5, tl.full([SECOND], FINE, tl.float32))
        if U:
            share = tl.load(u + ray.to(tl.int64) * FINE + i, mask=i < FINE, other=0.0)
        depths = _joined(depths, _fine_depths(depths, weights, share, COARSE), COARSE, FINE, SAMPLES)

    point = _points(ray, origins, directions, depths, scale)
    value = _features(image, point, factor, grid, AXES, CHANNELS, DEEP)
    density, colours = _decode(value, decoder, sizes, True, HIDDEN, PART, COLOURS)
    colours = tl.sigmoid(colours)
    j = tl.arange(0, SAMPLES)
    exists = j < COARSE + FINE
    weights = _composite(depths, density, COARSE + FINE)
    before = tl.where(j == 0, 0.0, _shifted(weights, -1))
    # A colour belongs to the intervals on either side of its sample.
    shares = tl.where(exists, (before + weights) / 2.0, 0.0)
    total = tl.sum(weights, 0)
    colour = 1.002 * tl.sum(tl.where(exists[:, None], shares[:, None] * colours, 0.0), 0) - 0.001 * total
    if WHITE:
        colour = colour + (1.0 - total)
    f = tl.arange(0, COLOURS)
    tl.store(features + ray.to(tl.int64) * F + f, (2.0 * colour - 1.0).to(features.dtype.element_ty), mask=f < F)
    middles = tl.where(j < COARSE + FINE - 1, (depths + _shifted(depths, 1)) / 2.0, 0.0)
    furthest = tl.sum(tl.where(j == COARSE + FINE - 1, depths, 0.0), 0)
    mean = tl.sum(weights * middles, 0) / total
    tl.store(depth + ray, tl.where(total == 0.0, furthest, mean))
    tl.store(opacity + ray, total)


@triton.jit
def sample_kernel(
    planes,  # [B, 3, C, H, W] or [B, 3, C, D, H, W], channels next to each other
    points,  # [B, N, 3]
    out,  # [B, N, C] or [B, 3, N, C]
    N,
    C,
    D,
    H,
    W,
    batch_stride,
    plane_stride,
    z_stride,
    y_stride,
    x_stride,
    scale,
    factor,
    AXES: tl.constexpr,
    DEEP: tl.constexpr,  # planes have a depth, D
    REDUCE: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Grid: (blocks of points, B)."""
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    real = n < N
    at = points + (b * N + n) * 3
    point = (
        tl.load(at, mask=real, other=0.0) * scale,
        tl.load(at + 1, mask=real, other=0.0) * scale,
        tl.load(at + 2, mask=real, other=0.0) * scale,
    )
    image = planes + b * batch_stride
    grid = (C, D, H, W, plane_stride, z_stride, y_stride, x_stride)
    c = tl.arange(0, CHANNELS)
    exists = real[:, None] & (c < C)[None, :]
    if REDUCE:
        value = _features(image, point, factor, grid, AXES, CHANNELS, DEEP)
        tl.store(out + (b * N + n)[:, None] * C + c[None, :], value.to(out.dtype.element_ty), mask=exists)
    else:
        nothing = (point[0] - point[0]) + (point[1] - point[1]) + (point[2] - point[2])
        for k in tl.range(3):
            value = _read(image, k, point, grid, AXES, CHANNELS, DEEP) + nothing[:, None]
            place = out + ((b * 3 + k) * N + n)[:, None] * C + c[None, :]
            tl.store(place, value.to(out.dtype.element_ty), mask=exists)


Launch = tuple[Any, tuple[int, ...], list[Any], dict[str, Any], dict[str, Any]]


def refuse(call: TriplaneCall) -> str | None:
    """Why the Triton kernels cannot run `call`, or None. Device and dtype have been checked; channels may lie anywhere,
    since `run` gets them next to each other.
    """
    planes = call.planes
    batch, channels = len(planes), planes.shape[2]
    if batch > 65535 or planes[0].numel() >= 2**31:
        size = "x".join(map(str, planes.shape[1:]))
        return f"{batch} images of {size}, it takes 65535 images of fewer than 2^31 values"
    if call.decoder is None:
        return _too_wide(channels) or refuse_device(planes.device)
    hidden, outputs = len(call.decoder.b1), len(call.decoder.b2)
    if max(call.coarse, call.fine) > _MOST_SAMPLES:
        return f"{call.coarse} and {call.fine} samples of a ray, it takes at most {_MOST_SAMPLES} of each"
    return _too_wide(max(channels, hidden, outputs - 1)) or refuse_device(planes.device)


def _too_wide(most: int) -> str | None:
    if most <= _MOST_WIDE:
        return None
    return f"{most} channels, hidden units or colours, it takes at most {_MOST_WIDE}"


def run(call: TriplaneCall) -> None:
    """Run `call`, whose planes have their channels next to each other, on the current stream of its device."""
    if INTERPRETED:
        _launch(call)
        return
    with torch.cuda.device(call.planes.device):
        _launch(call)


def _launch(call: TriplaneCall) -> None:
    kernel, grid, arguments, constants, options = launches(call)[0]
    kernel[grid](*arguments, **constants, **options)


def launches(call: TriplaneCall) -> list[Launch]:
    """(kernel, grid, arguments, constants, options) of each launch of `call`: one."""
    return [_sample_launch(call) if call.op == "sample_planes" else _render_launch(call)]


def _padded(size: int, least: int = _LEAST) -> int:
    return max(least, triton.next_power_of_2(size))


def _plane_numbers(call: TriplaneCall) -> tuple[list[int], list[float], dict[str, Any]]:
    """Sizes; strides, the scale of points and the factor of the sum; what is known when the kernel is compiled."""
    deep = call.planes.dim() == 6
    planes = call.planes if deep else call.planes.unsqueeze(3)
    strides = planes.stride()
    numbers = [*strides[:2], *strides[3:], 2.0 / call.box, 1 / 3 if call.reduce == "mean" else 1.0]
    axes = tuple(axis for plane in AXES[call.axes] for axis in plane)
    return list(planes.shape[2:]), numbers, {"AXES": axes, "DEEP": deep}


def _sample_launch(call: TriplaneCall) -> Launch:
    assert call.points is not None
    batch, channels = len(call.planes), call.planes.shape[2]
    sizes, numbers, constants = _plane_numbers(call)
    count, wide = call.points.shape[1], _padded(channels, 1)
    points = max(1, min(1024 // wide, triton.next_power_of_2(count)))
    arguments = [call.planes, call.points, call.features, count, *sizes, *numbers]
    constants |= {"REDUCE": call.reduce is not None, "CHANNELS": wide, "POINTS": points}
    return sample_kernel, (triton.cdiv(count, points), batch), arguments, constants, {"num_warps": 4}


def _render_launch(call: TriplaneCall) -> Launch:
    assert call.decoder is not None and call.origins is not None
    batch, channels = len(call.planes), call.planes.shape[2]
    sizes, numbers, constants = _plane_numbers(call)
    rays, hidden, outputs = call.origins.shape[1], len(call.decoder.b1), len(call.decoder.b2)
    # An absent tensor is never read.
    jitter, u = (call.near if each is None else each for each in (call.jitter, call.u))
    tensors = [call.planes, call.origins, call.directions, *call.decoder, call.near, call.far, jitter, u]
    tensors += [call.features, call.depth, call.opacity]
    samples = _padded(call.coarse + call.fine)
    constants |= {
        "COARSE": call.coarse,
        "FINE": call.fine,
        "JITTER": call.jitter is not None,
        "U": call.u is not None,
        "WHITE": call.white_back,
        "DISPARITY": call.disparity,
        "CHANNELS": _padded(channels),
        "HIDDEN": _padded(hidden),
        "PART": min(_padded(hidden), 32 if samples <= 128 else 16),
        "COLOURS": _padded(outputs - 1),
        "FIRST": _padded(call.coarse),
        "SECOND": _padded(call.fine),
        "SAMPLES": samples,
    }
    # A warp to 16 samples, the rows of a matrix instruction; more than eight would have too few registers each.
    options = {"num_warps": min(8, max(4, samples // _LEAST))}
    arguments = [*tensors, rays, *sizes, hidden, outputs - 1, *numbers]
    return render_kernel, (batch * rays,), arguments, constants, options
