"""Exact rewrites of a model for inference.

Each changes the order of arithmetic, never the formula: norms folded into convolutions and weights, convolutions of one
input merged into one, convolutions over upsampled maps computed before the upsampling, 3x3 convolutions by Winograd's
algorithm, large ones by Fourier's, channels_last. What a module knows of itself it says in ``optimized()``, which
returns its rewritten form; what is true of any model is found by structure.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from fastface.engine.fold import fold_spectral_norm
from fastface.engine.lowering import lower
from fastface.engine.polyphase import PolyphaseConv
from fastface.engine.report import Costs, OptimizeReport, Step, count, total
from fastface.engine.structure import rewrite_structure

__all__ = ["Rewritable", "optimize"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@runtime_checkable
class Rewritable(Protocol):
    """A module that knows an exact and faster form of itself.

    That form may say what it did in an attribute ``rewrites``: for each rewrite its name, the parts that it took and
    those that it made, as of a `fastface.engine.Step` whose paths begin at the module.
    """

    def optimized(self) -> nn.Module: ...


def optimize(
    module: ModuleT,
    *,
    example: tuple[Any, ...] | None = None,
    channels_last: bool = True,
    polyphase: bool = True,
    winograd: bool = True,
    fft: bool = True,
) -> ModuleT:
    """A copy of `module` for inference that computes the same, to 1e-4 of the output's range in float32.

    Spectral norm is folded into weights, batch norm into the convolution before it; every part that has an
    ``optimized()`` becomes what that returns; convolutions of one input are merged, those behind an upsampling to the
    nearest are computed before it. The copy is in evaluation mode, without gradients, and meant for the device and the
    dtype that `module` has; `module` itself is untouched. What was done is in its ``report``, an `OptimizeReport`.

    Args:
        example: arguments of ``forward`` of the real size, from which the report gets its numbers; nothing is computed
            with them.
        channels_last: store the weights of convolutions so, which makes the results channels_last too.
        polyphase: compute convolutions over upsampled maps from the maps before, where that is the fastest way.
        winograd: on a CPU compute 3x3 and 3x3x3 convolutions in float32 by Winograd's algorithm, where that pays.
        fft: on a CPU compute large 3D kernels in float32 by Fourier transforms, where that pays.

    Raises:
        TypeError: `module` is something else.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    copied = copy.deepcopy(module, _computed(module)).eval().requires_grad_(False)
    report = OptimizeReport()

    def costs(of: nn.Module) -> Costs | None:
        return None if example is None else count(of, lambda: of(*example))

    plain = costs(copied)
    folded = [path for path, part in copied.named_modules() if fold_spectral_norm(part)]
    steps = [Step("spectral norm folded", (path,), (path,)) for path in folded]
    result, declared = _rewrite(copied, "")
    merged = costs(result)
    report.add([*steps, *declared], plain, merged)
    result, found = rewrite_structure(result)
    joined = costs(result)
    report.add(found, merged, joined)
    result, lowered = lower(result, polyphase=polyphase, winograd=winograd, fft=fft)
    if channels_last:
        _store_channels_last(result)
    final = costs(result)
    report.add(lowered, joined, final)
    if plain is not None and final is not None:
        report.before, report.after = total(plain), total(final)
    result.report = report  # type: ignore[assignment]  # not a part of the module's state
    return cast(ModuleT, result)  # a rewritten form is called as the original is


def _computed(module: nn.Module) -> dict[int, Tensor]:
    """Copies of what hooks have computed, such as a weight by spectral norm: deepcopy takes leaves alone."""
    values = (value for part in module.modules() for value in vars(part).values())
    return {id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf}


def _rewrite(module: nn.Module, path: str) -> tuple[nn.Module, list[Step]]:
    """Outermost first: a part that is merged by its parent is not there any more to be rewritten alone."""
    steps: list[Step] = []
    if isinstance(module, Rewritable):
        module = module.optimized().eval().requires_grad_(False)
        steps += [Step(*step).within(path) for step in getattr(module, "rewrites", ())]
    for name, child in list(module.named_children()):
        rewritten, found = _rewrite(child, f"{path}.{name}" if path else name)
        steps += found
        if rewritten is not child:
            module._modules[name] = rewritten
    return module, steps


def _store_channels_last(module: nn.Module) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d, PolyphaseConv)):
            for parameter in part.parameters():
                if parameter.dim() in formats:
                    parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
