"""SPADE, AdaIN and instance norm with their affine maps and activations, as one `fastface.ops.modulated_norm`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import ops
from fastface.engine.accelerate.fused import Call, Candidate, Fused, Options, Unproven, differentiates, learned, place
from fastface.engine.accelerate.layers import fastest, run_held
from fastface.nn import merge_convs, resize_nearest

__all__ = ["find_adain", "find_instance_norm", "find_sequential", "find_spade"]

_OPS = ("modulated_norm",)
_Activation = tuple[str | None, float]
_NONE: _Activation = (None, 0.0)
_RELU: _Activation = ("relu", 0.0)
_ACTIVATIONS: tuple[_Activation, ...] = (_NONE, _RELU, ("leaky_relu", 0.2), ("leaky_relu", 0.01))


@dataclass(frozen=True)
class _SpadeSpec:
    norm: str
    shared: str
    gamma: str
    beta: str
    plus_one: bool  # 1 + gamma
    hidden: _Activation  # behind the shared convolution, where that has none itself
    activation: _Activation  # behind the whole
    merge: bool
    convolutions: bool


class FusedSPADE(Fused):
    """``act((1 + gamma(h)) * (x - mean) * rstd + beta(h))`` with ``h = shared(map)``."""

    def accepts(self, *values: Any) -> bool:
        if len(values) != 2 or _hooks(getattr(self, self._fastface_spec.norm)):
            return False
        return all(map(_is_image, values)) and _has_statistics(values[0])

    def fused(self, *values: Any) -> Tensor:
        x, modulation = values
        spec: _SpadeSpec = self._fastface_spec
        hidden = _activate(getattr(self, spec.shared)(_resized(modulation, x)), spec.hidden)
        if self._fastface_held is None or differentiates(self, x, modulation):
            gamma, beta = getattr(self, spec.gamma)(hidden), getattr(self, spec.beta)(hidden)
        else:
            gamma, beta = run_held(self._fastface_held, hidden).chunk(2, dim=1)
        return _normalized(getattr(self, spec.norm), x, gamma if spec.plus_one else gamma - 1, beta, spec.activation)

    def hold(self) -> None:
        spec: _SpadeSpec = self._fastface_spec
        if spec.merge:
            merged = merge_convs(getattr(self, spec.gamma), getattr(self, spec.beta)).requires_grad_(False)
            self.__dict__["_fastface_held"] = fastest(merged) if spec.convolutions else merged

    def detail(self) -> str:
        spec: _SpadeSpec = self._fastface_spec
        merged = ", the two merged" if spec.merge else ""
        return f"modulated_norm, gamma from {spec.gamma}, beta from {spec.beta}{merged}"


def find_spade(module: nn.Module, options: Options) -> Candidate | None:
    """A norm without parameters, a shared convolution, and two convolutions of that."""
    children: dict[str, Any] = dict(module.named_children())
    norms = [name for name, child in children.items() if _is_plain_norm(child)]
    rest = list(learned(module))
    if len(norms) != 1 or len(rest) != 3:
        return None
    norm = children[norms[0]]
    roles = [
        (shared, gamma, beta)
        for gamma, beta, shared in itertools.permutations(rest)
        if _are_heads(children[gamma], children[beta], norm)
    ]
    if not roles:
        return None
    shared, *heads = (children[name] for name in roles[0])
    first = next((part for part in shared.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None:
        return None
    _without_hooks(norm)
    merge = options.merge and all(type(head) is nn.Conv2d for head in heads)
    activated = any(isinstance(part, (nn.ReLU, nn.LeakyReLU)) for part in shared.modules())
    inner = (_NONE,) if activated else (*_ACTIVATIONS[1:], _NONE)

    def specs(*_: Any) -> Iterator[_SpadeSpec]:
        for activation, plus_one, hidden, names in itertools.product(_ACTIVATIONS, (True, False), inner, roles):
            yield _SpadeSpec(norms[0], *names, plus_one, hidden, activation, merge, options.convolutions)

    image = _random_images(module)
    sizes = (((6, 5), (6, 5)), ((12, 10), (6, 5)), ((5, 4), (20, 16)), ((9, 7), (12, 10)))
    calls = [Call((image(norm.num_features, *size), image(first.in_channels, *of_map))) for size, of_map in sizes]
    return Candidate(FusedSPADE, specs, calls, (norm, *heads) if merge else (norm,), _OPS)


def _are_heads(gamma: nn.Module, beta: nn.Module, norm: Any) -> bool:
    return (
        isinstance(gamma, nn.Conv2d)
        and isinstance(beta, nn.Conv2d)
        and (gamma.in_channels, gamma.kernel_size) == (beta.in_channels, beta.kernel_size)
        and gamma.out_channels == beta.out_channels == norm.num_features
    )


@dataclass(frozen=True)
class _AdaINSpec:
    norm: str
    affine: str
    gamma_first: bool
    plus_one: bool
    activation: _Activation


class FusedAdaIN(Fused):
    """``act((1 + gamma(s)) * (x - mean) * rstd + beta(s))``, gamma and beta one linear layer of a style."""

    def accepts(self, *values: Any) -> bool:
        if len(values) != 2 or _hooks(getattr(self, self._fastface_spec.norm)):
            return False
        if not _is_image(values[0]) or not _has_statistics(values[0]):
            return False
        return isinstance(values[1], Tensor) and values[1].dim() == 2 and len(values[1]) == len(values[0])

    def fused(self, *values: Any) -> Tensor:
        x, style = values
        spec: _AdaINSpec = self._fastface_spec
        gamma, beta = getattr(self, spec.affine)(style).chunk(2, dim=1)
        if not spec.gamma_first:
            gamma, beta = beta, gamma
        return _normalized(getattr(self, spec.norm), x, gamma if spec.plus_one else gamma - 1, beta, spec.activation)

    def detail(self) -> str:
        halves = "gamma|beta" if self._fastface_spec.gamma_first else "beta|gamma"
        return f"modulated_norm, {halves} from {self._fastface_spec.affine}"


def find_adain(module: nn.Module, _: Options) -> Candidate | None:
    """A norm without parameters and a linear layer of twice its channels."""
    children: dict[str, Any] = dict(module.named_children())
    norms = [name for name, child in children.items() if _is_plain_norm(child)]
    rest = list(learned(module))
    if len(norms) != 1 or len(rest) != 1:
        return None
    norm, affine = children[norms[0]], children[rest[0]]
    if not isinstance(affine, nn.Linear) or affine.out_features != 2 * norm.num_features:
        return None
    _without_hooks(norm)

    def specs(*_: Any) -> Iterator[_AdaINSpec]:
        for activation, plus_one, gamma_first in itertools.product(_ACTIVATIONS, (True, False), (True, False)):
            yield _AdaINSpec(norms[0], rest[0], gamma_first, plus_one, activation)

    image = _random_images(module)
    style = image(affine.in_features, 1, 1).flatten(1)
    calls = [Call((image(norm.num_features, *size), style)) for size in ((6, 5), (17, 12))]
    return Candidate(FusedAdaIN, specs, calls, (norm,), _OPS)


class FusedInstanceNorm(Fused):
    """``weight * (x - mean) * rstd + bias``."""

    def accepts(self, *values: Any) -> bool:
        return len(values) == 1 and _is_image(values[0]) and _has_statistics(values[0])

    def fused(self, *values: Any) -> Tensor:
        return _instance_normed(self, values[0], _NONE)

    def detail(self) -> str:
        return "modulated_norm"


def find_instance_norm(module: nn.Module, _: Options) -> Candidate | None:
    """An instance norm of images, with or without an affine map, without running statistics."""
    if not _is_instance_norm(module):
        return None
    image = _random_images(module)
    calls = [Call((image(module.num_features, *size),)) for size in ((6, 5), (17, 12))]
    return Candidate(FusedInstanceNorm, lambda *_: ((),), calls, ops=_OPS)


class FusedSequential(Fused):
    """A sequence in which an instance norm and the activation behind it are one."""

    def accepts(self, *values: Any) -> bool:
        return len(values) == 1

    def fused(self, *values: Any) -> Any:
        (x,) = values
        parts: list[Any] = list(self._modules.values())
        index = 0
        while index < len(parts):
            activation = _activation_behind(parts, index)
            if activation is not None and _is_image(x) and _has_statistics(x):
                x = _instance_normed(parts[index], x, activation)
                index += 2
            else:
                x = parts[index](x)
                index += 1
        return x

    def detail(self) -> str:
        names = list(self._modules)
        fused = [names[index] for index in _pairs(self)]
        return f"modulated_norm with the activation behind it for {', '.join(fused)}"


def find_sequential(module: nn.Module, _: Options) -> Candidate | None:
    """A plain sequence with a ReLU or leaky ReLU right behind an instance norm."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return None
    norms = tuple(module[index] for index in _pairs(module))
    channels = next((n for part in module.modules() if (n := _channels(part))), None)
    if not norms or channels is None:
        return None
    image = _random_images(module)
    calls = [Call((image(channels, *size),)) for size in ((24, 20), (64, 64))]
    return Candidate(FusedSequential, lambda *_: ((),), calls, norms, _OPS)


def _pairs(sequence: nn.Module) -> list[int]:
    """Where an instance norm stands that its activation can be fused with."""
    parts = list(sequence._modules.values())
    return [index for index in range(len(parts)) if _activation_behind(parts, index) is not None]


def _activation_behind(parts: list[Any], index: int) -> _Activation | None:
    """What can be fused with the instance norm at a place; neither may have hooks, which would not run."""
    pair = parts[index : index + 2]
    if len(pair) < 2 or not _is_instance_norm(pair[0]) or any(map(_hooks, pair)):
        return None
    return _activation_of(pair[1])


def _channels(part: nn.Module) -> int | None:
    if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
        return part.in_channels
    return part.num_features if isinstance(part, nn.InstanceNorm2d) else None


def _activation_of(part: nn.Module | None) -> _Activation | None:
    if type(part) is nn.ReLU:
        return _RELU
    return ("leaky_relu", part.negative_slope) if type(part) is nn.LeakyReLU else None


def _is_instance_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.InstanceNorm2d) and module.running_mean is None


def _is_plain_norm(module: nn.Module) -> bool:
    """Without parameters; a batch norm with the statistics that it applies in evaluation mode."""
    if isinstance(module, nn.InstanceNorm2d):
        return not module.affine
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.affine and module.running_mean is not None


def _hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _without_hooks(norm: nn.Module) -> None:
    if _hooks(norm):
        raise Unproven("its norm has hooks, which would not run any more")


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()


def _has_statistics(x: Tensor) -> bool:
    """PyTorch refuses to normalise a single pixel."""
    return x.shape[2] * x.shape[3] > 1 and x.numel() > 0


def _random_images(module: nn.Module) -> Any:
    device, dtype = place(module)
    generator = torch.Generator().manual_seed(0)

    def image(channels: int, height: int, width: int) -> Tensor:
        return torch.randn(2, channels, height, width, generator=generator).to(device, dtype)

    return image


def _resized(image: Tensor, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    if image.shape[2] % height == 0 and image.shape[3] % width == 0:
        return resize_nearest(image, height, width)  # a view
    # Where sizes do not divide, PyTorch rounds the scale, and now and then takes another pixel than exact division.
    return F.interpolate(image, (height, width), mode="nearest")


def _activate(x: Tensor, activation: _Activation) -> Tensor:
    name, slope = activation
    return x if name is None else F.leaky_relu(x, slope)


def _instance_normed(norm: Any, x: Tensor, activation: _Activation) -> Tensor:
    if norm.weight is None:
        return _normalized(norm, x, None, None, activation)
    shape = x.shape[:2]
    return _normalized(norm, x, (norm.weight - 1).expand(shape), norm.bias.expand(shape), activation)


def _normalized(norm: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, activation: _Activation) -> Tensor:
    if gamma is not None and beta is not None and gamma.dim() == 4:
        # Autocast leaves x in float32 and convolves gamma in 16 bits.
        dtype = torch.promote_types(x.dtype, gamma.dtype)
        x, gamma, beta = x.to(dtype), gamma.to(dtype), beta.to(dtype)
    stats = None
    if norm.running_mean is not None:
        rstd = torch.rsqrt(norm.running_var + norm.eps)
        stats = norm.running_mean.expand(x.shape[:2]), rstd.expand(x.shape[:2])
    name, slope = activation
    return ops.modulated_norm(x, gamma, beta, stats=stats, eps=norm.eps, activation=name, slope=slope)
