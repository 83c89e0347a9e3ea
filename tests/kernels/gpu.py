"""What the tests on a GPU share: is a backend there, and does a call keep to its stream, its graph and its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastface.ops import _verify
from fastface.ops._backends import registries


def missing(case: _verify.Inputs, backend: str) -> str | None:
    """Why a backend cannot run a case here."""
    args, kwargs = case.arguments
    registry = registries[case.op]
    return registry.implementations[backend].refuse(registry.build(case.op, *args, **kwargs))


def skip_if_missing(case: _verify.Inputs, backend: str) -> None:
    reason = missing(case, backend)
    if reason:
        pytest.skip(f"backend {backend}: {reason}")


def needs_memory(gibibytes: int) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory, {free >> 30} are free")


def busy(buffer: Tensor) -> None:
    """Some milliseconds of work on the current stream."""
    for _ in range(20):
        torch.mm(buffer, buffer)


def outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def tensors(case: _verify.Inputs) -> list[Tensor]:
    args, kwargs = case.arguments
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def assert_equal(found: Any, expected: Any) -> None:
    for one, other in zip(outputs(found), outputs(expected), strict=True):
        assert torch.equal(one, other)


def assert_runs_on_the_current_stream(case: _verify.Inputs, backend: str) -> None:
    """The first argument gets its numbers on the same stream, behind some milliseconds of work."""
    expected = tuple(each.clone() for each in outputs(case.run(backend)))
    first = tensors(case)[0]
    right = first.clone()
    buffer = torch.randn(4096, 4096, device="cuda")
    first.fill_(float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy(buffer)
        first.copy_(right)
        result = case.run(backend)
    stream.synchronize()
    assert_equal(result, expected)


def assert_runs_in_a_cuda_graph(make: Callable[[int], _verify.Inputs], backend: str) -> None:
    """`make` gives a case for a seed."""
    case = make(0)
    case.run(backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = case.run(backend)
    for seed in (1, 2):
        fresh = make(seed)
        for old, new in zip(tensors(case), tensors(fresh), strict=True):
            old.copy_(new)
        for each in outputs(result):
            each.fill_(-7)
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(result, fresh.run(backend))


def peak_beyond_output(case: _verify.Inputs, backend: str) -> int:
    """Bytes that a call takes beside what it returns."""
    output = sum(each.nbytes for each in outputs(case.run(backend)))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case.run(backend)
    return torch.cuda.max_memory_allocated() - before - output
