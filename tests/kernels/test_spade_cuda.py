"""The CUDA kernels of `spade` as far as they can be proven without a GPU: their code, run on the CPU, against the
reference; and what the compiler and the built module say of them. On a GPU: test_spade_gpu.py.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastface.ops import _native, _verify, spade
from fastface.ops._verify import inputs
from fastface.ops._verify.spade import SpadeShape
from tests.kernels.cuda_host import compiled_kernels, library, view, view_type

OPS = ("modulated_norm", "instance_stats")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "sliced", "channels_last")
MODULATIONS = (None, "channels", "maps", "halves")
# A device of as many processors takes the channels of a test whole, or in parts.
WHOLE, PARTS = 1, 10000


class Params(ctypes.Structure):
    """`spade::Params` of kernels/spade/spade.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "scale")),
        *((name, view_type(4)) for name in ("x", "gamma", "beta", "residual", "out")),
        *((name, ctypes.c_void_p) for name in ("gamma_channel", "beta_channel", "mean", "rstd")),
        ("eps", ctypes.c_double),
        ("activation", ctypes.c_int32),
        ("slope", ctypes.c_float),
    ]


class OnHost:
    """Runs a case of `_verify` through the CUDA kernels' source, compiled for the CPU."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        compiled.spade_scratch_on_host.restype = ctypes.c_int64
        compiled.spade_on_host.restype = ctypes.c_bool

    def __call__(self, case: _verify.Inputs, processors: int = WHOLE) -> Any:
        args, kwargs = case.arguments
        call = spade.registry.build(case.op, *args, **kwargs)
        op, params = OPS.index(case.op), ctypes.byref(self._params(call))
        scratch = torch.full((self.compiled.spade_scratch_on_host(op, params, processors),), float("nan"))
        finished = self.compiled.spade_on_host(op, params, ctypes.c_void_p(scratch.data_ptr()), processors)
        assert finished, "a thread waits for others that never come"
        return call.out if call.op == "modulated_norm" else (call.mean, call.rstd)

    def cut(self, case: _verify.Inputs, processors: int = WHOLE) -> dict[str, int]:
        args, kwargs = case.arguments
        params = self._params(spade.registry.build(case.op, *args, **kwargs))
        found = (ctypes.c_int * 4)()
        self.compiled.spade_plan_on_host(OPS.index(case.op), ctypes.byref(params), processors, found)
        return dict(zip(("whole", "last", "vector", "parts"), found, strict=True))

    @staticmethod
    def _params(call: spade.SpadeCall) -> Params:
        sizes, *views_and_rest = spade._params(call)
        views, rest = views_and_rest[:5], views_and_rest[5:]
        return Params(*sizes, *map(view, views), *rest)


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> OnHost:
    return OnHost(library("spade", tmp_path_factory.mktemp("spade_cuda")))


def check(case: _verify.Inputs, result: Any) -> None:
    verdict = _verify.compare(result, case.truth(), case.reference())
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize("processors", [WHOLE, PARTS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_matches_the_reference(op: str, dtype: torch.dtype, layout: str, processors: int, on_host: OnHost) -> None:
    if op == "instance_stats":
        case = inputs(op, "odd", dtype=dtype, layout=layout)
        return check(case, on_host(case, processors))
    for modulation, stats in itertools.product(MODULATIONS, (False, True)):
        case = inputs(op, "odd", dtype=dtype, layout=layout, modulation=modulation, stats=stats, residual=stats)
        check(case, on_host(case, processors))
    for activation in (None, "relu"):
        case = inputs(op, "odd_low", dtype=dtype, layout=layout, activation=activation)
        check(case, on_host(case, processors))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_packs_of_16_bytes(dtype: torch.dtype, layout: str, scale: int, on_host: OnHost) -> None:
    """Wherever sizes divide; with maps of fewer pixels too."""
    shape = SpadeShape(2, 16, 24, 48, scale)
    for modulation, residual in (("halves", True), ("maps", False), ("channels", True)):
        case = inputs("modulated_norm", shape, dtype=dtype, layout=layout, modulation=modulation, residual=residual)
        assert on_host.cut(case)["vector"] * dtype.itemsize == 16
        check(case, on_host(case))


@pytest.mark.parametrize(
    "size, processors, whole, parts",
    [((24, 43), 1, 1, 0), ((70, 64), 1, 1, 0), ((96, 96), 1, 1, 0), ((96, 96), 9, 0, 9)],
    ids=["small", "larger than its registers", "largest block", "parts"],
)
def test_channels_of_every_size(
    size: tuple[int, int], processors: int, whole: int, parts: int, on_host: OnHost
) -> None:
    """Values one by one, so that small images reach the blocks meant for large ones; the last column is cut off."""
    wide = inputs("modulated_norm", SpadeShape(1, 3, size[0], size[1] + 1), modulation="maps")
    args, kwargs = wide.arguments
    kwargs = {name: value[..., 1:] if isinstance(value, Tensor) else value for name, value in kwargs.items()}
    case = _verify.Inputs("modulated_norm", ((args[0][..., 1:],), kwargs))
    assert on_host.cut(case, processors) == {"whole": whole, "last": 0, "vector": 1, "parts": parts}
    check(case, on_host(case, processors))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    channels=st.integers(1, 19),
    size=st.tuples(st.integers(1, 11), st.integers(1, 23)),
    scale=st.integers(1, 4),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    modulation=st.sampled_from(MODULATIONS),
    activation=st.sampled_from(spade.ACTIVATIONS),
    stats=st.booleans(),
    processors=st.sampled_from([WHOLE, 8, PARTS]),
    seed=st.integers(0, 2**31),
)
def test_at_any_size(
    op, batch, channels, size, scale, layout, dtype, modulation, activation, stats, processors, seed, on_host
) -> None:
    shape = SpadeShape(batch, channels, scale * size[0], scale * size[1], scale)
    options = {} if op == "instance_stats" else {"modulation": modulation, "activation": activation, "stats": stats}
    case, *peers = (inputs(op, shape, dtype=dtype, layout=layout, seed=seed + i, **options) for i in range(4))
    result = on_host(case, processors)
    lost = max(float(_loss(peer)) for peer in peers)
    verdict = _verify.compare(result, case.truth(), case.reference(), lost)
    assert verdict.ok, str(verdict)


def _loss(case: _verify.Inputs) -> Tensor:
    """What the reference loses."""
    one, other = case.reference(), case.truth()
    pairs = [(one, other)] if isinstance(one, Tensor) else zip(one, other, strict=True)
    return torch.stack([(a.double() - b).abs().max() for a, b in pairs]).max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("processors", [WHOLE, PARTS])
def test_channels_far_from_zero(layout: str, processors: int, on_host: OnHost) -> None:
    """A mean of 1e4 and a deviation of 1, and a first pixel that is like no other.

    Sums are relative to that pixel. Of n pixels one can lie sqrt(n) deviations off at most, and a sum of n differences
    of its size loses about eps sqrt(n) of it: eps n of a deviation, 2e-4 here.
    """
    case = inputs("instance_stats", SpadeShape(2, 6, 33, 40), layout=layout, mean=1e4)
    check(case, on_host(case, processors))
    case = inputs("modulated_norm", SpadeShape(2, 6, 33, 40), layout=layout, mean=1e4)
    result = on_host(case, processors)
    check(case, result)
    assert (result - case.truth()).abs().max() < 4e-6, "the reference loses 1e-3 with the rounding of its mean"
    case.arguments[0][0][:, :, 0, 0] = -3e6
    lost = torch.finfo(torch.float32).eps * 33 * 40 / 2
    verdict = _verify.compare(on_host(case, processors), case.truth(), case.reference(), lost)
    assert verdict.ok, str(verdict)


def test_a_constant_channel_is_zero(on_host: OnHost) -> None:
    x = torch.full((1, 2, 33, 40), 0.1)
    for processors in (WHOLE, PARTS):
        assert (on_host(_verify.Inputs("modulated_norm", ((x,), {})), processors) == 0).all()
        mean, rstd = on_host(_verify.Inputs("instance_stats", ((x,), {})), processors)
        assert (mean == x[0, 0, 0, 0]).all()
        torch.testing.assert_close(rstd, torch.full_like(rstd, 1e-5).rsqrt())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("processors", [WHOLE, PARTS])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(value: float, processors: int, layout: str, on_host: OnHost) -> None:
    for op, places in itertools.product(OPS, ([(0, 0)], [(7, 9)], [(0, 0), (0, 1), (9, 3)])):
        case = inputs(op, SpadeShape(2, 5, 13, 20), layout=layout)
        for y, x in places:
            case.arguments[0][0][1, 2, y, x] = value
        check(case, on_host(case, processors))
    for name in ("gamma", "beta", "residual"):
        case = inputs("modulated_norm", SpadeShape(2, 5, 13, 20), layout=layout, residual=True)
        case.arguments[1][name][1, 2, 3, 4] = value
        check(case, on_host(case, processors))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_at_any_address(dtype: torch.dtype, on_host: OnHost) -> None:
    """Packs are only used where all tensors are aligned."""
    for offset in range(9):
        case = inputs("modulated_norm", SpadeShape(1, 4, 8, 16), dtype=dtype, residual=True)
        (x,), kwargs = case.arguments
        buffer = torch.zeros(x.numel() + 16, dtype=dtype)
        moved = buffer[offset : offset + x.numel()].view_as(x).copy_(x)
        check(case, on_host(_verify.Inputs("modulated_norm", ((moved,), kwargs), dtype)))


# What the compiler and the built module say.


def test_compiles_without_spills(tmp_path: Path) -> None:
    kernels = compiled_kernels("spade", tmp_path)
    assert len(kernels) == 33
    for name, (lost, registers) in kernels.items():
        assert lost == 0, name
        assert registers <= 128, name


@pytest.mark.skipif(
    _native.reason_missing("cuda") is not None, reason=f"cuda backend: {_native.reason_missing('cuda')}"
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks how it fails without a GPU")
def test_without_a_gpu_a_call_raises_with_the_error_of_cuda() -> None:
    call: Callable[..., Any]
    params = spade._params(spade.registry.build("instance_stats", torch.ones(1, 2, 3, 4)))
    module = _native.load("cuda")
    with pytest.raises(RuntimeError, match=r"cudaError\w+ while asking for the current device"):
        module.spade("instance_stats", params, 0, 0, 0)
    for call in (module.spade_refuse, module.spade_scratch):
        with pytest.raises(RuntimeError, match=r"cudaError\w+ while reading attribute"):
            call("instance_stats", params, 0)
