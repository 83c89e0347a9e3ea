"""The Triton kernels of `spade` under Triton's interpreter, which has to be chosen before Triton is imported: run by
test_spade_triton.py in a process of its own, or by hand with ``TRITON_INTERPRET=1 pytest <this file>``.

The interpreter takes tens of milliseconds per program, so shapes and tiles are small: just past one tile of pixels, one
tile of channels, one part. It rounds to bfloat16 by cutting off, a loss of one rounding that the rule allows for.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fastface.kernels.spade import spade_triton
from fastface.kernels.spade.spade_triton import Config
from fastface.ops import _verify, spade
from fastface.ops._verify import inputs
from fastface.ops._verify.spade import SpadeShape

assert spade_triton.INTERPRETED, "set TRITON_INTERPRET=1 before Triton is imported"
OPS = ("modulated_norm", "instance_stats")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "sliced", "channels_last")
SMALL = SpadeShape(2, 3, 5, 9)
LOW = SpadeShape(1, 5, 6, 9, 3)
KEPT, PARTS = Config(tile=16, channels=2), Config(tile=16, channels=2, kept=0)
# Infinities and lanes past the end of a tile give NaN by design.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=[KEPT, PARTS], ids=["kept", "parts"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A channel at once, or in parts of a tile or two."""
    monkeypatch.setattr(spade_triton, "_CONFIG", request.param)
    return request.param


def check(case: _verify.Inputs) -> Any:
    result = case.run("triton")
    verdict = _verify.compare(result, case.truth(), case.reference())
    assert verdict.ok, str(verdict)
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_layouts(dtype: torch.dtype, layout: str, cut: Config) -> None:
    modulation = ("maps", "halves", "channels")[(DTYPES.index(dtype) + LAYOUTS.index(layout)) % 3]
    check(inputs("modulated_norm", SMALL, dtype=dtype, layout=layout, modulation=modulation, residual=True))
    if cut is KEPT:
        check(inputs("modulated_norm", LOW, dtype=dtype, layout=layout, activation="relu"))
        check(inputs("instance_stats", SMALL, dtype=dtype, layout=layout))


@pytest.mark.parametrize("activation", spade.ACTIVATIONS)
@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("modulation", [None, "channels", "maps"])
def test_arguments(modulation: str | None, stats: bool, activation: str | None) -> None:
    check(inputs("modulated_norm", SMALL, modulation=modulation, stats=stats, activation=activation, residual=stats))


def test_one_of_gamma_and_beta() -> None:
    for modulation, missing in itertools.product(("channels", "maps"), ("gamma", "beta")):
        case = inputs("modulated_norm", SMALL, modulation=modulation)
        case.arguments[1][missing] = None
        check(case)


@pytest.mark.parametrize(
    "shape",
    [SpadeShape(1, 1, 1, 1), SpadeShape(1, 20, 1, 2), SpadeShape(3, 1, 1, 70), SpadeShape(1, 2, 8, 8, 8)],
    ids=["one value", "C=20", "one row", "one map entry"],
)
def test_edges_of_the_sizes(shape: SpadeShape, cut: Config) -> None:
    for layout in ("contiguous", "channels_last"):
        check(inputs("modulated_norm", shape, layout=layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", OPS)
def test_channels_far_from_zero(op: str, layout: str, cut: Config) -> None:
    check(inputs(op, SMALL, layout=layout, mean=1e4))


def test_a_constant_channel_is_zero(cut: Config) -> None:
    assert (_verify.Inputs("modulated_norm", ((torch.full((1, 2, 7, 11), 0.1),), {})).run("triton") == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(value: float, cut: Config) -> None:
    for op, places in itertools.product(OPS, ([(0, 0)], [(0, 0), (0, 1), (4, 3)])):
        case = inputs(op, SMALL)
        for y, x in places:
            case.arguments[0][0][1, 2, y, x] = value
        check(case)
    for name in ("gamma", "residual"):
        case = inputs("modulated_norm", SMALL, residual=True)
        case.arguments[1][name][1, 2, 3, 4] = value
        check(case)


def test_offsets_of_64_bits(cut: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variant for channels that span 2^31 elements, forced on small ones."""
    monkeypatch.setattr(spade_triton, "_wide", lambda *_: True)
    for layout in LAYOUTS:
        check(inputs("modulated_norm", LOW, layout=layout, residual=True))


def test_more_processors_mean_more_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spade_triton, "_launch", lambda call, _: run_on(call, 100))
    parts = []

    def run_on(call: spade.SpadeCall, processors: int) -> None:
        for kernel, grid, arguments, constants, options in spade_triton.launches(call, processors, PARTS):
            parts.append(grid[0])
            kernel[grid](*arguments, **constants, **options)

    check(inputs("instance_stats", SpadeShape(1, 3, 9, 11)))
    assert parts[0] == 7  # tiles of 16 pixels
