"""A module over `fastface.ops.triplane`."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fastface import ops

__all__ = ["PlaneRenderer"]


class PlaneRenderer(nn.Module):
    """`fastface.ops.render_planes` with the decoder and the options held.

    Args:
        decoder: effective weights, gains folded; they become parameters ``w1``, ``b1``, ``w2`` and ``b2``.
        near, far: numbers, or both "auto".
        coarse, fine, box, axes, reduce, white_back, disparity, backend: as of the op.
    """

    def __init__(
        self,
        decoder: ops.PlaneDecoder,
        *,
        near: float | Literal["auto"],
        far: float | Literal["auto"],
        coarse: int = 48,
        fine: int = 48,
        box: float = 1.0,
        axes: str = "xy_xz_yz",
        reduce: Literal["sum", "mean"] = "sum",
        white_back: bool = False,
        disparity: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in decoder._asdict().items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=value.requires_grad))
        self.near, self.far, self.coarse, self.fine = near, far, coarse, fine
        self.box, self.axes, self.reduce, self.backend = box, axes, reduce, backend
        self.white_back, self.disparity = white_back, disparity

    @property
    def decoder(self) -> ops.PlaneDecoder:
        return ops.PlaneDecoder(*(self.get_parameter(name) for name in ops.PlaneDecoder._fields))

    def forward(
        self,
        planes: Tensor,
        origins: Tensor,
        directions: Tensor,
        jitter: Tensor | None = None,
        u: Tensor | None = None,
    ) -> ops.RenderOutput:
        """What rays ``[B, R, 3]`` see in planes ``[B, 3, C, H, W]``; without `jitter` and `u` always the same."""
        return ops.render_planes(
            planes,
            origins,
            directions,
            self.decoder,
            near=self.near,
            far=self.far,
            coarse=self.coarse,
            fine=self.fine,
            box=self.box,
            axes=self.axes,
            reduce=self.reduce,
            white_back=self.white_back,
            jitter=jitter,
            u=u,
            disparity=self.disparity,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"near={self.near}, far={self.far}, coarse={self.coarse}, fine={self.fine}, box={self.box}"
