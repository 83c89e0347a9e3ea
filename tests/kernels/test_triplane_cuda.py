"""The CUDA kernels of `triplane` as far as they can be proven without a GPU: their code, run on the CPU, against the
reference; and what the compiler and the built module say of them. On a GPU: test_triplane_gpu.py.

Where the kernels use approximate instructions, the CPU is as wrong as the manual allows: its exponentials, logarithms
and quotients are off by random amounts up to their bounds, and its matrix products are cut off instead of rounded.
"""

from __future__ import annotations

import ctypes
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
from tests.kernels.test_triplane import DTYPES, LAYOUTS, OPS, SMALL, edges, with_limits, without_density

BYTES = 227 << 10  # of shared memory, an H200's


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
        finished = self.compiled.triplane_on_host(op, ctypes.byref(params), size, processors)
        assert finished, "a thread waits for others that never come"
        return call.features if case.op == "sample_planes" else (call.features, call.depth, call.opacity)

    def cut(self, case: _verify.Inputs, shared: int = BYTES, processors: int = 132) -> dict[str, int]:
        found = (ctypes.c_int * 3)()
        params = ctypes.byref(self._call(case)[2])
        self.compiled.triplane_plan_on_host(params, ctypes.c_int64(shared), processors, found)
        return dict(zip(("warps", "blocks", "whole"), found, strict=True))

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
    for axes, reduce in zip(AXES, ("sum", "mean", None), strict=True):
        cases = [inputs(op, SMALL, dtype=dtype, layout=layout, axes=axes, reduce=reduce, seed=i) for i in range(3)]
        check(cases[0], on_host(cases[0]), *cases)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_published_sizes(dtype: torch.dtype, on_host: OnHost) -> None:
    """Packs of 16 bytes, as many samples, units and colours; few rays."""
    shape = TriplaneShape(1, 32, 256, 256, 5)
    cases = [inputs("render_planes", shape, dtype=dtype, seed=seed) for seed in range(3)]
    assert on_host.cut(cases[0])["whole"]
    check(cases[0], on_host(cases[0]), *cases)
    points = inputs("sample_planes", TriplaneShape(1, 32, 256, 256, 67), dtype=dtype)
    check(points, on_host(points))


def test_blocks_fill_the_processors_of_an_h200(on_host: OnHost) -> None:
    for dtype, warps in ((torch.float16, 16), (torch.float32, 9)):
        case = inputs("render_planes", TriplaneShape(1, 32, 8, 8, 4096), dtype=dtype)
        assert on_host.cut(case) == {"warps": warps, "blocks": 132, "whole": 1}
    few = inputs("render_planes", TriplaneShape(1, 32, 8, 8, 200))
    assert on_host.cut(few)["blocks"] == 100
    large = inputs("render_planes", TriplaneShape(1, 32, 8, 8, 4, 1000, 1000))
    assert on_host.cut(large, shared=99 << 10)["warps"] == 0


def test_a_warp_takes_several_rays(on_host: OnHost) -> None:
    case = inputs("render_planes", TriplaneShape(2, 8, 6, 7, 9, 5, 6, 8, 4))
    for shared, processors in ((BYTES, 1), (12 << 10, 2), (BYTES, 100)):
        check(case, on_host(case, shared, processors))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 2),
    channels=st.integers(1, 32),
    size=st.tuples(st.integers(1, 12), st.integers(1, 15)),
    rays=st.integers(1, 6),
    samples=st.tuples(st.integers(4, 40), st.integers(0, 40)),
    decoder=st.tuples(st.integers(1, 40), st.integers(1, 32)),
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
def test_at_any_size(op, batch, channels, size, rays, samples, decoder, options, seed, on_host) -> None:
    shape = TriplaneShape(batch, channels, *size, rays, *samples, *decoder)
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


def test_nan_planes_and_rays(on_host: OnHost) -> None:
    for name in ("planes", "origins", "near", "jitter"):
        case = inputs("render_planes", SMALL)
        (planes, origins, *_), kwargs = case.arguments
        target = {"planes": planes[:, 0, 2], "origins": origins}.get(name, kwargs.get(name))
        target[1] = float("nan")
        for found, expected in zip(on_host(case), case.reference(), strict=True):
            assert torch.equal(found.isnan(), expected.isnan()), name
    case = inputs("sample_planes", SMALL)
    case.arguments[0][0][1, 0, 2] = float("nan")
    check(case, on_host(case))


# What the compiler and the built module say.


def test_compiles_without_spills(tmp_path: Path) -> None:
    kernels = compiled_kernels("triplane", tmp_path)
    assert len(kernels) == 12
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
