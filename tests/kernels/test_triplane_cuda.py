"""The CUDA kernels of `triplane` as far as they can be proven without a GPU: their code, run on the CPU, against the
reference; and what the compiler and the built module say of them. On a GPU: test_triplane_gpu.py.

Where the kernels use approximate instructions, the CPU is as wrong as the manual allows: its exponentials, logarithms
and quotients are off by random amounts up to their bounds, and its matrix products are cut off instead of rounded.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.kernels.triplane.triplane_reference import AXES
from fastface.ops import _native, _verify, triplane
from fastface.ops._verify import inputs
from fastface.ops._verify.triplane import TriplaneShape
from tests.kernels.cuda_host import compiled_kernels, library, view, view_type
from tests.kernels.test_triplane import DTYPES, LAYOUTS, OPS, SMALL, edges, tensors, with_limits, without_density

BYTES = 227 << 10  # of shared memory, an H200's
ROOMS = ("colours", "decoder", "hidden")  # what shared memory holds, `Room` of triplane_cuda.cuh
SHAPES = {
    "small": SMALL,
    "trigrid": TriplaneShape(2, 5, 7, 9, 19, 8, 9, 12, 3, depth=3),
    "wide": TriplaneShape(2, 40, 7, 9, 5, 6, 5, 11, 35),
    "wide trigrid": TriplaneShape(1, 97, 5, 4, 5, 5, 13, 9, 96, depth=2),
}


class Params(ctypes.Structure):
    """`triplane::Params` of kernels/triplane/triplane.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "depth", "height", "width")),
        *((name, ctypes.c_int64) for name in ("count", "hidden", "outputs", "coarse", "fine")),
        ("planes", view_type(6)),
        ("axes", ctypes.c_int32 * 9),
        ("trigrid", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("points", "directions", "w1", "b1", "w2", "b2")),
        *((name, ctypes.c_void_p) for name in ("near", "far", "jitter", "u", "features", "depth_out", "opacity")),
        ("box", ctypes.c_float),
        ("reduce", ctypes.c_int32),
        ("white_back", ctypes.c_bool),
        ("disparity", ctypes.c_bool),
    ]


class OnHost:
    """Runs a case of `_verify` through the CUDA kernels' source, compiled for the CPU."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        compiled.triplane_on_host.restype = ctypes.c_bool

    def __call__(self, case: _verify.Inputs, shared: int = BYTES, processors: int = 4) -> Any:
        call, _planes, params = self._call(case)
        op, size = OPS.index(case.op), ctypes.c_int64(shared)
        for out in (call.features, call.depth, call.opacity):
            if out is not None:
                out.fill_(float("nan"))
        finished = self.compiled.triplane_on_host(op, ctypes.byref(params), size, processors)
        assert finished, "a thread waits for others that never come"
        return call.features if case.op == "sample_planes" else (call.features, call.depth, call.opacity)

    def cut(self, case: _verify.Inputs, shared: int = BYTES, processors: int = 132) -> dict[str, Any]:
        found = (ctypes.c_int * 4)()
        params = ctypes.byref(self._call(case)[2])
        self.compiled.triplane_plan_on_host(params, ctypes.c_int64(shared), processors, found)
        *numbers, room = found
        return {**dict(zip(("warps", "blocks", "whole"), numbers, strict=True)), "room": ROOMS[room]}

    @staticmethod
    def _call(case: _verify.Inputs) -> tuple[triplane.TriplaneCall, Any, Params]:
        args, kwargs = case.arguments
        call = triplane.registry.build(case.op, *args, **kwargs)
        planes = triplane._channels_last(call.planes)
        sizes, plane_view, axes, trigrid, rays, depths, out, *rest = triplane._params(call, planes)
        axes = (ctypes.c_int32 * 9)(*axes)
        return call, planes, Params(*sizes, view(plane_view), axes, trigrid, *rays, *depths, *out, *rest)


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> OnHost:
    return OnHost(library("triplane", tmp_path_factory.mktemp("triplane_cuda")))


def check(case: _verify.Inputs, result: Any, *peers: _verify.Inputs) -> None:
    lost = _verify.most_lost(peers) if peers else 0.0
    verdict = _verify.compare(result, case.truth(), case.reference(), lost)
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_matches_the_reference(op: str, dtype: torch.dtype, layout: str, on_host: OnHost) -> None:
    options = {"dtype": dtype, "layout": layout}
    for shape in SHAPES.values():
        for axes, reduce in zip(AXES, ("sum", "mean", None), strict=True):
            cases = [inputs(op, shape, axes=axes, reduce=reduce, seed=i, **options) for i in range(3)]
            check(cases[0], on_host(cases[0]), *cases)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_published_sizes(dtype: torch.dtype, on_host: OnHost) -> None:
    """Packs of 16 bytes, as many samples, units and colours; few rays. With a depth, and wider, too."""
    shapes = {
        "colours": [TriplaneShape(1, 32, 256, 256, 5), TriplaneShape(1, 32, 64, 64, 5, depth=3)],
        "decoder": [TriplaneShape(1, 96, 32, 32, 5, outputs=48), TriplaneShape(1, 48, 32, 32, 5, depth=3)],
        "hidden": [TriplaneShape(1, 128, 16, 16, 4, hidden=128, outputs=128)],
    }
    for room, shape in ((room, shape) for room, fitting in shapes.items() for shape in fitting):
        cases = [inputs("render_planes", shape, dtype=dtype, seed=seed) for seed in range(3)]
        cut = on_host.cut(cases[0])
        assert cut["whole"] and cut["room"] == room
        check(cases[0], on_host(cases[0]), *cases)
        points = inputs("sample_planes", replace(shape, rays=67), dtype=dtype)
        check(points, on_host(points))


def test_packs_are_read_where_all_strides_are_aligned(on_host: OnHost) -> None:
    """The levels of the other trigrid are one number further apart."""
    case = inputs("sample_planes", TriplaneShape(1, 8, 4, 5, 9, depth=3), dtype=torch.float16)
    (planes, points), options = case.arguments
    padded = torch.nn.functional.pad(planes.movedim(2, -1).flatten(3), (0, 1))
    apart = padded[..., :-1].unflatten(3, (4, 5, 8)).movedim(-1, 2)
    other = replace(case, arguments=((apart, points), options))
    assert on_host.cut(case)["whole"] and not on_host.cut(other)["whole"]
    assert torch.equal(on_host(case), on_host(other))


def test_blocks_fill_the_processors_of_an_h200(on_host: OnHost) -> None:
    for dtype, warps in ((torch.float16, 16), (torch.float32, 9)):
        case = inputs("render_planes", TriplaneShape(1, 32, 8, 8, 4096), dtype=dtype)
        assert on_host.cut(case) == {"warps": warps, "blocks": 132, "whole": 1, "room": "colours"}
    few = inputs("render_planes", TriplaneShape(1, 32, 8, 8, 200))
    assert on_host.cut(few)["blocks"] == 100
    most = inputs("render_planes", TriplaneShape(1, 32, 8, 8, 4, 4096, 4096))
    assert on_host.cut(most)["warps"] == 1
    assert on_host.cut(inputs("render_planes", TriplaneShape(1, 32, 8, 8, 4, hidden=3000)))["warps"] == 1
    assert on_host.cut(most, shared=99 << 10)["warps"] == 0


def test_a_warp_takes_several_rays(on_host: OnHost) -> None:
    case = inputs("render_planes", TriplaneShape(2, 8, 6, 7, 9, 5, 6, 8, 4))
    for shared, processors in ((BYTES, 1), (28 << 10, 2), (BYTES, 100)):
        assert on_host.cut(case, shared, processors)["room"] == "colours"
        check(case, on_host(case, shared, processors))


def test_what_does_not_fit_shared_memory(on_host: OnHost) -> None:
    """Colours are computed in the end, and the decoder is read from memory."""
    for depth in (0, 2):
        case = inputs("render_planes", TriplaneShape(1, 8, 6, 7, 9, 15, 16, 24, 4, depth))
        for room, kilobytes in (("colours", 60), ("decoder", 30), ("hidden", 12)):
            assert on_host.cut(case, kilobytes << 10)["room"] == room
            check(case, on_host(case, kilobytes << 10))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 2),
    channels=st.one_of(st.integers(1, 32), st.integers(33, 130)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 15)),
    rays=st.integers(1, 6),
    samples=st.tuples(st.integers(4, 40), st.integers(0, 40)),
    decoder=st.tuples(st.integers(1, 40), st.one_of(st.integers(1, 32), st.integers(33, 130))),
    depth=st.integers(0, 4),
    options=st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(DTYPES),
            "layout": st.sampled_from(LAYOUTS),
            "axes": st.sampled_from(list(AXES)),
            "reduce": st.sampled_from(["sum", "mean", None]),
            "random": st.booleans(),
            "white_back": st.booleans(),
            "disparity": st.booleans(),
        }
    ),
    seed=st.integers(0, 2**31),
)
def test_at_any_size(op, batch, channels, size, rays, samples, decoder, depth, options, seed, on_host) -> None:
    shape = TriplaneShape(batch, channels, *size, rays, *samples, *decoder, depth)
    case, *peers = (inputs(op, shape, seed=seed + i, **options) for i in range(4))
    check(case, on_host(case), *peers)


@pytest.mark.parametrize("name", list(edges()))
def test_edges(name: str, on_host: OnHost) -> None:
    case = with_limits(edges()[name])
    check(case, on_host(case))


def test_no_density_anywhere(on_host: OnHost) -> None:
    case = without_density(inputs("render_planes", SMALL))
    features, depth, opacity = on_host(case)
    assert (opacity == 0).all() and (features == -1).all()
    torch.testing.assert_close(depth, case.reference().depth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_nan_planes_and_rays(shape: TriplaneShape, on_host: OnHost) -> None:
    for op in OPS:
        case = inputs(op, shape)
        case.arguments[0][0][-1, 0, 2] = float("nan")
        for found, expected in zip(tensors(on_host(case)), tensors(case.reference()), strict=True):
            assert found.isnan().any() and torch.equal(found.isnan(), expected.isnan()), op
    for name in ("origins", "near", "jitter"):
        case = inputs("render_planes", shape)
        (_, origins, *_), kwargs = case.arguments
        kwargs.get(name, origins)[-1, 3] = float("nan")
        for found in on_host(case):
            assert found[-1, 3].isnan().all() and found.isnan().sum() == found[-1, 3].numel(), name


# What the compiler and the built module say.


def test_compiles_without_spills(tmp_path: Path) -> None:
    kernels = compiled_kernels("triplane", tmp_path)
    assert len(kernels) == 21
    for name, (lost, registers) in kernels.items():
        assert lost == 0, name
        assert registers <= 128, name


@pytest.mark.skipif(
    _native.reason_missing("cuda") is not None, reason=f"cuda backend: {_native.reason_missing('cuda')}"
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks how it fails without a GPU")
def test_without_a_gpu_a_call_raises_with_the_error_of_cuda() -> None:
    case = inputs("render_planes", SMALL)
    call = triplane.registry.build("render_planes", *case.arguments[0], **case.arguments[1])
    params = triplane._params(call, triplane._channels_last(call.planes))
    module = _native.load("cuda")
    with pytest.raises(RuntimeError, match=r"cudaError\w+ while asking for the current device"):
        module.triplane("render_planes", params, 0, 0)
    with pytest.raises(RuntimeError, match=r"cudaError\w+ while reading attribute"):
        module.triplane_refuse("render_planes", params, 0)
