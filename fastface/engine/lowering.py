"""How each convolution is computed: by its definition, from the map before an upsampling, by Winograd or by Fourier.

The choices are by measured time (docs/engine.md), on CPUs; elsewhere only polyphase forms are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastface.engine._tiled_conv import TiledConv
from fastface.engine.convs import FoldedConv2d, SlicedConv3d, suits_folding, suits_slicing
from fastface.engine.fft_conv import FFTConv3d, suits_fft
from fastface.engine.polyphase import PolyphaseConv, merged_rows
from fastface.engine.report import Step
from fastface.engine.structure import is_hooked
from fastface.engine.winograd import WinogradConv2d, WinogradConv3d, suits_winograd
from fastface.nn import ActivatedConv, UpsampledConv, UpsampledModulation

__all__ = ["as_defined", "lower"]


def lower(module: nn.Module, *, polyphase: bool, winograd: bool, fft: bool) -> tuple[nn.Module, list[Step]]:
    """`module` with its convolutions replaced by what computes them fastest, among what is allowed."""
    steps: list[Step] = []
    result = _Lowering(polyphase, winograd, fft, steps).visit(module, "")
    return result, steps


def as_defined(module: nn.Module) -> nn.Module:
    """`module` with Winograd's and Fourier's forms as the convolutions they compute, for `lower` to choose again."""
    for name, child in list(module.named_children()):
        module._modules[name] = as_defined(child)
    if isinstance(module, TiledConv):
        return _activated(_definition(module), module.activation, module.slope)
    if isinstance(module, UpsampledConv) and isinstance(module.conv, ActivatedConv):
        inner = module.conv
        module.conv = inner.conv
        return _activated(module, inner.activation, inner.slope)
    return module


def _definition(tiled: TiledConv) -> nn.Conv2d | nn.Conv3d:
    kind = nn.Conv2d if tiled.weight.dim() == 4 else nn.Conv3d
    conv: nn.Conv2d | nn.Conv3d = nn.utils.skip_init(
        kind, tiled.in_channels, tiled.out_channels, tiled.kernel_size, padding=tiled.padding, bias=False
    )
    conv.weight = nn.Parameter(tiled.weight, requires_grad=False)
    conv.bias = None if tiled.bias is None else nn.Parameter(tiled.bias, requires_grad=False)
    return conv


def _activated(conv: nn.Module, activation: str | None, slope: float | None) -> nn.Module:
    return conv if activation is None else ActivatedConv(conv, activation, slope or 0.0)


@dataclass(frozen=True)
class _Lowering:
    polyphase: bool
    winograd: bool
    fft: bool
    steps: list[Step]

    def visit(self, module: nn.Module, path: str) -> nn.Module:
        if isinstance(module, UpsampledModulation) and self._with_merged_phases(module, path):
            return module
        lowered = None if is_hooked(module) else self._lowered(module)
        if lowered is not None:
            name, result = lowered
            self.steps.append(Step(name, (path,), (path,)))
            return result
        for name, child in list(module.named_children()):
            module._modules[name] = self.visit(child, f"{path}.{name}" if path else name)
        return module

    def _lowered(self, module: nn.Module) -> tuple[str, nn.Module] | None:
        """A convolution, with what surrounds it, in another form and that form's name; None to leave it."""
        inner: nn.Module
        activation: str | None
        inner, activation, slope = module, None, 0.0
        if isinstance(module, ActivatedConv):
            inner, activation, slope = module.conv, module.activation, module.slope
        if isinstance(inner, UpsampledConv):
            if not isinstance(inner.conv, (nn.Conv2d, nn.Conv3d)):
                return None
            if self._is_fast(inner.conv) and not (self.polyphase and _has_equal_phases(inner)):
                inner.conv = _winograd(inner.conv, activation, slope)
                return "Winograd", inner
            return ("polyphase", PolyphaseConv(inner, activation=activation, slope=slope)) if self.polyphase else None
        if self._is_fast(inner):
            return "Winograd", _winograd(inner, activation, slope)
        if self.fft and suits_fft(inner):
            return "Fourier", FFTConv3d(inner, activation=activation, slope=slope)  # type: ignore[arg-type]
        if activation is None and suits_folding(inner):
            return "few outputs as a matrix product", FoldedConv2d(inner)  # type: ignore[arg-type]
        if activation is None and suits_slicing(inner):
            return "depth by slices", SlicedConv3d(inner)  # type: ignore[arg-type]
        return None

    def _is_fast(self, conv: nn.Module) -> bool:
        return self.winograd and suits_winograd(conv)

    def _with_merged_phases(self, module: UpsampledModulation, path: str) -> bool:
        """Compute both convolutions on the distinct phases alone, if that is worth it."""
        shared, convs = module.shared, list(module.convs)
        if not (self.polyphase and isinstance(shared, ActivatedConv) and isinstance(shared.conv, UpsampledConv)):
            return False
        upsampled = shared.conv
        if not _has_equal_phases(upsampled) or any(self._is_fast(conv) for conv in convs):
            return False
        module.shared = merged = PolyphaseConv(upsampled, merge=True, activation=shared.activation)
        rows = [merged_rows(k, s) for k, s in zip(merged.kernel_size, upsampled.scale, strict=True)]
        for index, conv in enumerate(convs):
            assert isinstance(conv, nn.Conv2d)
            module.convs[index] = PolyphaseConv(UpsampledConv(conv, upsampled.scale), rows=rows)
        for part, name in (("shared", "polyphase"), ("convs", "polyphase behind the activation")):
            self.steps.append(Step(name, (f"{path}.{part}",), (f"{path}.{part}",)))
        return True


def _has_equal_phases(upsampled: UpsampledConv) -> bool:
    """Whether rows of the output are the same for all inputs; then the polyphase form is faster than Winograd's."""
    return max(upsampled.scale) > 2


def _winograd(conv: nn.Module, activation: str | None, slope: float) -> nn.Module:
    kind = WinogradConv3d if isinstance(conv, nn.Conv3d) else WinogradConv2d
    return kind(conv, activation=activation, slope=slope)  # type: ignore[arg-type]
