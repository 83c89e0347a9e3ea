"""Convolutions by the Fourier transform against the definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastface.engine.fft_conv import FFTConv3d, suits_fft
from fastface.ops import _memory, _native

pytestmark = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)


def make_conv(inputs: int, outputs: int, **options) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 7, **{"padding": 3} | options).requires_grad_(False)


def truth(x: Tensor, conv: nn.Conv3d) -> Tensor:
    return F.conv3d(x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=3)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _memory.empty
    monkeypatch.setattr(_memory, "empty", lambda *args, **kwargs: plain(*args, **kwargs).fill_(math.nan))


@settings(max_examples=15, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 35), st.integers(1, 40)),
    batch=st.integers(1, 2),
    size=st.tuples(st.integers(1, 18), st.integers(1, 35), st.integers(1, 20)),
    bias=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels_last", "slice"]),
    seed=st.integers(0, 1000),
)
def test_any_size(channels, batch, size, bias, layout, seed) -> None:
    torch.manual_seed(seed)
    conv, x = make_conv(*channels, bias=bias), torch.randn(batch, channels[0], *size)
    given_x = x
    if layout == "channels_last":
        given_x = x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "slice":
        given_x = torch.full((batch, channels[0] + 4, *size), math.nan)[:, 1:-3].copy_(x)
    found, expected = FFTConv3d(conv)(given_x), truth(x, conv)
    # What a transform rounds spreads over its tile, so the measure is the largest output, not each one's own sum.
    scale = float(F.conv3d(x.double().square(), conv.weight.double().square(), padding=3).sqrt().max())
    assert float((found - expected).abs().max()) <= 1e-5 * scale


def test_the_format_is_that_of_the_input() -> None:
    module, x = FFTConv3d(make_conv(4, 3)), torch.randn(2, 4, 2, 5, 6)
    assert module(x).is_contiguous() and module(x[:, :, :, 1:]).is_contiguous()
    last = torch.channels_last_3d
    assert module(x.contiguous(memory_format=last)).is_contiguous(memory_format=last)


def test_white_noise_of_many_channels() -> None:
    torch.manual_seed(0)
    conv, x = make_conv(142, 22), torch.randn(1, 142, 16, 20, 24)
    expected = truth(x, conv)
    assert float((FFTConv3d(conv)(x) - expected).abs().max()) < 2e-6 * float(expected.abs().max())


def test_activation_and_gradient() -> None:
    torch.manual_seed(0)
    conv, x = make_conv(5, 6), torch.randn(1, 5, 3, 9, 10, requires_grad=True)
    module = FFTConv3d(conv, activation="leaky_relu", slope=0.2)
    expected = F.leaky_relu(conv(x), 0.2)
    assert torch.allclose(module(x.detach()), expected, atol=1e-5)
    (found,) = torch.autograd.grad(module(x).sum(), x)
    assert torch.allclose(found, torch.autograd.grad(expected.sum(), x)[0], atol=1e-5)


def test_nan_stays_in_the_tiles_that_see_it() -> None:
    x = torch.zeros(1, 4, 16, 8, 70)
    x[0, 1, 9, 4, 40] = math.nan
    found = FFTConv3d(make_conv(4, 4))(x).isnan().any(1)[0]
    assert found[6:13, :, 37:44].all() and not found[:6].any() and not found[13:].any()
    assert not found[..., :32].any() and not found[..., 48:].any()


def test_the_op_is_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the poison would be a node of its own
    module, x = FFTConv3d(make_conv(4, 4)), torch.randn(1, 4, 2, 6, 6)
    arguments = (x, module.weight, module.filters, module.bias, module.padding, module.slope)
    torch.library.opcheck(torch.ops.fastface.fft_conv.default, arguments)
    assert torch.equal(torch.compile(module, fullgraph=True)(x), module(x))


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = FFTConv3d(make_conv(4, 6)), torch.randn(2, 4, 2, 7, 6)
    expected = module(x)
    monkeypatch.setattr(_native, "_try_load", lambda name: "not built, says a test")
    assert torch.allclose(module(x), expected, atol=1e-5)


def test_what_suits_and_what_is_told() -> None:
    assert suits_fft(make_conv(32, 16)) and suits_fft(make_conv(32, 16, padding="same"))
    assert not suits_fft(make_conv(4, 16)) and not suits_fft(nn.Conv3d(32, 16, 3, padding=1))
    with pytest.raises(ValueError, match="kernel_size must be 7, got"):
        FFTConv3d(nn.Conv3d(4, 4, 3, padding=1))
    with pytest.raises(ValueError, match="padding must be 3, got"):
        FFTConv3d(make_conv(4, 4, padding=0))
    with pytest.raises(ValueError) as caught:
        FFTConv3d(make_conv(4, 4))(torch.zeros(1, 5, 2, 7, 6))
    assert str(caught.value) == "x must be [B, 4, D, H, W] or [4, D, H, W], got [1, 5, 2, 7, 6]"
