"""Style Mapping as a system: a portrait and the pose and expression of other frames to frames.

    portrait      -> keypoint extractor -> c_k;  pose expression network -> R, τ, ε;  encoder -> volume     once
    driving frame -> pose expression network -> R̄, τ̄, ε̄                                                   per frame
    C_k = R c_k + τ + ε_k, C̄_k likewise -> warping network -> intermediate generator -> frame              per frame

Source: Style Transfer for 2D Talking Head Generation (arXiv 2303.09799), tables 1 to 4; its networks are those of
face-vid2vid (arXiv 2011.15126), whose public weights fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fastface.checkpoints import loading
from fastface.models.style_mapping.generator import AppearanceEncoder, IntermediateGenerator, SPADEDecoder
from fastface.models.style_mapping.keypoints import KeypointDetector
from fastface.models.style_mapping.motion import HeadMotion, KeypointMotion, RelativeMotion
from fastface.models.style_mapping.pose import PoseExpressionNetwork
from fastface.models.style_mapping.warping import WarpingConfig, WarpingNetwork, WarpingSource

__all__ = ["Driving", "StyleMapping", "StyleMappingSource"]

_PARTS = ("generator", "kp_detector", "he_estimator")


@dataclass(frozen=True)
class StyleMappingSource:
    """What depends on the portrait alone.

    Attributes:
        canonical: its keypoints c_k without pose and expression, ``[1, K, 3]``.
        motion: its pose and expression.
        keypoints: both together, C_k, ``[1, K, 3]``.
        volume: its feature volume as the warping network reads it.
    """

    canonical: Tensor
    motion: HeadMotion
    keypoints: Tensor
    volume: WarpingSource


class StyleMapping(nn.Module):
    """The system: `prepare` once per portrait, `render` per frame; `forward` is both, with gradients.

    Images are ``[B, 3, H, W]`` in [0, 1], a face in a square; 256x256 in the paper, sides multiples of 128.

    Args:
        keypoints, pose, encoder, warping, decoder: tables 1 to 4; optimised or compiled ones as well.
        linear: turn each keypoint's neighbourhood by R R̄⁻¹, as equation (1) prints; public weights were trained
            without.
    """

    def __init__(
        self,
        keypoints: nn.Module,
        pose: nn.Module,
        encoder: nn.Module,
        warping: WarpingNetwork,
        decoder: nn.Module,
        *,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.keypoints, self.pose = keypoints, pose
        self.encoder, self.warping, self.decoder = encoder, warping, decoder
        self.linear = linear

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, linear: bool = False, composition: Literal["flow", "volumes"] = "flow"
    ) -> StyleMapping:
        """The system of one file of the family: ``generator``, ``kp_detector`` and ``he_estimator``.

        Args:
            path: a file of ``torch.save`` (.pth.tar), or what `fastface convert` made of it.
            linear, composition: what the paper prints and public weights do without, see `StyleMapping` and
                `WarpingConfig`.

        Raises:
            ValueError: a file that cannot be read, lacks a part, or has parts of another layout or another number of
                keypoints.
        """
        parts = loading.read_parts(path)
        missing = [part for part in _PARTS if part not in parts]
        if missing:
            found = ", ".join(name or "one state dict" for name in parts)
            raise ValueError(f"{path} must hold {', '.join(_PARTS)}; {', '.join(missing)} missing, found {found}")
        generator, keypoints, pose = (
            loading.build(loading.find(f"face_vid2vid.{part}"), parts[part], f"{part} of {path}") for part in _PARTS
        )
        assert isinstance(generator, IntermediateGenerator)
        assert isinstance(keypoints, KeypointDetector) and isinstance(pose, PoseExpressionNetwork)
        counts = [each.config.keypoints for each in (generator.warping, keypoints, pose)]
        if len(set(counts)) > 1:
            told = ", ".join(f"{part} {count}" for part, count in zip(_PARTS, counts, strict=True))
            raise ValueError(f"{path} mixes variants of different numbers of keypoints: {told}")
        warping = generator.warping.with_composition(composition)
        return cls(keypoints, pose, generator.encoder, warping, generator.decoder, linear=linear).eval()

    @classmethod
    def from_random(
        cls, seed: int = 0, *, linear: bool = False, composition: Literal["flow", "volumes"] = "flow"
    ) -> StyleMapping:
        """Of the published sizes with untrained weights: for timing; its frames are noise."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(
                KeypointDetector(),
                PoseExpressionNetwork(),
                AppearanceEncoder(),
                WarpingNetwork(WarpingConfig(composition=composition)),
                SPADEDecoder(),
                linear=linear,
            ).eval()

    @torch.no_grad()
    def prepare(self, portrait: Tensor) -> StyleMappingSource:
        """Everything that depends on the portrait ``[1, 3, H, W]`` alone. Raises ValueError for another shape."""
        if portrait.dim() != 4 or len(portrait) != 1:
            raise ValueError(f"portrait must be [1, 3, H, W], got {list(portrait.shape)}")
        return self._prepare(portrait)

    @torch.no_grad()
    def motion_of(self, frame: Tensor) -> HeadMotion:
        """Pose and expression of frames ``[B, 3, H, W]``."""
        return HeadMotion.of(self.pose(frame))

    @torch.no_grad()
    def render(self, source: StyleMappingSource, motion: HeadMotion | RelativeMotion | KeypointMotion) -> Tensor:
        """Frames ``[B, 3, H, W]`` in [0, 1] of the portrait in that motion.

        Raises:
            ValueError: an expression of another number of keypoints than the portrait's.
        """
        return self._render(source, motion)

    def forward(self, portrait: Tensor, driving: Tensor) -> Tensor:
        """Portraits ``[B, 3, H, W]`` as driving frames ``[B, 3, H, W]`` show them: the training form, one by one."""
        return self._render(self._prepare(portrait), HeadMotion.of(self.pose(driving)))

    def _prepare(self, portrait: Tensor) -> StyleMappingSource:
        canonical, motion = self.keypoints(portrait), HeadMotion.of(self.pose(portrait))
        volume = self.warping.prepare(self.encoder(portrait))
        return StyleMappingSource(canonical, motion, motion.keypoints(canonical), volume)

    def _render(self, source: StyleMappingSource, motion: HeadMotion | RelativeMotion | KeypointMotion) -> Tensor:
        if not isinstance(motion, KeypointMotion):
            expression = (motion if isinstance(motion, HeadMotion) else motion.driving).expression
            expected = source.canonical.shape[1]
            if expression.shape[1] != expected:
                raise ValueError(f"expression must be [B, {expected}, 3], got {list(expression.shape)}")
            motion = motion.on(source.canonical, source.motion)
        linear = source.motion.rotation @ motion.rotation.mT if self.linear else None
        return self.decoder(self.warping(source.volume, source.keypoints, motion.keypoints, linear=linear).features)


class Driving:
    """Frames of a driving clip, in their order, to motions.

    Args:
        relative: what changed since the first frame; else the frames' own pose and expression.
        adapt_scale: with `relative`, in proportion to the portrait's face.
    """

    def __init__(self, model: StyleMapping, *, relative: bool = True, adapt_scale: bool = True) -> None:
        self._model, self._relative, self._adapt_scale = model, relative, adapt_scale
        self._first: HeadMotion | None = None

    def __call__(self, frame: Tensor) -> HeadMotion | RelativeMotion:
        """The motion of the next frame ``[1, 3, H, W]`` in [0, 1]."""
        motion = self._model.motion_of(frame)
        self._first = self._first or motion
        return RelativeMotion(motion, self._first, self._adapt_scale) if self._relative else motion
