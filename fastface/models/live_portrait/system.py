"""LivePortrait as a full animator: a photo once, then motions to frames, and frames back into the photo.

    x_s = s_s (c R_s + e_s) + t_s              the portrait's keypoints
    x_d = s (c R + e) + t                      the same canonical keypoints under a motion
    x_d + eyes(x_s, ratios) + lips(x_s, ratios), then + stitching(x_s, x_d)
    frame = G(W(volume, x_s, x_d))

Source: LivePortrait (arXiv 2407.03168), sections 3.1 to 3.4.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastface.face import Face, Landmarks, MediaPipeLandmarks
from fastface.models.lifted.model import MIN_FACE, as_image
from fastface.models.live_portrait.crop import FaceCrop, outline_size
from fastface.models.live_portrait.motion import LivePortraitMotion, check_region
from fastface.models.live_portrait.networks import KeypointMLP, MotionConfig, MotionExtractor, MotionParameters
from fastface.models.live_portrait.retargeting import openings
from fastface.models.live_portrait.weights import find_checkpoints, load_networks
from fastface.models.style_mapping.generator import AppearanceConfig, AppearanceEncoder, DecoderConfig, SPADEDecoder
from fastface.models.style_mapping.warping import WarpingConfig, WarpingNetwork, WarpingSource
from fastface.nn import set_backend

__all__ = ["LivePortrait", "LivePortraitConfig", "LivePortraitSource"]

Image = NDArray[np.uint8]
_APART = 0.03  # lips further apart than this count as open


@dataclass(frozen=True)
class LivePortraitConfig:
    """How portraits are cut and moved.

    Attributes:
        size: side of the crop and of the frames.
        network: side of the image that the networks see.
        region: what a motion may move: "all", "exp" (the face without the pose), "pose", "lip" or "eyes".
        stitching: fit the shoulders to the photo by the stitching network; None does where there is one.
        close_mouth: close the portrait's mouth before it makes relative motions, if its lips are further apart than
            0.03 of its width.
    """

    size: int = 512
    network: int = 256
    region: str = "all"
    stitching: bool | None = None
    close_mouth: bool = False

    def __post_init__(self) -> None:
        check_region(self.region)
        if self.network < 128 or self.network % 128:
            raise ValueError(f"network must be a multiple of 128, got {self.network}")
        if self.size < self.network:
            raise ValueError(f"size must be at least network's {self.network}, got {self.size}")


@dataclass(frozen=True)
class LivePortraitSource:
    """What depends on the photo alone.

    Attributes:
        photo: ``[H, W, 3]`` uint8.
        crop: where the square is in the photo.
        image: the square ``[1, 3, S, S]`` in [0, 1].
        landmarks: ``[N, 3]`` in pixels of the crop.
        warping: the feature volume as the warping network wants it.
        canonical: keypoints ``[1, K, 3]`` without pose and expression.
        motion: the portrait's own rotation, expression, scale, translation and openings.
        keypoints: x_s, ``[1, K, 3]``.
        closing: what closes the mouth, ``[1, K, 3]``; None where it is closed or shall stay as it is.
    """

    photo: Tensor
    crop: FaceCrop
    image: Tensor
    landmarks: Tensor
    warping: WarpingSource
    canonical: Tensor
    motion: LivePortraitMotion
    keypoints: Tensor
    closing: Tensor | None

    @property
    def portrait(self) -> Tensor:
        """The square as ``[S, S, 3]`` uint8."""
        return to_uint8(self.image)[0]

    def paste(self, frame: Image, photo: Image | None = None) -> Image:
        """A frame ``[S, S, 3]`` uint8 in its photo ``[H, W, 3]``; another photo of the same size where one is given."""
        return self.crop.paste(frame, self.photo.numpy() if photo is None else photo)


class LivePortrait:
    """The animator: `prepare` once per photo, `render` per frame.

    Args:
        appearance, motion, warping, generator: the four base networks, all on one device; optimised ones as well.
        stitching, retarget_lip, retarget_eye: the small networks; without one, what it does cannot be asked for.
        config: crop, region and options.
        landmarks: the detector; MediaPipe's by default.
        backend: of the ops.

    Raises:
        ValueError: stitching or a closed mouth asked for without the network that does it.
    """

    def __init__(
        self,
        appearance: nn.Module,
        motion: nn.Module,
        warping: nn.Module,
        generator: nn.Module,
        stitching: nn.Module | None = None,
        retarget_lip: nn.Module | None = None,
        retarget_eye: nn.Module | None = None,
        *,
        config: LivePortraitConfig | None = None,
        landmarks: Landmarks | None = None,
        backend: str | None = None,
    ) -> None:
        self.config = config or LivePortraitConfig()
        self.appearance, self.motion, self.generator = appearance, motion, generator
        self.warping: Any = warping  # a WarpingNetwork, or what `optimize` makes of one
        self.stitching, self.retarget_lip, self.retarget_eye = stitching, retarget_lip, retarget_eye
        self.trained = True
        if self.config.stitching and stitching is None:
            raise ValueError("stitching needs the stitching network, which is not there")
        if self.config.close_mouth and retarget_lip is None:
            raise ValueError("close_mouth needs the network retarget_lip, which is not there")
        self.device = next(itertools.chain(generator.parameters(), generator.buffers())).device
        for network in (appearance, motion, warping, generator, stitching, retarget_lip, retarget_eye):
            if network is not None:
                set_backend(network.eval(), backend)
        self._landmarks = landmarks

    @classmethod
    def from_checkpoints(
        cls, source: str | Path | Mapping[str, str | Path], *, animals: bool = False, **options: Any
    ) -> LivePortrait:
        """The animator with public weights.

        Args:
            source: the folder of the public archive, or paths by part (`weights.BASE`, `weights.RETARGETING`).
            animals: the weights for animals of the same archive.
            options: `config`, `landmarks` and `backend` of the constructor, and `device`.

        Raises:
            ValueError: files missing, which are listed, or unreadable.
        """
        paths = source if isinstance(source, Mapping) else find_checkpoints(source, animals=animals)
        return cls._of(load_networks(paths), **options)

    @classmethod
    def from_random(cls, seed: int = 0, *, width: float = 1.0, **options: Any) -> LivePortrait:
        """The animator without trained weights, to time or try it: its frames are noise, and `trained` is False.

        `width` scales the networks' channels; `options` are those of `from_checkpoints`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls._of(_random_networks(width), **options)
        model.trained = False
        return model

    @classmethod
    def _of(cls, networks: Mapping[str, nn.Module], device: torch.device | str = "cpu", **options: Any) -> LivePortrait:
        there: dict[str, Any] = {name: network.to(device) for name, network in networks.items()}
        return cls(
            there["appearance_feature_extractor"],
            there["motion_extractor"],
            there["warping_module"],
            there["spade_generator"],
            there.get("stitching"),
            there.get("retarget_lip"),
            there.get("retarget_eye"),
            **options,
        )

    def optimized(self) -> LivePortrait:
        """The same animator with its large networks rewritten for speed (`fastface.engine.optimize`)."""
        from fastface.engine import optimize

        other = copy.copy(self)
        other.appearance, other.warping, other.generator = map(
            optimize, (self.appearance, self.warping, self.generator)
        )
        return other

    # Preparation

    def detect(self, photo: Image) -> list[Face]:
        """All faces of a photo, largest first."""
        if self._landmarks is None:
            self._landmarks = MediaPipeLandmarks()
        return sorted(self._landmarks(photo), key=lambda face: -face.area)

    @torch.inference_mode()
    def prepare(self, photo: Tensor | NDArray[np.generic], *, face: Face | int | None = None) -> LivePortraitSource:
        """Everything that depends on the photo alone.

        Args:
            photo: ``[H, W, 3]`` uint8, or ``[3, H, W]`` float in [0, 1].
            face: which face, or its number in `detect`; the largest by default.

        Raises:
            ValueError: a photo of another shape or type, without a face or that face, or with one under 24 pixels.
        """
        image = as_image(photo)
        points = _chosen(face, self.detect(image) if not isinstance(face, Face) else [], image).points
        crop = FaceCrop.around(points, image.shape, self.config.size)
        square = self._to_network(crop.cut(image))
        small = self._small(square)
        said = self.motion(small)
        eyes, lips = openings(points)
        motion = LivePortraitMotion.of_parameters(said, eyes, lips)
        canonical = said.keypoints.float().cpu()
        keypoints = motion.keypoints(canonical).to(self.device)
        closing = None
        if self.config.close_mouth and float(lips) > _APART:
            closing = self._retargeted("retarget_lip", keypoints, lips, torch.zeros(1, 1))
        return LivePortraitSource(
            photo=torch.from_numpy(image),
            crop=crop,
            image=square,
            landmarks=torch.from_numpy(crop.points(points)),
            warping=self.warping.prepare(self.appearance(small)),
            canonical=canonical,
            motion=motion,
            keypoints=keypoints,
            closing=closing,
        )

    @torch.inference_mode()
    def motion_of(self, image: Image, points: NDArray[np.floating] | None = None) -> LivePortraitMotion:
        """The absolute motion of a driving image ``[S, S, 3]`` uint8, cut about its face already.

        Args:
            points: its landmarks, in any pixels, where eyes and lips shall be measured too.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1] or image.dtype != np.uint8:
            raise ValueError(f"image must be [S, S, 3] uint8, got {list(image.shape)} {image.dtype}")
        said: MotionParameters = self.motion(self._small(self._to_network(image)))
        return LivePortraitMotion.of_parameters(said, *(openings(points) if points is not None else ()))

    # Rendering

    @torch.inference_mode()
    def driving_keypoints(self, source: LivePortraitSource, motion: LivePortraitMotion) -> Tensor:
        """Where a motion takes the portrait's keypoints, ``[B, K, 3]``, retargeted and stitched.

        Raises:
            ValueError: eyes or lips to retarget without the network for it.
        """
        applied = motion.applied_to(source.motion, self.config.region)
        batch = len(applied)
        own = source.keypoints.expand(batch, -1, -1)
        driving = applied.keypoints(source.canonical).to(self.device)
        if applied.eyes is not None:
            wanted = applied.eyes.mean(1, keepdim=True)
            driving = driving + self._retargeted("retarget_eye", own, source.motion.eyes, wanted)
        if applied.lips is not None:
            driving = driving + self._retargeted("retarget_lip", own, source.motion.lips, applied.lips)
        elif source.closing is not None and motion.relative and "lip" in check_region(self.config.region):
            driving = driving + source.closing
        if self.stitching is not None and self.config.stitching is not False:
            driving = KeypointMLP.stitched(driving, self.stitching(own, driving))
        return driving

    @torch.inference_mode()
    def render(self, source: LivePortraitSource, motion: LivePortraitMotion) -> Tensor:
        """Frames ``[B, 3, S, S]`` in [0, 1]."""
        if not isinstance(motion, LivePortraitMotion):
            raise TypeError(f"motion must be a LivePortraitMotion, got {type(motion).__name__}")
        driving = self.driving_keypoints(source, motion)
        warped = self.warping(source.warping, source.keypoints.expand(len(driving), -1, -1), driving)
        frames = self.generator(warped.features)
        if frames.shape[-1] != source.crop.size:
            raise ValueError(f"frames must be of the crop's size {source.crop.size}, got {list(frames.shape)}")
        return frames

    def render_uint8(self, source: LivePortraitSource, motion: LivePortraitMotion) -> Tensor:
        """The same frames as ``[B, S, S, 3]`` uint8 on the CPU, which a video writer takes as they are."""
        return to_uint8(self.render(source, motion))

    def render_full(self, source: LivePortraitSource, frame: Tensor, photo: Image | None = None) -> Tensor:
        """Frames ``[B, 3, S, S]`` of `render` in their photo, ``[B, H, W, 3]`` uint8; pixels outside stay exactly."""
        return torch.from_numpy(np.stack([source.paste(each.numpy(), photo) for each in to_uint8(frame)]))

    def _retargeted(self, name: str, keypoints: Tensor, own: Tensor | None, wanted: Tensor) -> Tensor:
        """The offsets ``[B, K, 3]`` by which a network opens or closes eyes or lips from their own ratios to others."""
        network: nn.Module | None = getattr(self, name)
        if network is None:
            raise ValueError(f"the motion has ratios for {name}, a network that is not there")
        assert own is not None
        ratios = torch.cat([own.expand(len(wanted), -1), wanted], 1)
        return network(keypoints, ratios.to(keypoints)).unflatten(1, (-1, 3))

    def _to_network(self, image: Image) -> Tensor:
        return torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float() / 255

    def _small(self, image: Tensor) -> Tensor:
        side = self.config.network
        return image if image.shape[-1] == side else F.interpolate(image, (side, side), mode="area")


def to_uint8(frames: Tensor) -> Tensor:
    """``[B, 3, H, W]`` in [0, 1] to ``[B, H, W, 3]`` uint8 on the CPU."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def _chosen(face: Face | int | None, faces: list[Face], image: Image) -> Face:
    """The face that is meant, of those found, largest first; ValueError where there is none or it is too small."""
    if not isinstance(face, Face):
        if not faces:
            raise ValueError(f"no face found in the portrait of {image.shape[1]}x{image.shape[0]} pixels, expected one")
        if face is not None and not 0 <= face < len(faces):
            raise ValueError(f"face must be from 0 to {len(faces) - 1}, got {face}")
        face = faces[face or 0]
    if len(face.points) < 468:
        raise ValueError(f"landmarks must be at least 468 (MediaPipe's topology), got {len(face.points)}")
    wide = outline_size(face.points)
    if not wide >= MIN_FACE:
        raise ValueError(f"the face must be at least {MIN_FACE:.0f} pixels wide, got {wide:.0f}")
    return face


def _random_networks(width: float) -> dict[str, nn.Module]:
    """Networks of the public sizes, or thinner ones, with PyTorch's initialisation."""

    def of(channels: int) -> int:
        return max(4, round(channels * width))

    motion = MotionExtractor(MotionConfig(channels=(of(96), of(192), of(384), of(768))))
    nn.init.zeros_(motion.scale.weight)
    nn.init.ones_(motion.scale.bias)  # a random scale could be negative
    keypoints = motion.config.keypoints
    wide, middle, narrow = DecoderConfig().channels
    features = of(256)
    coordinates = 3 * keypoints
    return {
        "appearance_feature_extractor": AppearanceEncoder(AppearanceConfig(block=of(64))),
        "motion_extractor": motion,
        "warping_module": WarpingNetwork(
            WarpingConfig(keypoints=keypoints, block=of(32), widest=of(1024), features=features)
        ),
        "spade_generator": SPADEDecoder(
            DecoderConfig(features, (of(wide), of(middle), of(narrow)), hidden=of(128), upscale=2)
        ),
        "stitching": KeypointMLP(2 * coordinates, (128, 128, 64), coordinates + 2),
        "retarget_lip": KeypointMLP(coordinates + 2, (128, 128, 64), coordinates),
        "retarget_eye": KeypointMLP(coordinates + 3, (256, 256, 128, 128, 64), coordinates),
    }
