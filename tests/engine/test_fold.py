"""Norms folded into the convolutions beside them, against the two one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastface.engine import fold_batch_norm, fold_batch_norm_before, fold_pointwise, fold_spectral_norm
from tests.engine.helpers import randomize, relative

SIZES = {1: (2, 5, 11), 2: (2, 5, 7, 9), 3: (2, 5, 3, 7, 5)}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@torch.no_grad()
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_batch_norm_behind(axes: int, bias: bool, affine: bool) -> None:
    torch.manual_seed(axes)
    conv = CONVS[axes](5, 6, 3, padding=1, stride=2, bias=bias).double()
    norm = randomize(NORMS[axes](6, affine=affine)).double().eval()
    x = torch.randn(SIZES[axes]).double()
    folded = fold_batch_norm(conv, norm)
    assert type(folded) is type(conv) and relative(norm(conv(x)), folded(x)) < 1e-12
    wide, narrow = norm(conv(x)), fold_batch_norm(conv.float(), norm.float())(x.float())
    assert relative(wide, narrow.double()) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_batch_norm_in_front(axes: int, bias: bool) -> None:
    torch.manual_seed(axes)
    norm = randomize(NORMS[axes](5)).double().eval()
    conv = CONVS[axes](5, 6, 3, stride=2, bias=bias).double()
    x = torch.randn(SIZES[axes]).double()
    assert relative(conv(norm(x)), fold_batch_norm_before(norm, conv)(x)) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pointwise_behind(axes: int, bias: bool) -> None:
    torch.manual_seed(axes)
    conv = CONVS[axes](5, 6, 3, padding=1, dilation=2, bias=bias).double()
    pointwise = CONVS[axes](6, 4, 1, bias=not bias).double()
    x = torch.randn(SIZES[axes]).double()
    assert relative(pointwise(conv(x)), fold_pointwise(conv, pointwise)(x)) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("spelling", ["hook", "parametrization"])
def test_spectral_norm(spelling: str) -> None:
    wrap = nn.utils.spectral_norm if spelling == "hook" else nn.utils.parametrizations.spectral_norm
    conv = wrap(nn.Conv2d(4, 5, 3).double())
    x = torch.randn(1, 4, 7, 9).double()
    conv(x)  # a training step moves the vectors
    expected: Tensor = conv.eval()(x)
    assert fold_spectral_norm(conv)
    assert type(conv) is nn.Conv2d and isinstance(conv.weight, nn.Parameter) and torch.equal(conv(x), expected)
    assert not fold_spectral_norm(conv)


def test_what_does_not_fit_is_told() -> None:
    conv = nn.Conv2d(5, 6, 3, padding=1)
    for norm in (nn.BatchNorm2d(5), nn.BatchNorm3d(6), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()):
        with pytest.raises(ValueError, match="norm must be a batch norm of Conv2d"):
            fold_batch_norm(conv, norm)
    with pytest.raises(ValueError, match="conv must be unpadded"):
        fold_batch_norm_before(nn.BatchNorm2d(5), conv)
    with pytest.raises(ValueError, match="norm must have 5 channels like conv's input, got 4"):
        fold_batch_norm_before(nn.BatchNorm2d(4), nn.Conv2d(5, 6, 3))
    with pytest.raises(ValueError, match="norm must have running statistics"):
        fold_batch_norm_before(nn.BatchNorm2d(5, track_running_stats=False), nn.Conv2d(5, 6, 3))
    for pointwise in (nn.Conv2d(6, 4, 3), nn.Conv2d(5, 4, 1), nn.Conv2d(6, 4, 1, padding=1)):
        with pytest.raises(ValueError, match="pointwise must take 6 channels with a kernel of 1"):
            fold_pointwise(conv, pointwise)
