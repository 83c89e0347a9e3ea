"""Winograd's convolutions against the definition."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastface.engine.winograd import WinogradConv2d, WinogradConv3d, suits_winograd
from fastface.ops import _memory, _native

pytestmark = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)
EPS = torch.finfo(torch.float32).eps


def make_conv(inputs: int, outputs: int, *, deep: bool = False, **options) -> nn.Conv2d | nn.Conv3d:
    return (nn.Conv3d if deep else nn.Conv2d)(inputs, outputs, 3, **{"padding": 1} | options).requires_grad_(False)


def make_fast(conv: nn.Module, **options) -> WinogradConv2d | WinogradConv3d:
    return (WinogradConv3d if isinstance(conv, nn.Conv3d) else WinogradConv2d)(conv, **options)


def truth(x: Tensor, conv: nn.Module) -> Tensor:
    bias = None if conv.bias is None else conv.bias.double()
    function = F.conv3d if isinstance(conv, nn.Conv3d) else F.conv2d
    return function(x.double(), conv.weight.double(), bias, padding=conv.padding)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """`x` in the memory format, or as the channels, pixels or columns of something larger, which are NaN elsewhere."""
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    if layout == "contiguous":
        return x
    if layout == "channels_last":
        return x.contiguous(memory_format=last)
    larger = [x.shape[0], x.shape[1] + 5, *x.shape[2:-1], 2 * x.shape[-1]]
    buffer = torch.full(larger, math.nan)
    if layout == "slice of channels_last":
        buffer = buffer.contiguous(memory_format=last)
    part = buffer[:, 3 : 3 + x.shape[1]]
    part = part[..., ::2] if layout == "every other column" else part[..., : x.shape[-1]]
    return part.copy_(x)


LAYOUTS = ["contiguous", "channels_last", "slice", "slice of channels_last", "every other column"]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _memory.empty
    monkeypatch.setattr(_memory, "empty", lambda *args, **kwargs: plain(*args, **kwargs).fill_(math.nan))


@settings(max_examples=80, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    batch=st.integers(1, 3),
    depth=st.none() | st.integers(1, 20),
    size=st.tuples(st.integers(3, 23), st.integers(3, 75)),
    options=st.fixed_dictionaries({"bias": st.booleans(), "padding": st.integers(0, 1)}),
    layout=st.sampled_from(LAYOUTS),
    tile=st.sampled_from([2, 4]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_any_size(channels, batch, depth, size, options, layout, tile, threads, seed) -> None:
    torch.manual_seed(seed)
    deep = depth is not None
    conv = make_conv(*channels, deep=deep, **options | ({"padding": 1} if deep else {}))
    x = torch.randn(batch, channels[0], *([depth] if deep else []), *size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = make_fast(conv, tile=tile)(laid_out(x, layout))
    finally:
        torch.set_num_threads(before)
    # The filters and the sums of products are rounded: a few units of what is summed, more where tiles are larger.
    scale = float(truth(x.abs(), _magnitudes(conv)).max())
    assert float((found - truth(x, conv)).abs().max()) <= (8 if tile == 2 else 32) * EPS * scale


def _magnitudes(conv: nn.Module) -> nn.Module:
    result = make_conv(conv.in_channels, conv.out_channels, deep=isinstance(conv, nn.Conv3d), padding=conv.padding)
    result.weight.copy_(conv.weight.abs())
    result.bias.zero_()
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_formats(layout: str) -> None:
    x = laid_out(torch.randn(2, 20, 6, 9), layout)
    assert make_fast(make_conv(20, 17))(x).is_contiguous(memory_format=torch.channels_last)
    found = make_fast(make_conv(20, 17, deep=True))(laid_out(torch.randn(2, 20, 3, 6, 9), layout))
    expected = torch.channels_last_3d if "channels_last" in layout else torch.contiguous_format
    assert found.is_contiguous(memory_format=expected)


@pytest.mark.parametrize(("tile", "tolerance"), [(2, 2e-6), (4, 6e-6)])
def test_white_noise_of_many_channels(tile: int, tolerance: float) -> None:
    torch.manual_seed(0)
    conv, x = make_conv(512, 64, bias=False), torch.randn(1, 512, 32, 32)
    expected = truth(x, conv)
    assert float((make_fast(conv, tile=tile)(x) - expected).abs().max()) < tolerance * float(expected.abs().max())


def test_deep_maps_of_one_pixel_to_many_tiles() -> None:
    torch.manual_seed(0)
    for size in ((40, 2, 3), (33, 1, 9), (2, 40, 70)):
        conv, x = make_conv(18, 35, deep=True), torch.randn(1, 18, *size)
        assert torch.allclose(make_fast(conv)(x).double(), truth(x, conv), atol=1e-5)


@pytest.mark.parametrize("tier", ["baseline", "avx2"])
def test_the_tiers_agree(tier: str) -> None:
    if tier not in _native.load("cpu").tiers():
        pytest.skip(f"the processor has no {tier}")
    code = """if True:
        import torch
        from torch import nn
        from fastface.engine.winograd import WinogradConv2d
        torch.manual_seed(0)
        conv, x = nn.Conv2d(37, 45, 3, padding=1).requires_grad_(False), torch.randn(2, 37, 19, 23)
        assert torch.allclose(WinogradConv2d(conv)(x), conv(x), atol=1e-5)
    """
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"FASTFACE_CPU_TIER": tier})


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.01), ("leaky_relu", 0.2), ("leaky_relu", 0.0)])
def test_activations(deep: bool, activation: str, slope: float) -> None:
    torch.manual_seed(0)
    conv, x = make_conv(19, 21, deep=deep), torch.randn(1, 19, *[3] * deep, 9, 10)
    x[..., 0, 0] = -math.inf
    expected = F.relu(truth(x, conv)) if activation == "relu" else F.leaky_relu(truth(x, conv), slope)
    finite = torch.zeros(expected.shape, dtype=torch.bool)
    finite[..., 4:, 4:] = True
    fast = make_fast(conv, activation=activation, slope=slope)
    assert torch.allclose(fast(x).double()[finite], expected[finite], atol=1e-5)
    definition = fast.double()(x.double())
    assert torch.allclose(definition[finite], expected[finite], atol=1e-6)


@pytest.mark.parametrize("tile", [2, 4])
def test_nan_stays_in_the_tiles_that_see_it(tile: int) -> None:
    conv, x = make_conv(4, 4), torch.zeros(1, 4, 24, 24)
    x[0, 1, 9, 14] = math.nan
    found = make_fast(conv, tile=tile, activation="relu")(x).isnan().any(1)[0]
    assert found[8:11, 13:16].all()
    rows, columns = (slice(first // tile * tile, -(-last // tile) * tile) for first, last in ((8, 11), (13, 16)))
    found[rows, columns] = False
    assert not found.any()


def test_other_types_take_the_definition() -> None:
    torch.manual_seed(0)
    conv, x = make_conv(5, 6), torch.randn(1, 5, 8, 9)
    module = make_fast(conv)
    assert torch.allclose(module.double()(x.double()), conv.double()(x.double()), atol=1e-12)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_reach_the_input(bias: bool, deep: bool) -> None:
    torch.manual_seed(0)
    conv = make_conv(5, 6, deep=deep, bias=bias)
    module, x = make_fast(conv), torch.randn(2, 5, *[4] * deep, 7, 9, requires_grad=True)
    weights = torch.randn(2, 6, *[4] * deep, 7, 9)
    (found,) = torch.autograd.grad((module(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((conv(x) * weights).sum(), x)
    assert torch.allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(module(x), module(x.detach())) and not module(x).requires_grad


@pytest.mark.parametrize("size", [(0, 5, 7, 9), (5, 7, 9), (2, 5, 0, 7, 9), (5, 3, 7, 9)], ids=str)
def test_without_a_batch_or_pixels(size: tuple[int, ...]) -> None:
    conv, x = make_conv(5, 6, deep=size[-4:-2] == (5, 3) or len(size) == 5), torch.randn(size)
    found = make_fast(conv)(x)
    assert found.shape == (*size[: size.index(5)], 6, *size[size.index(5) + 1 :])
    if x.numel():
        assert torch.allclose(found, conv(x), atol=1e-5)


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("size", [(1, 4, 7, 9), (0, 6, 7, 9), (5, 9), (4, 7, 9), (1, 5, 1, 7, 9)], ids=str)
def test_other_shapes_are_told(size: tuple[int, ...], requires_grad: bool) -> None:
    module = make_fast(make_conv(5, 6))
    with pytest.raises(ValueError) as caught:
        module(torch.zeros(size, requires_grad=requires_grad))
    assert str(caught.value) == f"x must be [B, 5, H, W] or [5, H, W], got {list(size)}"


def test_small_maps_without_padding_are_told() -> None:
    with pytest.raises(ValueError) as caught:
        make_fast(make_conv(5, 6, padding=0))(torch.zeros(1, 5, 2, 9))
    assert str(caught.value) == "x must be as large as the filters, [3, 3], got [1, 5, 2, 9]"


def test_other_convolutions_are_told() -> None:
    for change, told in (
        ({"kernel_size": 5}, "kernel_size must be 3, got (5, 5)"),
        ({"stride": 2}, "stride and dilation must be 1, got (2, 2) and (1, 1)"),
        ({"padding": 2}, "padding must be 1 or 0, got (2, 2)"),
        ({"groups": 2}, "padding_mode must be 'zeros' and groups 1, got 'zeros' and 2"),
    ):
        with pytest.raises(ValueError) as caught:
            WinogradConv2d(nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1} | change))
        assert str(caught.value) == told
    with pytest.raises(ValueError, match="padding must be 1, got"):
        WinogradConv3d(nn.Conv3d(4, 4, 3))
    with pytest.raises(ValueError, match="tile must be 2 or 4, got 3"):
        WinogradConv2d(make_conv(4, 4), tile=3)
    with pytest.raises(ValueError, match="activation must be None, 'relu' or 'leaky_relu', got 'gelu'"):
        WinogradConv2d(make_conv(4, 4), activation="gelu")


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = make_fast(make_conv(4, 6), activation="relu"), torch.randn(2, 4, 7, 6)
    expected = module(x)
    monkeypatch.setattr(_native, "_try_load", lambda name: "not built, says a test")
    assert torch.allclose(module(x), expected, atol=1e-6)


@pytest.mark.parametrize("deep", [False, True])
def test_the_op_is_one_node(deep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the poison would be a node of its own
    module, x = make_fast(make_conv(4, 4, deep=deep), activation="relu"), torch.randn(1, 4, *[2] * deep, 6, 6)
    arguments = (x, module.weight, module.filters, module.bias, module.padding, module.slope)
    torch.library.opcheck(torch.ops.fastface.winograd.default, arguments)
    compiled = torch.compile(module, fullgraph=True)
    assert torch.equal(compiled(x), module(x))


def test_what_suits() -> None:
    def conv(**change) -> nn.Conv2d:
        return nn.Conv2d(**{"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1} | change)

    assert suits_winograd(conv()) and suits_winograd(conv(padding="same")) and suits_winograd(conv(padding=0))
    assert suits_winograd(nn.Conv3d(64, 64, 3, padding=1)) and not suits_winograd(nn.Conv3d(64, 64, 3))
    for change in (
        {"in_channels": 16},
        {"kernel_size": 1, "padding": 0},
        {"stride": 2},
        {"padding": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"dtype": torch.float64},
    ):
        assert not suits_winograd(conv(**change)), change
    assert not suits_winograd(nn.Linear(64, 64))
