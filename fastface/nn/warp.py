"""Modules over `fastface.ops.warp`."""

from __future__ import annotations

from torch import Tensor, nn

from fastface import ops

__all__ = ["ComposeFlow", "ComposeVolumes", "PackMotions"]


class PackMotions(nn.Module):
    """`fastface.ops.pack_motions` with its options held: the input of the dense motion network, ``[B, (K+1)*(C+1), D,
    H, W]``.
    """

    def __init__(self, sigma2: float = 0.01, align_corners: bool = False, backend: str | None = None) -> None:
        super().__init__()
        self.sigma2, self.align_corners, self.backend = sigma2, align_corners, backend

    def forward(
        self,
        feature: Tensor,  # [B, C, D, H, W]
        kp_source: Tensor,  # [B, K, 3]
        kp_driving: Tensor,  # [B, K, 3]
        linear: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return ops.pack_motions(
            feature, kp_source, kp_driving, linear=linear, sigma2=self.sigma2, align_corners=self.align_corners,
            out=out, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"sigma2={self.sigma2}, align_corners={self.align_corners}, backend={self.backend}"


class _Compose(nn.Module):
    def __init__(self, align_corners: bool = False, backend: str | None = None) -> None:
        super().__init__()
        self.align_corners, self.backend = align_corners, backend

    def extra_repr(self) -> str:
        return f"align_corners={self.align_corners}, backend={self.backend}"


class ComposeFlow(_Compose):
    """`fastface.ops.compose_flow` with its options held: the flows blended, the volume sampled once, ``[B, C, D, H,
    W]``.
    """

    def forward(
        self,
        feature: Tensor,  # [B, C, D, H, W]
        logits: Tensor,  # [B, K+1, D, H, W]
        kp_source: Tensor,  # [B, K, 3]
        kp_driving: Tensor,  # [B, K, 3]
        linear: Tensor | None = None,
        occlusion: Tensor | None = None,  # [B, 1, H, W]
    ) -> Tensor:
        return ops.compose_flow(
            feature, logits, kp_source, kp_driving, linear=linear, occlusion=occlusion,
            align_corners=self.align_corners, backend=self.backend,
        )  # fmt: skip


class ComposeVolumes(_Compose):
    """`fastface.ops.compose_volumes` with its options held: the warped volumes blended, ``[B, C, D, H, W]``."""

    def forward(
        self,
        feature: Tensor,
        logits: Tensor,
        kp_source: Tensor,
        kp_driving: Tensor,
        linear: Tensor | None = None,
        occlusion: Tensor | None = None,
    ) -> Tensor:
        return ops.compose_volumes(
            feature, logits, kp_source, kp_driving, linear=linear, occlusion=occlusion,
            align_corners=self.align_corners, backend=self.backend,
        )  # fmt: skip
