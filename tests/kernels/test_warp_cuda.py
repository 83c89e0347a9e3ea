"""The CUDA kernels of `warp` as far as they can be proven without a GPU: their arithmetic, run on the CPU thread by
thread, against the reference; and what the compiler and the built module say of them. On a GPU: test_warp_gpu.py.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastface.ops import _native, _verify, warp
from fastface.ops._verify import inputs
from fastface.ops._verify.warp import WarpShape
from tests.kernels.cuda_host import compiled_kernels, library, view, view_type

OPS = ("pack_motions", "compose_flow", "compose_volumes", "motion_field")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "sliced", "channels_last")
LINEARS = (None, "image", "keypoint")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


class Params(ctypes.Structure):
    """`warp::Params` of kernels/warp/warp.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "keypoints", "depth", "height", "width")),
        *((name, view_type(5)) for name in ("feature", "logits")),
        ("occlusion", view_type(4)),
        ("out", view_type(5)),
        *((name, ctypes.c_void_p) for name in ("kp_source", "kp_driving", "linear")),
        *((name, ctypes.c_int32) for name in ("linear_per_keypoint", "align_corners")),
        ("sigma2", ctypes.c_float),
    ]


Runner = Callable[..., Tensor]


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs a case of `_verify` through the CUDA kernels' source, compiled for the CPU."""
    run = library("warp", tmp_path_factory.mktemp("warp_cuda")).warp_on_host
    run.argtypes, run.restype = [ctypes.c_int, ctypes.POINTER(Params), ctypes.c_int], None

    def runner(case: _verify.Inputs, out: Tensor | None = None, processors: int = 1) -> Tensor:
        args, kwargs = case.arguments
        call = warp.registry.build(case.op, *args, **kwargs, **({} if out is None else {"out": out}))
        call.out.fill_(float("nan"))
        sizes, feature, logits, occlusion, target, *rest = warp._params(call)
        params = Params(*sizes, *map(view, (feature, logits, occlusion, target)), *rest)
        run(OPS.index(case.op), ctypes.byref(params), processors)
        return call.out

    return runner


def check(case: _verify.Inputs, result: Tensor) -> None:
    verdict = _verify.compare(result, case.truth(), case.reference())
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_matches_the_reference(op: str, dtype: torch.dtype, layout: str, linear: str | None, on_host: Runner) -> None:
    for align_corners, occlusion in ((False, True), (True, False)):
        options = {"align_corners": align_corners, "occlusion": occlusion}
        case = inputs(op, "odd", dtype=dtype, layout=layout, linear=linear, **options)
        check(case, on_host(case))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_at_the_published_shape(op: str, layout: str, dtype: torch.dtype, on_host: Runner) -> None:
    """The vector paths need sizes that divide; the walks along y and z need long axes."""
    case = inputs(op, WarpShape(1, 4, 32, 5, (16, 64, 64)), layout=layout, dtype=dtype, occlusion=True)
    check(case, on_host(case))


@pytest.mark.parametrize("op", OPS[1:])
@pytest.mark.parametrize("feature_dtype, logits_dtype", list(itertools.permutations(DTYPES, 2)), ids=str)
def test_logits_of_another_dtype(
    op: str, feature_dtype: torch.dtype, logits_dtype: torch.dtype, on_host: Runner
) -> None:
    case = inputs(op, "odd", dtype=feature_dtype, logits_dtype=logits_dtype, occlusion=True)
    check(case, on_host(case))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    channels=st.integers(1, 19),
    keypoints=st.integers(1, 40),
    size=st.tuples(st.integers(1, 9), st.integers(1, 11), st.integers(1, 37)),
    linear=st.sampled_from(LINEARS),
    layout=st.sampled_from(LAYOUTS),
    align_corners=st.booleans(),
    processors=st.sampled_from([1, 8, 1000]),
    seed=st.integers(0, 2**31),
)
def test_at_any_size(
    op, batch, channels, keypoints, size, linear, layout, align_corners, processors, seed, on_host
) -> None:
    shape = WarpShape(batch, channels, channels, keypoints, size)
    case = inputs(op, shape, linear=linear, layout=layout, align_corners=align_corners, occlusion=True, seed=seed)
    check(case, on_host(case, processors=processors))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "shape",
    [
        WarpShape(1, 128, 128, 1, (2, 5, 17)),
        WarpShape(1, 1, 1, 256, (2, 5, 17)),
        WarpShape(2, 3, 3, 100, (1, 7, 33)),
        WarpShape(16, 3, 3, 4, (3, 4, 5)),
        WarpShape(1, 5, 65, 21, (1, 1, 1)),
    ],
    ids=["C=128", "K=256", "D=1", "batch 16", "one voxel"],
)
def test_at_the_edges_of_its_sizes(op: str, shape: WarpShape, on_host: Runner) -> None:
    for linear, layout in itertools.product((None, "keypoint"), ("contiguous", "channels_last")):
        case = inputs(op, shape, linear=linear, layout=layout)
        check(case, on_host(case))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_keypoints_far_outside(op: str, layout: str, on_host: Runner) -> None:
    case = inputs(op, "odd", layout=layout)
    kp_source, kp_driving = case.arguments[0][-2:]
    kp_source[:, 0], kp_driving[:, 1], kp_source[:, 2] = 50.0, -3e4, 1e30
    check(case, on_host(case))


@pytest.mark.parametrize("op", OPS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_switched_off_and_certain_motions(op: str, dtype: torch.dtype, on_host: Runner) -> None:
    case = inputs(op, "odd", dtype=dtype)
    logits = case.arguments[0][0 if op == "motion_field" else 1]
    logits[:, 1] = float("-inf")
    logits[:, 2, :2] = 1e4
    logits[:, 3, 2:] = -1e4
    logits[:, 0, :, :5] = float("-inf")
    result = on_host(case)
    check(case, result)
    assert not result.isnan().any()
    logits[:, :, 0, 0, 0] = float("-inf")
    result = on_host(case)
    spoiled = result[:, 0, 0, 0] if op == "motion_field" else result[:, :, 0, 0, 0]
    assert spoiled.isnan().all() and int(result.isnan().sum()) == spoiled.numel()


ARGUMENTS = {
    "pack_motions": ("feature", "kp_source", "kp_driving"),
    "compose_flow": ("feature", "logits", "kp_source", "kp_driving"),
    "compose_volumes": ("feature", "logits", "kp_source", "kp_driving"),
    "motion_field": ("logits", "kp_source", "kp_driving"),
}


SPOILED = [
    (op, where, linear)
    for op, names in ARGUMENTS.items()
    for linear in (None, "keypoint")
    for where in (*names, *(("linear",) if linear else ()))
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op, where, linear", SPOILED)
def test_nan_in_gives_nan_out(op: str, where: str, linear: str | None, layout: str, on_host: Runner) -> None:
    case = inputs(op, "odd", linear=linear, layout=layout)
    args, kwargs = case.arguments
    tensor = kwargs["linear"] if where == "linear" else args[ARGUMENTS[op].index(where)]
    tensor[(1, 2) if where.startswith(("kp", "linear")) else (1, 2, 2, 6, 9)] = float("nan")
    spoiled = on_host(case)
    assert not spoiled[0].isnan().any(), "the other image of the batch must not change"
    assert spoiled[1].isnan().any()
    assert torch.equal(spoiled.isnan(), case.reference().isnan())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_out_is_written_and_nothing_beside_it(dtype: torch.dtype, layout: str, on_host: Runner) -> None:
    for linear, inner in itertools.product((None, "image"), ("contiguous", "channels_last")):
        case = inputs("pack_motions", "odd", dtype=dtype, linear=linear, layout=inner)
        batch, channels, depth, height, width = case.reference().shape
        for pad in range(3):
            buffer = torch.full((batch, channels + 9, depth + 2, height + 1, width + pad), 42.0, dtype=dtype)
            if layout == "channels_last":
                buffer = buffer.contiguous(memory_format=torch.channels_last_3d)
            region = (slice(None), slice(4, 4 + channels), slice(1, 1 + depth), slice(0, height), slice(pad, None))
            on_host(case, out=buffer[region])
            check(case, buffer[region])
            buffer[region] = 42.0
            assert (buffer == 42.0).all(), "written outside of out"


# What the compiler and the built module say.


def test_compiles_without_spills(tmp_path: Path) -> None:
    kernels = compiled_kernels("warp", tmp_path)
    assert len(kernels) == 24
    for name, (lost, registers) in kernels.items():
        assert lost == 0, name
        assert registers <= 128, name


needs_module = pytest.mark.skipif(
    _native.reason_missing("cuda") is not None, reason=f"cuda backend: {_native.reason_missing('cuda')}"
)


@needs_module
def test_the_module_holds_every_architecture() -> None:
    module = _native.load("cuda")
    assert module.architectures() == [*(f"{number}-real" for number in ARCHITECTURES[:-1]), str(ARCHITECTURES[-1])]
    triton = pytest.importorskip("triton")
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

    def dump(what: str) -> str:
        return subprocess.run([cuobjdump, what, module.__file__], check=True, capture_output=True, text=True).stdout

    assert set(re.findall(r"sm_(\d+)", dump("--list-elf"))) == {str(number) for number in ARCHITECTURES}
    assert set(re.findall(r"sm_(\d+)", dump("--list-ptx"))) == {str(ARCHITECTURES[-1])}
    stacks = re.findall(r"STACK:(\d+)", dump("--dump-resource-usage"))
    assert len(stacks) >= 24 * len(ARCHITECTURES) and set(stacks) == {"0"}, "a kernel spills"
    assert ".f64" not in dump("--dump-ptx"), "a kernel computes in float64"


@needs_module
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks how it fails without a GPU")
def test_without_a_gpu_a_call_raises_with_the_error_of_cuda() -> None:
    case = inputs("motion_field", "tiny")
    args, kwargs = case.arguments
    call = warp.registry.build("motion_field", *args, **kwargs)
    with pytest.raises(RuntimeError, match=r"cudaError\w+ while asking for the current device"):
        _native.load("cuda").warp("motion_field", warp._params(call), 0, 0)
    with pytest.raises(RuntimeError, match=r"cudaError\w+ while reading attribute"):
        _native.load("cuda").warp_refuse("motion_field", warp._params(call), 0)
