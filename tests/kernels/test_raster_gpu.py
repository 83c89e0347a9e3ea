"""The Triton kernels of `raster` on a GPU: results, the same bits every time, streams, graphs, torch.compile."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface import ops
from fastface.ops import _verify
from fastface.ops._verify import inputs
from fastface.ops._verify.raster import SHAPES, RasterShape
from fastface.ops.raster import RasterOutput
from tests.kernels import gpu

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _triton() -> None:
    gpu.skip_if_missing(inputs("rasterize", "tiny", device="cuda"), "triton")


def check(case: _verify.Inputs) -> RasterOutput:
    verdict = _verify.verify(case, "triton")
    assert verdict.ok, str(verdict)
    return case.run("triton")


def test_selftest() -> None:
    for shape, options in _verify.selftest("rasterize"):
        check(inputs("rasterize", shape, device="cuda", **options))


@pytest.mark.parametrize("per", ["triangle", "vertex"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, per: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check(inputs("rasterize", shape, dtype=dtype, device="cuda", per=per))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 30),
    columns=st.integers(3, 40),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    strewn=st.booleans(),
    per=st.sampled_from(["triangle", "vertex"]),
    cull=st.sampled_from([None, "back", "front"]),
    seed=st.integers(0, 2**31),
)
def test_at_any_size(batch, rows, columns, size, strewn, per, cull, seed) -> None:
    if strewn:
        rows = max(rows, 2)  # three of its triangles are special
    shape = RasterShape(batch, rows, columns, size, 3, strewn)
    check(inputs("rasterize", shape, device="cuda", per=per, cull=cull, seed=seed))


def test_triangles_larger_than_the_image() -> None:
    """The queues of large triangles, and images of every proportion."""
    generator = torch.Generator().manual_seed(0)
    for size, reach in itertools.product([(1, 1), (1, 3000), (2000, 3), (700, 900)], (50.0, 1000.0, 1e6)):
        vertices = reach * (2 * torch.rand(2, 60, 3, generator=generator) - 1)
        vertices[..., 2] = torch.arange(20).repeat_interleave(3).float()  # flat: depths do not depend on rounding
        triangles = torch.arange(60, dtype=torch.int32).view(-1, 3)
        attributes = torch.rand(20, 2, generator=generator)
        moved = (vertices.cuda(), triangles.cuda(), attributes.cuda(), size)
        found, expected = (ops.rasterize(*moved, per="triangle", backend=b) for b in ("triton", "reference"))
        assert torch.equal(found.triangle, expected.triangle) and torch.equal(found.image, expected.image)


def test_the_same_bits_every_time() -> None:
    """A hundred surfaces at the same depth: whichever program comes first, the lowest index wins."""
    case = inputs("rasterize", "head", device="cuda")
    (vertices, triangles, attributes, size), _ = case.arguments
    many = ops.rasterize(vertices, triangles.repeat(100, 1), attributes.repeat(100, 1), size, backend="triton")
    gpu.assert_equal(many[:3], case.run("triton")[:3])
    for _ in range(5):
        gpu.assert_equal(case.run("triton"), case.run("triton"))


def test_compiles_to_one_graph() -> None:
    torch.compiler.reset()
    case = inputs("rasterize", "odd", device="cuda")
    args, kwargs = case.arguments
    compiled = torch.compile(lambda *a: ops.rasterize(*a, backend="triton", **kwargs), fullgraph=True)
    gpu.assert_equal(compiled(*args), case.run("triton"))


def test_runs_on_the_current_stream() -> None:
    gpu.assert_runs_on_the_current_stream(inputs("rasterize", "head", device="cuda"), "triton")


def test_in_a_cuda_graph() -> None:
    gpu.assert_runs_in_a_cuda_graph(lambda seed: inputs("rasterize", "head", device="cuda", seed=seed), "triton")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_device_that_is_not_current() -> None:
    with torch.cuda.device(0):
        result = check(inputs("rasterize", "odd", device="cuda:1"))
        assert result.image.device.index == 1 and torch.cuda.current_device() == 0


def test_takes_memory_for_keys_and_queues_alone() -> None:
    case = inputs("rasterize", "head", device="cuda")
    keys, queues = 256 * 256 * 8, 2 * 50000 * 8
    assert gpu.peak_beyond_output(case, "triton") <= keys + queues + 4096
