"""The `raster` hot path in Triton: clear, draw the small triangles, draw the large ones, resolve. Formulas and costs:
README.md.

What is visible at a pixel is one number of 64 bits, the depth in its upper half, the triangle in its lower one, and the
smallest wins by an atomic minimum: the nearest triangle, of equally near ones the first. A minimum does not depend on
the order of its arguments, so neither does the result. The bits of a float are made to rise with it by turning those of
a negative one over; z has no NaN and no infinity here.

Coverage is decided as in the reference, in whole numbers of 64 bits: corners lie below 2^28 subpixels, so an edge
function below 2^59.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from fastface.kernels.raster.raster_reference import LIMIT, SUBPIXELS
from fastface.kernels.triton_device import INTERPRETED, processors

if TYPE_CHECKING:
    from fastface.ops.raster import RasterCall

__all__ = ["INTERPRETED", "launches", "run"]

_LIMIT = tl.constexpr(LIMIT)
_SUBPIXELS = tl.constexpr(SUBPIXELS)
_NOTHING = tl.constexpr(2**63 - 1)  # the key of an uncovered pixel, larger than any other
# Of the pixels of its bounding box, how many a triangle may have to be drawn by one thread. A face of 50,000 triangles
# on 256 x 256 pixels has four each; a thread that walks many would hold up the other 31 of its warp.
_SMALL = tl.constexpr(64)
_HUGE = tl.constexpr(4096)  # the same for one program; one that fills the image is cut into slices


@triton.jit
def clear_kernel(
    keys,  # [B, H, W]
    queued,  # [2]
    skipped,  # [B]
    pixels,  # B H W
    B,
    BLOCK: tl.constexpr,
):
    """Grid: blocks of pixels, at least B."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(keys + at, tl.full([BLOCK], _NOTHING, tl.int64), mask=at < pixels)
    tl.store(skipped + at, tl.zeros([BLOCK], tl.int32), mask=at < B)
    tl.store(queued + at, tl.zeros([BLOCK], tl.int32), mask=at < 2)


@triton.jit
def _corner(vertices, triangles, b, t, exists, V, CORNER: tl.constexpr):
    """(x, y, z) of a corner, and whether it exists. `t` counts in 64 bits."""
    index = tl.load(triangles + t * 3 + CORNER, mask=exists, other=-1)
    known = (index >= 0) & (index < V)
    at = vertices + (b * V + index) * 3
    x = tl.load(at, mask=known, other=0.0)
    y = tl.load(at + 1, mask=known, other=0.0)
    z = tl.load(at + 2, mask=known, other=0.0)
    return x, y, z, known


@triton.jit
def _usable(x, y, z):
    """Whether a corner is finite and not too far off; false for NaN."""
    return (tl.abs(x) < _LIMIT) & (tl.abs(y) < _LIMIT) & (tl.abs(z) < float("inf"))


@triton.jit
def _snap(place):
    """Pixels to whole subpixels, half up."""
    return tl.floor(place * _SUBPIXELS + 0.5).to(tl.int64)


@triton.jit
def _cross(ax, ay, bx, by, px, py):
    """Twice the signed area of the triangle a, b, p, positive clockwise on the screen, y being down."""
    return (bx - ax) * (py - ay) - (by - ay) * (px - ax)


@triton.jit
def _box(a, b, c, size):
    """(first, number) of the pixel centres between three corners along one axis of the image."""
    # By 256, the subpixels of a pixel; a shift rounds down, where `//` would round to zero.
    low = tl.maximum((tl.minimum(tl.minimum(a, b), c) + 255) >> 8, 0)
    high = tl.minimum(tl.maximum(tl.maximum(a, b), c) >> 8, size - 1)
    return low.to(tl.int32), tl.maximum(high - low + 1, 0).to(tl.int32)


@triton.jit
def _triangle(vertices, triangles, b, t, exists, V, H, W, CULL: tl.constexpr):
    """Triangle t of image b, its corners clockwise on the screen: (corners in subpixels and their z), its bounding box
    (empty for one that is not drawn), and whether it is usable.
    """
    x0, y0, z0, known0 = _corner(vertices, triangles, b, t, exists, V, 0)
    x1, y1, z1, known1 = _corner(vertices, triangles, b, t, exists, V, 1)
    x2, y2, z2, known2 = _corner(vertices, triangles, b, t, exists, V, 2)
    usable = known0 & known1 & known2 & _usable(x0, y0, z0) & _usable(x1, y1, z1) & _usable(x2, y2, z2)
    x0 = _snap(tl.where(usable, x0, 0.0))
    y0 = _snap(tl.where(usable, y0, 0.0))
    x1 = _snap(tl.where(usable, x1, 0.0))
    y1 = _snap(tl.where(usable, y1, 0.0))
    x2 = _snap(tl.where(usable, x2, 0.0))
    y2 = _snap(tl.where(usable, y2, 0.0))
    area = _cross(x0, y0, x1, y1, x2, y2)
    drawn = usable & (area != 0)
    if CULL == 1:
        drawn = drawn & (area < 0)
    if CULL == 2:
        drawn = drawn & (area > 0)
    left, columns = _box(x0, x1, x2, W)
    top, rows = _box(y0, y1, y2, H)
    columns = tl.where(drawn, columns, 0)
    back = area < 0
    corners = (
        (x0, y0, z0),
        (tl.where(back, x2, x1), tl.where(back, y2, y1), tl.where(back, z2, z1)),
        (tl.where(back, x1, x2), tl.where(back, y1, y2), tl.where(back, z1, z2)),
    )
    return corners, (left, top, columns, rows), usable


@triton.jit
def _within(ax, ay, bx, by, px, py):
    """Whether p lies on the inner side of the edge from a to b, or on it where that is a top or a left edge."""
    dx = bx - ax
    dy = by - ay
    edge = dx * (py - ay) - dy * (px - ax)
    return (edge > 0) | ((edge == 0) & ((dy < 0) | ((dy == 0) & (dx > 0))))


@triton.jit
def _weights(ax, ay, bx, by, cx, cy, px, py):
    """Barycentric coordinates of p: whole numbers, rounded when they are divided."""
    area = _cross(ax, ay, bx, by, cx, cy).to(tl.float32)
    zero = tl.zeros_like(px).to(tl.float32)
    wa = tl.div_rn(_cross(bx, by, cx, cy, px, py).to(tl.float32), area + zero)
    wb = tl.div_rn(_cross(cx, cy, ax, ay, px, py).to(tl.float32), area + zero)
    wc = tl.div_rn(_cross(ax, ay, bx, by, px, py).to(tl.float32), area + zero)
    return wa, wb, wc


@triton.jit
def _draw(image, t, corners, x, y, exists, W):
    """Lower the keys of the pixels (x, y) that triangle t covers. `image` points to the keys of its image."""
    ax, ay, az = corners[0]
    bx, by, bz = corners[1]
    cx, cy, cz = corners[2]
    px = x.to(tl.int64) * _SUBPIXELS
    py = y.to(tl.int64) * _SUBPIXELS
    inside = _within(ax, ay, bx, by, px, py) & _within(bx, by, cx, cy, px, py) & _within(cx, cy, ax, ay, px, py)
    _, wb, wc = _weights(ax, ay, bx, by, cx, cy, px, py)
    z = az + (wb * (bz - az) + wc * (cz - az))  # so that a triangle whose corners are equally deep is so everywhere
    z = tl.where(z == 0.0, 0.0, z)  # of -0 and 0 neither is nearer
    bits = z.to(tl.int32, bitcast=True)
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = (rising.to(tl.int64) << 32) | t
    tl.atomic_min(image + y.to(tl.int64) * W + x, key, mask=exists & inside & (z < float("inf")), sem="relaxed")


@triton.jit
def _append(queue, length, entry, chosen):
    """Add the chosen entries to a queue."""
    number = chosen.to(tl.int32)
    total = tl.sum(number, 0)
    first = tl.atomic_add(length, total, mask=total > 0, sem="relaxed")
    tl.store(queue + (first + tl.cumsum(number, 0) - 1), entry, mask=chosen)


@triton.jit(do_not_specialize=["B", "T", "V", "H", "W"])
def small_kernel(
    vertices,  # [B, V, 3]
    triangles,  # [T, 3]
    keys,  # [B, H, W]
    queue,  # [2, B T]
    queued,  # [2]
    skipped,  # [B]
    B,
    T,
    V,
    H,
    W,
    CULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: B blocks of triangles, one thread each. What is not small goes to two queues, in an order that does not
    matter.
    """
    blocks = tl.cdiv(T, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = t < T
    corners, box, usable = _triangle(vertices, triangles, b, t, exists, V, H, W, CULL)
    left, top, columns, rows = box
    lost = tl.sum((exists & (usable == 0)).to(tl.int32), 0)
    tl.atomic_add(skipped + b, lost, mask=lost > 0, sem="relaxed")

    pixels = columns * rows
    _append(queue, queued, (b << 32) | t, (pixels > _SMALL) & (pixels <= _HUGE))
    _append(queue + B.to(tl.int64) * T, queued + 1, (b << 32) | t, pixels > _HUGE)

    pixels = tl.where(pixels > _SMALL, 0, pixels)
    width = tl.maximum(columns, 1)
    image = keys + b * H * W
    for i in tl.range(0, tl.max(pixels, 0)):
        _draw(image, t, corners, left + i % width, top + i // width, i < pixels, W)


@triton.jit
def _fill(vertices, triangles, keys, entry, first, step, V, H, W, CULL: tl.constexpr, BLOCK: tl.constexpr):
    """Draw blocks first, first + step, ... of the pixels of a triangle's bounding box."""
    b = entry >> 32
    t = entry & 0x7FFFFFFF
    corners, box, _ = _triangle(vertices, triangles, b, t, True, V, H, W, CULL)
    left, top, columns, rows = box
    for start in tl.range(first * BLOCK, columns * rows, step * BLOCK):
        i = start + tl.arange(0, BLOCK)
        _draw(keys + b * H * W, t, corners, left + i % columns, top + i // columns, i < columns * rows, W)


@triton.jit(do_not_specialize=["B", "T", "V", "H", "W"])
def large_kernel(
    vertices,  # [B, V, 3]
    triangles,  # [T, 3]
    keys,  # [B, H, W]
    queue,  # [2, B T]
    queued,  # [2]
    B,
    T,
    V,
    H,
    W,
    CULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (programs, slices), as many as the device runs at once. Each takes whole triangles of the first queue and
    its slice of triangles of the second.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    part = tl.program_id(1)
    slices = tl.num_programs(1)
    for item in tl.range(program * slices + part, tl.load(queued), programs * slices):
        _fill(vertices, triangles, keys, tl.load(queue + item), 0, 1, V, H, W, CULL, BLOCK)
    second = queue + B.to(tl.int64) * T
    for item in tl.range(program, tl.load(queued + 1), programs):
        _fill(vertices, triangles, keys, tl.load(second + item), part, slices, V, H, W, CULL, BLOCK)


@triton.jit(do_not_specialize=["A", "V", "H", "W"])
def resolve_kernel(
    keys,  # [B, H, W]
    vertices,  # [B, V, 3]
    triangles,  # [T, 3]
    attributes,  # [T, A] or [V, A]
    image,  # [B, A, H, W]
    triangle,  # [B, H, W]
    depth,  # [B, H, W]
    A,
    V,
    H,
    W,
    PER_VERTEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: B blocks of pixels."""
    blocks = tl.cdiv(H * W, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < H * W
    at = b * H * W + pixel
    key = tl.load(keys + at, mask=exists, other=_NOTHING)
    covered = key != _NOTHING
    t = key & 0x7FFFFFFF
    rising = (key >> 32).to(tl.int32)
    z = tl.where(rising < 0, rising ^ 0x7FFFFFFF, rising).to(tl.float32, bitcast=True)
    tl.store(triangle + at, tl.where(covered, t.to(tl.int32), -1), mask=exists)
    tl.store(depth + at, tl.where(covered, z, float("inf")), mask=exists)

    target = image + b * A * H * W + pixel
    if PER_VERTEX:
        i0 = tl.load(triangles + t * 3, mask=covered, other=0).to(tl.int64)
        i1 = tl.load(triangles + t * 3 + 1, mask=covered, other=0).to(tl.int64)
        i2 = tl.load(triangles + t * 3 + 2, mask=covered, other=0).to(tl.int64)
        x0, y0 = _place(vertices, b * V + i0, covered)
        x1, y1 = _place(vertices, b * V + i1, covered)
        x2, y2 = _place(vertices, b * V + i2, covered)
        px = (pixel % W).to(tl.int64) * _SUBPIXELS
        py = (pixel // W).to(tl.int64) * _SUBPIXELS
        w0, w1, w2 = _weights(x0, y0, x1, y1, x2, y2, px, py)
    for a in tl.range(0, A):
        if PER_VERTEX:
            value = w0 * tl.load(attributes + i0 * A + a, mask=covered, other=0.0).to(tl.float32)
            value += w1 * tl.load(attributes + i1 * A + a, mask=covered, other=0.0).to(tl.float32)
            value += w2 * tl.load(attributes + i2 * A + a, mask=covered, other=0.0).to(tl.float32)
            value = tl.where(covered, value, 0.0)
        else:
            value = tl.load(attributes + t * A + a, mask=covered, other=0.0)
        tl.store(target, value.to(image.dtype.element_ty), mask=exists)
        target += H * W


@triton.jit
def _place(vertices, index, exists):
    """(x, y) of a vertex in subpixels."""
    x = tl.load(vertices + index * 3, mask=exists, other=0.0)
    y = tl.load(vertices + index * 3 + 1, mask=exists, other=0.0)
    return _snap(x), _snap(y)


_BLOCK = 128
_CLEARED = 1024  # pixels per program where one only stores
_SLICES = 32  # programs of one warp that a processor holds


def run(call: RasterCall) -> None:
    """Run `call` into its outputs, on the current stream of its device."""
    if INTERPRETED:
        _launch(call, 1)
        return
    with torch.cuda.device(call.vertices.device):
        _launch(call, processors(call.vertices.device.index))


def _launch(call: RasterCall, processors: int) -> None:
    for kernel, grid, arguments, constants, options in launches(call, processors):
        kernel[grid](*arguments, **constants, **options)


def launches(
    call: RasterCall, processors: int
) -> list[tuple[Any, tuple[int, ...], list[Any], dict[str, Any], dict[str, Any]]]:
    """(kernel, grid, arguments, constants, options) of each launch that draws `call`, in order."""
    vertices, triangles, attributes = call.vertices, call.triangles, call.attributes
    batch, corners, _ = vertices.shape
    height, width = call.out.depth.shape[1:]
    pixels, count = batch * height * width, len(triangles)
    keys = vertices.new_empty(pixels, dtype=torch.int64)
    queue = vertices.new_empty(2 * batch * count, dtype=torch.int64)
    queued = vertices.new_empty(2, dtype=torch.int32)
    cull = {None: 0, "back": 1, "front": 2}[call.cull]
    size = [corners, height, width]
    cleared = max(triton.cdiv(pixels, _CLEARED), triton.cdiv(batch, _CLEARED))
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return [
        (clear_kernel, (cleared,), [keys, queued, call.out.skipped, pixels, batch], {"BLOCK": _CLEARED}, options),
        (
            small_kernel,
            (batch * triton.cdiv(count, _BLOCK),),
            [vertices, triangles, keys, queue, queued, call.out.skipped, batch, count, *size],
            {"CULL": cull, "BLOCK": _BLOCK},
            options,
        ),
        (
            large_kernel,
            (processors, _SLICES),
            [vertices, triangles, keys, queue, queued, batch, count, *size],
            {"CULL": cull, "BLOCK": 64},
            options | {"num_warps": 1},
        ),
        (
            resolve_kernel,
            (batch * triton.cdiv(height * width, _BLOCK),),
            [keys, vertices, triangles, attributes, call.out.image, call.out.triangle, call.out.depth]
            + [attributes.shape[1], *size],
            {"PER_VERTEX": call.per_vertex, "BLOCK": _BLOCK},
            options,
        ),
    ]
