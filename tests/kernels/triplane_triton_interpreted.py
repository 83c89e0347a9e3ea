"""The Triton kernels of `triplane` under Triton's interpreter, which has to be chosen before Triton is imported: run by
test_triplane_triton.py in a process of its own, or by hand with ``TRITON_INTERPRET=1 pytest <this file>``.

The interpreter takes a tenth of a second per ray, so rays are few.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastface.kernels.triplane import triplane_triton
from fastface.kernels.triplane.triplane_reference import AXES
from fastface.ops import _verify, triplane
from fastface.ops._verify import inputs
from fastface.ops._verify.triplane import TriplaneShape
from tests.kernels.test_triplane import (
    DTYPES,
    LAYOUTS,
    OPS,
    edges,
    golden,  # noqa: F401, a fixture
    golden_case,
    rays_of,
    with_limits,
    without_density,
)

assert triplane_triton.INTERPRETED, "set TRITON_INTERPRET=1 before Triton is imported"
SMALL = TriplaneShape(2, 5, 13, 9, 1, 11, 7, 17, 6)
EDGES = ("some rays that miss, auto", "camera inside the box", "near beyond far", "near beyond far, no fine pass")
EDGES += ("near is far", "fewest samples", "two samples", "unsorted jitter", "descending u", "u at the ends", "opaque")
# Lanes past the last sample give NaN by design.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def check(case: _verify.Inputs, *peers: _verify.Inputs) -> None:
    """`peers` have more rays: on one or two the reference may be lucky."""
    verdict = _verify.verify(case, "triton", peers)
    assert verdict.ok, str(verdict)


def many(shape: TriplaneShape) -> TriplaneShape:
    return replace(shape, rays=100)


def few(case: _verify.Inputs) -> _verify.Inputs:
    """The first ray of each image."""
    (_, origins, directions, _), kwargs = case.arguments
    numbers = {name: kwargs[name] for name in ("near", "far", "jitter", "u") if kwargs[name] is not None}
    given = {"origins": origins, "directions": directions} | numbers
    return rays_of(case, **{name: value[:, :1].contiguous() for name, value in given.items()})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_dtypes_and_layouts(op: str, dtype: torch.dtype, layout: str) -> None:
    number = DTYPES.index(dtype) + LAYOUTS.index(layout)
    options = {"axes": list(AXES)[number % 3], "reduce": ("sum", "mean", None)[number % 3]}
    case, *peers = (inputs(op, shape, dtype=dtype, layout=layout, **options) for shape in (SMALL, many(SMALL)))
    check(case, *peers)


@pytest.mark.parametrize(
    "shape",
    [
        TriplaneShape(1, 1, 1, 1, 1, 4, 1, 1, 1),
        TriplaneShape(1, 17, 6, 5, 2, 33, 16, 33, 19),
        TriplaneShape(1, 3, 4, 4, 2, 16, 40, 16, 16),
        TriplaneShape(1, 3, 4, 4, 3, 9, 0, 8, 3),
        TriplaneShape(1, 32, 32, 32, 1),
        TriplaneShape(1, 6, 11, 8, 2, 8, 9, 12, 3, depth=3),
        TriplaneShape(1, 3, 5, 7, 1, 9, 0, 8, 3, depth=1),
    ],
    ids=str,
)
def test_sizes(shape: TriplaneShape) -> None:
    for op in OPS:
        check(inputs(op, shape), inputs(op, many(shape)))


@pytest.mark.parametrize("options", [{"random": False}, {"white_back": True}, {"disparity": True}], ids=str)
def test_options(options: dict[str, Any]) -> None:
    check(inputs("render_planes", SMALL, **options), inputs("render_planes", many(SMALL), **options))


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    case = with_limits(edges()[name])
    check(few(case), case)


def test_no_density_anywhere() -> None:
    case = few(without_density(inputs("render_planes", SMALL)))
    features, depth, opacity = case.run("triton")
    assert (opacity == 0).all() and (features == -1).all()
    torch.testing.assert_close(depth, case.reference().depth, rtol=0, atol=1e-6)


def test_nan_planes_and_rays() -> None:
    for name in ("planes", "origins", "near", "jitter"):
        case = inputs("render_planes", SMALL)
        (planes, origins, *_), kwargs = case.arguments
        target = {"planes": planes[:, 0, 2], "origins": origins}.get(name, kwargs.get(name))
        target[1] = float("nan")
        for found, expected in zip(case.run("triton"), case.reference(), strict=True):
            assert torch.equal(found.isnan(), expected.isnan()), name


@pytest.mark.parametrize("name", ["render", "coarse", "white", "disparity", "auto"])
def test_renders_as_published(name: str, golden: Any) -> None:  # noqa: F811, the fixture above
    case, expected = golden_case(golden, name)
    call = triplane.registry.build("render_planes", *case.arguments[0], **case.arguments[1])
    found = few(rays_of(case, near=call.near, far=call.far)).run("triton")
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted[:, :1].reshape(value.shape), rtol=0, atol=3e-5)


def test_says_what_it_refuses() -> None:
    def reason(shape: TriplaneShape) -> str | None:
        case = inputs("render_planes", shape)
        return triplane_triton.refuse(triplane.registry.build("render_planes", *case.arguments[0], **case.arguments[1]))

    assert reason(SMALL) is None
    assert reason(replace(SMALL, depth=3)) is None
    assert "at most 128 of each" in (reason(replace(SMALL, coarse=129)) or "")
    assert "200 channels, hidden units or colours" in (reason(replace(SMALL, hidden=200)) or "")
