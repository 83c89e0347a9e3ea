"""The `warp` hot path: the reference against its definition and the goldens, and the backends of this machine against
the reference.

Triton under its interpreter is tested in test_warp_triton.py, GPUs in test_warp_gpu.py.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastface import ops
from fastface.kernels.warp import warp_reference as reference
from fastface.nn import ComposeFlow, ComposeVolumes, PackMotions
from fastface.ops import _native, _verify
from fastface.ops._verify import inputs
from fastface.ops._verify.warp import WarpShape
from tests import goldens

OPS = ("pack_motions", "compose_flow", "compose_volumes", "motion_field")
COMPOSE = ("compose_flow", "compose_volumes")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
needs_cpu = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)
# The op with its own choice of backend, the C++ kernels, and the reference behind the op's boundary.
BACKENDS = [pytest.param("cpu", marks=needs_cpu), "reference"]


# The reference, against the definition in scalar arithmetic.


def axis(index: int, size: int) -> float:
    return 2 * index / (size - 1) - 1 if size > 1 else 0.0


def trilinear(volume: list, point: list[float], align_corners: bool) -> float:
    sizes = (len(volume[0][0]), len(volume[0]), len(volume))  # W, H, D
    position = [
        (c + 1) / 2 * (n - 1) if align_corners else ((c + 1) * n - 1) / 2 for c, n in zip(point, sizes, strict=True)
    ]
    total = 0.0
    for corner in itertools.product((0, 1), repeat=3):
        index = [math.floor(p) + c for p, c in zip(position, corner, strict=True)]
        weight = math.prod(1 - abs(p - i) for p, i in zip(position, index, strict=True))
        if all(0 <= i < n for i, n in zip(index, sizes, strict=True)):
            total += weight * volume[index[2]][index[1]][index[0]]
    return total


def motion(point: list[float], source: list[float], driving: list[float], matrix: list[list[float]]) -> list[float]:
    offset = [p - d for p, d in zip(point, driving, strict=True)]
    return [sum(m * o for m, o in zip(row, offset, strict=True)) + s for row, s in zip(matrix, source, strict=True)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("linear", [None, "image", "keypoint"])
def test_reference_follows_the_definition(linear: str | None, align_corners: bool) -> None:
    shape = WarpShape(batch=2, packed=2, channels=2, keypoints=2, size=(1, 3, 4))
    case = inputs("compose_flow", shape, linear=linear, occlusion=True, align_corners=align_corners, seed=5)
    (feature, logits, kp_source, kp_driving), kwargs = case.arguments
    sigma2 = 0.05
    packed = reference.pack_motions(
        feature.double(), kp_source, kp_driving, kwargs.get("linear"), sigma2, align_corners
    )
    flow = reference.motion_field(logits.double(), kp_source, kp_driving, kwargs.get("linear"))
    args = (
        feature.double(),
        logits.double(),
        kp_source,
        kp_driving,
        kwargs.get("linear"),
        kwargs["occlusion"],
        align_corners,
    )
    composed, blended = reference.compose_flow(*args), reference.compose_volumes(*args)
    identity = torch.eye(3).tolist()
    for b, y, x in itertools.product(range(2), range(3), range(4)):
        point = [axis(x, 4), axis(y, 3), 0.0]
        weights = torch.softmax(logits[b, :, 0, y, x].double(), 0).tolist()
        maps = [point]
        for k in range(2):
            matrix = identity
            if linear is not None:
                matrix = (kwargs["linear"][b] if linear == "image" else kwargs["linear"][b, k]).tolist()
            maps.append(motion(point, kp_source[b, k].tolist(), kp_driving[b, k].tolist(), matrix))
        blend = [sum(w * m[i] for w, m in zip(weights, maps, strict=True)) for i in range(3)]
        assert flow[b, 0, y, x].tolist() == pytest.approx(blend, abs=1e-12)
        for k, point_k in enumerate(maps):
            heat = 0.0
            if k > 0:
                d, s = kp_driving[b, k - 1].tolist(), kp_source[b, k - 1].tolist()
                heat = math.exp(-(math.dist(point, d) ** 2) / (2 * sigma2)) - math.exp(
                    -(math.dist(point, s) ** 2) / (2 * sigma2)
                )
            assert float(packed[b, k * 3, 0, y, x]) == pytest.approx(heat, abs=1e-12)
            for c in range(2):
                value = trilinear(feature[b, c].double().tolist(), point_k, align_corners)
                assert float(packed[b, k * 3 + 1 + c, 0, y, x]) == pytest.approx(value, abs=1e-12)
        seen = float(kwargs["occlusion"][b, 0, y, x])
        for c in range(2):
            volume = feature[b, c].double().tolist()
            assert float(composed[b, c, 0, y, x]) == pytest.approx(
                seen * trilinear(volume, blend, align_corners), abs=1e-12
            )
            total = sum(w * trilinear(volume, m, align_corners) for w, m in zip(weights, maps, strict=True))
            assert float(blended[b, c, 0, y, x]) == pytest.approx(seen * total, abs=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_reference_has_gradients(op: str) -> None:
    case = inputs(op, "tiny", linear="keypoint", occlusion=op in COMPOSE, seed=2)
    args, kwargs = case.arguments
    tensors = [value.double().requires_grad_() for value in (*args, kwargs["linear"])]

    def call(*values: Tensor) -> Tensor:
        rest = {**kwargs, "linear": values[-1]}
        if "occlusion" in rest:
            rest["occlusion"] = rest["occlusion"].double()
        return getattr(ops, op)(*values[:-1], **rest)

    assert torch.autograd.gradcheck(call, tensors)


# Every backend of this machine, against the goldens and the reference.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["near", "far"])
def test_goldens(case: str, backend: str) -> None:
    recipe, arrays = goldens.load("live_portrait.stages.npz")
    made = {name: goldens.make_input(entry) for name, entry in recipe["cases"][case]["inputs"].items()}
    keypoints = (made["kp_source"], made["kp_driving"])
    packed = ops.pack_motions(made["compressed"], *keypoints, backend=backend)
    assert goldens.difference(packed.flatten(1, 1), arrays, f"{case}.hourglass_input") < 3e-4
    flow = ops.motion_field(made["logits"], *keypoints, backend=backend)
    assert goldens.difference(flow, arrays, f"{case}.deformation") < 3e-5
    warped = ops.compose_flow(made["feature_3d"], made["logits"], *keypoints, backend=backend)
    assert goldens.difference(warped, arrays, f"{case}.warped") < 5e-4


@needs_cpu
@pytest.mark.parametrize("linear", [None, "image", "keypoint"])
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_cpu_matches_the_reference(op: str, dtype: torch.dtype, layout: str, linear: str | None) -> None:
    for align_corners, occlusion in ((False, True), (True, False)):
        case = inputs(
            op,
            "odd",
            dtype=dtype,
            layout=layout,
            linear=linear,
            align_corners=align_corners,
            occlusion=occlusion,
        )
        verdict = _verify.verify(case, "cpu")
        assert verdict.ok, str(verdict)


@needs_cpu
@pytest.mark.parametrize("op", OPS[1:])
@pytest.mark.parametrize("feature_dtype, logits_dtype", list(itertools.permutations(DTYPES, 2)), ids=str)
def test_cpu_takes_logits_of_another_dtype(op: str, feature_dtype: torch.dtype, logits_dtype: torch.dtype) -> None:
    case = inputs(op, "odd", dtype=feature_dtype, logits_dtype=logits_dtype, occlusion=True)
    verdict = _verify.verify(case, "cpu")
    assert verdict.ok, str(verdict)


@needs_cpu
@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    channels=st.integers(1, 19),
    keypoints=st.integers(1, 9),
    size=st.tuples(st.integers(1, 5), st.integers(1, 11), st.integers(1, 37)),
    linear=st.sampled_from([None, "image", "keypoint"]),
    layout=st.sampled_from(["contiguous", "sliced", "channels_last"]),
    align_corners=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_cpu_at_any_size(op, batch, channels, keypoints, size, linear, layout, align_corners, seed) -> None:
    shape = WarpShape(batch, channels, channels, keypoints, size)
    options = {"linear": linear, "layout": layout, "align_corners": align_corners, "occlusion": True}
    case, *peers = (inputs(op, shape, seed=seed + i, **options) for i in range(6))
    verdict = _verify.verify(case, "cpu", peers)
    assert verdict.ok, str(verdict)


@needs_cpu
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", ["live_portrait", "face_vid2vid"])
def test_cpu_at_published_shapes(op: str, shape: str) -> None:
    verdict = _verify.verify(inputs(op, shape), "cpu")
    assert verdict.ok, str(verdict)


@needs_cpu
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
def test_cpu_at_the_edges_of_its_sizes(op: str, shape: WarpShape) -> None:
    for linear in (None, "keypoint"):
        verdict = _verify.verify(inputs(op, shape, linear=linear), "cpu")
        assert verdict.ok, str(verdict)


@needs_cpu
@pytest.mark.parametrize("op", OPS)
def test_keypoints_far_outside(op: str) -> None:
    case = inputs(op, "odd")
    args, kwargs = case.arguments
    kp_source, kp_driving = args[-2:]
    kp_source[:, 0], kp_driving[:, 1], kp_source[:, 2] = 50.0, -3e4, 1e30
    verdict = _verify.verify(case, "cpu")
    # 1e30 leaves any volume, but a flow of 1e30 has its own scale: judge it where it is small.
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_switched_off_and_certain_motions(op: str, dtype: torch.dtype, backend: str) -> None:
    case = inputs(op, "odd", dtype=dtype)
    args, kwargs = case.arguments
    logits = args[0] if op == "motion_field" else args[1]
    logits[:, 1] = float("-inf")
    logits[:, 2, :2] = 1e4
    logits[:, 3, 2:] = -1e4
    logits[:, 0, :, :5] = float("-inf")
    result = case.run(backend)
    verdict = _verify.compare(result, case.truth(), case.reference())
    assert verdict.ok, str(verdict)
    assert not result.isnan().any()
    logits[:, :, 0, 0, 0] = float("-inf")  # nothing left to choose from
    result = case.run(backend)
    spoiled = result[:, 0, 0, 0] if op == "motion_field" else result[:, :, 0, 0, 0]
    assert spoiled.isnan().all() and int(result.isnan().sum()) == spoiled.numel()


ARGUMENTS = {
    "pack_motions": ("feature", "kp_source", "kp_driving"),
    "compose_flow": ("feature", "logits", "kp_source", "kp_driving"),
    "compose_volumes": ("feature", "logits", "kp_source", "kp_driving"),
    "motion_field": ("logits", "kp_source", "kp_driving"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op, where", [(op, name) for op, names in ARGUMENTS.items() for name in (*names, "linear")])
def test_nan_in_gives_nan_out(op: str, where: str, backend: str) -> None:
    case = inputs(op, "odd", linear="keypoint")
    args, kwargs = case.arguments
    tensor = kwargs["linear"] if where == "linear" else args[ARGUMENTS[op].index(where)]
    clean = case.run(backend)
    index = (1, 2) if where.startswith(("kp", "linear")) else (1, 2, 2, 6, 9)
    tensor[index] = float("nan")
    spoiled = case.run(backend)
    assert torch.equal(spoiled[0], clean[0]), "the other image of the batch must not change"
    assert spoiled[1].isnan().any()
    if where.startswith(("kp", "linear")):
        expected = case.reference().isnan()
        assert torch.equal(spoiled.isnan(), expected)


@needs_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_out_is_written_and_nothing_beside_it(dtype: torch.dtype, layout: str) -> None:
    case = inputs("pack_motions", "odd", dtype=dtype)
    args, kwargs = case.arguments
    expected = case.run("cpu")
    batch, channels, depth, height, width = expected.shape
    for pad in range(4):
        buffer = torch.full((batch, channels + 9, depth + 2, height + 1, width + pad), 42.0, dtype=dtype)
        if layout == "channels_last":
            buffer = buffer.contiguous(memory_format=torch.channels_last_3d)
        region = (slice(None), slice(4, 4 + channels), slice(1, 1 + depth), slice(0, height), slice(pad, None))
        returned = ops.pack_motions(*args, out=buffer[region], backend="cpu", **kwargs)
        assert returned.data_ptr() == buffer[region].data_ptr()
        assert torch.equal(buffer[region], expected)
        buffer[region] = 42.0
        assert (buffer == 42.0).all(), "written outside of out"


@needs_cpu
def test_more_than_two_gibibytes() -> None:
    """More than 2^31 elements, 4.1 GiB, in one piece; its last image is compared with the same image alone."""
    feature = torch.randn(1, 15, 16, 128, 128).half().expand(33, -1, -1, -1, -1)
    kp_source, kp_driving = 0.5 * torch.randn(2, 33, 15, 3)
    packed = ops.pack_motions(feature, kp_source, kp_driving, backend="cpu")
    assert packed.numel() > 2**31
    alone = ops.pack_motions(feature[:1], kp_source[32:], kp_driving[32:], backend="cpu")
    assert torch.equal(packed[32:], alone)


@needs_cpu
@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_the_result(op: str) -> None:
    case = inputs(op, "face_vid2vid")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(case.run("cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# The registered ops, as PyTorch sees them.


def overload_arguments(case: _verify.Inputs) -> tuple:
    args, kwargs = case.arguments
    rest = [kwargs.get("linear")]
    if case.op == "pack_motions":
        rest += [0.01, kwargs["align_corners"]]
    elif case.op in COMPOSE:
        rest += [kwargs.get("occlusion"), kwargs["align_corners"]]
    return (*args, *rest, "")


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, layout: str) -> None:
    case = inputs(op, "odd", layout=layout, linear="image", occlusion=True)
    overload = getattr(torch.ops.fastface, op).default
    torch.library.opcheck(overload, overload_arguments(case))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck_of_the_out_variant(layout: str) -> None:
    case = inputs("pack_motions", "odd", layout=layout)
    out = _verify.arrange(torch.zeros_like(case.reference()), layout)
    torch.library.opcheck(torch.ops.fastface.pack_motions_out.default, (*overload_arguments(case), out))


@pytest.mark.parametrize("op", OPS)
def test_compiles_to_one_graph_without_recompiling(op: str) -> None:
    case = inputs(op, "odd", linear="image", occlusion=True)
    args, kwargs = case.arguments
    torch.compiler.reset()
    compiled = torch.compile(getattr(ops, op), fullgraph=True)
    assert torch.equal(compiled(*args, **kwargs), case.run())
    with torch._dynamo.config.patch(error_on_recompile=True):
        other = inputs(op, "odd", linear="image", occlusion=True, seed=1)
        assert torch.equal(compiled(*other.arguments[0], **other.arguments[1]), other.run())


def test_compiles_with_out_in_a_larger_buffer() -> None:
    case = inputs("pack_motions", "odd")
    args, kwargs = case.arguments
    channels = case.reference().shape[1]

    def fill(buffer: Tensor) -> Tensor:
        ops.pack_motions(*args, out=buffer[:, 3 : 3 + channels], **kwargs)
        return buffer.sum()

    eager, compiled = (torch.zeros(2, channels + 5, *args[0].shape[2:]) for _ in range(2))
    fill(eager)
    torch.compile(fill, fullgraph=True)(compiled)
    assert torch.equal(eager, compiled)


@pytest.mark.parametrize("op", OPS)
def test_exports(op: str) -> None:
    case = inputs(op, "odd")
    args, kwargs = case.arguments

    class Module(torch.nn.Module):
        def forward(self, *values: Tensor) -> Tensor:
            return getattr(ops, op)(*values, **kwargs)

    exported = torch.export.export(Module(), args)
    assert sum(f"fastface.{op}" in str(node.target) for node in exported.graph.nodes) == 1
    assert torch.equal(exported.module()(*args), case.run())


@pytest.mark.parametrize("op", OPS)
def test_output_keeps_dtype_and_memory_format(op: str) -> None:
    for layout, dtype in itertools.product(("contiguous", "channels_last"), DTYPES):
        out = inputs(op, "odd", layout=layout, dtype=dtype).run()
        if op == "motion_field":
            assert out.dtype == torch.float32 and out.is_contiguous()
            continue
        expected = torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
        assert out.dtype == dtype and out.is_contiguous(memory_format=expected)


# The modules.


def test_modules_are_the_ops() -> None:
    case = inputs("compose_flow", "odd", linear="image", occlusion=True)
    args, kwargs = case.arguments
    kwargs.pop("align_corners")
    assert torch.equal(ComposeFlow()(*args, **kwargs), ops.compose_flow(*args, **kwargs))
    assert torch.equal(ComposeVolumes()(*args, **kwargs), ops.compose_volumes(*args, **kwargs))
    feature, _, *keypoints = args
    packed = PackMotions(sigma2=0.02, align_corners=True)(feature, *keypoints)
    assert torch.equal(packed, ops.pack_motions(feature, *keypoints, sigma2=0.02, align_corners=True))


# Bad arguments: one clear message with the value and the expectation.


def good_arguments() -> dict[str, Tensor]:
    return {
        "feature": torch.zeros(2, 3, 4, 5, 6),
        "logits": torch.zeros(2, 8, 4, 5, 6),
        "kp_source": torch.zeros(2, 7, 3),
        "kp_driving": torch.zeros(2, 7, 3),
    }


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"feature": torch.zeros(3, 4, 5, 6)}, ValueError, r"feature must be \[B, C, D, H, W\].*got \[3, 4, 5, 6\]"),
        ({"feature": torch.zeros(2, 3, 0, 5, 6)}, ValueError, r"no size 0, got \[2, 3, 0, 5, 6\]"),
        (
            {"feature": torch.zeros(2, 3, 4, 5, 6, dtype=torch.int32)},
            TypeError,
            "feature must be float32.*got torch.int32",
        ),
        ({"kp_source": torch.zeros(1, 7, 2)}, ValueError, r"kp_source must be \[B, K, 3\] with B = 2.*got \[1, 7, 2\]"),
        ({"kp_source": torch.zeros(2, 0, 3)}, ValueError, r"K >= 1, got \[2, 0, 3\]"),
        (
            {"kp_driving": torch.zeros(2, 6, 3)},
            ValueError,
            r"kp_driving must be \[2, 7, 3\] like kp_source, got \[2, 6, 3\]",
        ),
        (
            {"kp_driving": torch.zeros(2, 7, 3, dtype=torch.int64)},
            TypeError,
            "kp_driving must have a floating dtype, got torch.int64",
        ),
        (
            {"logits": torch.zeros(2, 7, 4, 5, 6)},
            ValueError,
            r"logits must be \[B, K\+1, D, H, W\] = \[2, 8, 4, 5, 6\], got \[2, 7,",
        ),
        ({"linear": torch.zeros(3, 3)}, ValueError, r"linear must be \[2, 3, 3\] or \[2, 7, 3, 3\], got \[3, 3\]"),
        (
            {"occlusion": torch.zeros(2, 1, 5, 5)},
            ValueError,
            r"occlusion must be \[B, 1, H, W\] = \[2, 1, 5, 6\], got \[2, 1, 5, 5\]",
        ),
        (
            {"occlusion": torch.zeros(2, 1, 5, 6).half()},
            TypeError,
            "occlusion must be torch.float32 like feature, got torch.float16",
        ),
        (
            {"kp_source": torch.zeros(2, 7, 3, device="meta")},
            ValueError,
            "kp_source must be on cpu like feature, got meta",
        ),
        ({"feature": [[0.0]]}, TypeError, "feature must be a tensor, got list"),
        ({"kp_source": None}, TypeError, "kp_source must be a tensor, got NoneType"),
        ({"logits": torch.zeros(2, 8, 4, 5, 6).to_sparse()}, TypeError, "logits must be a dense tensor, got layout"),
        ({"backend": "gpu"}, ValueError, "backend must be one of reference, cpu, triton, cuda, got 'gpu'"),
    ],
)
def test_bad_arguments(change: dict, error: type[Exception], message: str) -> None:
    arguments = {**good_arguments(), **change}
    with pytest.raises(error, match=message):
        ops.compose_flow(**arguments)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"sigma2": 0.0}, ValueError, "sigma2 must be positive, got 0.0"),
        ({"sigma2": float("nan")}, ValueError, "sigma2 must be finite, got nan"),
        ({"sigma2": float("inf")}, ValueError, "sigma2 must be finite, got inf"),
        ({"sigma2": "0.01"}, TypeError, "sigma2 must be a number, got str"),
        (
            {"out": torch.zeros(2, 8, 4, 5, 6)},
            ValueError,
            r"out must be .* = \[2, 32, 4, 5, 6\], got \[2, 8, 4, 5, 6\]",
        ),
        (
            {"out": torch.zeros(2, 32, 4, 5, 6).half()},
            TypeError,
            "out must be torch.float32 like feature, got torch.float16",
        ),
        ({"out": torch.zeros(1, 32, 4, 5, 6).expand(2, -1, -1, -1, -1)}, ValueError, "out must not overlap itself"),
        (
            {"out": torch.zeros(4000).as_strided((2, 32, 4, 5, 6), (1200, 36, 30, 6, 1))},
            ValueError,
            "out must not overlap itself",
        ),
    ],
)
def test_bad_arguments_of_pack_motions(change: dict, error: type[Exception], message: str) -> None:
    arguments = {name: value for name, value in good_arguments().items() if name != "logits"}
    with pytest.raises(error, match=message):
        ops.pack_motions(**arguments, **change)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_out_beside_the_feature_in_one_buffer(memory_format: torch.memory_format) -> None:
    """Slices of channels of one buffer interleave without sharing an element; views that share one are refused."""
    arguments = {name: value for name, value in good_arguments().items() if name != "logits"}
    buffer = torch.randn(2, 40, 4, 5, 6).to(memory_format=memory_format)
    kept = buffer.clone()
    arguments["feature"] = buffer[:, 2:5]
    ops.pack_motions(**arguments, out=buffer[:, 6:38])
    assert torch.equal(buffer[:, 6:38], ops.pack_motions(**arguments))
    assert torch.equal(buffer[:, :6], kept[:, :6]) and torch.equal(buffer[:, 38:], kept[:, 38:])
    with pytest.raises(ValueError, match="out must not overlap feature, but both are views of the same memory"):
        ops.pack_motions(**arguments, out=buffer[:, 4:36])
