"""The Triton and CUDA kernels of `spade` on a GPU: results, streams, graphs, torch.compile, more than 2^31 elements."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface import ops
from fastface.ops import _verify, spade
from fastface.ops._backends import BackendUnavailable
from fastface.ops._verify import inputs
from fastface.ops._verify.spade import SHAPES, SpadeShape
from tests.kernels import gpu
from tests.kernels.test_spade_cuda import DTYPES, LAYOUTS, MODULATIONS, OPS

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    gpu.skip_if_missing(inputs("instance_stats", "tiny", device="cuda"), request.param)
    return request.param


def check(case: _verify.Inputs, backend: str, lost: float = 0.0) -> Any:
    result = case.run(backend)
    verdict = _verify.compare(result, case.truth(), case.reference(), lost)
    assert verdict.ok, str(verdict)
    return result


@pytest.mark.parametrize("op", OPS)
def test_selftest(op: str, backend: str) -> None:
    for shape, options in _verify.selftest(op):
        check(inputs(op, shape, device="cuda", **options), backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("odd", "odd_low", "tiny")])
def test_at_published_shapes(shape: str, dtype: torch.dtype, layout: str, backend: str) -> None:
    for batch in (1, 2):
        sizes = SHAPES[shape]
        case = SpadeShape(batch, sizes.channels, sizes.height, sizes.width, sizes.scale)
        options = {"dtype": dtype, "device": "cuda", "layout": layout}
        check(inputs("modulated_norm", case, modulation="halves", residual=batch == 2, **options), backend)
        check(inputs("instance_stats", case, **options), backend)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [
        SpadeShape(1, 3, 512, 512),
        SpadeShape(1, 1, 1023, 1025),
        SpadeShape(1, 200, 90, 91),
        SpadeShape(2, 300, 128, 128, 4),
        SpadeShape(1, 2048, 3, 5),
        SpadeShape(70, 4, 16, 16),
    ],
    ids=str,
)
def test_channels_of_every_size(shape: SpadeShape, layout: str, backend: str) -> None:
    """Few and large to many and small: kept in registers, read twice, or in parts."""
    for dtype in DTYPES:
        check(inputs("modulated_norm", shape, dtype=dtype, device="cuda", layout=layout, mean=30.0), backend)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    channels=st.integers(1, 70),
    size=st.tuples(st.integers(1, 40), st.integers(1, 70)),
    scale=st.integers(1, 4),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    modulation=st.sampled_from(MODULATIONS),
    activation=st.sampled_from(spade.ACTIVATIONS),
    seed=st.integers(0, 2**31),
)
def test_at_any_size(op, batch, channels, size, scale, layout, dtype, modulation, activation, seed) -> None:
    shape = SpadeShape(batch, channels, scale * size[0], scale * size[1], scale)
    options = {} if op == "instance_stats" else {"modulation": modulation, "activation": activation}
    case, *peers = (
        inputs(op, shape, device="cuda", dtype=dtype, layout=layout, seed=seed + i, **options) for i in range(4)
    )
    for backend in ("triton", "cuda"):
        if gpu.missing(case, backend) is None:
            verdict = _verify.verify(case, backend, peers)
            assert verdict.ok, str(verdict)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [SpadeShape(2, 40, 64, 64), SpadeShape(1, 4, 300, 300)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_channels_far_from_zero(op: str, shape: SpadeShape, layout: str, backend: str) -> None:
    check(inputs(op, shape, device="cuda", layout=layout, mean=1e4), backend)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(value: float, layout: str, backend: str) -> None:
    for op, size in itertools.product(OPS, (20, 300)):
        case = inputs(op, SpadeShape(2, 5, size, size), device="cuda", layout=layout)
        case.arguments[0][0][1, 2, :2, 3] = value
        check(case, backend)
    for name in ("gamma", "beta", "residual"):
        case = inputs("modulated_norm", SpadeShape(2, 5, 13, 20), device="cuda", layout=layout, residual=True)
        case.arguments[1][name][1, 2, 3, 4] = value
        check(case, backend)


@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_every_time(op: str, backend: str) -> None:
    for size in (64, 300):
        case = inputs(op, SpadeShape(1, 6, size, size), device="cuda")
        first = case.run(backend)
        for _ in range(5):
            gpu.assert_equal(case.run(backend), first)


# Registration, streams, graphs, devices.


@pytest.mark.parametrize("op", OPS)
def test_compiles_to_one_graph(op: str, backend: str) -> None:
    torch.compiler.reset()
    case = inputs(op, "odd", device="cuda")
    (x,), kwargs = case.arguments
    compiled = torch.compile(lambda x: getattr(ops, op)(x, backend=backend, **kwargs), fullgraph=True)
    gpu.assert_equal(compiled(x), case.run(backend))


@pytest.mark.parametrize("size", [1000, 5000])
def test_reduce_overhead_keeps_the_stream(size: int, backend: str) -> None:
    """A slow matrix product comes first: a kernel on the wrong stream, or left out of the graph, would not see it."""
    torch.compiler.reset()
    linear = torch.nn.Linear(size, size, device="cuda").requires_grad_(False)

    def model(x: torch.Tensor, choice: str) -> torch.Tensor:
        feature = linear(x).reshape(1, 64, 10, size // 10)
        return ops.modulated_norm(feature, feature, feature, activation="relu", backend=choice)

    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(64, size, device="cuda")
        torch.testing.assert_close(compiled(x, backend), model(x, "reference"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [64, 300])
@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_current_stream(op: str, size: int, backend: str) -> None:
    gpu.assert_runs_on_the_current_stream(inputs(op, SpadeShape(1, 4, size, size), device="cuda"), backend)


@pytest.mark.parametrize("size", [64, 300])
@pytest.mark.parametrize("op", OPS)
def test_in_a_cuda_graph(op: str, size: int, backend: str) -> None:
    shape = SpadeShape(1, 4, size, size)
    gpu.assert_runs_in_a_cuda_graph(lambda seed: inputs(op, shape, device="cuda", seed=seed), backend)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", OPS)
def test_on_a_device_that_is_not_current(op: str, backend: str) -> None:
    with torch.cuda.device(0):
        result = check(inputs(op, "odd", device="cuda:1"), backend)
        assert gpu.outputs(result)[0].device.index == 1 and torch.cuda.current_device() == 0


# Sizes.


def test_more_than_two_to_the_31_elements(backend: str) -> None:
    gpu.needs_memory(24)
    generator = torch.Generator("cuda").manual_seed(0)
    for layout in ("contiguous", "channels_last"):
        x = torch.randn(1030, 512, 64, 64, generator=generator, device="cuda", dtype=torch.float16)
        x = _verify.arrange(x, layout)
        result = ops.modulated_norm(x, activation="relu", backend=backend)
        assert result.numel() > 2**31
        for b in (0, 515, 1029):
            one = _verify.Inputs("modulated_norm", ((x[b : b + 1],), {"activation": "relu"}), torch.float16)
            verdict = _verify.compare(result[b : b + 1], one.truth(), one.reference())
            assert verdict.ok, f"image {b}: {verdict}"


def test_a_channel_that_spans_two_to_the_31_elements() -> None:
    """Triton counts in 64 bits there; the CUDA kernels refuse."""
    gpu.needs_memory(6)
    case = inputs("modulated_norm", "tiny", dtype=torch.float16, device="cuda")
    (x,), kwargs = case.arguments
    buffer = torch.empty(2**31 + 4096, dtype=torch.float16, device="cuda")
    spread = buffer.as_strided((1, 3, 2, 3), (9, 3, 2**31, 1)).copy_(x)
    wide = _verify.Inputs("modulated_norm", ((spread,), kwargs), torch.float16)
    if gpu.missing(case, "triton") is None:
        check(wide, "triton")
    if gpu.missing(case, "cuda") is None:
        with pytest.raises(BackendUnavailable, match="spans 2\\^31 elements"):
            wide.run("cuda")


@pytest.mark.parametrize("size", [64, 300])
@pytest.mark.parametrize("op", OPS)
def test_takes_little_memory_but_its_output(op: str, size: int, backend: str) -> None:
    """Statistics of parts: a tenth of the image at most."""
    case = inputs(op, SpadeShape(1, 64, size, size), device="cuda")
    assert gpu.peak_beyond_output(case, backend) <= case.arguments[0][0].nbytes // 10 + 4096
