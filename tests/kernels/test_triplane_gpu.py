"""The Triton and CUDA kernels of `triplane` on a GPU: results, streams, graphs, torch.compile, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface import ops
from fastface.kernels.triplane.triplane_reference import AXES
from fastface.ops import _verify
from fastface.ops._backends import BackendUnavailable
from fastface.ops._verify import inputs
from fastface.ops._verify.triplane import TriplaneShape
from tests.kernels import gpu
from tests.kernels.test_triplane import (
    DTYPES,
    LAYOUTS,
    OPS,
    SMALL,
    edges,
    golden,  # noqa: F401, a fixture
    golden_case,
    rays_of,
    with_limits,
    without_density,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    gpu.skip_if_missing(inputs("render_planes", "tiny", device="cuda"), request.param)
    return request.param


def check(case: _verify.Inputs, backend: str, *peers: _verify.Inputs) -> None:
    verdict = _verify.verify(case, backend, peers)
    assert verdict.ok, str(verdict)


def on_gpu(case: _verify.Inputs) -> _verify.Inputs:
    def moved(value: Any) -> Any:
        if isinstance(value, ops.PlaneDecoder):
            return ops.PlaneDecoder(*map(moved, value))
        return value.cuda() if isinstance(value, torch.Tensor) else value

    args, kwargs = case.arguments
    arguments = tuple(map(moved, args)), {name: moved(value) for name, value in kwargs.items()}
    return _verify.Inputs(case.op, arguments, case.dtype)


@pytest.mark.parametrize("op", OPS)
def test_selftest(op: str, backend: str) -> None:
    for shape, options in _verify.selftest(op):
        cases = [inputs(op, shape, device="cuda", seed=seed, **options) for seed in range(3)]
        if gpu.missing(cases[0], backend) is None:
            check(cases[0], backend, *cases[1:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["eg3d_64", "points"])
def test_at_published_shapes(shape: str, dtype: torch.dtype, layout: str, backend: str) -> None:
    op = "sample_planes" if shape == "points" else "render_planes"
    check(inputs(op, shape, dtype=dtype, device="cuda", layout=layout), backend)


def test_more_rays_and_samples(backend: str) -> None:
    for samples in ((8, 8), (128, 128), (24, 96)):
        shape = TriplaneShape(2, 32, 256, 256, 1000, *samples)
        check(inputs("render_planes", shape, device="cuda", dtype=torch.float16), backend)
    check(inputs("render_planes", "eg3d_128", device="cuda", dtype=torch.float16), backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_with_a_depth_and_wider(dtype: torch.dtype) -> None:
    gpu.skip_if_missing(inputs("render_planes", "tiny", device="cuda"), "cuda")
    for channels, hidden, colours, depth in ((32, 64, 32, 3), (40, 33, 48, 0), (96, 64, 96, 2), (130, 128, 200, 0)):
        shape = TriplaneShape(1, channels, 128, 128, 500, 24, 40, hidden, colours, depth)
        for op in OPS:
            check(inputs(op, shape, device="cuda", dtype=dtype), "cuda")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    channels=st.integers(1, 32),
    size=st.tuples(st.integers(1, 40), st.integers(1, 50)),
    rays=st.integers(1, 70),
    samples=st.sampled_from([(4, 1), (8, 0), (17, 31), (48, 48), (33, 64)]),
    decoder=st.sampled_from([(1, 1), (17, 6), (64, 32), (40, 9)]),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    axes=st.sampled_from(list(AXES)),
    reduce=st.sampled_from(["sum", "mean", None]),
    seed=st.integers(0, 2**31),
)
def test_at_any_size(op, batch, channels, size, rays, samples, decoder, layout, dtype, axes, reduce, seed) -> None:
    shape = TriplaneShape(batch, channels, *size, rays, *samples, *decoder)
    options = {"device": "cuda", "layout": layout, "dtype": dtype, "axes": axes, "reduce": reduce}
    case, *peers = (inputs(op, shape, seed=seed + i, **options) for i in range(4))
    for backend in ("triton", "cuda"):
        if gpu.missing(case, backend) is None:
            check(case, backend, *peers)


@pytest.mark.parametrize("name", list(edges()))
def test_edges(name: str, backend: str) -> None:
    check(on_gpu(with_limits(edges()[name])), backend)


def test_no_density_anywhere(backend: str) -> None:
    case = on_gpu(without_density(inputs("render_planes", SMALL)))
    features, depth, opacity = case.run(backend)
    assert (opacity == 0).all() and (features == -1).all()
    torch.testing.assert_close(depth, case.reference().depth, rtol=0, atol=1e-6)


def test_nan_planes(backend: str) -> None:
    for op in OPS:
        case = inputs(op, SMALL, device="cuda")
        case.arguments[0][0][1, 0, 2] = float("nan")
        check(case, backend)


@pytest.mark.parametrize("name", ["render", "coarse", "white", "disparity", "auto"])
def test_renders_as_published(name: str, backend: str, golden: Any) -> None:  # noqa: F811, the fixture above
    case, expected = golden_case(golden, name)
    for value, wanted in zip(on_gpu(case).run(backend), expected, strict=True):
        torch.testing.assert_close(value.cpu(), wanted.reshape(value.shape), rtol=0, atol=3e-5)


@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_every_time(op: str, backend: str) -> None:
    case = inputs(op, TriplaneShape(2, 32, 64, 64, 500), device="cuda", dtype=torch.float16)
    first = case.run(backend)
    for _ in range(5):
        gpu.assert_equal(case.run(backend), first)


# Registration, streams, graphs, devices, memory.


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiles_to_one_graph(mode: str, backend: str) -> None:
    torch.compiler.reset()
    args, kwargs = inputs("render_planes", "odd", device="cuda").arguments
    kwargs = {name: value for name, value in kwargs.items() if not isinstance(value, torch.Tensor)}

    def model(planes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(ops.render_planes(planes + 1, *args[1:], near=2.2, far=3.3, backend=backend, **kwargs))

    compiled = torch.compile(model, mode=mode, fullgraph=True)
    for _ in range(4):
        planes = torch.randn_like(args[0])
        gpu.assert_equal(compiled(planes), model(planes))


@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_current_stream(op: str, backend: str) -> None:
    gpu.assert_runs_on_the_current_stream(inputs(op, SMALL, device="cuda"), backend)


@pytest.mark.parametrize("op", OPS)
def test_in_a_cuda_graph(op: str, backend: str) -> None:
    """The decoder is no tensor of its own, so it stays that of the first seed."""
    first = inputs(op, SMALL, device="cuda")

    def make(seed: int) -> _verify.Inputs:
        case = inputs(op, SMALL, device="cuda", seed=seed)
        return rays_of(case, decoder=first.arguments[0][3]) if op == "render_planes" else case

    gpu.assert_runs_in_a_cuda_graph(make, backend)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", OPS)
def test_on_a_device_that_is_not_current(op: str, backend: str) -> None:
    with torch.cuda.device(0):
        case = inputs(op, "odd", device="cuda:1")
        check(case, backend)
        assert gpu.outputs(case.run(backend))[0].device.index == 1 and torch.cuda.current_device() == 0


def test_nothing_of_a_sample_is_in_memory(backend: str) -> None:
    case = inputs("render_planes", TriplaneShape(1, 32, 64, 64, 4096), device="cuda", random=False)
    assert gpu.peak_beyond_output(case, backend) <= 64 << 10  # near and far
    contiguous = inputs("render_planes", TriplaneShape(1, 32, 64, 64, 4096), device="cuda", layout="contiguous")
    assert gpu.peak_beyond_output(contiguous, backend) <= contiguous.arguments[0][0].nbytes + (64 << 10)


def test_says_what_it_refuses(backend: str) -> None:
    wide, reason = {
        "triton": (TriplaneShape(1, 200, 8, 8, 5), "200 channels, hidden units or colours, it takes at most 128"),
        "cuda": (TriplaneShape(1, 8, 8, 8, 5, hidden=5000), "5000 hidden units.*do not fit the shared memory"),
    }[backend]
    with pytest.raises(BackendUnavailable, match=reason):
        inputs("render_planes", wide, device="cuda").run(backend)
