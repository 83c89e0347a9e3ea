"""A live model of any package made faster, in place, and back.

Hot paths are found by structure, the types and shapes of a module's children, never by the name of a class; and by
numbers: a copy of what looks like a hot path is run against its fused form, in every order of arguments and form of the
formula known, and only what agrees is fused. So the other package is neither imported nor known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastface.engine.accelerate import layers, motion, norms, rendering
from fastface.engine.accelerate.fused import Call, Candidate, Fused, Options, Unproven, difference, fuse, prove, release

__all__ = ["KINDS", "AccelerateReport", "Change", "Kind", "Skip", "accelerate", "restore"]


@dataclass(frozen=True)
class Kind:
    """One sort of hot path.

    Attributes:
        looks_for: its structure, for who wonders why nothing was found.
        find: the candidate that a module is, or None; raises Unproven for one that cannot be fused.
    """

    name: str
    looks_for: str
    find: Callable[[nn.Module, Options], Candidate | None]


# A module is the first kind that it is found to be, and outer modules come before inner ones.
KINDS: list[Kind] = [
    Kind(
        "dense motion",
        "a 1x1x1 Conv3d with BatchNorm3d, an hourglass over (K+1)(c+1) channels and an odd Conv3d to K+1 masks",
        motion.find_dense_motion,
    ),
    Kind(
        "volume renderer",
        "a module that is called with planes, a decoder, ray origins, ray directions and options; wants an example",
        rendering.find_renderer,
    ),
    Kind(
        "SPADE",
        "a norm without parameters, a shared convolution and two convolutions of its output",
        norms.find_spade,
    ),
    Kind(
        "AdaIN",
        "a norm without parameters and a Linear of twice its channels",
        norms.find_adain,
    ),
    Kind(
        "instance norm and activation",
        "an nn.Sequential with a ReLU or LeakyReLU right behind an InstanceNorm2d",
        norms.find_sequential,
    ),
    Kind(
        "instance norm",
        "an InstanceNorm2d",
        norms.find_instance_norm,
    ),
    Kind(
        "computed weight",
        "a convolution or Linear under spectral norm or a parametrization",
        layers.find_computed_weight,
    ),
    Kind(
        "convolution",
        "3x3, 3x3x3 and 7x7x7 convolutions, and large ones of few outputs, in float32 on the CPU",
        layers.find_convolution,
    ),
]


@dataclass(frozen=True)
class Change:
    """A module that was fused.

    Attributes:
        where: its path in the model; "" is the model.
        detail: what it does now.
        holds_copy: whether it runs on a copy made from its weights.
    """

    where: str
    kind: str
    detail: str
    holds_copy: bool

    def __str__(self) -> str:
        copy = " (*)" if self.holds_copy else ""
        return f"{self.where or 'the module itself'}: {self.kind}, now {self.detail}{copy}"


@dataclass(frozen=True)
class Skip:
    """A module that looked like a hot path and was left as it is."""

    where: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where or 'the module itself'}: looks like {self.kind}, left as it is: {self.reason}"


@dataclass(frozen=True)
class AccelerateReport:
    changes: tuple[Change, ...]
    skipped: tuple[Skip, ...]

    def __str__(self) -> str:
        lines = [str(line) for line in (*self.changes, *self.skipped)]
        if any(change.holds_copy for change in self.changes):
            lines.append(
                "(*) runs on a copy made from its weights, made again when weights are loaded or moved; "
                "call accelerate again after changing them in another way"
            )
        return "\n".join(lines)


@torch.no_grad()
def accelerate(
    module: nn.Module,
    *,
    example: tuple[tuple, dict[str, Any]] | None = None,
    convolutions: bool = True,
    merge: bool = False,
    verbose: bool = True,
) -> AccelerateReport:
    """Make the hot paths inside a live model faster, in place; `restore` undoes it.

    The fused modules keep their parameters, buffers and names, so that ``state_dict`` stays and weights can be loaded
    later; their results agree to 1e-4 of the largest value in float32. In training mode, and in calls of another form
    than was proven, a module does what it did before; where a gradient is wanted, it is differentiable. Called again,
    it starts anew.

    Args:
        module: in evaluation mode.
        example: ``(args, kwargs)`` of a call of `module`, whose inner calls are compared as well; needed where inputs
            cannot be told from the shapes of parameters.
        convolutions: on the CPU compute float32 convolutions that it suits by Winograd's algorithm, the Fourier
            transform or matrix products, on transformed copies of their weights.
        merge: compute the gamma and beta of a SPADE as one convolution, on a copy of their weights.
        verbose: print the report, a line for each module.

    Returns:
        What changed, and what looked like a hot path but was left, with the reason.

    Raises:
        TypeError: `module` or `example` is something else.
        ValueError: a part is in training mode, nothing was found, or the example's result changed.
    """
    _check(module, example)
    restore(module)
    calls: dict[nn.Module, list[Call]] = {}
    expected = None
    if example is not None:
        expected = _record(module, Call(*example), calls)
    report = _accelerate(module, calls, Options(convolutions, merge))
    if not report.changes:
        looked = "\n".join(f"  {kind.name}: {kind.looks_for}" for kind in KINDS)
        raise ValueError(
            f"found nothing to accelerate in {type(module).__name__}, looked for\n{looked}\n{report}".rstrip()
        )
    if example is not None and not (away := difference(expected, Call(*example).of(module))) <= 1e-4:
        restore(module)
        raise ValueError(f"the example's result changed by {away:.1e} of its largest value; the module is as it was")
    if verbose:
        print(report)
    return report


def restore(module: nn.Module) -> None:
    """Undo `accelerate`: every module has its class and its hooks back. Nothing happens to other modules."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    for part in module.modules():
        if isinstance(part, Fused):
            release(part)


def _accelerate(module: nn.Module, calls: dict[nn.Module, list[Call]], options: Options) -> AccelerateReport:
    changes, skipped = [], []
    covered: set[nn.Module] = set()
    for where, part in list(module.named_modules()):
        for kind in KINDS if part not in covered else ():
            try:
                candidate = kind.find(part, options)
                if candidate is None:
                    continue
                spec = prove(part, candidate, calls.get(part, ()))
            except Unproven as error:
                skipped.append(Skip(where, kind.name, str(error)))
                continue
            fused = fuse(part, candidate.mixin, spec)
            changes.append(Change(where, kind.name, fused.detail(), fused._fastface_held is not None))
            covered.update(candidate.covers)
            break
    return AccelerateReport(tuple(changes), tuple(skipped))


def _check(module: nn.Module, example: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    training = next((name for name, part in module.named_modules() if part.training), None)
    if training is not None:
        raise ValueError(
            f"module must be in evaluation mode, got {training or 'it'} in training mode: call .eval() first"
        )
    if example is not None:
        shaped = isinstance(example, tuple) and len(example) == 2
        if not (shaped and isinstance(example[0], (tuple, list)) and isinstance(example[1], dict)):
            raise TypeError(f"example must be (args, kwargs), a tuple and a dict, got {type(example).__name__}")


def _record(module: nn.Module, call: Call, calls: dict[nn.Module, list[Call]]) -> Any:
    """The result of a call, and the first call of every part inside."""

    def hook(part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if part not in calls:
            calls[part] = [Call(args, kwargs).copy()]

    handles = [part.register_forward_pre_hook(hook, with_kwargs=True) for part in module.modules()]
    try:
        return call.of(module)
    finally:
        for handle in handles:
            handle.remove()
