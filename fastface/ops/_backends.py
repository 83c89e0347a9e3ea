"""Chooses the backend of a call, inside the op, where torch.compile does not look.

A hot path lists its backends in a `Registry`: for each, how to run a call and why it may refuse one. The order of
choice is fixed for CPU tensors and comes from measurements (`_measured.json`) for GPUs: no kernel is a default on a
device that has not shown it correct and faster. `backend=` and `FASTFACE_BACKEND` override the choice, and raise
instead of falling back.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = [
    "BACKENDS",
    "BackendUnavailable",
    "Implementation",
    "Registry",
    "define_op",
    "explain",
    "register",
    "registries",
    "requested",
    "route",
]

BACKENDS = ("reference", "cpu", "triton", "cuda")
_log = logging.getLogger("fastface")

Call = TypeVar("Call")


class BackendUnavailable(RuntimeError):
    """An explicitly chosen backend, or with FASTFACE_STRICT=1 every kernel backend, cannot run this call."""


@dataclass(frozen=True)
class Implementation(Generic[Call]):
    """One backend of a hot path: `refuse` says why it cannot run a call (None if it can), `run` runs it."""

    refuse: Callable[[Call], str | None]
    run: Callable[[Call], None]


@dataclass(frozen=True)
class Registry(Generic[Call]):
    """The backends of one hot path.

    Attributes:
        ops: the public functions by name.
        references: what each of them computes, in plain PyTorch, called with the same arguments.
        describe: gives (op, device, shape class) of a call.
        prepare: makes the call that an op would make of its arguments, all of them, by name.
    """

    slug: str
    ops: Mapping[str, Callable[..., Any]]
    references: Mapping[str, Callable[..., Any]]
    implementations: Mapping[str, Implementation[Call]]
    describe: Callable[[Call], tuple[str, torch.device, str]]
    prepare: Callable[[str, Mapping[str, Any]], Call]

    def build(self, op: str, *args: Any, **kwargs: Any) -> Call:
        """The call that ``op(*args, **kwargs)`` would make, without running it; raises what the op would raise."""
        return self.prepare(op, self.arguments(op, *args, **kwargs))

    def arguments(self, op: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Every argument of ``op(*args, **kwargs)`` by name. Raises TypeError as the call would."""
        try:
            bound = inspect.signature(self.ops[op]).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{op}: {error}") from None
        bound.apply_defaults()
        return bound.arguments

    def run(self, call: Call, backend: str) -> None:
        """Run a call on the backend asked for, or on the first that can when `backend` is empty."""
        name, complaint = self.choose(call, backend)
        if complaint:
            _log_once(complaint)
        self.implementations[name].run(call)

    def choose(self, call: Call, backend: str = "") -> tuple[str, str]:
        """The backend that runs `call`, and what to complain of where that is the reference for want of a kernel.

        Raises BackendUnavailable where a chosen backend cannot run the call, or with FASTFACE_STRICT=1 no kernel can.
        """
        op, device, shape_class = self.describe(call)
        asked = requested(backend)
        if asked:
            reason = self.implementations[asked].refuse(call)
            if reason is None:
                return asked, ""
            raise BackendUnavailable(f"{op}: backend {asked!r} cannot run this call: {reason}")
        reasons = {}
        order, why_not_more = preference(op, device, shape_class)
        for name in order:
            reason = self.implementations[name].refuse(call)
            if reason is None:
                return name, ""
            reasons[name] = reason
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or why_not_more
        if os.environ.get("FASTFACE_STRICT") == "1":
            raise BackendUnavailable(f"{op}: no kernel backend can run this call and FASTFACE_STRICT=1 is set. {told}")
        if reasons and _only_by_design(reasons):
            return "reference", ""
        return "reference", f"{op} falls back to the reference on {device}. {told}"


def _only_by_design(reasons: Mapping[str, str]) -> bool:
    """Float64 is the reference's alone, so running it there is no loss to warn of."""
    return all("float64" in reason for reason in reasons.values())


@functools.cache
def _log_once(message: str) -> None:
    _log.warning(message)


def requested(backend: str | None) -> str:
    """The backend asked for by argument or by FASTFACE_BACKEND, checked; empty for no wish."""
    name = backend or os.environ.get("FASTFACE_BACKEND", "")
    if name and name not in BACKENDS:
        source = "backend" if backend else "FASTFACE_BACKEND"
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def route(backend: str | None, *tensors: Tensor | None) -> str:
    """The backend to pass on: "reference" where the traceable reference must run right here, "" for the op's choice.

    Raises BackendUnavailable where a kernel is asked for and an input requires grad.
    """
    wish = requested(backend)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        if wish not in ("", "reference"):
            raise BackendUnavailable(
                f"backend {wish!r} has no gradient and an input requires grad: "
                "use backend='reference', or torch.no_grad()"
            )
        return "reference"
    return wish


def preference(op: str, device: torch.device, shape_class: str) -> tuple[tuple[str, ...], str]:
    """The kernel backends to try, best first, and what to say where that list is empty."""
    if device.type == "cpu":
        return ("cpu",), ""
    if device.type == "cuda":
        name = device_class(device.index)
        table = _measured().get(name, {}).get(op, {})
        order = table.get(shape_class) or table.get("any") or ()
        return tuple(order), (
            f"no kernel has been measured on {name!r} for {op}; choose one with backend= or FASTFACE_BACKEND, "
            "or measure this device with `make gpu-check`"
        )
    return (), f"no kernel backend runs on {device.type} tensors"


@functools.cache
def device_class(index: int | None) -> str:
    """The name under which measurements of a GPU are filed, for example ``NVIDIA H200``."""
    return torch.cuda.get_device_name(index)


@functools.cache
def _measured() -> dict[str, dict[str, dict[str, list[str]]]]:
    """{device: {op: {shape class or "any": [backends that beat the reference there, fastest first]}}}, from
    benchmarks/data.
    """
    return json.loads((Path(__file__).parent / "_measured.json").read_text())


registries: dict[str, Registry[Any]] = {}


def register(registry: Registry[Call]) -> Registry[Call]:
    """Make the ops of a hot path known to `explain`, by name."""
    for op in registry.ops:
        registries[op] = registry
    return registry


def define_op(name: str, schema: str, impl: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register ``fastface::name`` with torch, so that compiled graphs hold it as one node, and return it.

    `torch.library.define` with `impl` costs half of what a `custom_op` does per call.
    """
    torch.library.define(f"fastface::{name}", schema)
    torch.library.impl(f"fastface::{name}", ("CPU", "CUDA"), impl)
    torch.library.register_fake(f"fastface::{name}", fake)
    return getattr(torch.ops.fastface, name).default


def explain(op: str, *args: Any, **kwargs: Any) -> str:
    """Print, and return, which backends could run ``op(*args, **kwargs)``, why the others cannot, and which one would
    run.

    Raises ValueError for an unknown op, and what the op itself raises for bad arguments.
    """
    if op not in registries:
        raise ValueError(f"op must be one of {', '.join(sorted(registries))}, got {op!r}")
    registry = registries[op]
    given = registry.arguments(op, *args, **kwargs)
    call = registry.prepare(op, given)
    _, device, shape_class = registry.describe(call)
    order, why_not_more = preference(op, device, shape_class)
    try:
        wish = route(given["backend"], *(value for value in given.values() if isinstance(value, Tensor)))
        outcome = f"would run: {registry.choose(call, wish)[0]}"
    except BackendUnavailable as error:
        wish, outcome = "", f"would raise: {error}"
    lines = [f"{op} on {device}, {shape_class} shape"]
    for name in BACKENDS:
        reason = registry.implementations[name].refuse(call)
        rank = "" if reason else (" (default)" if order[:1] == (name,) else "")
        lines.append(f"  {name:<10}{'usable' + rank if reason is None else 'no: ' + reason}")
    lines.append(f"  {outcome}")
    if wish == "reference" and requested(given["backend"]) != wish:
        lines.append("  note: an input requires grad, and only the reference has a gradient")
    if not order and why_not_more:
        lines.append(f"  note: {why_not_more}")
    text = "\n".join(lines)
    print(text)
    return text
