"""PoseGAN and PGFace live: features of speech in as they come, poses and shapes out a bounded number of frames later.

What comes does not depend on how the features are cut into pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastface.engine import CudaGraph, optimize
from fastface.models.posegan.networks import BEFORE, POSE, WINDOW, PGFace, PoseGAN, Shape

__all__ = ["FaceStream", "Motion", "MotionStream", "PoseStream"]


class Motion(NamedTuple):
    """What a 3D face does, one row per frame."""

    poses: Tensor  # [n, 6], radians and millimetres
    identity: Tensor  # [n, I]
    expression: Tensor  # [n, E]


class PoseStream:
    """PoseGAN live, by windows that slide: an approximation of `long_poses`, not its numbers.

    Every `hop` frames the network sees the last `frames` frames, zeros before the first, with the pose that came for
    the window's first frame as the initial one. Of its poses the last ``2 hop`` count: half of them come, faded in from
    what the window before had foreseen; the other half is foreseen for the next. The motion starts at the initial pose.

    Args:
        network: on any device; an optimised copy is used.
        initial: ``[6]``, radians and millimetres; the mean of the network's statistics by default.
        hop: frames between windows.
        frames: of a window, those that the network was trained with by default.

    Raises:
        ValueError: an initial pose of another shape, or windows not longer than ``2 hop``.
    """

    def __init__(
        self, network: PoseGAN, initial: Tensor | None = None, *, hop: int = 8, frames: int | None = None
    ) -> None:
        frames = network.config.frames if frames is None else frames
        if hop < 1 or 2 * hop >= frames:
            raise ValueError(f"hop must be at least 1 and under half of {frames} frames, got {hop}")
        if initial is not None and initial.shape != (POSE,):
            raise ValueError(f"initial must be [{POSE}], got {list(initial.shape)}")
        self._network, self._hop, self._frames = optimize(network), hop, frames
        mean = network.statistics.mean
        start = mean if initial is None else initial.to(mean)
        # Both begin with the next window; the past ends where the next pose is due.
        self._features = mean.new_zeros(frames - 2 * hop, network.config.features)
        self._past = start.repeat(frames - 2 * hop, 1)
        self._foreseen = start.repeat(hop, 1)
        self._ramp = torch.arange(1, hop + 1, device=mean.device)[:, None] / hop
        self._ended = False

    @property
    def latency(self) -> int:
        """Frames by which a pose comes later than its features at most, ``2 hop - 1``."""
        return 2 * self._hop - 1

    @torch.inference_mode()
    def push(self, features: Tensor) -> Tensor:
        """The poses ``[m, 6]`` that features ``[n, 29]`` complete, radians and millimetres.

        Raises:
            ValueError: features of another shape or not finite, or after `finish`.
        """
        _check(features, self._features.shape[1], self._ended)
        self._features = torch.cat([self._features, features.to(self._features)])
        poses = [self._past[:0]]
        while len(self._features) >= self._frames:
            poses.append(self._advance())
        return torch.cat(poses)

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The poses that are left, once the sound has ended: up to `latency`, from a window that is so much shorter."""
        done, self._ended = self._ended or len(self._features) == len(self._past), True
        if done:
            return self._past[:0]
        return torch.cat([self._advance(), self._foreseen])

    def _advance(self) -> Tensor:
        poses = self._network(self._features[None, : self._frames], self._past[:1])[0, len(self._past) :]
        hop = min(self._hop, len(poses))
        ready = torch.lerp(self._foreseen[:hop], poses[:hop], self._ramp[:hop])
        self._foreseen = poses[hop:]
        self._past = torch.cat([self._past, ready])[hop:]
        self._features = self._features[hop:]
        return ready


class FaceStream:
    """PGFace live: the numbers of its pass over the whole, each frame seven frames later. One CUDA graph on a GPU.

    Args:
        network: on any device; an optimised copy is used.
    """

    def __init__(self, network: PGFace) -> None:
        self._network = optimize(network)
        mean = self._network.statistics.mean
        self._window = mean.new_zeros(1, network.config.features + POSE, WINDOW)
        self._step: Callable[[Tensor, Tensor], Shape] = self._advance
        if mean.is_cuda:
            self._step = CudaGraph(self._advance, mean.new_zeros(1, network.config.features), mean[None])
            self._window.zero_()
        self._count = 0
        self._ended = False

    @property
    def latency(self) -> int:
        """Frames by which a shape comes later than its features and its pose: 7."""
        return WINDOW - BEFORE - 1

    @torch.inference_mode()
    def push(self, features: Tensor, poses: Tensor) -> Shape:
        """The shapes that frames complete: identity ``[m, I]``, expression ``[m, E]``.

        Args:
            features: ``[n, 29]``.
            poses: ``[n, 6]``, radians and millimetres.

        Raises:
            ValueError: other shapes, features that are not finite, or frames after `finish`.
        """
        _check(features, self._network.config.features, self._ended)
        if poses.shape != (len(features), POSE):
            raise ValueError(f"poses must be [{len(features)}, {POSE}], got {list(poses.shape)}")
        return self._push(features.to(self._window), poses.to(self._window))

    @torch.inference_mode()
    def finish(self) -> Shape:
        """The shapes that are left, up to `latency`, once the sound has ended."""
        count, self._ended = 0 if self._ended else self.latency, True
        silence = self._window.new_zeros(count, self._network.config.features)
        return self._push(silence, self._network.statistics.mean.expand(count, POSE))

    def _push(self, features: Tensor, poses: Tensor) -> Shape:
        config = self._network.config
        result = Shape(*(features.new_empty(len(features), size) for size in (config.identities, config.expressions)))
        for index in range(len(features)):
            frame = slice(index, index + 1)
            for rows, row in zip(result, self._step(features[frame], poses[frame]), strict=True):
                rows[frame] = row
        early = max(0, self.latency - self._count)
        self._count += len(features)
        return Shape(*(rows[early:] for rows in result))

    def _advance(self, features: Tensor, pose: Tensor) -> Shape:
        """The shape in the middle of the window that ends with a frame ``[1, 29]``, ``[1, 6]``."""
        frame = self._network.pack(features[None], pose[None])
        window = torch.cat([self._window[:, :, 1:], frame], 2)
        self._window.copy_(window)
        return self._network.shapes(window)


class MotionStream:
    """Both live, one behind the other: features in, poses and shapes of the same frames out.

    Args:
        posegan, pgface: on one device.
        initial, hop, frames: as of `PoseStream`.

    Raises:
        ValueError: as `PoseStream`, or networks of other features than each other's.
    """

    def __init__(
        self,
        posegan: PoseGAN,
        pgface: PGFace,
        initial: Tensor | None = None,
        *,
        hop: int = 8,
        frames: int | None = None,
    ) -> None:
        heard, expected = ((n.config.features, n.config.fps, n.config.speech) for n in (pgface, posegan))
        if heard != expected:
            raise ValueError(f"pgface must have features, fps and speech {expected} like posegan, got {heard}")
        self._pose_stream = PoseStream(posegan, initial, hop=hop, frames=frames)
        self._face_stream = FaceStream(pgface)
        self._features = posegan.statistics.mean.new_empty(0, posegan.config.features)  # without a pose yet
        self._poses = posegan.statistics.mean.new_empty(0, POSE)  # without a shape yet

    @property
    def latency(self) -> int:
        """Frames by which a motion comes later than its features at most."""
        return self._pose_stream.latency + self._face_stream.latency

    @torch.inference_mode()
    def push(self, features: Tensor) -> Motion:
        """The motion that features ``[n, 29]`` complete.

        Raises:
            ValueError: features of another shape or not finite, or after `finish`.
        """
        poses = self._pose_stream.push(features)
        self._features = torch.cat([self._features, features.to(self._features)])
        return self._with_poses(self._shapes(poses))

    @torch.inference_mode()
    def finish(self) -> Motion:
        """The frames that are left, up to `latency`, once the sound has ended."""
        ready, last = self._shapes(self._pose_stream.finish()), self._face_stream.finish()
        return self._with_poses(Shape(*(torch.cat(parts) for parts in zip(ready, last, strict=True))))

    def _shapes(self, poses: Tensor) -> Shape:
        features, self._features = self._features[: len(poses)], self._features[len(poses) :]
        self._poses = torch.cat([self._poses, poses])
        return self._face_stream.push(features, poses)

    def _with_poses(self, shape: Shape) -> Motion:
        count = len(shape.identity)
        poses, self._poses = self._poses[:count], self._poses[count:]
        return Motion(poses, *shape)


def _check(features: Tensor, expected: int, ended: bool) -> None:
    if ended and len(features):
        raise ValueError(f"the stream must not have ended, got {len(features)} frames after finish()")
    if features.dim() != 2 or features.shape[1] != expected:
        raise ValueError(f"features must be [n, {expected}], got {list(features.shape)}")
    lost = ~features.isfinite().all(1)
    if lost.any():  # the poses of a frame go into those of all later ones
        raise ValueError(f"features must be finite, got {int(lost.sum())} of {len(features)} frames that are not")
