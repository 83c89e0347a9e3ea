"""Exact rewrites of a model for inference.

Each changes the order of arithmetic, never the formula: a norm folded into the convolution before it, a spectral norm
into its weight, convolutions of one input merged into one, 3x3 convolutions by Winograd's algorithm, channels_last.
What a module knows of itself it says in ``optimized()``, which returns its rewritten form; what is true of any model is
done here.
"""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.spectral_norm import SpectralNorm

from fastface.engine.winograd import WinogradConv2d, suits_winograd

__all__ = ["Rewritable", "optimize"]

_FOLDABLE = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))


ModuleT = TypeVar("ModuleT", bound=nn.Module)


@runtime_checkable
class Rewritable(Protocol):
    """A module that knows an exact and faster form of itself."""

    def optimized(self) -> nn.Module: ...


def optimize(module: ModuleT, *, channels_last: bool = True, winograd: bool = True) -> ModuleT:
    """A copy of `module` for inference that computes the same, to 1e-4 of the output's range in float32.

    Spectral norm is folded into weights, batch norm into the convolution before it (in an `nn.Sequential`); every part
    that has an ``optimized()`` becomes what that returns. The copy is in evaluation mode, without gradients, and meant
    for the device that `module` is on; `module` itself is untouched.

    Args:
        channels_last: store 4-dimensional weights so, which makes the results channels_last too.
        winograd: on a CPU compute 3x3 convolutions of 64 channels and more by `WinogradConv2d`.
    """
    copied = copy.deepcopy(module, _computed(module)).eval().requires_grad_(False)
    for part in list(copied.modules()):
        _fold_spectral_norm(part)
    result = _rewrite(copied)
    for part in list(result.modules()):
        if isinstance(part, nn.Sequential):
            _fold_batch_norm(part)
    if winograd:
        _replace_convs(result)
    if channels_last:
        result.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs of torch
    return cast(ModuleT, result)  # a rewritten form is called as the original is


def _computed(module: nn.Module) -> dict[int, Tensor]:
    """Copies of what hooks have computed, such as a weight by spectral norm: deepcopy takes leaves alone."""
    values = (value for part in module.modules() for value in vars(part).values())
    return {id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf}


def _rewrite(module: nn.Module) -> nn.Module:
    """Outermost first: a part that is merged by its parent is not there any more to be rewritten alone."""
    if isinstance(module, Rewritable):
        module = module.optimized().eval().requires_grad_(False)
    for name, child in list(module.named_children()):
        rewritten = _rewrite(child)
        if rewritten is not child:
            module._modules[name] = rewritten
    return module


def _replace_convs(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and suits_winograd(child):
            module._modules[name] = WinogradConv2d(child)
        else:
            _replace_convs(child)


def _fold_spectral_norm(module: nn.Module) -> None:
    """Weights as they are computed in evaluation mode, whatever they are computed from."""
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        values = {name: getattr(module, name).detach() for name in module.parametrizations}
        # Not remove_parametrizations: it takes the property off the class, which the original module still has.
        module.__class__ = type(module).__mro__[1]
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)


def _fold_batch_norm(sequence: nn.Sequential) -> None:
    """Convolution and batch norm become one convolution; an identity keeps the numbering."""
    for index in range(len(sequence) - 1):
        conv, norm = sequence[index], sequence[index + 1]
        for convs, norms in _FOLDABLE:
            if isinstance(conv, convs) and isinstance(norm, norms) and norm.track_running_stats:
                sequence[index] = fuse_conv_bn_eval(conv, norm)
                sequence[index + 1] = nn.Identity()
