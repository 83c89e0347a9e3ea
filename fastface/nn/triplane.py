"""A module over `fastface.ops.triplane`, options and decoders as EG3D has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal

from torch import Tensor, nn

from fastface import ops
from fastface.ops.triplane import AXES, PlaneDecoder, RenderOutput, check_counts

__all__ = ["PlaneRenderer", "Rendering", "plane_decoder"]


def plane_decoder(module: Any) -> PlaneDecoder:
    """The effective weights of any decoder that is made of `net.0`, softplus and `net.2`, its gains folded in.

    A layer's ``weight_gain`` and ``bias_gain`` multiply its weights, as in EG3D; a layer without is taken as it is.

    Raises:
        ValueError: a module of another structure.
    """
    net = getattr(module, "net", None)
    if not isinstance(net, nn.Sequential) or len(net) != 3:
        raise ValueError(
            f"decoder must have a `net` of two linear layers about a softplus, got {type(module).__name__}"
        )
    activation = net[1]
    if not isinstance(activation, nn.Softplus) or activation.beta != 1:
        raise ValueError(f"decoder must have a softplus with beta 1 between its layers, got {activation}")
    effective: list[Tensor] = []
    for name, layer in (("net.0", net[0]), ("net.2", net[2])):
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or not isinstance(bias, Tensor):
            raise ValueError(f"decoder.{name} must have a weight [outputs, inputs] and a bias, got {layer}")
        effective += [weight * getattr(layer, "weight_gain", 1.0), bias * getattr(layer, "bias_gain", 1.0)]
    return PlaneDecoder(*effective)


@dataclass(frozen=True)
class Rendering:
    """How rays are sampled: the options of `fastface.ops.render_planes`.

    Attributes:
        near, far: along the ray, or both "auto".
        coarse, fine: samples of either pass; a fine pass of 0 is none.
        box: side of the cube that the planes span.
        axes: "xy_xz_yz", the paper's planes; "eg3d" for EG3D's weights, whose third plane is read at z, x.
        reduce: "sum" as the paper has it, or "mean", as EG3D's weights want it.

    Raises:
        ValueError: numbers that are none or out of range, or unknown `axes` or `reduce`.
    """

    near: float | Literal["auto"] = 2.25
    far: float | Literal["auto"] = 3.3
    coarse: int = 48
    fine: int = 48
    box: float = 1.0
    axes: str = "xy_xz_yz"
    reduce: Literal["sum", "mean"] = "sum"
    white_back: bool = False
    disparity: bool = False

    def __post_init__(self) -> None:
        if (self.near, self.far) != ("auto", "auto"):
            near, far = _number("near", self.near), _number("far", self.far)
            if not near < far:
                raise ValueError(f"near must be below far, got {near:g} and {far:g}")
            if self.disparity and not near > 0:
                raise ValueError(f"near must be positive with disparity, got {near:g}")
        elif self.disparity:
            raise ValueError("near and far must be numbers with disparity, got 'auto': a ray may start at 0")
        for name in ("coarse", "fine"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, Integral):
                raise ValueError(f"{name} must be an integer, got {count!r}")
            object.__setattr__(self, name, int(count))  # NumPy's are none to the op
        check_counts(self.coarse, self.fine)
        if not _number("box", self.box) > 0:
            raise ValueError(f"box must be positive, got {self.box}")
        for name, value, known in (("axes", self.axes, tuple(AXES)), ("reduce", self.reduce, ("sum", "mean"))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    @classmethod
    def eg3d(cls, **changes: Any) -> Rendering:
        """Of EG3D's weights of faces."""
        return replace(cls(axes="eg3d", reduce="mean"), **changes)

    @classmethod
    def of_options(cls, options: Mapping[str, Any], *, axes: str = "eg3d") -> Rendering:
        """From EG3D's dictionary of rendering options; those of its training alone are ignored.

        Raises:
            ValueError: an option that is missing, or asks for what is not done here.
        """
        wanted = ("ray_start", "ray_end", "depth_resolution", "depth_resolution_importance", "box_warp")
        missing = [name for name in wanted if name not in options]
        if missing:
            raise ValueError(f"rendering options must have {', '.join(missing)}")
        if options.get("clamp_mode", "softplus") != "softplus":
            raise ValueError(f"clamp_mode must be 'softplus', got {options['clamp_mode']!r}")
        if options.get("density_noise", 0) > 0:
            raise ValueError(f"density_noise is for training, it must be 0 here, got {options['density_noise']}")
        return cls.eg3d(
            near=options["ray_start"],
            far=options["ray_end"],
            coarse=options["depth_resolution"],
            fine=options["depth_resolution_importance"],
            box=options["box_warp"],
            axes=axes,
            white_back=bool(options.get("white_back", False)),
            disparity=bool(options.get("disparity_space_sampling", False)),
        )

    def render(
        self,
        planes: Tensor,
        origins: Tensor,
        directions: Tensor,
        decoder: PlaneDecoder,
        *,
        jitter: Tensor | None = None,
        u: Tensor | None = None,
        backend: str | None = None,
    ) -> RenderOutput:
        """`fastface.ops.render_planes` with these options."""
        return ops.render_planes(
            planes, origins, directions, decoder, near=self.near, far=self.far, coarse=self.coarse, fine=self.fine,
            box=self.box, axes=self.axes, reduce=self.reduce, white_back=self.white_back, disparity=self.disparity,
            jitter=jitter, u=u, backend=backend,
        )  # fmt: skip


def _number(name: str, value: object) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


class PlaneRenderer(nn.Module):
    """`fastface.ops.render_planes` with the decoder and the options held.

    Args:
        decoder: effective weights, gains folded; they become parameters ``w1``, ``b1``, ``w2`` and ``b2``.
        backend: of the op.
        options: of `Rendering`.
    """

    def __init__(self, decoder: PlaneDecoder, *, backend: str | None = None, **options: Any) -> None:
        super().__init__()
        for name, value in decoder._asdict().items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=value.requires_grad))
        self.rendering, self.backend = Rendering(**options), backend

    @property
    def decoder(self) -> PlaneDecoder:
        return PlaneDecoder(*(self.get_parameter(name) for name in PlaneDecoder._fields))

    def forward(
        self,
        planes: Tensor,
        origins: Tensor,
        directions: Tensor,
        jitter: Tensor | None = None,
        u: Tensor | None = None,
    ) -> RenderOutput:
        """What rays ``[B, R, 3]`` see in planes ``[B, 3, C, H, W]``; without `jitter` and `u` always the same."""
        return self.rendering.render(
            planes, origins, directions, self.decoder, jitter=jitter, u=u, backend=self.backend
        )

    def extra_repr(self) -> str:
        return str(self.rendering)
