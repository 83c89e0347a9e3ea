"""The Triton kernels of `raster` under Triton's interpreter, which has to be chosen before Triton is imported: run by
test_raster_triton.py in a process of its own, or by hand with ``TRITON_INTERPRET=1 pytest <this file>``.

The interpreter takes milliseconds per operation of a program, so images and meshes are small. It runs programs one
after the other: that they may run at once is left to the atomic minimum.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastface import ops
from fastface.kernels.raster import raster_triton
from fastface.ops import _verify
from fastface.ops._verify import inputs
from fastface.ops._verify.raster import RasterShape
from fastface.ops.raster import RasterOutput

assert raster_triton.INTERPRETED, "set TRITON_INTERPRET=1 before Triton is imported"
# Lanes without a triangle divide 0 by 0 and are never stored; a float16 attribute may overflow where nothing is drawn.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BALL = RasterShape(2, 4, 5, (19, 23), 2)


def check(case: _verify.Inputs) -> RasterOutput:
    result = case.run("triton")
    verdict = case.judge(result, case.truth(), case.reference())
    assert verdict.ok, str(verdict)
    return result


@pytest.mark.parametrize("per", ["triangle", "vertex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype, per: str) -> None:
    check(inputs("rasterize", BALL, dtype=dtype, per=per, layout="sliced"))


@pytest.mark.parametrize("cull", ["back", "front"])
def test_culling(cull: str) -> None:
    check(inputs("rasterize", BALL, cull=cull))


@pytest.mark.parametrize("small, huge", [(0, 0), (0, 40), (9, 40)], ids=["huge", "large and huge", "all three"])
def test_sizes_of_triangles(small: int, huge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three ways to draw a triangle, on triangles of all sizes."""
    monkeypatch.setattr(raster_triton, "_SMALL", raster_triton.tl.constexpr(small))
    monkeypatch.setattr(raster_triton, "_HUGE", raster_triton.tl.constexpr(huge))
    monkeypatch.setattr(raster_triton, "_SLICES", 3)
    result = check(inputs("rasterize", RasterShape(2, 3, 4, (37, 53), 2, strewn=True), seed=1))
    assert (result.skipped == 2).all()


def test_more_triangles_and_pixels_than_a_program_takes() -> None:
    check(inputs("rasterize", RasterShape(2, 8, 9, (13, 33), 1)))


def draw(vertices: Tensor, triangles: list[list[int]], size: tuple[int, int], backend: str) -> RasterOutput:
    attributes = torch.arange(len(triangles))[:, None] + 1.0
    return ops.rasterize(vertices, torch.tensor(triangles), attributes, size, per="triangle", backend=backend)


def same(vertices: Tensor, triangles: list[list[int]], size: tuple[int, int]) -> RasterOutput:
    found, expected = (draw(vertices, triangles, size, backend) for backend in ("triton", "reference"))
    for name in ("image", "triangle", "skipped"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.depth, expected.depth)
    return found


def test_edges_belong_to_one_triangle() -> None:
    """A fan around a pixel's centre, its edges through the centres of others: every pixel is covered once."""
    ring = [(0, 0), (4, 0), (8, 0), (8, 4), (8, 8), (4, 8), (0, 8), (0, 4)]
    vertices = torch.tensor([[*((x, y, 0.0) for x, y in ring), (4, 4, 0.0)]])
    fan = [[i, (i + 1) % 8, 8] for i in range(8)]
    for flipped in ([], range(8), (1, 4, 6)):
        triangles = [tri[::-1] if i in flipped else tri for i, tri in enumerate(fan)]
        both = [same(vertices, half, (11, 10)).triangle >= 0 for half in (triangles[:4], triangles[4:])]
        whole = same(vertices, triangles, (11, 10)).triangle >= 0
        assert not (both[0] & both[1]).any() and torch.equal(both[0] | both[1], whole)
        assert int(whole.sum()) == 64


def test_depths_of_both_signs_and_ties() -> None:
    """Of equally near triangles the first wins; -0 and 0 are equally near; negative is nearer than positive."""
    corners = torch.tensor([(-9.0, -9.0), (30.0, -9.0), (-9.0, 30.0)])
    depths = [3.0, 0.0, -0.0, 0.0, -1.5, -1e30, 1e-40, -1e-40, 7.0, -1.5]
    for count in range(1, len(depths) + 1):
        flat = [torch.cat([corners, torch.full((3, 1), z)], 1) for z in depths[:count]]
        triangles = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(count)]
        result = draw(torch.cat(flat)[None], triangles, (3, 4), "triton")
        nearest = min(range(count), key=lambda i: (depths[i], i))
        assert (result.triangle == nearest).all()
        assert (result.depth == torch.tensor(depths[nearest])).all()


def test_what_cannot_be_drawn_is_counted() -> None:
    vertices = torch.tensor([[(0.0, 0.0, 1.0), (9.0, 0.0, 1.0), (0.0, 9.0, 1.0), (float("nan"), 0.0, 1.0)]])
    vertices = torch.cat([vertices, torch.tensor([[(2.0**20, 0.0, 1.0), (0.0, 5.0, float("inf"))]])], 1)
    triangles = [[0, 1, 2], [0, 1, 3], [0, 4, 2], [1, 5, 0], [0, 1, 6], [-1, 1, 2], [0, 1, 1], [2**31 - 1, 0, 1]]
    assert same(vertices, triangles, (5, 7)).skipped.tolist() == [6]


def test_at_the_border_and_beyond() -> None:
    """Triangles that reach far over the image, on every side of it, and images of one row, column or pixel."""
    generator = torch.Generator().manual_seed(0)
    for size, reach in itertools.product([(1, 1), (1, 9), (9, 1), (5, 6)], (1e6, 40.0)):
        vertices = reach * (2 * torch.rand(1, 12, 3, generator=generator) - 1)
        vertices[..., 2] = torch.arange(4).repeat_interleave(3).float()  # flat: depths do not depend on rounding
        result = draw(vertices, [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)], size, "triton")
        expected = draw(vertices, [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(4)], size, "reference")
        assert torch.equal(result.triangle, expected.triangle)
