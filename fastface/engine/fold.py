"""Norms that are constants at inference, folded into the weights of the convolution beside them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.spectral_norm import SpectralNorm

__all__ = ["fold_batch_norm", "fold_batch_norm_before", "fold_pointwise", "fold_spectral_norm", "folds"]

ConvT = TypeVar("ConvT", nn.Conv1d, nn.Conv2d, nn.Conv3d)

_PAIRS = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))


def folds(conv: object, norm: object) -> bool:
    """Whether `norm` can be folded into `conv`: as many dimensions and channels, and statistics of its own."""
    return (
        any(isinstance(conv, convs) and isinstance(norm, norms) for convs, norms in _PAIRS)
        and norm.running_mean is not None  # type: ignore[attr-defined]
        and norm.num_features == conv.out_channels  # type: ignore[attr-defined]
    )


def fold_batch_norm(conv: ConvT, norm: nn.Module) -> ConvT:
    """One convolution for ``norm(conv(x))`` in evaluation mode: W and b times s, b plus ``beta - mean s``.

    With ``s = weight / sqrt(var + eps)`` per channel.

    Raises:
        ValueError: a pair that does not fit, or a norm without running statistics.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not folds(conv, norm):
        raise ValueError(f"norm must be a batch norm of {conv}'s outputs with running statistics, got {norm}")
    return fuse_conv_bn_eval(conv.eval(), norm.eval())


def fold_batch_norm_before(norm: nn.Module, conv: ConvT) -> ConvT:
    """One convolution for ``conv(norm(x))`` in evaluation mode, where `conv` pads nothing.

    Zeros around a normalised map are no constant around the map, so a padded convolution cannot take it up.

    Raises:
        ValueError: a pair that does not fit, a padded or grouped convolution, or a norm without running statistics.
    """
    fits = any(isinstance(conv, convs) and isinstance(norm, norms) for convs, norms in _PAIRS)
    unpadded = not any(conv.padding) if isinstance(conv.padding, tuple) else conv.padding == "valid"
    if not fits or not unpadded or conv.groups != 1:
        raise ValueError(f"conv must be unpadded, without groups, of as many dimensions as {norm}, got {conv}")
    scale, shift = _affine(norm)
    if len(scale) != conv.in_channels:
        raise ValueError(f"norm must have {conv.in_channels} channels like conv's input, got {len(scale)}")
    folded = type(conv)(
        conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride, dilation=conv.dilation  # type: ignore[arg-type]
    ).to(conv.weight)  # fmt: skip
    taps = (1, -1, *(1,) * (conv.weight.dim() - 2))
    with torch.no_grad():
        folded.weight.copy_(conv.weight * scale.view(taps))
        assert folded.bias is not None
        folded.bias.copy_((conv.weight * shift.view(taps)).flatten(1).sum(1))
        if conv.bias is not None:
            folded.bias.add_(conv.bias)
    return folded.requires_grad_(conv.weight.requires_grad).eval()


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation mode as ``scale x + shift``, per channel."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"norm must have running statistics, got {norm}")
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def fold_pointwise(conv: ConvT, pointwise: ConvT) -> ConvT:
    """One convolution for ``pointwise(conv(x))``, where `pointwise` has a kernel of 1.

    Raises:
        ValueError: a second convolution that is not pointwise, or does not fit the first.
    """
    unit = {*pointwise.kernel_size, *pointwise.stride} == {1} and not any(pointwise.padding)
    if not unit or {conv.groups, pointwise.groups} != {1} or pointwise.in_channels != conv.out_channels:
        raise ValueError(f"pointwise must take {conv.out_channels} channels with a kernel of 1, got {pointwise}")
    folded = type(conv)(
        conv.in_channels, pointwise.out_channels, conv.kernel_size, stride=conv.stride, padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation, padding_mode=conv.padding_mode,  # type: ignore[arg-type]
    ).to(conv.weight)  # fmt: skip
    matrix = pointwise.weight.flatten(1)
    bias = conv.weight.new_zeros(pointwise.out_channels) if conv.bias is None else matrix @ conv.bias
    with torch.no_grad():
        folded.weight.copy_((matrix @ conv.weight.flatten(1)).unflatten(1, conv.weight.shape[1:]))
        assert folded.bias is not None
        folded.bias.copy_(bias if pointwise.bias is None else bias + pointwise.bias)
    return folded.requires_grad_(conv.weight.requires_grad).eval()


def fold_spectral_norm(module: nn.Module) -> bool:
    """Give `module` itself its weights as it computes them in evaluation mode; whether there was something to fold.

    Hooks of `torch.nn.utils.spectral_norm` and all parametrizations.
    """
    found = False
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        values = {name: getattr(module, name).detach() for name in module.parametrizations}
        # Not remove_parametrizations: it takes the property off the class, which the original module still has.
        module.__class__ = type(module).__mro__[1]
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        found = True
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            found = True
    return found
