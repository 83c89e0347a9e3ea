"""The Triton kernels of `warp` under Triton's interpreter, which has to be chosen before Triton is imported: run by
test_warp_triton.py in a process of its own, or by hand with ``TRITON_INTERPRET=1 pytest <this file>``.

The interpreter takes tens of milliseconds per program, so the shapes are small: just past one tile of voxels, one chunk
of logits, one tile of channels. It rounds to bfloat16 by cutting off, a loss of one rounding that the rule allows for.
"""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from fastface import ops
from fastface.kernels.warp import warp_triton
from fastface.ops import _verify
from fastface.ops._verify import inputs
from fastface.ops._verify.warp import WarpShape
from tests.kernels.test_warp_cuda import ARGUMENTS, DTYPES, LAYOUTS, LINEARS, OPS, SPOILED

assert warp_triton.INTERPRETED, "set TRITON_INTERPRET=1 before Triton is imported"
SMALL = WarpShape(2, 3, 5, 3, (3, 5, 9))  # 135 voxels: two tiles where a tile is 128
# Lanes past the end of a tile divide 0 by 0 and are never stored.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def check(case: _verify.Inputs) -> torch.Tensor:
    result = case.run("triton")
    verdict = _verify.compare(result, case.truth(), case.reference())
    assert verdict.ok, str(verdict)
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_dtypes_and_layouts(op: str, dtype: torch.dtype, layout: str) -> None:
    linear = LINEARS[(DTYPES.index(dtype) + LAYOUTS.index(layout)) % 3]
    check(inputs(op, SMALL, dtype=dtype, layout=layout, linear=linear, occlusion=True))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("op", OPS)
def test_motions(op: str, linear: str | None, align_corners: bool) -> None:
    check(inputs(op, SMALL, linear=linear, align_corners=align_corners))


@pytest.mark.parametrize("op", OPS[1:])
def test_logits_of_another_dtype(op: str) -> None:
    for feature_dtype, logits_dtype in itertools.permutations(DTYPES, 2):
        check(inputs(op, SMALL, dtype=feature_dtype, logits_dtype=logits_dtype))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "shape",
    [
        WarpShape(1, 40, 40, 1, (1, 2, 3)),
        WarpShape(1, 1, 1, 40, (1, 2, 3)),
        WarpShape(1, 2, 4, 8, (1, 3, 7)),
        WarpShape(5, 1, 2, 2, (2, 1, 2)),
        WarpShape(1, 1, 33, 21, (1, 1, 1)),
    ],
    ids=["C=40", "K=40", "D=1", "batch 5", "one voxel"],
)
def test_edges_of_the_sizes(op: str, shape: WarpShape) -> None:
    for linear, layout in ((None, "contiguous"), ("keypoint", "channels_last")):
        check(inputs(op, shape, linear=linear, layout=layout, align_corners=layout == "channels_last"))


@pytest.mark.parametrize("op", OPS)
def test_keypoints_far_outside(op: str) -> None:
    case = inputs(op, SMALL)
    kp_source, kp_driving = case.arguments[0][-2:]
    kp_source[:, 0], kp_driving[:, 1], kp_source[:, 2] = 50.0, -3e4, 1e30
    check(case)


@pytest.mark.parametrize("op", OPS[1:])
@pytest.mark.parametrize("keypoints", [3, 12])
def test_switched_off_and_certain_motions(op: str, keypoints: int) -> None:
    case = inputs(op, WarpShape(2, 3, 2, keypoints, (3, 5, 9)))
    logits = case.arguments[0][0 if op == "motion_field" else 1]
    logits[:, 1] = float("-inf")
    logits[:, 2, :2] = 1e4
    logits[:, 3, 2:] = -1e4
    logits[:, 0, :, :3] = float("-inf")
    logits[:, :9, 0, 1, 1] = float("-inf")  # a whole first chunk
    if keypoints == 3:
        logits[:, 3, 0, 1, 1] = 0.0
    assert not check(case).isnan().any()
    logits[:, :, 0, 0, 0] = float("-inf")
    result = case.run("triton")
    spoiled = result[:, 0, 0, 0] if op == "motion_field" else result[:, :, 0, 0, 0]
    assert spoiled.isnan().all() and int(result.isnan().sum()) == spoiled.numel()


@pytest.mark.parametrize("op, where, linear", SPOILED)
def test_nan_in_gives_nan_out(op: str, where: str, linear: str | None) -> None:
    case = inputs(op, SMALL, linear=linear)
    args, kwargs = case.arguments
    tensor = kwargs["linear"] if where == "linear" else args[ARGUMENTS[op].index(where)]
    tensor[(1, 2) if where.startswith(("kp", "linear")) else (1, 1, 2, 4, 6)] = float("nan")
    spoiled = case.run("triton")
    assert not spoiled[0].isnan().any(), "the other image of the batch must not change"
    assert spoiled[1].isnan().any()
    assert torch.equal(spoiled.isnan(), case.reference().isnan())


@pytest.mark.parametrize("op", OPS)
def test_offsets_of_64_bits(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variant for channels that span 2^31 elements, forced on a small one."""
    monkeypatch.setattr(warp_triton, "_reach", lambda *_: 2**31)
    check(inputs(op, SMALL, occlusion=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_out_is_written_and_nothing_beside_it(layout: str) -> None:
    case = inputs("pack_motions", SMALL)
    args, kwargs = case.arguments
    batch, channels, depth, height, width = case.reference().shape
    buffer = torch.full((batch, channels + 9, depth + 2, height + 1, width + 1), 42.0)
    if layout == "channels_last":
        buffer = buffer.contiguous(memory_format=torch.channels_last_3d)
    region = (slice(None), slice(4, 4 + channels), slice(1, 1 + depth), slice(0, height), slice(1, None))
    buffer[region] = float("nan")
    ops.pack_motions(*args, out=buffer[region], backend="triton", **kwargs)
    verdict = _verify.compare(buffer[region], case.truth(), case.reference())
    assert verdict.ok, str(verdict)
    buffer[region] = 42.0
    assert (buffer == 42.0).all(), "written outside of out"


def test_compositions_split_their_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many processors make a program take one pass, few make it loop."""
    plan = warp_triton.plan
    for processors in (1, 1000):
        monkeypatch.setattr(warp_triton, "plan", lambda call, cut, layout, _, p=processors: plan(call, cut, layout, p))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(inputs("compose_flow", WarpShape(1, 1, 7, 2, (2, 3, 4)), occlusion=True))
