"""Small networks of PoseGAN and PGFace that have been somewhere: their norms and statistics are no longer trivial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastface.models.posegan import PGFace, PGFaceConfig, PoseGAN, PoseGANConfig, PoseStatistics

SMALL: dict[str, Any] = {"trunk": (4, 5, 6, 7), "levels": (8, 9, 10, 11, 12), "decoder": 9}
MEAN = torch.tensor([0.1, -0.2, 0.05, 3.0, -4.0, 620.0])
STD = torch.tensor([0.2, 0.3, 0.1, 12.0, 9.0, 30.0])


def lived_in(network: nn.Module, seed: int = 0) -> Any:
    """The network in evaluation mode, its norms with random statistics and factors."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight, 0.5)):
                tensor.data.copy_(low + torch.rand(tensor.shape, generator=generator))
    return network.eval()


def statistics() -> PoseStatistics:
    return PoseStatistics(MEAN.clone(), STD.clone())


def small_posegan(seed: int = 0, **changes: Any) -> PoseGAN:
    torch.manual_seed(seed)
    return lived_in(PoseGAN(PoseGANConfig(**{**SMALL, "frames": 64, **changes}), statistics()), seed)


def small_pgface(seed: int = 0, **changes: Any) -> PGFace:
    torch.manual_seed(seed)
    sizes = {"widths": (6, 7, 8, 9), "hidden": (11, 10), "identities": 4, "expressions": 5, **changes}
    return lived_in(PGFace(PGFaceConfig(**sizes), statistics()), seed)


def motion(frames: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features ``[B, T, 29]`` and poses ``[B, T, 6]``."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, frames, 29, generator=generator)
    return features, MEAN + STD * torch.randn(batch, frames, 6, generator=generator)


def normalized(poses: Tensor) -> Tensor:
    return (poses - MEAN) / STD


def assert_batch_is_single(run: Callable[[Tensor, Tensor], Tensor], features: Tensor, poses: Tensor) -> None:
    """To 1e-6 of the largest number: PoseGAN's 17 layers lose about a rounding each, and 17 · 2⁻²⁴ is 1e-6."""
    batch = run(features, poses)
    single = torch.cat([run(*each) for each in zip(features.split(1), poses.split(1), strict=True)])
    assert (batch - single).abs().max() <= 1e-6 * batch.abs().max()
