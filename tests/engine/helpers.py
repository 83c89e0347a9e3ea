"""What the tests of rewrites share."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def worst(expected: Tensor, found: Tensor) -> float:
    """The largest difference as a share of the range of what was expected."""
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / (expected.max() - expected.min()))


def relative(expected: Tensor, found: Tensor) -> float:
    """The largest difference as a share of the largest magnitude."""
    assert expected.shape == found.shape and expected.dtype == found.dtype
    return float((expected - found).abs().max() / expected.abs().max())


def randomize(module: ModuleT) -> ModuleT:
    """Statistics of norms as they are after training."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.running_mean)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.normal_(part.bias)
    return module.eval()


def seeded(seed: int, *size: int) -> Tensor:
    """White noise in float64."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
