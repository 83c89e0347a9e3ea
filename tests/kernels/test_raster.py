"""The `raster` hot path: the reference against its definition in scalar arithmetic, and the backends of this machine
against the reference.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastface import ops
from fastface.kernels.raster import raster_reference as reference
from fastface.ops import _memory, _native, _verify
from fastface.ops._verify import inputs
from fastface.ops._verify.raster import RasterShape
from fastface.ops.raster import RasterOutput

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PER = ("triangle", "vertex")
needs_cpu = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)
BACKENDS = [pytest.param("cpu", marks=needs_cpu), "reference"]

Point = tuple[Fraction, Fraction]


def assert_right(case: _verify.Inputs, *peers: _verify.Inputs) -> None:
    verdict = _verify.verify(case, "cpu", peers)
    assert verdict.ok, str(verdict)


def assert_equal(found: RasterOutput, expected: RasterOutput) -> None:
    for name, a, b in zip(RasterOutput._fields, found, expected, strict=True):
        assert torch.equal(a, b), name


def flat_soup(corners: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Triangles ``[T, 3, 2]``, each at a depth of its own, a whole number: no rounding decides which is seen."""
    count = len(corners)
    depth = torch.randperm(count, generator=generator).float()
    vertices = torch.cat([corners, depth[:, None, None].expand(-1, 3, 1)], 2).reshape(1, -1, 3)
    return vertices, torch.arange(3 * count, dtype=torch.int32).view(-1, 3), depth[:, None].contiguous()


# The reference, against the definition in scalar arithmetic.


def subpixel(value: float) -> Fraction:
    return Fraction(math.floor(value * 256 + 0.5), 256)


def cross(a: Point, b: Point, c: Point) -> Fraction:
    return (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])


def weights_at(corners: list[Point], x: int, y: int) -> list[Fraction] | None:
    """Barycentric coordinates of a pixel's centre, None where it is outside by the top-left rule."""
    area = cross(*corners)
    if area == 0:
        return None
    centre = (Fraction(x), Fraction(y))
    weights = []
    for i in range(3):
        a, b = corners[(i + 1) % 3], corners[(i + 2) % 3]
        if area < 0:
            a, b = b, a
        edge = cross(a, b, centre)
        top_left = b[1] < a[1] or (b[1] == a[1] and b[0] > a[0])
        if edge < 0 or (edge == 0 and not top_left):
            return None
        weights.append(edge / abs(area))
    return weights


@pytest.mark.parametrize("cull", [None, "back", "front"])
def test_reference_follows_the_definition(cull: str | None) -> None:
    case = inputs("rasterize", RasterShape(2, 2, 4, (6, 9), 2, strewn=True), per="vertex", cull=cull, seed=7)
    (vertices, triangles, attributes, (height, width)), _ = case.arguments
    result = case.truth()
    usable = vertices.isfinite().all(2) & (vertices[..., :2].abs() < 2**20).all(2)
    for b in range(2):
        assert int(result.skipped[b]) == sum(not bool(usable[b, t].all()) for t in triangles.long())
        for y, x in itertools.product(range(height), range(width)):
            best: tuple[float, int, list[Fraction]] | None = None
            for index, corners in enumerate(triangles.tolist()):
                if not bool(usable[b, corners].all()):
                    continue
                places = [(subpixel(vertices[b, v, 0].item()), subpixel(vertices[b, v, 1].item())) for v in corners]
                if (cull == "back" and cross(*places) > 0) or (cull == "front" and cross(*places) < 0):
                    continue
                weights = weights_at(places, x, y)
                if weights is not None:
                    z = sum(float(w) * vertices[b, v, 2].item() for w, v in zip(weights, corners, strict=True))
                    if best is None or z < best[0]:
                        best = (z, index, weights)
            assert int(result.triangle[b, y, x]) == (-1 if best is None else best[1])
            z, index, weights = best or (math.inf, 0, [Fraction(0)] * 3)
            assert float(result.depth[b, y, x]) == pytest.approx(z, abs=1e-12)
            for a in range(2):
                value = sum(
                    float(w) * attributes[v, a].item() for w, v in zip(weights, triangles[index].tolist(), strict=True)
                )
                assert float(result.image[b, a, y, x]) == pytest.approx(value, abs=1e-12)


def test_has_gradients_of_attributes_and_depth() -> None:
    case = inputs("rasterize", "tiny", per="vertex")
    (vertices, triangles, attributes, size), _ = case.arguments

    def call(z: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.cat([vertices[..., :2].double(), z], 2)
        drawn = ops.rasterize(places, triangles, attributes, size, per="vertex")
        return drawn.image, drawn.depth[drawn.triangle >= 0]

    arguments = vertices[..., 2:].double().requires_grad_(), attributes.double().requires_grad_()
    assert torch.autograd.gradcheck(call, arguments)


@needs_cpu
def test_the_gradient_may_start_from_what_a_kernel_sees() -> None:
    (vertices, triangles, attributes, size), _ = inputs("rasterize", "odd").arguments
    drawn = ops.rasterize(vertices, triangles, attributes.requires_grad_(), size)
    drawn.image.sum().backward()
    seen = drawn.triangle[drawn.triangle >= 0].long().bincount(minlength=len(triangles))
    assert torch.equal(attributes.grad, seen[:, None].expand_as(attributes).float())


# The backends of this machine.


@needs_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("shape", ["odd", "strewn", "tiny"])
def test_cpu_matches_the_reference(shape: str, per: str, dtype: torch.dtype) -> None:
    for layout, cull in (("sliced", None), ("contiguous", "back"), ("contiguous", "front")):
        options = {"dtype": dtype, "per": per, "layout": layout, "cull": cull}
        assert_right(*(inputs("rasterize", shape, seed=seed, **options) for seed in range(2)))


@needs_cpu
def test_cpu_draws_a_head() -> None:
    assert_right(inputs("rasterize", "head", per="vertex"))


@needs_cpu
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 9),
    columns=st.integers(1, 12),
    size=st.tuples(st.integers(1, 70), st.integers(1, 150)),
    attributes=st.integers(1, 5),
    strewn=st.booleans(),
    per=st.sampled_from(PER),
    cull=st.sampled_from([None, "back", "front"]),
    seed=st.integers(0, 2**31),
)
def test_cpu_at_any_size(batch, rows, columns, size, attributes, strewn, per, cull, seed) -> None:
    shape = RasterShape(batch, max(rows, 2), columns, size, attributes, strewn)
    assert_right(*(inputs("rasterize", shape, per=per, cull=cull, seed=seed + i) for i in range(3)))


@needs_cpu
@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    size=st.tuples(st.integers(1, 40), st.integers(1, 90)),
    grid=st.sampled_from([1, 2, 256]),
    reach=st.sampled_from([2.0, 12.0, 200.0, 3e3, 5e4, 1e6]),
    cull=st.sampled_from([None, "back", "front"]),
    seed=st.integers(0, 2**31),
)
def test_cpu_covers_the_same_pixels_exactly(count, size, grid, reach, cull, seed) -> None:
    """Corners on (half) pixels put many centres on edges; reaches up to the limit need all the bits of an edge
    function.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    centre = torch.rand(count, 1, 2, generator=generator) * torch.tensor([width, height])
    corners = centre + reach * (2 * torch.rand(count, 3, 2, generator=generator) - 1)
    corners = ((corners * grid).round() / grid).clamp(-(2**20) + 1, 2**20 - 1)
    vertices, triangles, depth = flat_soup(corners, generator)
    arguments = (vertices, triangles, depth, size)
    found = ops.rasterize(*arguments, cull=cull, per="triangle", backend="cpu")
    expected = ops.rasterize(*arguments, cull=cull, per="triangle", backend="reference")
    assert torch.equal(found.triangle, expected.triangle)
    assert torch.equal(found.image, expected.image)
    covered = expected.triangle >= 0
    assert torch.equal(found.depth[covered], expected.image[:, 0][covered]), "a flat triangle has one depth"
    assert bool(found.depth[~covered].isposinf().all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [1.0, 3.5, 7.3])
def test_shared_edges_are_covered_once(step: float, backend: str) -> None:
    """The triangles of a mesh over the whole image, drawn one by one, touch every pixel exactly once."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, size = 5, 7, (int(4 * step), int(6 * step))
    y, x = torch.meshgrid(torch.arange(rows) * step, torch.arange(columns) * step, indexing="ij")
    places = torch.stack([x, y], -1) - 0.5
    if step > 1:
        places[1:-1, 1:-1] += (0.3 * step * torch.randn(rows - 2, columns - 2, 2, generator=generator)).clamp(-1, 1)
    index = torch.arange(rows * columns).view(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = torch.cat([torch.stack([a, b, c], -1).view(-1, 3), torch.stack([c, b, d], -1).view(-1, 3)])
    vertices = torch.cat([places.view(1, -1, 2), torch.zeros(1, rows * columns, 1)], 2)
    hits = torch.zeros(size, dtype=torch.int64)
    for triangle in triangles:
        hits += ops.rasterize(vertices, triangle[None], torch.ones(1, 1), size, backend=backend).triangle[0] >= 0
    assert torch.equal(hits, torch.ones_like(hits))


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equally_near_triangles_the_first_wins(backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    corners = 40 * torch.rand(50, 3, 2, generator=generator) - 4
    vertices, triangles, _ = flat_soup(corners, generator)
    vertices[..., 2] = 0.0
    seen = ops.rasterize(vertices, triangles, torch.ones(50, 1), (32, 32), per="triangle", backend=backend).triangle[0]
    alone = [ops.rasterize(vertices, t[None], torch.ones(1, 1), (32, 32), backend=backend) for t in triangles]
    covers = torch.cat([drawn.triangle for drawn in alone]) >= 0  # [T, H, W]
    expected = torch.where(covers.any(0), covers.int().argmax(0).int(), -1)
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_skipped_triangles(backend: str) -> None:
    nan, inf = math.nan, math.inf
    good = [[0.0, 0.0, 1.0], [9.0, 0.0, 1.0], [0.0, 9.0, 1.0]]
    bad = [[nan, 0, 0], [0, inf, 0], [0, 0, nan], [0, 0, -inf], [2.0**20, 0, 0], [0, -(2.0**20), 0]]
    vertices = torch.tensor([good + bad])
    triangles = [[0, 1, 2]] + [[0, 1, 3 + i] for i in range(6)] + [[0, 1, 9], [0, -1, 2], [2**31 - 1, 1, 2]]
    triangles += [[0, 1, 1], [0, 0, 0]]  # without area: not drawn, but not skipped
    drawn = ops.rasterize(vertices, torch.tensor(triangles), torch.ones(12, 1), (8, 8), per="triangle", backend=backend)
    assert int(drawn.skipped) == 9
    assert set(drawn.triangle.unique().tolist()) == {-1, 0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per", PER)
def test_wide_indices_do_not_wrap(per: str, backend: str) -> None:
    vertices = torch.tensor([[[0.0, 0, 1], [9, 0, 1], [0, 9, 1], [9, 9, 1]]])
    good = [[0, 1, 2], [1, 3, 2]]
    bad = [[0, 1, wide] for wide in (2 + 2**32, 2 - 2**32, 4, 2**31, -(2**31), 2**63 - 1, -(2**63), 2**40 + 2)]
    triangles = torch.tensor(bad + good)  # the wrong ones first: drawn, they would be seen
    attributes = torch.rand(len(triangles) if per == "triangle" else 4, 2)
    drawn = ops.rasterize(vertices, triangles, attributes, (8, 8), per=per, backend=backend)
    assert drawn.skipped.tolist() == [len(bad)]
    assert set(drawn.triangle.unique().tolist()) == {len(bad), len(bad) + 1}
    differentiable = ops.rasterize(vertices, triangles, attributes.requires_grad_(), (8, 8), per=per)
    assert torch.equal(differentiable.triangle, drawn.triangle) and torch.equal(differentiable.skipped, drawn.skipped)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_attributes_that_are_no_numbers_stay_in_their_triangles(value: float, per: str, backend: str) -> None:
    case = inputs("rasterize", "odd", per=per)
    (_, triangles, attributes, _), _ = case.arguments
    clean = case.run(backend)
    seen = int(clean.triangle.max())
    index = int(triangles[seen, 0]) if per == "vertex" else seen
    attributes[index] = value
    spoiled = case.run(backend)
    touched = (triangles == index).any(1) if per == "vertex" else torch.arange(len(triangles)) == index
    inside = (clean.triangle >= 0) & touched[clean.triangle.clamp(min=0).long()]
    assert not bool(spoiled.image.isfinite().all(1)[inside].any())
    outside = ~inside[:, None].expand_as(clean.image)
    assert torch.equal(spoiled.image[outside], clean.image[outside])


@needs_cpu
@pytest.mark.parametrize("per", PER)
def test_threads_do_not_change_the_result(per: str) -> None:
    shapes = (RasterShape(2, 60, 50, (130, 190)), RasterShape(2, 40, 40, (90, 70), 2, strewn=True))
    cases = [inputs("rasterize", shape, per=per) for shape in shapes]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([case.run("cpu") for case in cases])
    finally:
        torch.set_num_threads(before)
    for other, (first, found) in itertools.product(results[1:], enumerate(results[0])):
        assert_equal(found, other[first])


@needs_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per", PER)
def test_nothing_is_written_beside_the_outputs(per, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[Tensor] = []

    def surrounded(size, like, *, dtype=None, memory_format=torch.contiguous_format) -> Tensor:
        buffers.append(torch.full((math.prod(size) + 128,), 42, dtype=dtype or like.dtype))
        return buffers[-1][64:-64].view(list(size))

    expected = inputs("rasterize", "odd", dtype=dtype, per=per).run("cpu")
    monkeypatch.setattr(_memory, "empty", surrounded)
    assert_equal(inputs("rasterize", "odd", dtype=dtype, per=per).run("cpu"), expected)
    assert len(buffers) == 4
    assert all(bool((buffer[:64] == 42).all() and (buffer[-64:] == 42).all()) for buffer in buffers)


@needs_cpu
def test_other_dtypes_and_strides_of_the_arguments() -> None:
    (vertices, triangles, attributes, size), _ = inputs("rasterize", "odd").arguments
    expected = ops.rasterize(vertices, triangles, attributes, size, backend="cpu")
    columns = torch.stack([attributes, attributes], 2)[:, :, 0]
    twisted = vertices.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert_equal(ops.rasterize(twisted, triangles.long(), columns, size, backend="cpu"), expected)
    half = vertices.half()
    assert_equal(
        ops.rasterize(half, triangles, attributes, size, backend="cpu"),
        ops.rasterize(half.float(), triangles, attributes, size, backend="cpu"),
    )


# The registered op, as PyTorch sees it.


@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@pytest.mark.parametrize("per", PER)
def test_opcheck(per: str, layout: str) -> None:
    (vertices, triangles, attributes, size), _ = inputs("rasterize", "odd", per=per, layout=layout).arguments
    overload = torch.ops.fastface.rasterize.default
    torch.library.opcheck(overload, (vertices, triangles, attributes, per == "vertex", *size, "", ""))


def test_compiles_to_one_graph_without_recompiling() -> None:
    torch.compiler.reset()
    compiled = torch.compile(ops.rasterize, fullgraph=True)
    cases = [inputs("rasterize", "odd", per="vertex", seed=seed) for seed in (0, 1)]
    args, kwargs = cases[0].arguments
    assert_equal(compiled(*args, **kwargs), cases[0].run())
    with torch._dynamo.config.patch(error_on_recompile=True):
        args, kwargs = cases[1].arguments
        assert_equal(compiled(*args, **kwargs), cases[1].run())


def test_exports() -> None:
    (vertices, triangles, attributes, size), kwargs = inputs("rasterize", "odd").arguments

    class Module(torch.nn.Module):
        def forward(self, vertices: Tensor, triangles: Tensor, attributes: Tensor) -> tuple[Tensor, ...]:
            return tuple(ops.rasterize(vertices, triangles, attributes, size, **kwargs))

    exported = torch.export.export(Module(), (vertices, triangles, attributes))
    assert sum("fastface.rasterize" in str(node.target) for node in exported.graph.nodes) == 1
    found = RasterOutput(*exported.module()(vertices, triangles, attributes))
    assert_equal(found, ops.rasterize(vertices, triangles, attributes, size, **kwargs))


def test_reference_of_the_module_is_the_op() -> None:
    (vertices, triangles, attributes, size), _ = inputs("rasterize", "odd").arguments
    drawn = RasterOutput(*reference.rasterize(vertices, triangles, attributes, size))
    assert_equal(drawn, ops.rasterize(vertices, triangles, attributes, size, backend="reference"))
    assert drawn.triangle.dtype == drawn.skipped.dtype == torch.int32 and drawn.depth.dtype == torch.float32


# Bad arguments: one clear message with the value and the expectation.

GOOD = {
    "vertices": torch.zeros(2, 5, 3),
    "triangles": torch.zeros(4, 3, dtype=torch.int32),
    "attributes": torch.zeros(4, 2),
    "size": (8, 9),
}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"vertices": [0.0]}, TypeError, "vertices must be a tensor, got list"),
        ({"vertices": torch.zeros(5, 3)}, ValueError, r"vertices must be \[B, V, 3\] with no size 0, got \[5, 3\]"),
        ({"vertices": torch.zeros(2, 0, 3)}, ValueError, r"no size 0, got \[2, 0, 3\]"),
        ({"vertices": torch.zeros(2, 5, 3).long()}, TypeError, "vertices must be float32.*got torch.int64"),
        ({"triangles": torch.zeros(4, 2).int()}, ValueError, r"triangles must be \[T, 3\] with T >= 1, got \[4, 2\]"),
        ({"triangles": torch.zeros(0, 3).int()}, ValueError, r"with T >= 1, got \[0, 3\]"),
        ({"triangles": torch.zeros(4, 3)}, TypeError, "triangles must be int32 or int64, got torch.float32"),
        ({"triangles": torch.zeros(4, 3, device="meta").int()}, ValueError, "triangles must be on cpu like vertices"),
        (
            {"attributes": torch.zeros(3, 2)},
            ValueError,
            r"attributes must be \[T, A\] = \[4, A\] or \[V, A\] = \[5, A\], got \[3, 2\]",
        ),
        ({"attributes": torch.zeros(4)}, ValueError, r"attributes must be .*got \[4\]"),
        ({"attributes": torch.zeros(4, 2).int()}, TypeError, "attributes must be float32.*got torch.int32"),
        ({"size": 8}, ValueError, r"size must be \(H, W\), each from 1 to 16384, got 8"),
        ({"size": (8, 0)}, ValueError, r"size must be .*got \(8, 0\)"),
        ({"size": (8, 16385)}, ValueError, r"size must be .*got \(8, 16385\)"),
        ({"size": (8.0, 9)}, ValueError, r"size must be .*got \(8.0, 9\)"),
        ({"cull": "both"}, ValueError, "cull must be None, 'back' or 'front', got 'both'"),
        ({"per": "pixel"}, ValueError, "per must be None, 'triangle' or 'vertex', got 'pixel'"),
        ({"per": "vertex"}, ValueError, r"attributes must be \[5, A\], one per vertex, got \[4, 2\]"),
        ({"vertices": torch.zeros(2, 4, 3)}, ValueError, "4 triangles and as many vertices: say per='triangle'"),
        ({"backend": "gpu"}, ValueError, "backend must be one of reference, cpu, triton, cuda, got 'gpu'"),
    ],
)
def test_bad_arguments(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.rasterize(**{**GOOD, **change})
