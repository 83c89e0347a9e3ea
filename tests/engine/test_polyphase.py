"""Convolutions over upsampled maps, computed before the upsampling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastface import ops
from fastface.engine import PolyphaseConv
from fastface.engine.polyphase import merged_rows
from fastface.nn import UpsampledConv
from tests.engine.helpers import relative, seeded


def conv(axes: int, kernel, inputs: int = 3, outputs: int = 4, *, bias: bool = True) -> nn.Module:
    kind = nn.Conv2d if axes == 2 else nn.Conv3d
    return kind(inputs, outputs, kernel, padding="same", bias=bias).double().requires_grad_(False)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), st.just(3), st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5])),
    scale=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    bias=st.booleans(),
    channels_last=st.booleans(),
    activation=st.sampled_from([None, "relu", "leaky_relu"]),
)
def test_images(size, kernel, scale, bias, channels_last, activation) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = seeded(0, *size).contiguous(memory_format=memory_format)
    upsampled = UpsampledConv(conv(2, kernel, bias=bias).to(memory_format=memory_format), scale)
    expected = upsampled(x)
    if activation is not None:
        expected = F.leaky_relu(expected, 0.3 if activation == "leaky_relu" else 0.0)
    assert relative(expected, PolyphaseConv(upsampled, activation=activation, slope=0.3)(x)) < 1e-12


@pytest.mark.parametrize("scale", [(1, 2, 2), (2, 1, 3), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("size", [(2, 3, 5, 4, 7), (1, 3, 1, 1, 1)], ids=str)
def test_volumes(size: tuple[int, ...], scale: tuple[int, ...]) -> None:
    upsampled = UpsampledConv(conv(3, 3), scale)
    assert relative(upsampled(seeded(1, *size)), PolyphaseConv(upsampled)(seeded(1, *size))) < 1e-12


@settings(max_examples=30, deadline=None)
@given(
    kernels=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    scale=st.integers(2, 6),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
)
def test_distinct_phases_go_through_an_activation(kernels, scale, height, width) -> None:
    """Two convolutions behind an upsampling, the second from one row for each distinct phase of the first."""
    first, second = UpsampledConv(conv(2, kernels[0]), (scale, scale)), conv(2, kernels[1], 4, 5)
    x = seeded(2, 2, 3, height, width)
    expected = second(F.relu(first(x)))
    merged = PolyphaseConv(first, merge=True, activation="relu")(x)
    rows = [merged_rows(kernels[0], scale)] * 2
    assert merged.shape[2:] == (height * (max(rows[0]) + 1), width * (max(rows[1]) + 1))
    assert relative(expected, PolyphaseConv(UpsampledConv(second, (scale, scale)), rows=rows)(merged)) < 1e-12


def products(module: PolyphaseConv) -> int:
    """Taps per cell, for one input and one output channel."""
    return sum(p.numel() for name, p in module.named_parameters() if name.startswith("weight")) // 12


def test_the_products_are_those_of_the_algebra() -> None:
    """Against 36, 144, 108 and 144 of the definition."""
    assert products(PolyphaseConv(UpsampledConv(conv(2, 3), (2, 2)))) == 16
    assert products(PolyphaseConv(UpsampledConv(conv(2, 3), (4, 4)))) == 25
    assert products(PolyphaseConv(UpsampledConv(conv(3, 3), (1, 2, 2)))) == 48
    rows = [merged_rows(3, 4)] * 2
    assert rows == [(0, 1, 1, 2)] * 2
    assert products(PolyphaseConv(UpsampledConv(conv(2, 3), (4, 4)), rows=rows)) == 100


def test_float32_and_half_sums_of_weights() -> None:
    upsampled = UpsampledConv(conv(2, 3, 16, 16), (4, 4))
    x = seeded(3, 1, 16, 7, 9)
    assert relative(upsampled(x), PolyphaseConv(upsampled.float())(x.float()).double()) < 1e-5
    assert PolyphaseConv(upsampled.bfloat16())(x.bfloat16()).dtype == torch.bfloat16


def test_nan_stays_where_it_is_seen() -> None:
    x = torch.zeros(1, 3, 5, 5)
    x[0, 1, 2, 3] = float("nan")
    upsampled = UpsampledConv(conv(2, 3).float(), (4, 4))
    assert torch.equal(PolyphaseConv(upsampled)(x).isnan(), upsampled(x).isnan())


def test_statistics_of_an_upsampled_image_are_those_of_the_image() -> None:
    x = seeded(4, 2, 3, 5, 7) * 3 + 100
    small, large = ops.instance_stats(x), ops.instance_stats(F.interpolate(x, scale_factor=4.0))
    assert all(relative(a, b) < 1e-12 for a, b in zip(small, large, strict=True))


def test_it_compiles_into_one_graph() -> None:
    upsampled = UpsampledConv(conv(2, 3).float(), (4, 4))
    module, x = PolyphaseConv(upsampled), torch.randn(1, 3, 5, 7)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), module(x), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "scale", "told"),
    [
        ({"stride": 2, "padding": 1}, (2, 2), "conv must have stride 1, an odd kernel"),
        ({"padding": 0}, (2, 2), "conv must have stride 1, an odd kernel"),
        ({"padding": 1, "padding_mode": "reflect"}, (2, 2), "conv must have stride 1, an odd kernel"),
        ({"padding": 1, "groups": 3}, (2, 2), "conv must have stride 1, an odd kernel"),
        ({"padding": 1}, (2,), r"scale must be 2 whole numbers of at least 1, got \(2,\)"),
        ({"padding": 1}, (2, 0), r"scale must be 2 whole numbers of at least 1, got \(2, 0\)"),
    ],
)
def test_what_does_not_fit_is_told(change: dict, scale: tuple[int, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        UpsampledConv(nn.Conv2d(3, 3, 3, **change), scale)
    with pytest.raises(TypeError, match="conv must be a Conv2d or Conv3d, got Conv1d"):
        UpsampledConv(nn.Conv1d(3, 3, 3), (2,))  # type: ignore[arg-type]


def test_other_inputs_are_told() -> None:
    first = UpsampledConv(conv(2, 3), (4, 4))
    module = PolyphaseConv(first, rows=[merged_rows(3, 4)] * 2)
    for size in ((1, 3, 6, 7), (3, 6, 6)):
        with pytest.raises(ValueError, match=r"x must be \[B, C, \*sizes\] with sizes multiples of \(3, 3\), got "):
            module(torch.zeros(size).double())
    first.conv = nn.Identity()
    with pytest.raises(TypeError, match="upsampled must hold a Conv2d or Conv3d, got Identity"):
        PolyphaseConv(first)
