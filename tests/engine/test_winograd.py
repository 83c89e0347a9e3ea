"""Winograd's convolution against the definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastface.engine.winograd import WinogradConv2d, _spatial, suits_winograd
from fastface.ops import _native

pytestmark = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)


def errors(x: Tensor, conv: nn.Conv2d) -> tuple[float, float]:
    """The largest error of Winograd's form and of PyTorch's, against float64."""
    truth = F.conv2d(x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1)
    return float((WinogradConv2d(conv)(x) - truth).abs().max()), float((conv(x) - truth).abs().max())


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 19), st.integers(1, 19)),
    outputs=st.integers(1, 40),
    bias=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_size(size, outputs, bias, channels_last, seed) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(size[1], outputs, 3, padding=1, bias=bias).requires_grad_(False)
    x = torch.randn(size)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    ours, _ = errors(x, conv)
    # The filters and the sums of up to 16 C products are rounded: a few units of what is summed.
    scale = float(F.conv2d(x.abs(), conv.weight.abs(), padding=1).max())
    assert ours <= 8 * torch.finfo(torch.float32).eps * scale


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_blocks_of_any_size_give_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastface.engine import winograd

    torch.manual_seed(0)
    conv, x = nn.Conv2d(65, 66, 3, padding=1).requires_grad_(False), torch.randn(2, 65, 13, 11)
    whole = WinogradConv2d(conv)(x)
    monkeypatch.setattr(winograd, "_ROWS", rows)
    monkeypatch.setattr(winograd, "_BLOCK", 1)
    assert torch.allclose(WinogradConv2d(conv)(x), whole, atol=1e-5)


def test_it_is_about_as_exact_as_the_definition() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 128, 3, padding=1).requires_grad_(False)
    ours, pytorchs = errors(torch.randn(1, 256, 32, 32), conv)
    # The transforms add up to four numbers twice over on either side of the products: two more roundings each.
    assert ours < 4 * pytorchs


def test_nan_stays_where_it_is_seen() -> None:
    conv, x = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False), torch.zeros(1, 4, 12, 12)
    x[0, 1, 5, 6] = float("nan")
    found = WinogradConv2d(conv)(x).isnan().any(1)[0]
    assert found[4:7, 5:8].all() and not found[:2].any() and not found[:, :3].any() and not found[9:].any()


def test_other_types_take_the_definition() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, 3, padding=1).requires_grad_(False)
    module, x = WinogradConv2d(conv), torch.randn(1, 5, 8, 9)
    assert torch.allclose(_spatial(module.filters), conv.weight, atol=1e-6)
    assert torch.allclose(module.double()(x.double()), conv.double()(x.double()), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_reach_the_input(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, 3, padding=1, bias=bias).requires_grad_(False)
    module, x = WinogradConv2d(conv), torch.randn(2, 5, 7, 9, requires_grad=True)
    weights = torch.randn(2, 6, 7, 9)
    (found,) = torch.autograd.grad((module(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((conv(x) * weights).sum(), x)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(module(x), conv(x), atol=1e-5)
    with torch.no_grad():
        assert torch.equal(module(x), module(x.detach())) and not module(x).requires_grad


@pytest.mark.parametrize("size", [(0, 5, 7, 9), (5, 7, 9)], ids=str)
def test_without_a_batch(size: tuple[int, ...]) -> None:
    conv, x = nn.Conv2d(5, 6, 3, padding=1).requires_grad_(False), torch.randn(size)
    expected = conv(x)
    found = WinogradConv2d(conv)(x)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("size", [(1, 4, 7, 9), (0, 6, 7, 9), (5, 9), (4, 7, 9), (1, 5, 1, 7, 9)], ids=str)
def test_other_shapes_are_told(size: tuple[int, ...], requires_grad: bool) -> None:
    module = WinogradConv2d(nn.Conv2d(5, 6, 3, padding=1).requires_grad_(False))
    with pytest.raises(ValueError) as caught:
        module(torch.zeros(size, requires_grad=requires_grad))
    assert str(caught.value) == f"x must be [B, 5, H, W] or [5, H, W], got {list(size)}"


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = WinogradConv2d(nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False)), torch.randn(2, 4, 7, 6)
    expected = module(x)
    monkeypatch.setattr(_native, "_try_load", lambda name: "not built, says a test")
    assert torch.allclose(module(x), expected, atol=1e-6)


def test_the_op_is_one_node() -> None:
    module, x = WinogradConv2d(nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)), torch.randn(1, 4, 6, 6)
    torch.library.opcheck(torch.ops.fastface.winograd.default, (x, module.filters, module.bias))
    assert torch.equal(torch.compile(module, fullgraph=True)(x), module(x))


def test_what_suits() -> None:
    def conv(**change) -> nn.Conv2d:
        return nn.Conv2d(**{"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1} | change)

    assert suits_winograd(conv()) and suits_winograd(conv(padding="same"))
    for change in (
        {"in_channels": 32},
        {"kernel_size": 1, "padding": 0},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"dtype": torch.float64},
    ):
        assert not suits_winograd(conv(**change)), change
    assert not suits_winograd(nn.Linear(64, 64))
