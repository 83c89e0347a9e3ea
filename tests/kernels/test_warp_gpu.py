"""The Triton and CUDA kernels of `warp` on a GPU: results, streams, graphs, torch.compile, memory beyond 2^31 bytes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastface import ops
from fastface.ops import _verify
from fastface.ops._backends import BackendUnavailable
from fastface.ops._verify import inputs
from fastface.ops._verify.warp import WarpShape
from tests.kernels import gpu
from tests.kernels.test_warp import overload_arguments
from tests.kernels.test_warp_cuda import ARGUMENTS, DTYPES, LAYOUTS, LINEARS, OPS, SPOILED

pytestmark = pytest.mark.gpu
ODD = "odd"


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    gpu.skip_if_missing(inputs("motion_field", "tiny", device="cuda"), request.param)
    return request.param


def check(case: _verify.Inputs, backend: str) -> Tensor:
    result = case.run(backend)
    verdict = _verify.compare(result, case.truth(), case.reference())
    assert verdict.ok, str(verdict)
    return result


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_matches_the_reference(op: str, dtype: torch.dtype, layout: str, linear: str | None, backend: str) -> None:
    for align_corners, occlusion in ((False, True), (True, False)):
        options = {"align_corners": align_corners, "occlusion": occlusion}
        check(inputs(op, ODD, dtype=dtype, device="cuda", layout=layout, linear=linear, **options), backend)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_at_the_published_shape(op: str, dtype: torch.dtype, layout: str, backend: str) -> None:
    for linear in (None, "image"):
        check(
            inputs(op, "live_portrait", dtype=dtype, device="cuda", layout=layout, linear=linear),
            backend,
        )


@pytest.mark.parametrize("op", OPS[1:])
@pytest.mark.parametrize("feature_dtype, logits_dtype", list(itertools.permutations(DTYPES, 2)), ids=str)
def test_logits_of_another_dtype(op: str, feature_dtype: torch.dtype, logits_dtype: torch.dtype, backend: str) -> None:
    check(inputs(op, ODD, dtype=feature_dtype, logits_dtype=logits_dtype, device="cuda", occlusion=True), backend)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    channels=st.integers(1, 19),
    keypoints=st.integers(1, 40),
    size=st.tuples(st.integers(1, 17), st.integers(1, 33), st.integers(1, 70)),
    linear=st.sampled_from([None, "keypoint"]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31),
)
def test_at_any_size(op, batch, channels, keypoints, size, linear, layout, seed) -> None:
    shape = WarpShape(batch, channels, channels, keypoints, size)
    case = inputs(op, shape, device="cuda", linear=linear, layout=layout, occlusion=True, seed=seed)
    for backend in ("triton", "cuda"):
        if gpu.missing(case, backend) is None:
            check(case, backend)


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
def test_at_the_edges_of_its_sizes(op: str, shape: WarpShape, backend: str) -> None:
    for linear, layout in itertools.product((None, "keypoint"), ("contiguous", "channels_last")):
        check(inputs(op, shape, device="cuda", linear=linear, layout=layout), backend)


@pytest.mark.parametrize("op", OPS)
def test_keypoints_far_outside(op: str, backend: str) -> None:
    case = inputs(op, ODD, device="cuda")
    kp_source, kp_driving = case.arguments[0][-2:]
    kp_source[:, 0], kp_driving[:, 1], kp_source[:, 2] = 50.0, -3e4, 1e30
    check(case, backend)


@pytest.mark.parametrize("op", OPS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_switched_off_and_certain_motions(op: str, dtype: torch.dtype, backend: str) -> None:
    case = inputs(op, ODD, dtype=dtype, device="cuda")
    logits = case.arguments[0][0 if op == "motion_field" else 1]
    logits[:, 1] = float("-inf")
    logits[:, 2, :2] = 1e4
    logits[:, 3, 2:] = -1e4
    logits[:, 0, :, :5] = float("-inf")
    assert not check(case, backend).isnan().any()
    logits[:, :, 0, 0, 0] = float("-inf")
    result = case.run(backend)
    spoiled = result[:, 0, 0, 0] if op == "motion_field" else result[:, :, 0, 0, 0]
    assert spoiled.isnan().all() and int(result.isnan().sum()) == spoiled.numel()


@pytest.mark.parametrize("op, where, linear", SPOILED)
def test_nan_in_gives_nan_out(op: str, where: str, linear: str | None, backend: str) -> None:
    # Against the reference on the CPU: what a GPU's grid_sample makes of a NaN is not documented.
    case = inputs(op, ODD, linear=linear)
    args, kwargs = case.arguments
    tensor = kwargs["linear"] if where == "linear" else args[ARGUMENTS[op].index(where)]
    tensor[(1, 2) if where.startswith(("kp", "linear")) else (1, 2, 2, 6, 9)] = float("nan")
    moved = tuple(value.cuda() for value in args)
    options = {key: value.cuda() if isinstance(value, Tensor) else value for key, value in kwargs.items()}
    spoiled = getattr(ops, op)(*moved, backend=backend, **options)
    assert torch.equal(spoiled.isnan().cpu(), case.reference().isnan())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_out_is_written_and_nothing_beside_it(dtype: torch.dtype, layout: str, backend: str) -> None:
    for linear, inner in itertools.product((None, "image"), ("contiguous", "channels_last")):
        case = inputs("pack_motions", ODD, dtype=dtype, device="cuda", linear=linear, layout=inner)
        args, kwargs = case.arguments
        batch, channels, depth, height, width = case.reference().shape
        for pad in range(3):
            buffer = torch.full((batch, channels + 9, depth + 2, height + 1, width + pad), 42.0).to("cuda", dtype)
            if layout == "channels_last":
                buffer = buffer.contiguous(memory_format=torch.channels_last_3d)
            region = (slice(None), slice(4, 4 + channels), slice(1, 1 + depth), slice(0, height), slice(pad, None))
            buffer[region] = float("nan")
            ops.pack_motions(*args, out=buffer[region], backend=backend, **kwargs)
            verdict = _verify.compare(buffer[region], case.truth(), case.reference())
            assert verdict.ok, str(verdict)
            buffer[region] = 42.0
            assert (buffer == 42.0).all(), "written outside of out"


# Registration.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, layout: str, backend: str) -> None:
    case = inputs(op, "tiny", device="cuda", layout=layout)
    arguments = (*overload_arguments(case)[:-1], backend)
    torch.library.opcheck(getattr(torch.ops.fastface, op).default, arguments)


@pytest.mark.parametrize("op", OPS)
def test_compiles_to_one_graph(op: str, backend: str) -> None:
    torch.compiler.reset()
    case = inputs(op, ODD, device="cuda")
    args, kwargs = case.arguments
    compiled = torch.compile(lambda *a: getattr(ops, op)(*a, backend=backend, **kwargs) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(*args), case.run(backend) * 2)


@pytest.mark.parametrize("size", [1000, 5000, 10000])
def test_reduce_overhead_keeps_the_stream(size: int, backend: str) -> None:
    """A slow matrix product comes first: a kernel on the wrong stream, or left out of the graph, would not see it."""
    torch.compiler.reset()
    linear = torch.nn.Linear(size, size, device="cuda").requires_grad_(False)
    points = torch.rand(2, 1, 5, 3, device="cuda") - 0.5
    logits = torch.randn(1, 6, 10, 10, size // 100, device="cuda")

    def model(x: Tensor, choice: str) -> tuple[Tensor, Tensor]:
        feature = linear(x).reshape(1, 64, 10, 10, size // 100)
        packed = ops.pack_motions(feature[:, :4], points[0], points[1], backend=choice)
        return packed, ops.compose_flow(feature, logits, points[0], points[1], backend=choice)

    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(64, size, device="cuda")
        for result, expected in zip(compiled(x, backend), model(x, "reference"), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


# Streams, graphs, devices.


@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_current_stream(op: str, backend: str) -> None:
    gpu.assert_runs_on_the_current_stream(inputs(op, ODD, device="cuda"), backend)


@pytest.mark.parametrize("op", OPS)
def test_in_a_cuda_graph(op: str, backend: str) -> None:
    gpu.assert_runs_in_a_cuda_graph(lambda seed: inputs(op, ODD, device="cuda", seed=seed), backend)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", OPS)
def test_on_a_device_that_is_not_current(op: str, backend: str) -> None:
    with torch.cuda.device(0):
        case = inputs(op, ODD, device="cuda:1")
        result = check(case, backend)
        assert result.device.index == 1 and torch.cuda.current_device() == 0


# Sizes.


@pytest.mark.parametrize("op", ["pack_motions", "compose_flow"])
def test_more_than_two_to_the_31_elements(op: str, backend: str) -> None:
    gpu.needs_memory(24)
    batch = 300 if op == "pack_motions" else 1030
    shape = WarpShape(batch, 4, 32, 21, (16, 64, 64))
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device="cuda", dtype=torch.float16)

    channels = shape.packed if op == "pack_motions" else shape.channels
    feature = random(batch, channels, *shape.size)
    source = 0.5 * torch.randn(batch, shape.keypoints, 3, device="cuda")
    driving = source + 0.1 * torch.randn_like(source)
    tensors = [feature, *([] if op == "pack_motions" else [random(batch, 22, *shape.size)]), source, driving]
    result = getattr(ops, op)(*tensors, backend=backend)
    assert result.numel() > 2**31
    for b in (0, batch // 2, batch - 1):
        one = _verify.Inputs(op, (tuple(t[b : b + 1] for t in tensors), {}), torch.float16)
        verdict = _verify.compare(result[b : b + 1], one.truth(), one.reference())
        assert verdict.ok, f"image {b}: {verdict}"


def test_a_channel_that_spans_two_to_the_31_elements() -> None:
    """Triton counts in 64 bits there; the CUDA kernels refuse."""
    gpu.needs_memory(6)
    case = inputs("compose_flow", "tiny", dtype=torch.float16, device="cuda")
    args, kwargs = case.arguments
    small = args[0]
    _, channels, depth, height, width = small.shape
    buffer = torch.empty(2**31 + 4096, dtype=torch.float16, device="cuda")
    strides = (channels * height * width, height * width, 2**31, width, 1)
    wide = buffer.as_strided((1, channels, depth, height, width), strides).copy_(small)
    spread = _verify.Inputs("compose_flow", ((wide, *args[1:]), kwargs), torch.float16)
    if gpu.missing(case, "triton") is None:
        check(spread, "triton")
    if gpu.missing(case, "cuda") is None:
        with pytest.raises(BackendUnavailable, match="spans 2\\^31 elements"):
            spread.run("cuda")


@pytest.mark.parametrize("op", OPS)
def test_takes_no_memory_but_its_output(op: str, backend: str) -> None:
    assert gpu.peak_beyond_output(inputs(op, "live_portrait", device="cuda"), backend) <= 4096
