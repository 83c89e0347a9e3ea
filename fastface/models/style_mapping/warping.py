"""The warping network (table 3): keypoints of two frames to the source's features as the driving frame shows them.

    w_k(p) = A_k (p - driving_k) + source_k;  m = softmax(mask(hourglass(packed motions)))
    out = fourth(third(sample(F, Σ m_k w_k))) * sigmoid(occlusion)

Source: Style Mapping (arXiv 2303.09799), equations (1) and (2), table 3; LivePortrait (arXiv 2407.03168) has the same
with 21 keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import ops
from fastface.models.style_mapping.blocks import DownBlock3d, SameBlock2d, UpBlock3d
from fastface.models.style_mapping.optimized import OptimizedDenseMotion

__all__ = ["DenseMotion", "Hourglass", "WarpingConfig", "WarpingNetwork", "WarpingOutput", "WarpingSource"]


@dataclass(frozen=True)
class WarpingConfig:
    """Sizes and the way of composing.

    Attributes:
        keypoints: K; LivePortrait has 21.
        channels, depth: of the feature volume.
        compressed: its channels as the hourglass sees them.
        block, widest, blocks: the hourglass has min(widest, block 2^i) channels behind its i-th of `blocks` halvings.
        features: channels of the output.
        composition: "flow" blends the flows and samples once, as published; "volumes" blends the warped volumes, as the
            paper prints.
    """

    keypoints: int = 15
    channels: int = 32
    depth: int = 16
    compressed: int = 4
    block: int = 32
    widest: int = 1024
    blocks: int = 5
    features: int = 256
    composition: Literal["flow", "volumes"] = "flow"

    def __post_init__(self) -> None:
        if self.composition not in ("flow", "volumes"):
            raise ValueError(f"composition must be 'flow' or 'volumes', got {self.composition!r}")

    @property
    def packed(self) -> int:
        """Channels of the packed motions: a heatmap and the compressed features for each, the background among them."""
        return (self.keypoints + 1) * (self.compressed + 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels behind each halving, the full size's first."""
        return tuple(min(self.widest, self.block * 2**i) for i in range(self.blocks + 1))


@dataclass(frozen=True)
class WarpingSource:
    """What depends on the portrait alone: its volume ``[B, C, D, h, w]`` and the compressed one ``[B, c, D, h, w]``."""

    feature: Tensor
    compressed: Tensor

    def expand(self, batch: int) -> WarpingSource:
        """The same for a batch, as views."""
        if self.feature.shape[0] == batch:
            return self
        return WarpingSource(*(x.expand(batch, -1, -1, -1, -1) for x in (self.feature, self.compressed)))


@dataclass(frozen=True)
class WarpingOutput:
    """The warped features ``[B, 256, h, w]``, and what made them: occlusion ``[B, 1, h, w]`` in [0, 1], logits of the
    masks ``[B, K+1, D, h, w]``.
    """

    features: Tensor
    occlusion: Tensor
    logits: Tensor


class Hourglass(nn.Module):
    """An encoder and a decoder that halve and double height and width, the encoder's maps handed across."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        downs = (inputs, *widths[1:])
        self.encoder = nn.ModuleList(DownBlock3d(a, b) for a, b in zip(downs, downs[1:], strict=False))
        ups = [UpBlock3d(widths[-1], widths[-2])]
        ups += [UpBlock3d(2 * a, b) for a, b in zip(widths[-2:0:-1], widths[-3::-1], strict=True)]
        self.decoder = nn.ModuleList(ups)
        outputs = widths[0] + inputs
        self.conv = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        skips = [x]
        for block in self.encoder:
            skips.append(block(skips[-1]))
        x = skips.pop()
        for block in self.decoder:
            x = torch.cat([block(x), skips.pop()], dim=1)
        return F.relu(self.norm(self.conv(x)))


class DenseMotion(nn.Module):
    """Masks and occlusion from the packed sparse motions."""

    backend: str | None = None  # of the ops

    def __init__(self, config: WarpingConfig) -> None:
        super().__init__()
        self.compress = nn.Conv3d(config.channels, config.compressed, 1)
        self.compress_norm = nn.BatchNorm3d(config.compressed)
        self.hourglass = Hourglass(config.packed, config.widths)
        outputs = config.widths[0] + config.packed
        self.mask = nn.Conv3d(outputs, config.keypoints + 1, 7, padding=3)
        self.occlusion = nn.Conv2d(outputs * config.depth, 1, 7, padding=3)

    def compressed(self, feature: Tensor) -> Tensor:
        return F.relu(self.compress_norm(self.compress(feature)))

    def forward(
        self, compressed: Tensor, kp_source: Tensor, kp_driving: Tensor, linear: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[B, K+1, D, h, w]`` and occlusion ``[B, 1, h, w]``."""
        prediction = self.hourglass(
            ops.pack_motions(compressed, kp_source, kp_driving, linear=linear, backend=self.backend)
        )
        return self.mask(prediction), torch.sigmoid(self.occlusion(prediction.flatten(1, 2)))

    def optimized(self) -> nn.Module:
        return OptimizedDenseMotion(self)


class WarpingNetwork(nn.Module):
    """`prepare` once per portrait, `forward` per frame."""

    backend: str | None = None  # of the ops

    def __init__(self, config: WarpingConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or WarpingConfig()
        self.dense_motion = DenseMotion(config)
        self.third = SameBlock2d(config.channels * config.depth, config.features, slope=0.01)
        self.fourth = nn.Conv2d(config.features, config.features, 1)

    def prepare(self, feature: Tensor) -> WarpingSource:
        """What depends on the feature volume ``[B, C, D, h, w]`` alone.

        Raises:
            ValueError: another shape; h and w must be multiples of 32 (2^blocks).
        """
        config = self.config
        step = 2**config.blocks
        wanted = (config.channels, config.depth)
        if feature.dim() != 5 or feature.shape[1:3] != wanted or feature.shape[3] % step or feature.shape[4] % step:
            raise ValueError(
                f"feature must be [B, {config.channels}, {config.depth}, h, w] with h and w multiples of {step}, "
                f"got {list(feature.shape)}"
            )
        return WarpingSource(feature, self.dense_motion.compressed(feature))

    def forward(
        self, source: WarpingSource, kp_source: Tensor, kp_driving: Tensor, *, linear: Tensor | None = None
    ) -> WarpingOutput:
        """Warp the source from its keypoints ``[B, K, 3]`` to the driving ones.

        Args:
            source: from `prepare`; of batch 1 it serves any batch of keypoints.
            linear: ``[B, 3, 3]`` or ``[B, K, 3, 3]``, the A of the module's equation: R R̄⁻¹ in the paper; None is the
                identity, as in the public weights.
        """
        config = self.config
        for name, keypoints in (("kp_source", kp_source), ("kp_driving", kp_driving)):
            if keypoints.dim() != 3 or keypoints.shape[1:] != (config.keypoints, 3):
                raise ValueError(f"{name} must be [B, {config.keypoints}, 3], got {list(keypoints.shape)}")
        batch = kp_driving.shape[0]
        source, kp_source = source.expand(batch), kp_source.expand(batch, -1, -1)
        logits, occlusion = self.dense_motion(source.compressed, kp_source, kp_driving, linear)
        compose = ops.compose_flow if config.composition == "flow" else ops.compose_volumes
        warped = compose(source.feature, logits, kp_source, kp_driving, linear=linear, backend=self.backend)
        features = self.fourth(self.third(warped.flatten(1, 2)))
        features = features * occlusion if torch.is_grad_enabled() else features.mul_(occlusion)
        return WarpingOutput(features, occlusion, logits)

    def with_composition(self, composition: Literal["flow", "volumes"]) -> WarpingNetwork:
        """The same weights, composed the other way."""
        other = WarpingNetwork.__new__(WarpingNetwork)
        nn.Module.__init__(other)
        other.config, other.backend = replace(self.config, composition=composition), self.backend
        other.dense_motion, other.third, other.fourth = self.dense_motion, self.third, self.fourth
        return other.train(self.training)
