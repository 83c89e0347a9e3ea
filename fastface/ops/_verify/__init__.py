"""Random inputs, and the one rule by which a backend's result is right: for tests, for `selftest` and for the
benchmarks. Each hot path has a module here with its shapes, its inputs and the cases of its selftest.

The truth is the reference in float64 on the same numbers. A result may lose at most twice what the reference itself
loses when it runs in the result's dtype, plus one rounding of that dtype.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastface.ops._backends import registries

__all__ = ["Inputs", "Verdict", "arrange", "compare", "inputs", "most_lost", "selftest", "verify"]

Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Verdict:
    """`error` and `limit` are largest absolute differences; `where` names the worst element of a wrong result."""

    error: float
    limit: float
    ok: bool
    where: str = ""

    def __str__(self) -> str:
        return f"error {self.error:.2e}, limit {self.limit:.2e}" + (f", {self.where}" if self.where else "")


def compare(result: Result, truth: Result, yardstick: Result, lost: float | Sequence[float] = 0.0) -> Verdict:
    """Judge `result` against the float64 `truth`; `yardstick` is what the reference gives in the dtype of `result`.

    `lost` is what the reference is known to lose on inputs like these, of several tensors perhaps each its own; where
    `yardstick` loses more, that counts. Of several tensors the verdict is the worst one's.
    """
    results = _tensors(result)
    known = (lost,) * len(results) if isinstance(lost, float) else lost
    each = zip(results, _tensors(truth), _tensors(yardstick), known, strict=True)
    verdicts = [_compare_one(*one) for one in each]
    return min(verdicts, key=lambda verdict: (verdict.ok, -verdict.error / max(verdict.limit, 1e-300)))


def _tensors(result: Result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _compare_one(result: Tensor, truth: Tensor, yardstick: Tensor, lost: float) -> Verdict:
    if result.shape != truth.shape:
        return Verdict(float("inf"), 0.0, False, f"shape {list(result.shape)} instead of {list(truth.shape)}")
    unwanted = result.isnan() != yardstick.isnan()
    if bool(unwanted.any()):
        index = [int(i) for i in unwanted.nonzero()[0]]
        found = "NaN" if bool(result[tuple(index)].isnan()) else "a number"
        return Verdict(
            float("inf"), 0.0, False, f"{int(unwanted.sum())} elements, first at {index}: {found}, unlike the reference"
        )
    difference = _difference(result, truth)
    scale = truth.nan_to_num(0.0, 0.0, 0.0).abs().max()
    lost = max(lost, float(_difference(yardstick, truth).max()))
    limit = 2 * lost + float(torch.finfo(result.dtype).eps * scale)
    error = float(difference.max())
    if error <= limit:
        return Verdict(error, limit, True)
    worst = [int(i) for i in torch.unravel_index(difference.argmax(), difference.shape)]
    return Verdict(
        error, limit, False, f"worst at {worst}: {float(result[tuple(worst)])!r} for {float(truth[tuple(worst)])!r}"
    )


def _difference(result: Tensor, truth: Tensor) -> Tensor:
    """``|result - truth|``, zero where both are NaN or the same infinity."""
    same = (result == truth) | (result.isnan() & truth.isnan())
    return (result.double() - truth).abs().masked_fill(same, 0.0)


@dataclass(frozen=True)
class Inputs:
    """The arguments of one op call. `arguments` is ``(args, kwargs)``; `judge` compares as `compare` does."""

    op: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    dtype: torch.dtype = torch.float32
    judge: Callable[..., Verdict] = compare

    def run(self, backend: str | None = None) -> Any:
        """The public op on these inputs."""
        args, kwargs = self.arguments
        return registries[self.op].ops[self.op](*args, backend=backend, **kwargs)

    def reference(self) -> Any:
        """The eager reference, called directly."""
        args, kwargs = self.arguments
        return registries[self.op].references[self.op](*args, **kwargs)

    def truth(self) -> Any:
        """The reference in float64 on the same numbers."""
        args, kwargs = self.arguments
        wide = {key: _double(value) for key, value in kwargs.items()}
        return registries[self.op].references[self.op](*(_double(value) for value in args), **wide)


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_double(each) for each in value)
    return value


def inputs(op: str, shape: Any, **options: Any) -> Inputs:
    """Random arguments for an op: `shape` is one of its hot path's SHAPES or the name of one."""
    if op not in registries:
        raise ValueError(f"op must be one of {', '.join(registries)}, got {op!r}")
    module = _of(op)
    return module.inputs(op, module.SHAPES[shape] if isinstance(shape, str) else shape, **options)


def selftest(op: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Shape and options of the cases by which `fastface selftest` tries an op."""
    return _of(op).selftest(op)


def _of(op: str) -> Any:
    return importlib.import_module(f"{__name__}.{registries[op].slug}")


def arrange(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in another memory layout: contiguous, sliced or channels_last."""
    if layout == "contiguous":
        return tensor
    if layout == "channels_last":
        last = torch.channels_last_3d if tensor.dim() == 5 else torch.channels_last
        return tensor.contiguous(memory_format=last)
    if layout == "sliced":
        larger = torch.full([size + 2 for size in tensor.shape], float("nan"), dtype=tensor.dtype, device=tensor.device)
        inside = larger[tuple(slice(1, 1 + size) for size in tensor.shape)]
        return inside.copy_(tensor)
    raise ValueError(f"layout must be contiguous, sliced or channels_last, got {layout!r}")


def verify(case: Inputs, backend: str | None = None, peers: Sequence[Inputs] = ()) -> Verdict:
    """Run one case on a backend and judge it.

    `peers` are cases of the same shape and kind: what the reference loses on them counts too, as on a few numbers it
    may be lucky once.
    """
    return case.judge(case.run(backend), case.truth(), case.reference(), most_lost(peers) if peers else 0.0)


def most_lost(cases: Sequence[Inputs]) -> tuple[float, ...]:
    """The largest error of the reference on these, for each of its outputs: they may be of different dtypes."""
    losses = [
        [
            float(_difference(*pair).max())
            for pair in zip(_tensors(case.reference()), _tensors(case.truth()), strict=True)
        ]
        for case in cases
    ]
    return tuple(max(each) for each in zip(*losses, strict=True))
