"""A live module made to compute the same faster, as itself: its class is exchanged for one derived from it.

So parameters, buffers, children, hooks, attributes and methods stay where they are, in every place that refers to the
module, and giving its class back undoes it. `torch.nn.utils.parametrize` and FSDP work the same way.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastface.ops import _native
from fastface.ops._backends import preference, requested

__all__ = [
    "Call",
    "Candidate",
    "Fused",
    "Options",
    "Unproven",
    "copied",
    "difference",
    "differentiates",
    "fuse",
    "learned",
    "place",
    "prove",
    "release",
    "stirred",
    "tolerance",
    "without_kernels",
]

# Of the largest value. Code of float64 often computes its coordinates in float32.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@dataclass(frozen=True)
class Options:
    """Of `fastface.accelerate`."""

    convolutions: bool
    merge: bool


class Unproven(Exception):
    """A module that looks like a hot path but is none, or cannot be shown to be one; the message says why."""


class Fused(nn.Module):
    """Stands before a module's own class: a ``forward`` that is fused where a call is as it was proven to be.

    Any other call (training mode, other arguments) takes the module's own ``forward``.
    """

    _fastface_spec: Any = None  # how this module is fused: plain data; None in what it made of its own class since
    _fastface_names: tuple[str, ...] = ()  # of the arguments of the module's own forward
    _fastface_held: nn.Module | None = None  # what was made from the parameters, where anything is

    def accepts(self, *values: Any) -> bool:
        raise NotImplementedError

    def fused(self, *values: Any) -> Any:
        raise NotImplementedError

    def detail(self) -> str:
        """What it does now, for the report."""
        raise NotImplementedError

    def hold(self) -> None:
        """Make what is held beside the parameters."""

    def drop(self) -> None:
        """Undo what `hold` changed in the module."""

    def original(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)  # of the class that comes next in the order

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = self.taken(args, kwargs)
        return self.original(*args, **kwargs) if values is None else self.fused(*values)

    def taken(self, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        """The arguments in the order of the module's own forward; None for a call that is not fused."""
        if self._fastface_spec is None or self.training:
            return None
        names = self._fastface_names[len(args) : len(args) + len(kwargs)]
        if set(names) != kwargs.keys():  # one in between is left out
            return None
        values = (*args, *(kwargs[name] for name in names))
        return values if self.accepts(*values) else None

    def _apply(self, fn: Callable, recurse: bool = True) -> Fused:
        super()._apply(fn, recurse)
        if self._fastface_spec is not None:
            self.hold()  # parameters have moved, or have another dtype
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple:
        mixin, base = type(self).__bases__
        return _blank, (mixin, base), self.__dict__  # the class has no name that a pickle could look up


@functools.cache
def _fused_class(mixin: type[Fused], base: type[nn.Module]) -> type[Fused]:
    return type(f"Fused{base.__name__}", (mixin, base), {"__module__": mixin.__module__, "__doc__": mixin.__doc__})


def _blank(mixin: type[Fused], base: type[nn.Module]) -> Fused:
    cls = _fused_class(mixin, base)  # type: ignore[arg-type]  # mypy takes the instances' __hash__ for the class's
    return cls.__new__(cls)


def fuse(module: nn.Module, mixin: type[Fused], spec: Any) -> Fused:
    """`module` itself, fused."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    named = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    vars(module).update(_fastface_spec=spec, _fastface_names=named, _fastface_held=None)
    module.__class__ = _fused_class(mixin, type(module))  # type: ignore[arg-type]  # as above
    assert isinstance(module, Fused)
    module.hold()
    module.register_load_state_dict_post_hook(_hold_again)
    return module


def release(module: Fused) -> None:
    """Undo `fuse`."""
    module.drop()
    hooks = module._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if hook is _hold_again]:
        del hooks[key]
    module.__class__ = type(module).__bases__[1]
    for name in [name for name in vars(module) if name.startswith("_fastface_")]:
        del vars(module)[name]


def _hold_again(module: Fused, _: Any) -> None:
    module.hold()


@contextlib.contextmanager
def _drawing_alike() -> Iterator[None]:
    """The same random numbers in every block, none of which are used up."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(0)
        yield


@dataclass(frozen=True)
class Call:
    """Arguments of a module's forward."""

    args: tuple
    kwargs: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> Call:
        return Call(*_mapped(torch.clone, (self.args, self.kwargs)))

    def to(self, dtype: torch.dtype) -> Call:
        """The same with floating tensors of that dtype."""
        return Call(*_mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, (self.args, self.kwargs)))

    def of(self, module: nn.Module) -> Any:
        """The result on copies, since activations in place write over what they are given; what is drawn at random is
        the same in every call.
        """
        copied = self.copy()
        with _drawing_alike():
            return module(*copied.args, **copied.kwargs)


@dataclass(frozen=True)
class Candidate:
    """A module that looks like a hot path.

    Attributes:
        mixin: what fuses it.
        specs: the ways to fuse it, likeliest first, given a copy of it, a call and that call's result.
        calls: to compare them on, likeliest first; those that the module does not take do not count.
        covers: children that a fused module computes itself.
        ops: of `fastface.ops`, which it runs on.
    """

    mixin: type[Fused]
    specs: Callable[[nn.Module, Call, Any], Iterable[Any]]
    calls: Sequence[Call]
    covers: tuple[nn.Module, ...] = ()
    ops: tuple[str, ...] = ()


def prove(module: nn.Module, candidate: Candidate, calls: Sequence[Call] = ()) -> Any:
    """The way to fuse `module` that computes what it computes, for `calls` and the candidate's own.

    What is compared is a copy with changed parameters: fresh ones can be zero, and then one thing looks like another.
    It is in float32 where the module has 16 bits, whose rounding hides what differs.

    Raises:
        Unproven: there is none.
    """
    if "forward" in vars(module):
        raise Unproven("its forward was replaced on the instance")
    device, dtype = place(module)
    if (reason := without_kernels(candidate.ops, device)) is not None:
        raise Unproven(reason)
    try:
        twin = stirred(module).to(dtype)
    except Exception as error:  # copying runs any code there is
        raise Unproven(f"it cannot be copied: {_line(error)}") from error
    known, refusals = [], []
    for call in (*calls, *candidate.calls):
        try:
            with warnings.catch_warnings(action="ignore"):  # of inputs that are only guessed
                call = call.to(dtype)
                result = call.of(twin)
        except Exception as error:  # any code runs here, too
            refusals.append(_line(error))
        else:
            known.append((call, result))
    if not known:
        tried = "; ".join(dict.fromkeys(refusals)) or "they cannot be made up"
        raise Unproven(f"it takes none of the inputs tried (pass example=): {tried}")
    limit = tolerance(module)
    least = math.inf
    try:
        for spec in candidate.specs(twin, *known[0]):
            fused = fuse(twin, candidate.mixin, spec)
            away = _worst(fused, known, limit)
            release(fused)
            if away <= limit:
                return spec
            least = min(least, away)
    except Unproven:
        raise
    except Exception as error:
        raise Unproven(f"its fused form fails: {_line(error)}") from error
    raise Unproven(f"it computes something else: {least:.1e} of the largest value away at best, {limit:g} allowed")


def without_kernels(ops: Sequence[str], device: torch.device) -> str | None:
    """Why ops would run on their reference, which is no faster than what is there."""
    if not ops or requested(None):
        return None
    if device.type == "cpu":
        return _native.reason_missing("cpu")
    return next((why for order, why in (preference(op, device, "single") for op in ops) if not order), None)


def _worst(fused: Fused, known: Sequence[tuple[Call, Any]], limit: float) -> float:
    """The largest difference over the calls that are fused, or one above the limit."""
    compared = [(call, expected) for call, expected in known if fused.taken(call.args, call.kwargs) is not None]
    if not compared:
        raise Unproven("it is called in another way than its fused form")
    worst = 0.0
    for call, expected in compared:
        worst = max(worst, difference(expected, call.of(fused)))
        if worst > limit:
            break
    return worst


def difference(expected: Any, got: Any) -> float:
    """The largest difference as a share of the largest value, over all tensors; infinite where all else differs."""
    if isinstance(expected, Tensor):
        if not isinstance(got, Tensor) or (expected.shape, expected.dtype) != (got.shape, got.dtype):
            return math.inf
        if expected.numel() == 0:
            return 0.0
        largest, away = float(expected.abs().max()), float((expected - got).abs().max())
        share = away / largest if largest else away
        return share if math.isfinite(share) else math.inf
    if type(expected) is not type(got):
        return math.inf
    if isinstance(expected, dict):
        same = expected.keys() == got.keys()
        return max((difference(expected[key], got[key]) for key in expected), default=0.0) if same else math.inf
    if isinstance(expected, (tuple, list)):
        same = len(expected) == len(got)
        return max(map(difference, expected, got), default=0.0) if same else math.inf
    return 0.0 if expected is got or expected == got else math.inf


def differentiates(module: nn.Module, *values: Any) -> bool:
    """Whether a gradient is wanted, of an input or of a parameter."""
    tensors = (value for value in (*values, *module.parameters()) if isinstance(value, Tensor))
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def place(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a module is compared with its fused form: on its device, in float32 unless it is of float64."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.device, torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return torch.device("cpu"), torch.float32


def tolerance(module: nn.Module) -> float:
    """How far a fused form may be away, as a share of the largest value."""
    return _TOLERANCE[place(module)[1]]


def learned(module: nn.Module) -> dict[str, Any]:
    """The children that have parameters."""
    return {name: child for name, child in module.named_children() if next(child.parameters(), None) is not None}


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. Deepcopy refuses what is no leaf, such as a weight computed by a hook, so that is copied first."""
    values = (value for part in module.modules() for value in vars(part).values())
    computed = {
        id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, computed)


def stirred(module: nn.Module) -> nn.Module:
    """A copy with noise on its parameters and on the statistics of its norms."""
    twin = copied(module)
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for parameter in twin.parameters():
        if parameter.is_floating_point():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.data += scale * noise(parameter)
    part: Any
    for part in twin.modules():
        if getattr(part, "running_mean", None) is not None:
            part.running_mean += 0.3 * noise(part.running_mean)
            part.running_var *= torch.exp(0.3 * noise(part.running_var))
    return twin


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(function, item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(function, item) for item in value)
    return value


def _line(error: Exception) -> str:
    """An error in one line of bearable length."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."
