"""The `warp` hot path in Triton: four kernels, each one pass over its output. Formulas, costs and measurements:
README.md.

A translation moves a voxel i of an axis of n voxels to the pixel ``i + i/(n-1) - 1/2 + n/2 (kp_source - kp_driving)``
(or, with align_corners, ``i + (n-1)/2 (kp_source - kp_driving)``): every axis on its own, so no grid exists in memory.
Written like this the large number i enters exactly and is rounded once. With `linear` the shift depends on the
voxel: what the motion adds to its coordinate.

Zeros outside come from the mask of the load and never from a zero weight, so that a NaN or an infinity beside the
border does not leak in, and one inside the volume is not lost, as in ``grid_sample``. A coordinate is clamped before it
becomes an integer, and a NaN coordinate keeps its NaN in the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from fastface.kernels.triton_device import INTERPRETED, capability, processors, refuse_device

if TYPE_CHECKING:
    from fastface.ops.warp import WarpCall

__all__ = ["INTERPRETED", "refuse", "run"]

_GRID_LIMIT = 65535  # CUDA's limit on the second and third grid axis


@dataclass(frozen=True)
class Config:
    """How one kernel is cut: voxels per program and the warps that share them, channels per pass, logits in flight."""

    block: int
    warps: int
    channels: int = 1
    chunk: int = 8
    stages: int = 1


# One voxel per thread: neighbouring lanes then gather neighbouring addresses, and a scalar store of a warp is a full
# 128-byte line in float32. Two or four voxels per thread would make each gather of a warp touch two or four times as
# many lines. More loads in flight come from the channels, which are independent: 8 corners each. With the channels
# last, a tile of 32 voxels x 32 channels gives every thread 16-byte pieces of both. `stages` stays 1: nothing here
# feeds a tensor core, and the software pipeliner would only add shared memory. Chosen from registers (under 128, no
# spills), not from timings: no GPU has run them yet. Keys: (op, layout), then the compute capability (90 for 9.0) or
# "any".
_CONFIGS: dict[tuple[str, str], dict[int | str, Config]] = {
    ("pack_motions", "first"): {"any": Config(block=128, warps=4)},
    ("motion_field", "first"): {
        "any": Config(block=128, warps=4),
        100: Config(block=128, warps=4, chunk=4),
    },
    ("compose_flow", "first"): {
        "any": Config(block=128, warps=4, channels=2),
        100: Config(block=128, warps=4, channels=2, chunk=4),
    },
    ("compose_flow", "last"): {
        "any": Config(block=32, warps=4, channels=32),
        100: Config(block=32, warps=8, channels=32, chunk=4),
    },
    ("compose_volumes", "first"): {
        "any": Config(block=128, warps=4, channels=4),
        100: Config(block=128, warps=4, channels=2),
    },
    ("compose_volumes", "last"): {"any": Config(block=32, warps=4, channels=32)},
}


@triton.jit
def _inverse(n):
    """1 / (n - 1), or 0 on an axis of one voxel."""
    return tl.where(n > 1, 1.0 / tl.maximum(n - 1, 1).to(tl.float32), 0.0)


@triton.jit
def _grid(i, n):
    """The coordinate of voxel i, ``2 i / (n - 1) - 1``, rounded once; 0 on an axis of one voxel."""
    numerator = (2 * i - (n - 1)).to(tl.float32)
    return tl.div_rn(numerator, tl.maximum(n - 1, 1).to(tl.float32) + tl.zeros_like(numerator))


@triton.jit
def _scale(n, ALIGN: tl.constexpr):
    """Pixels per unit of coordinate."""
    return (n - 1).to(tl.float32) * 0.5 if ALIGN else n.to(tl.float32) * 0.5


@triton.jit
def _shifted_pixel(i, shift, n, ALIGN: tl.constexpr):
    """The pixel of voxel i moved by `shift` in coordinates."""
    at = i.to(tl.float32)
    offset = shift * _scale(n, ALIGN)
    if not ALIGN:
        offset = at * _inverse(n) + (offset - tl.where(n > 1, 0.5, 0.0))
    return at + offset


@triton.jit
def _split(pixel, n):
    """A pixel coordinate as (index of its lower neighbour, weight of the upper one)."""
    nan = pixel != pixel
    clamped = tl.minimum(tl.maximum(tl.where(nan, -2.0, pixel), -2.0), n.to(tl.float32) + 1.0)
    lower = tl.floor(clamped)
    return lower.to(tl.int32), tl.where(nan, pixel, clamped - lower)


@triton.jit
def _sample(base, z0, y0, x0, wz, wy, wx, active, D, H, W, stride_z, stride_y, stride_x, WIDE: tl.constexpr):
    """Trilinear sample, zeros outside. `base` are pointers to voxel 0 of a channel; the other arguments broadcast
    against them.
    """
    result = tl.zeros(active.shape, tl.float32)
    for corner in tl.static_range(8):
        z = z0 + corner // 4
        y = y0 + corner // 2 % 2
        x = x0 + corner % 2
        weight = (wz if corner // 4 == 1 else 1.0 - wz) * (wy if corner // 2 % 2 == 1 else 1.0 - wy)
        weight = weight * (wx if corner % 2 == 1 else 1.0 - wx)
        inside = (z >= 0) & (z < D) & (y >= 0) & (y < H) & (x >= 0) & (x < W) & active
        if WIDE:
            offset = z.to(tl.int64) * stride_z + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
        else:
            offset = z * stride_z + y * stride_y + x * stride_x
        result += tl.load(base + offset, mask=inside, other=0.0).to(tl.float32) * weight
    return result


@triton.jit
def _point(keypoints, b, k, K):
    """Keypoint of motion k of image b, (x, y, z); zeros for the background, k = 0, and past the last."""
    at = keypoints + (b * K + k - 1) * 3
    real = (k <= K) & (k > 0)
    x = tl.load(at, mask=real, other=0.0)
    y = tl.load(at + 1, mask=real, other=0.0)
    z = tl.load(at + 2, mask=real, other=0.0)
    return x, y, z


@triton.jit
def _shift(kp_source, kp_driving, b, k, K):
    """What the translation k adds to a coordinate."""
    sx, sy, sz = _point(kp_source, b, k, K)
    dx, dy, dz = _point(kp_driving, b, k, K)
    return sx - dx, sy - dy, sz - dz


@triton.jit
def _row(at, real, ox, oy, oz, ROW: tl.constexpr):
    """Row ROW of A - 1 times an offset; 0 for the background."""
    a0 = tl.load(at + ROW * 3, mask=real, other=1.0 if ROW == 0 else 0.0) - (1.0 if ROW == 0 else 0.0)
    a1 = tl.load(at + ROW * 3 + 1, mask=real, other=1.0 if ROW == 1 else 0.0) - (1.0 if ROW == 1 else 0.0)
    a2 = tl.load(at + ROW * 3 + 2, mask=real, other=1.0 if ROW == 2 else 0.0) - (1.0 if ROW == 2 else 0.0)
    return a0 * ox + a1 * oy + a2 * oz


@triton.jit
def _motion(kp_source, kp_driving, linear, b, k, K, gx, gy, gz, LINEAR: tl.constexpr):
    """What motion k adds to the coordinate g, ``(A_k - 1) (g - kp_driving_k) + kp_source_k - kp_driving_k``. LINEAR 0:
    no A, 1: one per image, 2: one per keypoint.

    Taken relative to g like this, a motion near the identity keeps digits that a coordinate would lose.
    """
    mx, my, mz = _shift(kp_source, kp_driving, b, k, K)
    if LINEAR != 0:
        dx, dy, dz = _point(kp_driving, b, k, K)
        real = (k <= K) & (k > 0)
        at = linear + (b * 9 if LINEAR == 1 else (b * K + k - 1) * 9)
        ox = gx - dx
        oy = gy - dy
        oz = gz - dz
        mx = _row(at, real, ox, oy, oz, 0) + mx
        my = _row(at, real, ox, oy, oz, 1) + my
        mz = _row(at, real, ox, oy, oz, 2) + mz
    return mx, my, mz


@triton.jit
def _motion_pixels(kp_source, kp_driving, linear, b, k, K, z, y, x, D, H, W, LINEAR: tl.constexpr, ALIGN: tl.constexpr):
    """Where motion k sends voxel (z, y, x), in pixels."""
    mx, my, mz = _motion(kp_source, kp_driving, linear, b, k, K, _grid(x, W), _grid(y, H), _grid(z, D), LINEAR)
    pz = _shifted_pixel(z, mz, D, ALIGN)
    py = _shifted_pixel(y, my, H, ALIGN)
    px = _shifted_pixel(x, mx, W, ALIGN)
    return pz, py, px


@triton.jit
def _voxels(D, H, W, BLOCK: tl.constexpr):
    """The voxels of this program: (z, y, x, which of them exist), each [BLOCK]."""
    voxel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    active = voxel < D.to(tl.int64) * H * W
    voxel = voxel.to(tl.int32)  # the volume has fewer than 2^31 voxels; what lies past its end is masked
    return voxel // (W * H), voxel // W % H, voxel % W, active


@triton.jit
def _spatial(z, y, x, stride_z, stride_y, stride_x, WIDE: tl.constexpr):
    """Offset of a voxel inside its channel."""
    if WIDE:
        return z.to(tl.int64) * stride_z + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    return z * stride_z + y * stride_y + x * stride_x


@triton.jit
def _blend(
    logits,
    stride_k,
    active,
    kp_source,
    kp_driving,
    linear,
    b,
    K,
    z,
    y,
    x,
    D,
    H,
    W,
    LINEAR: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """``sum_k softmax(logits)_k m_k`` with m_k what motion k adds to a coordinate: (x, y, z), each [BLOCK].

    Online softmax, CHUNK logits at a time: each is read once, CHUNK loads are in flight, and registers do not grow with
    K. The subtracted maximum is 0 as long as it is -inf, so that motions switched off add nothing; all of them off
    gives 0 / 0 = NaN.
    """
    gx = _grid(x, W)
    gy = _grid(y, H)
    gz = _grid(z, D)
    top = tl.full(active.shape, float("-inf"), tl.float32)
    total = tl.zeros(active.shape, tl.float32)
    fx = total
    fy = total
    fz = total
    at = logits
    last = tl.where(active, K, -1)  # the last motion to read, per voxel
    for first in tl.range(0, K + 1, CHUNK):
        values = ()
        raised = top
        for i in tl.static_range(CHUNK):
            value = tl.load(at, mask=last >= first + i, other=float("-inf")).to(tl.float32)
            at += stride_k
            raised = tl.maximum(raised, value)
            values = values + (value,)
        subtracted = tl.where(raised == float("-inf"), 0.0, raised)
        kept = tl.exp(top - subtracted)
        top = raised
        total *= kept
        fx *= kept
        fy *= kept
        fz *= kept
        for i in tl.static_range(CHUNK):
            e = tl.exp(values[i] - subtracted)
            total += e
            mx, my, mz = _motion(kp_source, kp_driving, linear, b, first + i, K, gx, gy, gz, LINEAR)
            fx += e * mx
            fy += e * my
            fz += e * mz
    return fx / total, fy / total, fz / total


@triton.jit
def _maximum(logits, stride_k, active, K):
    """The largest of the K + 1 logits of each voxel."""
    top = tl.full(active.shape, float("-inf"), tl.float32)
    at = logits
    for _ in tl.range(0, K + 1, loop_unroll_factor=4):
        top = tl.maximum(top, tl.load(at, mask=active, other=0.0).to(tl.float32))
        at += stride_k
    return top


@triton.jit(do_not_specialize=["K", "C", "D", "H", "W"])
def pack_motions_fwd_kernel(
    feature,  # [B, C, D, H, W]
    kp_source,  # [B, K, 3]
    kp_driving,  # [B, K, 3]
    linear,  # [B, 3, 3] or [B, K, 3, 3]
    out,  # [B, (K+1)*(C+1), D, H, W]
    K,
    C,
    D,
    H,
    W,
    feature_b,
    feature_c,
    feature_z,
    feature_y,
    feature_x,
    out_b,
    out_c,
    out_z,
    out_y,
    out_x,
    inverse_two_sigma2,
    LINEAR: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (voxel tiles, K + 1, B). A program writes the C + 1 channels of one motion for BLOCK voxels."""
    k = tl.program_id(1)
    b = tl.program_id(2)
    z, y, x, active = _voxels(D, H, W, BLOCK)
    pz, py, px = _motion_pixels(kp_source, kp_driving, linear, b, k, K, z, y, x, D, H, W, LINEAR, ALIGN)
    z0, wz = _split(pz, D)
    y0, wy = _split(py, H)
    x0, wx = _split(px, W)

    sx, sy, sz = _point(kp_source, b, k, K)
    dx, dy, dz = _point(kp_driving, b, k, K)
    gx = _grid(x, W)
    gy = _grid(y, H)
    gz = _grid(z, D)
    minus = -tl.cast(inverse_two_sigma2, tl.float32)
    driving = tl.exp(((gx - dx) * (gx - dx) + (gy - dy) * (gy - dy) + (gz - dz) * (gz - dz)) * minus)
    source = tl.exp(((gx - sx) * (gx - sx) + (gy - sy) * (gy - sy) + (gz - sz) * (gz - sz)) * minus)

    # The background's two keypoints are both read as the origin, so its heatmap is zero without a case of its own.
    target = out + b.to(tl.int64) * out_b + k.to(tl.int64) * (C + 1) * out_c
    target = target + _spatial(z, y, x, out_z, out_y, out_x, WIDE)
    tl.store(target, (driving - source).to(out.dtype.element_ty), mask=active)
    base = feature + b.to(tl.int64) * feature_b
    for _ in tl.range(0, C, loop_unroll_factor=2):
        value = _sample(base, z0, y0, x0, wz, wy, wx, active, D, H, W, feature_z, feature_y, feature_x, WIDE)
        target += out_c
        tl.store(target, value.to(out.dtype.element_ty), mask=active)
        base += feature_c


@triton.jit(do_not_specialize=["K", "D", "H", "W"])
def motion_field_fwd_kernel(
    logits,  # [B, K+1, D, H, W]
    kp_source,  # [B, K, 3]
    kp_driving,  # [B, K, 3]
    linear,  # [B, 3, 3] or [B, K, 3, 3]
    out,  # [B, D, H, W, 3], float32
    K,
    D,
    H,
    W,
    logits_b,
    logits_k,
    logits_z,
    logits_y,
    logits_x,
    out_b,
    out_z,
    out_y,
    out_x,
    out_c,
    LINEAR: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (voxel tiles, 1, B)."""
    b = tl.program_id(2)
    z, y, x, active = _voxels(D, H, W, BLOCK)
    p_logits = logits + b.to(tl.int64) * logits_b + _spatial(z, y, x, logits_z, logits_y, logits_x, WIDE)
    fx, fy, fz = _blend(
        p_logits, logits_k, active, kp_source, kp_driving, linear, b, K, z, y, x, D, H, W, LINEAR, CHUNK
    )
    target = out + b.to(tl.int64) * out_b + _spatial(z, y, x, out_z, out_y, out_x, WIDE)
    tl.store(target, fx + _grid(x, W), mask=active)
    tl.store(target + out_c, fy + _grid(y, H), mask=active)
    tl.store(target + 2 * out_c, fz + _grid(z, D), mask=active)


@triton.jit
def _over_voxels(value, LAST: tl.constexpr):
    """[V] as [V, 1] of a tile with the channels last, or as [1, V]."""
    return value[:, None] if LAST else value[None, :]


@triton.jit
def _over_channels(value, LAST: tl.constexpr):
    """[N] as [1, N] of a tile with the channels last, or as [N, 1]."""
    return value[None, :] if LAST else value[:, None]


@triton.jit(do_not_specialize=["K", "D", "H", "W"])
def compose_flow_fwd_kernel(
    feature,  # [B, C, D, H, W]
    logits,  # [B, K+1, D, H, W]
    kp_source,  # [B, K, 3]
    kp_driving,  # [B, K, 3]
    linear,  # [B, 3, 3] or [B, K, 3, 3]
    occlusion,  # [B, 1, H, W]
    out,  # [B, C, D, H, W]
    K,
    C,
    D,
    H,
    W,
    feature_b,
    feature_c,
    feature_z,
    feature_y,
    feature_x,
    logits_b,
    logits_k,
    logits_z,
    logits_y,
    logits_x,
    occlusion_b,
    occlusion_y,
    occlusion_x,
    out_b,
    out_c,
    out_z,
    out_y,
    out_x,
    LINEAR: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGN: tl.constexpr,
    OCCLUDED: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    PASSES: tl.constexpr,
):
    """Grid: (voxel tiles, channel splits, B). Softmax and flow stay in registers; then CHANNELS channels at a time are
    sampled.
    """
    b = tl.program_id(2)
    z, y, x, active = _voxels(D, H, W, BLOCK)
    p_logits = logits + b.to(tl.int64) * logits_b + _spatial(z, y, x, logits_z, logits_y, logits_x, WIDE)
    fx, fy, fz = _blend(
        p_logits, logits_k, active, kp_source, kp_driving, linear, b, K, z, y, x, D, H, W, LINEAR, CHUNK
    )
    pz = _shifted_pixel(z, fz, D, ALIGN)
    py = _shifted_pixel(y, fy, H, ALIGN)
    px = _shifted_pixel(x, fx, W, ALIGN)
    z0, wz = _split(pz, D)
    y0, wy = _split(py, H)
    x0, wx = _split(px, W)
    z0 = _over_voxels(z0, LAST)
    y0 = _over_voxels(y0, LAST)
    x0 = _over_voxels(x0, LAST)
    wz = _over_voxels(wz, LAST)
    wy = _over_voxels(wy, LAST)
    wx = _over_voxels(wx, LAST)
    if OCCLUDED:
        p_occlusion = occlusion + b.to(tl.int64) * occlusion_b + _spatial(z, y, x, 0, occlusion_y, occlusion_x, WIDE)
        visible = _over_voxels(tl.load(p_occlusion, mask=active, other=0.0).to(tl.float32), LAST)

    source = feature + b.to(tl.int64) * feature_b
    target = out + b.to(tl.int64) * out_b + _over_voxels(_spatial(z, y, x, out_z, out_y, out_x, WIDE), LAST)
    exists = _over_voxels(active, LAST)
    # One pass, its bounds known to the compiler, keeps vector loads along the channels; several passes share one
    # softmax.
    first = tl.program_id(1) * (CHANNELS * PASSES)
    for step in tl.range(0, PASSES):
        c = first + step * CHANNELS + tl.arange(0, CHANNELS)
        mask = _over_channels(c < C, LAST) & exists
        wide = _over_channels(c.to(tl.int64), LAST)
        value = _sample(
            source + wide * feature_c, z0, y0, x0, wz, wy, wx, mask, D, H, W, feature_z, feature_y, feature_x, WIDE
        )
        if OCCLUDED:
            value = value * visible
        tl.store(target + wide * out_c, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["K", "D", "H", "W"])
def compose_volumes_fwd_kernel(
    feature,  # [B, C, D, H, W]
    logits,  # [B, K+1, D, H, W]
    kp_source,  # [B, K, 3]
    kp_driving,  # [B, K, 3]
    linear,  # [B, 3, 3] or [B, K, 3, 3]
    occlusion,  # [B, 1, H, W]
    out,  # [B, C, D, H, W]
    K,
    C,
    D,
    H,
    W,
    feature_b,
    feature_c,
    feature_z,
    feature_y,
    feature_x,
    logits_b,
    logits_k,
    logits_z,
    logits_y,
    logits_x,
    occlusion_b,
    occlusion_y,
    occlusion_x,
    out_b,
    out_c,
    out_z,
    out_y,
    out_x,
    LINEAR: tl.constexpr,
    ALIGN: tl.constexpr,
    OCCLUDED: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Grid: (voxel tiles, channel tiles, B). The sums over the motions stay in registers; nothing warped is stored."""
    b = tl.program_id(2)
    z, y, x, active = _voxels(D, H, W, BLOCK)
    exists = _over_voxels(active, LAST)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = _over_channels(c < C, LAST) & exists
    wide = _over_channels(c.to(tl.int64), LAST)
    source = feature + b.to(tl.int64) * feature_b + wide * feature_c

    p_logits = logits + b.to(tl.int64) * logits_b + _spatial(z, y, x, logits_z, logits_y, logits_x, WIDE)
    top = _maximum(p_logits, logits_k, active, K)
    total = tl.zeros([BLOCK], tl.float32)
    result = tl.zeros(mask.shape, tl.float32)
    for k in tl.range(0, K + 1):
        e = tl.exp(tl.load(p_logits, mask=active, other=0.0).to(tl.float32) - top)
        p_logits += logits_k
        total += e
        pz, py, px = _motion_pixels(kp_source, kp_driving, linear, b, k, K, z, y, x, D, H, W, LINEAR, ALIGN)
        z0, wz = _split(pz, D)
        y0, wy = _split(py, H)
        x0, wx = _split(px, W)
        value = _sample(
            source,
            _over_voxels(z0, LAST),
            _over_voxels(y0, LAST),
            _over_voxels(x0, LAST),
            _over_voxels(wz, LAST),
            _over_voxels(wy, LAST),
            _over_voxels(wx, LAST),
            mask,
            D,
            H,
            W,
            feature_z,
            feature_y,
            feature_x,
            WIDE,
        )
        result += value * _over_voxels(e, LAST)
    result = result / _over_voxels(total, LAST)
    if OCCLUDED:
        p_occlusion = occlusion + b.to(tl.int64) * occlusion_b + _spatial(z, y, x, 0, occlusion_y, occlusion_x, WIDE)
        result = result * _over_voxels(tl.load(p_occlusion, mask=active, other=0.0).to(tl.float32), LAST)
    target = out + b.to(tl.int64) * out_b + _over_voxels(_spatial(z, y, x, out_z, out_y, out_x, WIDE), LAST)
    tl.store(target + wide * out_c, result.to(out.dtype.element_ty), mask=mask)


_KERNELS = {
    "pack_motions": pack_motions_fwd_kernel,
    "motion_field": motion_field_fwd_kernel,
    "compose_flow": compose_flow_fwd_kernel,
    "compose_volumes": compose_volumes_fwd_kernel,
}


def config(op: str, layout: str, capability: int | None) -> Config:
    """The cut of `op` on a device of that compute capability (90 for 9.0)."""
    table = _CONFIGS[op, layout]
    return table.get(capability or "any", table["any"])


def options(call: WarpCall, cut: Config) -> dict[str, Any]:
    """What the compiler is told beside the constants.

    Fused multiply-adds round less often; their default changes between versions. With a linear part the assembler, left
    to itself, would rather spill than use more than 72 or 80 registers.
    """
    chosen = {"num_warps": cut.warps, "num_stages": cut.stages, "enable_fp_fusion": True}
    return chosen if call.linear is None else chosen | {"maxnreg": 168}


def refuse(call: WarpCall) -> str | None:
    """Why the Triton kernels cannot run `call`, or None. Device and dtypes have been checked."""
    volume = call.volume
    batch, _, depth, height, width = volume.shape
    motions = call.kp_source.shape[1] + 1
    if depth * height * width >= 2**31:
        return f"a volume of {depth}x{height}x{width} voxels, it takes fewer than 2^31"
    if batch > _GRID_LIMIT or motions > _GRID_LIMIT:
        return f"batch {batch} and {motions} motions, it takes at most {_GRID_LIMIT} of each"
    return refuse_device(volume.device)


def run(call: WarpCall) -> None:
    """Run `call` into its output, on the current stream of its device."""
    if INTERPRETED:
        _launch(call, None)
        return
    with torch.cuda.device(call.volume.device):
        _launch(call, call.volume.device.index)


def _launch(call: WarpCall, index: int | None) -> None:
    layout = _layout(call)
    cut = config(call.op, layout, None if index is None else capability(index))
    grid, arguments, constants = plan(call, cut, layout, 1 if index is None else processors(index))
    _KERNELS[call.op][grid](*arguments, **constants, **options(call, cut))


def _layout(call: WarpCall) -> str:
    """ "last" where channels are adjacent in memory and there are enough of them to fill lanes, else "first"."""
    if not call.op.startswith("compose"):
        return "first"
    assert call.feature is not None
    adjacent = call.feature.stride(1) == 1 and call.out.stride(1) == 1
    return "last" if adjacent and call.feature.shape[1] >= 4 else "first"


def _reach(tensor: torch.Tensor | None, axes: tuple[int, ...]) -> int:
    """The largest offset inside one channel."""
    return 0 if tensor is None else sum((tensor.shape[a] - 1) * abs(tensor.stride(a)) for a in axes)


def plan(
    call: WarpCall, cut: Config, layout: str, processors: int
) -> tuple[tuple[int, int, int], list[Any], dict[str, Any]]:
    """(grid, arguments, constants) of the launch of `call`."""
    batch, _, depth, height, width = call.volume.shape
    keypoints = call.kp_source.shape[1]
    tiles = triton.cdiv(depth * height * width, cut.block)
    spatial = (1, 2, 3) if call.op == "motion_field" else (2, 3, 4)
    reach = max(_reach(call.feature, (2, 3, 4)), _reach(call.logits, (2, 3, 4)), _reach(call.out, spatial))
    constants: dict[str, Any] = {
        "LINEAR": 0 if call.linear is None else call.linear.dim() - 2,
        "WIDE": reach >= 2**31,
        "BLOCK": cut.block,
    }
    points = [call.kp_source, call.kp_driving, call.kp_source if call.linear is None else call.linear]
    size = [depth, height, width]
    if call.op in ("motion_field", "compose_flow"):
        # A linear part holds 15 numbers per motion where a translation holds 6.
        constants["CHUNK"] = cut.chunk if call.linear is None else min(4, cut.chunk)
    if call.op == "motion_field":
        assert call.logits is not None
        arguments = [call.logits, *points, call.out, keypoints, *size, *call.logits.stride(), *call.out.stride()]
        return (tiles, 1, batch), arguments, constants
    assert call.feature is not None
    channels = call.feature.shape[1]
    constants["ALIGN"] = call.align_corners
    if call.op == "pack_motions":
        arguments = [
            call.feature,
            *points,
            call.out,
            keypoints,
            channels,
            *size,
            *call.feature.stride(),
            *call.out.stride(),
        ]
        return (tiles, keypoints + 1, batch), [*arguments, min(0.5 / call.sigma2, 3e38)], constants
    assert call.logits is not None
    constants |= {"OCCLUDED": call.occlusion is not None, "LAST": layout == "last"}
    constants["CHANNELS"] = min(cut.channels, triton.next_power_of_2(channels))
    occlusion = call.feature if call.occlusion is None else call.occlusion
    shade = (0, 0, 0) if call.occlusion is None else (call.occlusion.stride(0), *call.occlusion.stride()[2:])
    tensors = [call.feature, call.logits, *points, occlusion, call.out]
    strides = [*call.feature.stride(), *call.logits.stride(), *shade, *call.out.stride()]
    passes = triton.cdiv(channels, constants["CHANNELS"])
    if call.op == "compose_volumes":
        return (tiles, passes, batch), [*tensors, keypoints, channels, *size, *strides], constants
    # Splits enough for eight programs per processor; with the channels last a program makes one pass.
    splits = passes if layout == "last" else min(passes, triton.cdiv(8 * processors, tiles * batch))
    constants["PASSES"] = triton.cdiv(passes, splits)
    splits = triton.cdiv(passes, constants["PASSES"])
    return (tiles, splits, batch), [*tensors, keypoints, channels, *size, *strides], constants
