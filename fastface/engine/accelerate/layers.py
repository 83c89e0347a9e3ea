"""Layers that keep what they would compute again on every call: a weight under spectral norm and, on the CPU, what a
faster algorithm makes of a convolution's filters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from fastface.engine.accelerate.fused import Call, Candidate, Fused, Options, copied, differentiates, place, release
from fastface.engine.convs import FoldedConv2d, suits_folding
from fastface.engine.fft_conv import FFTConv3d, suits_fft
from fastface.engine.fold import fold_spectral_norm
from fastface.engine.winograd import WinogradConv2d, WinogradConv3d, suits_winograd
from fastface.ops import _memory

__all__ = ["fastest", "find_computed_weight", "find_convolution", "run_held"]

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
# A convolution is computed by the first that suits it.
_ALGORITHMS: tuple[tuple[Callable[[nn.Module], bool], Callable[[Any], nn.Module]], ...] = (
    (suits_winograd, lambda conv: WinogradConv2d(conv) if isinstance(conv, nn.Conv2d) else WinogradConv3d(conv)),
    (suits_fft, FFTConv3d),
    (suits_folding, FoldedConv2d),
)


def fastest(layer: nn.Module) -> nn.Module:
    """A layer of plain weights by the algorithm that suits it, on a copy of them, or the layer."""
    return next((build(layer) for suits, build in _ALGORITHMS if suits(layer)), layer)


class FusedLayer(Fused):
    """A layer that runs on a copy of its weights, made for speed; where a gradient is wanted, on its own."""

    _fastface_hooks: tuple[tuple[int, Any], ...] = ()  # that would compute the weight on every call, by their keys

    def accepts(self, *values: Any) -> bool:
        if len(values) != 1 or not isinstance(values[0], Tensor) or differentiates(self, *values):
            return False
        # Autocast knows PyTorch's convolutions, and 16 bits are what was asked for.
        return isinstance(self._fastface_held, _LAYERS) or not torch.is_autocast_enabled(values[0].device.type)

    def fused(self, *values: Any) -> Tensor:
        return run_held(self._fastface_held, values[0])

    def original(self, *args: Any, **kwargs: Any) -> Any:
        for _, hook in self._fastface_hooks:
            hook(self, args)
        return super().original(*args, **kwargs)

    def hold(self) -> None:
        hooks = [(key, hook) for key, hook in self._forward_pre_hooks.items() if isinstance(hook, SpectralNorm)]
        for key, _ in hooks:
            del self._forward_pre_hooks[key]
        vars(self).update(_fastface_hooks=(*self._fastface_hooks, *hooks), _fastface_held=None)
        plain = copied(self)
        assert isinstance(plain, Fused)
        release(plain)
        fold_spectral_norm(plain)
        plain._forward_hooks.clear()
        plain._forward_pre_hooks.clear()
        plain.requires_grad_(False)
        vars(self)["_fastface_held"] = fastest(plain) if self._fastface_spec else plain

    def drop(self) -> None:
        later = dict(self._forward_pre_hooks)
        self._forward_pre_hooks.clear()  # the same dict stays: handles of hooks refer to it
        self._forward_pre_hooks.update({**dict(self._fastface_hooks), **later})

    def detail(self) -> str:
        once = ["weight computed once"] if self._fastface_hooks or parametrize.is_parametrized(self) else []
        held = [] if isinstance(self._fastface_held, _LAYERS) else [type(self._fastface_held).__name__]
        return ", ".join(once + held)


def run_held(layer: Any, x: Tensor) -> Tensor:
    """The result of what `fastest` returned, laid out as PyTorch's layers do, since code behind may view it."""
    if isinstance(layer, _LAYERS):
        return layer(x)
    formats = _memory.memory_format(x), _memory.memory_format(layer.weight)
    wanted = next((f for f in formats if f != torch.contiguous_format), formats[0])
    if isinstance(layer, WinogradConv2d) and wanted == torch.contiguous_format and _is_usual(layer, x):
        # Images come out channels_last, volumes as they went in: as a volume of depth 1 there is nothing to copy.
        deep, weight = x.unsqueeze(2), layer.weight.unsqueeze(2)
        return layer.op(deep, weight, layer.filters, layer.bias, layer.padding, layer.slope).squeeze(2)
    return layer(x).contiguous(memory_format=wanted)


def _is_usual(layer: WinogradConv2d, x: Tensor) -> bool:
    fits = x.dim() == 4 and x.shape[1] == layer.in_channels and min(x.shape[2:]) >= 3
    return fits and x.dtype == layer.weight.dtype and x.device == layer.weight.device


def find_computed_weight(module: nn.Module, options: Options) -> Candidate | None:
    """A layer whose weight a hook of spectral norm or a parametrization computes on every call."""
    hooked = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    if not isinstance(module, _LAYERS) or not (hooked or parametrize.is_parametrized(module)):
        return None
    return Candidate(FusedLayer, lambda *_: (options.convolutions,), _calls(module))


def find_convolution(module: nn.Module, options: Options) -> Candidate | None:
    """A convolution on the CPU that a faster algorithm suits."""
    if not options.convolutions or type(module) not in (nn.Conv2d, nn.Conv3d):
        return None
    if "weight" not in module._parameters or not any(suits(module) for suits, _ in _ALGORITHMS):
        return None  # a weight that is no parameter is computed, by whatever hook
    return Candidate(FusedLayer, lambda *_: (True,), _calls(module))


def _calls(layer: Any) -> list[Call]:
    device, dtype = place(layer)
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        shapes = [(2, layer.in_features)]
    else:
        reach = [(k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        shapes = [(2, layer.in_channels, *map(sum, zip(reach, more, strict=False))) for more in ((4, 6, 5), (1, 11, 9))]
    return [Call((torch.randn(shape, generator=generator).to(device, dtype),)) for shape in shapes]
