"""What a rewriting did: each rewrite with its arithmetic and its memory traffic before and after."""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

import fastface.engine.winograd  # noqa: F401  (defines an op that has a formula below)
from fastface.engine.fft_conv import _TILE as _FFT_TILE

__all__ = ["Cost", "OptimizeReport", "Rewrite", "Step", "count"]


class Cost(NamedTuple):
    """Of one call: floating point operations of convolutions and matrix products (a multiply-add is 2), and bytes that
    its ops read and write if no cache helps.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: object) -> Cost:
        assert isinstance(other, Cost)
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


class Step(NamedTuple):
    """One rewrite: its name and the parts it took and made, as paths or patterns of paths from the root.

    A path stands for all that lies in it; with a "$" behind it for what the module does outside its children.
    """

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    def within(self, path: str) -> Step:
        """The same, seen from a root that has this one at `path`."""

        def moved(part: str) -> str:
            return f"{path}.{part}" if path and part not in ("", "$") else path + part

        return Step(self.name, tuple(map(moved, self.before)), tuple(map(moved, self.after)))


@dataclass(frozen=True)
class Rewrite:
    """One line of the report. Costs are None where no example was given."""

    name: str
    where: str
    before: Cost | None = None
    after: Cost | None = None


@dataclass
class OptimizeReport:
    """What `optimize` did, in its order; `before` and `after` are of one whole call.

    ``str()`` is a Markdown table. Operations of fast convolutions are the multiplications that are really done and as
    many additions; their transforms are not counted.
    """

    rewrites: list[Rewrite] = field(default_factory=list)
    before: Cost | None = None
    after: Cost | None = None

    def add(self, steps: Iterable[Step], before: Costs | None, after: Costs | None) -> None:
        for step in steps:
            costs = [None if c is None else _sum(c, p) for c, p in ((before, step.before), (after, step.after))]
            where = ", ".join(path.removesuffix("$") for path in step.after)
            self.rewrites.append(Rewrite(step.name, where, *costs))

    def __str__(self) -> str:
        lines = ["| rewrite | where | GFLOP before | after | MB before | after |", "|---|---|---|---|---|---|"]
        rows = [*self.rewrites, Rewrite("all", "", self.before, self.after)]
        for row in rows:
            numbers = [
                "" if cost is None else f"{cost[index] / unit:.{digits}f}"
                for index, unit, digits in ((0, 1e9, 2), (1, 1e6, 1))
                for cost in (row.before, row.after)
            ]
            lines.append(f"| {row.name} | {row.where} | {' | '.join(numbers)} |")
        return "\n".join(lines)


Costs = dict[str, Cost]  # by the path of the innermost module that was at work


def count(module: nn.Module, call: Callable[[], Any]) -> Costs:
    """What each part of `module` costs while `call` runs it, on fake tensors: nothing is computed.

    Tensors that `call` holds may be real.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _Meter(module) as meter:
        call()
    return dict(meter.costs)


def total(costs: Costs) -> Cost:
    return sum(costs.values(), Cost())


def _sum(costs: Costs, patterns: Sequence[str]) -> Cost:
    chosen = (cost for path, cost in costs.items() if any(_lies_in(path, pattern) for pattern in patterns))
    return sum(chosen, Cost())


def _lies_in(path: str, pattern: str) -> bool:
    if pattern.endswith("$"):
        return fnmatch.fnmatchcase(path, pattern[:-1])
    return not pattern or fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}.*")


class _Meter(TorchDispatchMode):
    """Adds up every op that is dispatched, under the path of the module that called it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self.module = module
        self.path = [""]

    def __enter__(self) -> _Meter:
        def leave(*_: Any) -> None:
            self.path.pop()

        self.hooks = []
        for path, part in self.module.named_modules():
            self.hooks.append(part.register_forward_pre_hook(lambda _, __, path=path: self.path.append(path)))
            self.hooks.append(part.register_forward_hook(leave, always_call=True))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        self.costs[self.path[-1]] += Cost(flops, _bytes(func, (args, kwargs), out))
        return out


def _bytes(func: Any, given: Any, out: Any) -> int:
    """Of all tensors read and written; a view moves nothing."""
    if func.is_view or func.namespace == "prim" or func in _FREE:
        return 0
    overwritten = func is torch.ops.aten.copy_.default  # what was there is not read
    tensors = [*tree_leaves(given), *([] if overwritten else tree_leaves(out))]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


_FREE = {torch.ops.aten.empty.memory_format, torch.ops.aten.detach.default, torch.ops.aten.new_empty.default}


@register_flop_formula(torch.ops.fastface.winograd)
def _winograd_flops(x: Any, weight: Any, filters: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Twice the multiplications: a real product of channels and depth taps for each of (m + 2)² frequencies."""
    return _tile_products(weight, filters, out_shape, math.isqrt(filters[0]) - 2)


@register_flop_formula(torch.ops.fastface.fft_conv)
def _fft_flops(x: Any, weight: Any, filters: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """The same with complex products, of 4 real ones each."""
    return 4 * _tile_products(weight, filters, out_shape, _FFT_TILE)


def _tile_products(weight: Any, filters: Any, out_shape: Any, tile: int) -> int:
    batch, outputs, *depth, height, width = out_shape
    tiles = batch * math.prod(depth) * -(-height // tile) * -(-width // tile)
    return 2 * tiles * filters[0] * outputs * math.prod(weight[1:-2])
