"""Sound of any length through PoseGAN, whose windows are short: each starts with the pose that ended the one before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastface.models.posegan.networks import POSE, PoseGAN

__all__ = ["long_poses", "smooth"]

_TAPS = 5
_EASED = 12  # frames, about half a second: a nod is as slow


@torch.inference_mode()
def long_poses(
    network: PoseGAN,
    features: Tensor,
    initial: Tensor | None = None,
    *,
    frames: int | None = None,
    smoothed: bool = False,
) -> Tensor:
    """Poses ``[B, T, 6]`` of sound of any length, radians and millimetres.

    A window starts with the last frame of the one before, whose pose is its initial one; the last window ends with the
    sound, and what was found before stays. A network does not give its initial pose back exactly: what a window's pose
    of the last known frame misses is added to the twelve frames after it, less and less, so that nothing jumps where
    windows meet. Up to `frames` frames are one pass of the network. Source: FACIAL's inference, but for the fading; the
    paper does not say.

    Args:
        network: in evaluation mode, plain or optimised.
        features: ``[B, T, 29]``.
        initial: ``[B, 6]``, the first pose, radians and millimetres; the mean of the network's statistics by default.
        frames: of a window, those that the network was trained with by default.
        smoothed: see `smooth`.

    Raises:
        ValueError: windows under 2 frames, a network in training mode, whose norms would learn from this, or shapes
            that it does not take.
    """
    frames = network.config.frames if frames is None else frames
    if frames < 2:
        raise ValueError(f"frames must be at least 2, got {frames}")
    if network.training:
        raise ValueError("network must be in evaluation mode, got one in training mode: call .eval() first")
    if initial is None:
        initial = network.statistics.mean.expand(len(features), POSE)
    poses = network(features[:, :frames], initial)
    while (done := poses.shape[1]) < features.shape[1]:
        start = min(done - 1, features.shape[1] - frames)
        window = network(features[:, start : start + frames], poses[:, start])
        poses = torch.cat([poses, _eased(window[:, done - 1 - start :], poses[:, -1:])], 1)
    return smooth(poses) if smoothed else poses


def _eased(poses: Tensor, first: Tensor) -> Tensor:
    """Poses ``[B, n, 6]`` behind their first frame, when that is ``first [B, 1, 6]``: a raised cosine leads over."""
    share = (torch.arange(poses.shape[1], device=poses.device) / _EASED).clamp(max=1)
    ramp = (1 + torch.cos(torch.pi * share))[:, None] / 2
    return (poses + ramp * (first - poses[:, :1]))[:, 1:]


def smooth(poses: Tensor) -> Tensor:
    """The mean of each frame and two to either side, ``[B, T, 6]``; the ends are repeated."""
    padded = F.pad(poses.mT, (_TAPS // 2, _TAPS // 2), mode="replicate")
    return F.avg_pool1d(padded, _TAPS, stride=1).mT
