"""The `warp` hot path in plain PyTorch: what every kernel must compute.

Sparse motion k maps a driving voxel p to the source, ``w_k(p) = A_k (p - kp_driving_k) + kp_source_k``; motion 0 is the
background, the identity. Source: Style Transfer for 2D Talking Head Generation (arXiv 2303.09799), equations (1) and
(2); the composition of flows is the one that the published face-vid2vid family uses.

Shapes: B batch, C channels, K keypoints, D H W volume. Points are (x, y, z) in [-1, 1], x along W. Everything here is
differentiable and traceable. 16-bit inputs are computed in float32 and rounded once, on the way out; float64 stays
float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "compose_flow",
    "compose_volumes",
    "identity_grid",
    "motion_field",
    "pack_motions",
    "sample_volume",
    "sparse_motions",
]


def _axis(size: int, like: Tensor) -> Tensor:
    """``2 i / (size - 1) - 1``: both ends included; the one voxel of an axis of size 1 lies at the centre, 0."""
    if size == 1:
        return torch.zeros(1, device=like.device, dtype=like.dtype)
    return 2 * torch.arange(size, device=like.device, dtype=like.dtype) / (size - 1) - 1


def identity_grid(size: tuple[int, int, int], like: Tensor) -> Tensor:
    """The voxel grid ``[D, H, W, 3]`` of a volume of ``size`` (D, H, W), on the device and in the dtype of ``like``."""
    z, y, x = torch.meshgrid(*(_axis(n, like) for n in size), indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def sparse_motions(
    size: tuple[int, int, int],
    kp_source: Tensor,  # [B, K, 3]
    kp_driving: Tensor,  # [B, K, 3]
    linear: Tensor | None = None,  # [B, 3, 3] or [B, K, 3, 3]
) -> Tensor:
    """``w_k(p) = A_k (p - kp_driving_k) + kp_source_k`` for every voxel p, the background first: ``[B, K+1, D, H, W,
    3]``.
    """
    grid = identity_grid(size, kp_source)  # [D, H, W, 3]
    motions = grid - kp_driving[:, :, None, None, None]  # [B, K, D, H, W, 3]
    if linear is not None:
        per_keypoint = linear if linear.dim() == 4 else linear[:, None]
        motions = torch.einsum("bkij,bkdhwj->bkdhwi", per_keypoint.expand(-1, kp_source.shape[1], 3, 3), motions)
    motions = motions + kp_source[:, :, None, None, None]
    background = grid.expand(kp_source.shape[0], 1, *grid.shape)
    return torch.cat([background, motions], dim=1)


def sample_volume(feature: Tensor, coordinates: Tensor, align_corners: bool) -> Tensor:
    """Trilinear samples of ``feature [B, C, D, H, W]`` at ``coordinates [B, ..., 3]``, zero outside: ``[B, C, ...]``.

    A coordinate that is NaN gives NaN (``grid_sample`` alone would call it outside and give zero).
    """
    batch, *points, _ = coordinates.shape
    grid = coordinates.reshape(batch, 1, 1, -1, 3)
    samples = F.grid_sample(feature, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)
    samples = samples.masked_fill(grid.isnan().any(-1)[:, None], float("nan"))
    return samples.reshape(batch, feature.shape[1], *points)


def _warped_volumes(feature: Tensor, motions: Tensor, align_corners: bool) -> Tensor:
    """The feature volume under every motion: ``[B, C, D, H, W], [B, M, D, H, W, 3] -> [B, M, C, D, H, W]``."""
    batch, count, *size, _ = motions.shape
    repeated = feature[:, None].expand(batch, count, *feature.shape[1:]).flatten(0, 1)
    warped = F.grid_sample(
        repeated, motions.flatten(0, 1), mode="bilinear", padding_mode="zeros", align_corners=align_corners
    )
    # A motion is an affine map, so its corner voxel is NaN exactly if one of its numbers is.
    broken = motions[:, :, 0, 0, 0].isnan().any(-1).reshape(-1, 1, 1, 1, 1)
    return warped.masked_fill(broken, float("nan")).reshape(batch, count, feature.shape[1], *size)


def _gaussians(size: tuple[int, int, int], keypoints: Tensor, sigma2: float) -> Tensor:
    """``exp(-|p - kp|^2 / (2 sigma^2))`` for every voxel p: ``[B, K, 3] -> [B, K, D, H, W]``."""
    offsets = identity_grid(size, keypoints) - keypoints[:, :, None, None, None]
    return torch.exp(-offsets.square().sum(-1) / (2 * sigma2))


def _compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def pack_motions(
    feature: Tensor,  # [B, C, D, H, W]
    kp_source: Tensor,  # [B, K, 3]
    kp_driving: Tensor,  # [B, K, 3]
    linear: Tensor | None = None,
    sigma2: float = 0.01,
    align_corners: bool = False,
) -> Tensor:
    """Per motion ``[heatmap, C warped channels]``, background first: ``[B, (K+1)*(C+1), D, H, W]``."""
    dtype = _compute_dtype(feature)
    x, source, driving = feature.to(dtype), kp_source.to(dtype), kp_driving.to(dtype)
    size = (feature.shape[2], feature.shape[3], feature.shape[4])
    warped = _warped_volumes(x, sparse_motions(size, source, driving, _cast(linear, dtype)), align_corners)
    heatmap = _gaussians(size, driving, sigma2) - _gaussians(size, source, sigma2)  # [B, K, D, H, W]
    heatmap = torch.cat([torch.zeros_like(heatmap[:, :1]), heatmap], dim=1)
    return torch.cat([heatmap[:, :, None], warped], dim=2).flatten(1, 2).to(feature.dtype)


def motion_field(
    logits: Tensor,  # [B, K+1, D, H, W]
    kp_source: Tensor,
    kp_driving: Tensor,
    linear: Tensor | None = None,
) -> Tensor:
    """``sum_k softmax(logits)_k w_k(p)``: ``[B, D, H, W, 3]``, in float32 (float64 if the logits are)."""
    dtype = _compute_dtype(logits)
    size = (logits.shape[2], logits.shape[3], logits.shape[4])
    motions = sparse_motions(size, kp_source.to(dtype), kp_driving.to(dtype), _cast(linear, dtype))
    masks = torch.softmax(logits.to(dtype), dim=1)  # [B, K+1, D, H, W]
    return (masks[..., None] * motions).sum(1)


def compose_flow(
    feature: Tensor,
    logits: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    linear: Tensor | None = None,
    occlusion: Tensor | None = None,  # [B, 1, H, W]
    align_corners: bool = False,
) -> Tensor:
    """Blend the flows, sample once: ``occlusion * feature(sum_k m_k w_k(p))``, ``[B, C, D, H, W]``."""
    dtype = _compute_dtype(feature, logits)
    flow = motion_field(logits.to(dtype), kp_source, kp_driving, linear)
    out = sample_volume(feature.to(dtype), flow, align_corners)
    if occlusion is not None:
        out = out * occlusion.to(dtype)[:, :, None]
    return out.to(feature.dtype)


def compose_volumes(
    feature: Tensor,
    logits: Tensor,
    kp_source: Tensor,
    kp_driving: Tensor,
    linear: Tensor | None = None,
    occlusion: Tensor | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Blend the warped volumes, equation (2): ``occlusion * sum_k m_k feature(w_k(p))``, ``[B, C, D, H, W]``."""
    dtype = _compute_dtype(feature, logits)
    size = (feature.shape[2], feature.shape[3], feature.shape[4])
    motions = sparse_motions(size, kp_source.to(dtype), kp_driving.to(dtype), _cast(linear, dtype))
    masks = torch.softmax(logits.to(dtype), dim=1)
    out = (masks[:, :, None] * _warped_volumes(feature.to(dtype), motions, align_corners)).sum(1)
    if occlusion is not None:
        out = out * occlusion.to(dtype)[:, :, None]
    return out.to(feature.dtype)
