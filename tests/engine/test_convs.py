"""Convolutions of unusual shapes, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastface.engine.convs import FoldedConv2d, SlicedConv3d, suits_folding, suits_slicing
from fastface.engine.winograd import WinogradConv2d
from fastface.ops import _native
from tests.engine.helpers import relative, seeded


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [7, (3, 5), (1, 7)], ids=str)
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("size", [(2, 9, 11), (1, 1, 3)], ids=str)
def test_few_outputs(size: tuple[int, ...], outputs: int, kernel, bias: bool) -> None:
    conv = nn.Conv2d(13, outputs, kernel, padding="same", bias=bias).double()
    x = seeded(0, size[0], 13, *size[1:])
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert relative(conv(x), FoldedConv2d(conv)(given)) < 1e-12
    assert relative(conv(x), FoldedConv2d(conv.float())(x.float()).double()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 5, 9])
@pytest.mark.parametrize("kernel", [7, (5, 3, 1)], ids=str)
def test_slices(kernel, depth: int, bias: bool) -> None:
    conv = nn.Conv3d(5, 3, kernel, padding="same", bias=bias).double()
    x = seeded(depth, 2, 5, depth, 6, 7)
    for given in (x, x.contiguous(memory_format=torch.channels_last_3d)):
        assert relative(conv(x), SlicedConv3d(conv)(given)) < 1e-12
    assert relative(conv(x), SlicedConv3d(conv.float())(x.float()).double()) < 1e-5
    rounded = SlicedConv3d(conv.bfloat16())(x.bfloat16())
    assert rounded.dtype == torch.bfloat16 and relative(conv.double()(x), rounded.double()) < 0.05


def test_what_suits() -> None:
    assert suits_folding(nn.Conv2d(2272, 1, 7, padding=3))
    for conv in (
        nn.Conv2d(2272, 1, 7),
        nn.Conv2d(2272, 2, 7, padding=3),
        nn.Conv2d(64, 1, 7, padding=3),
        nn.Conv2d(2272, 1, 1),
        nn.Conv2d(2272, 1, 7, padding=3, stride=2),
        nn.Conv3d(2272, 1, 3, padding=1),
    ):
        assert not suits_folding(conv)
    assert suits_slicing(nn.Conv3d(142, 22, 7, padding=3))
    for other in (
        nn.Conv3d(142, 22, 3, padding=1),
        nn.Conv3d(142, 64, 7, padding=3),
        nn.Conv3d(142, 22, 7),
        nn.Conv3d(142, 22, 7, padding=3, padding_mode="replicate"),
        nn.Conv2d(142, 22, 7, padding=3),
    ):
        assert not suits_slicing(other)


@pytest.mark.skipif(_native.reason_missing("cpu") is not None, reason="needs the cpu extension")
def test_fast_convolutions_leave_tiny_numbers_to_others() -> None:
    """Inside they count as zero, which is what makes heatmaps fast; the caller's arithmetic keeps them."""
    conv = nn.Conv2d(32, 32, 3, padding=1, bias=False).requires_grad_(False)
    tiny = torch.full((1, 32, 9, 9), 1e-40)
    assert not WinogradConv2d(conv)(tiny).any()
    assert float((tiny * 2).max()) > 1.5e-40
