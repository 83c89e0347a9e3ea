"""PoseGAN, speech to the motion of a head, and PGFace, speech and that motion to the shape of a face.

    features [B, T, 29] -> trunk -> 1D U-Net; with the initial pose -> decoder -> poses [B, T, 6]
    poses and features of 16 frames [B, 35, 16] -> 4 convolutions -> 3 linear layers -> identity, expression

A pose is (pitch, yaw, roll, x, y, z), radians and millimetres; inside of the networks it is normalised by statistics
that are stored with the weights.
Source: "3D Talking Face with Personalized Pose Dynamics" (TVCG 29(2), 2023), appendices A and B. Their figures, which
hold the widths, are not in the text: what is not printed there is that of FACIAL (arXiv 2108.07938), the nearest
published system, and said so in `PoseGANConfig` and `PGFaceConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "POSE",
    "WINDOW",
    "PGFace",
    "PGFaceConfig",
    "PoseDiscriminator",
    "PoseDiscriminatorConfig",
    "PoseGAN",
    "PoseGANConfig",
    "PoseStatistics",
    "Shape",
]

POSE = 6  # numbers of a pose, printed
CAMERA_DISTANCE = 600.0  # mm from the head, for which a move along the camera's axis is a change of size
WINDOW = 16  # frames that PGFace sees, printed
BEFORE = WINDOW // 2  # of them before the one that is asked for, inferred; that one and the seven after it follow


class Shape(NamedTuple):
    """Parameters of a morphable face."""

    identity: Tensor  # [..., I]
    expression: Tensor  # [..., E]


@dataclass(frozen=True)
class PoseGANConfig:
    """Sizes of PoseGAN. Printed are the frames, the five levels and the three layers of the decoder; inferred from
    FACIAL are all widths, the whole trunk and the kernels.

    Attributes:
        features: of speech per frame, printed: DeepSpeech's 29; at least 22, as the trunk's kernels eat them.
        frames: of a training window, printed: 256.
        trunk: widths of the four 2D convolutions before the U-Net, inferred.
        levels: widths of the U-Net's levels, finest first; their number is printed, the widths are inferred.
        decoder: width of the decoder's two hidden layers, inferred.
        aligned: leave out the two positions that the trunk has beyond the ends. With them, as in FACIAL, time is
            stretched, by 3 % of 256 frames and 6 % of 128, and windows of other lengths give other numbers; without
            them sound that comes 32 frames later gives, away from the ends, the same poses 32 frames later.
        fps: frames a second of the features and the poses; inferred, as in FACIAL.
        speech: what gives the features, by name; printed: DeepSpeech.
        face: the `content_hash` of the face model that it was trained on; None where that is not known.
    """

    features: int = 29
    frames: int = 256
    trunk: tuple[int, int, int, int] = (32, 128, 256, 256)
    levels: tuple[int, int, int, int, int] = (256, 256, 512, 512, 512)
    decoder: int = 256
    aligned: bool = False
    fps: float = 30.0
    speech: str = "deepspeech"
    face: str | None = None

    def __post_init__(self) -> None:
        if (len(self.trunk), len(self.levels)) != (4, 5):
            raise ValueError(f"trunk must hold 4 widths and levels 5, got {self.trunk} and {self.levels}")
        if min(*self.trunk, *self.levels, self.decoder) < 1 or not self.fps > 0:
            raise ValueError(f"sizes and fps must be positive, got {self}")
        if self.features < 22 or self.frames < 2:
            raise ValueError(f"features must be at least 22 and frames 2, got {self.features} and {self.frames}")


@dataclass(frozen=True)
class PoseDiscriminatorConfig:
    """Sizes of the discriminator, all inferred from FACIAL: a PatchGAN of three strided layers."""

    channels: int = 64  # of the first layer, doubled by each after it
    layers: int = 3  # that halve the time

    def __post_init__(self) -> None:
        if min(self.channels, self.layers) < 1:
            raise ValueError(f"sizes must be positive, got {self}")


@dataclass(frozen=True)
class PGFaceConfig:
    """Sizes of PGFace. Printed are the window, the 29 + 6 inputs, four convolutions and three linear layers; inferred
    are all widths and kernels (VOCA's and FACIAL's) and the lengths of the results (the usual ones of the Basel model).

    Attributes:
        features: of speech per frame, printed: 29.
        widths: of the convolutions, inferred.
        hidden: of the first two linear layers, inferred, as is the ReLU behind them.
        identities, expressions: lengths of the results, inferred.
        norm_last: batch norm behind the ReLU, as FACIAL has it; printed is the ReLU behind the batch norm.
        fps, speech, face: as of `PoseGANConfig`.
    """

    features: int = 29
    widths: tuple[int, int, int, int] = (32, 32, 64, 64)
    hidden: tuple[int, int] = (128, 50)
    identities: int = 80
    expressions: int = 64
    norm_last: bool = False
    fps: float = 30.0
    speech: str = "deepspeech"
    face: str | None = None

    def __post_init__(self) -> None:
        if (len(self.widths), len(self.hidden)) != (4, 2):
            raise ValueError(f"widths must hold 4 numbers and hidden 2, got {self.widths} and {self.hidden}")
        sizes = (self.features, *self.widths, *self.hidden, self.identities, self.expressions)
        if min(sizes) < 1 or not self.fps > 0:
            raise ValueError(f"sizes and fps must be positive, got {self}")


class PoseStatistics(nn.Module):
    """Mean and standard deviation of a person's poses ``[6]``, radians and millimetres; 0 and 1 by default.

    Raises:
        ValueError: other shapes, or deviations that are not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        if std is not None and not (std > 0).all():
            raise ValueError(f"std must be positive, got {std.tolist()}")
        mean = torch.zeros(POSE) if mean is None else mean
        std = torch.ones(POSE) if std is None else std
        if mean.shape != (POSE,) or std.shape != (POSE,):
            raise ValueError(f"mean and std must be [{POSE}], got {list(mean.shape)} and {list(std.shape)}")
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def of(cls, poses: Tensor) -> PoseStatistics:
        """Those of poses ``[N, 6]``; what never moves gets the deviation 1e-3."""
        std, mean = torch.std_mean(poses, 0, correction=0)
        return cls(mean, std.clamp(min=1e-3))

    def normalize(self, poses: Tensor) -> Tensor:
        """``(p - mean) / std`` of ``[..., 6]``."""
        return (poses - self.mean) / self.std

    def denormalize(self, poses: Tensor) -> Tensor:
        """``p std + mean`` of ``[..., 6]``."""
        return poses * self.std + self.mean


class PoseGAN(nn.Module):
    """The generator: speech and an initial pose to a pose per frame."""

    def __init__(self, config: PoseGANConfig | None = None, statistics: PoseStatistics | None = None) -> None:
        super().__init__()
        self.config = config = config or PoseGANConfig()
        self.statistics = statistics or PoseStatistics()
        self.trunk = _Trunk(config.trunk, config.aligned)
        self.unet = _UNet(config.trunk[-1], config.levels)
        self.decoder = nn.Sequential(
            _normed(nn.Conv1d(config.trunk[-1] + POSE, config.decoder, 3, padding=1, bias=False)),
            _normed(nn.Conv1d(config.decoder, config.decoder, 3, padding=1, bias=False)),
            nn.Conv1d(config.decoder, POSE, 3, padding=1),
        )

    def forward(self, features: Tensor, initial: Tensor) -> Tensor:
        """Poses ``[B, T, 6]``, radians and millimetres.

        Args:
            features: ``[B, T, 29]``. The U-Net halves T five times: inside, a T that is no multiple of 32 is made one
                by repeating the last frame, and what that gives is cut off.
            initial: ``[B, 6]``, the first frame's pose, radians and millimetres.

        Raises:
            ValueError: other shapes, or no frame.
        """
        _check_features(features, self.config.features)
        batch, frames, _ = features.shape
        if initial.shape != (batch, POSE):
            raise ValueError(f"initial must be [{batch}, {POSE}], got {list(initial.shape)}")
        x = F.pad(features.mT, (0, -frames % 2 ** len(self.config.levels)), mode="replicate").mT
        x = self.unet(self.trunk(x[:, None]))
        first = self.statistics.normalize(initial)[:, :, None].expand(-1, -1, x.shape[2])
        poses = self.decoder(torch.cat([x, first], 1))[:, :, :frames]
        return self.statistics.denormalize(poses.mT)


class _Trunk(nn.Module):
    """``[B, 1, T, 29]`` to ``[B, C, T]``: T/4 + 2 positions of two numbers per channel, in a row, resized to T."""

    def __init__(self, widths: tuple[int, ...], aligned: bool) -> None:
        super().__init__()
        self.aligned = aligned
        first, second, third, last = widths
        self.layers = nn.Sequential(
            _normed(nn.Conv2d(1, first, 4, stride=2, padding=(2, 0), bias=False), nn.LeakyReLU(0.01)),
            _normed(nn.Conv2d(first, second, 4, stride=2, padding=(2, 0), bias=False), nn.LeakyReLU(0.01)),
            _normed(nn.Conv2d(second, third, 4, padding=(2, 0), bias=False), nn.LeakyReLU(0.01)),
            _normed(nn.Conv2d(third, last, (3, 1), padding=(1, 0), bias=False), nn.LeakyReLU(0.01)),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.layers(x)
        if self.aligned:
            maps = maps[:, :, 1:-1]
        return F.interpolate(maps.flatten(2), x.shape[2], mode="linear")


class _UNet(nn.Module):
    """Levels that halve the time and double it again, each handed what went down to the level below."""

    def __init__(self, inputs: int, levels: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(pairwise((inputs, *levels)))
        self.down = nn.ModuleList(
            _normed(nn.Conv1d(above, below, 4, stride=2, padding=1, bias=False)) for above, below in pairs
        )
        lowest = len(pairs) - 1
        self.up = nn.ModuleList(
            _normed(
                nn.ConvTranspose1d(below if level == lowest else 2 * below, above, 4, stride=2, padding=1, bias=False)
            )
            for level, (above, below) in reversed(list(enumerate(pairs)))
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for down in self.down:
            x = down(x)
            kept.append(x)
        lowest, *others = self.up
        x = lowest(kept.pop())
        for up in others:
            x = up(torch.cat([x, kept.pop()], 1))
        return x


class PoseDiscriminator(nn.Module):
    """Judges patches of a motion: its poses and behind them in time their differences from frame to frame."""

    def __init__(self, config: PoseDiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PoseDiscriminatorConfig()
        widths = [config.channels * 2**index for index in range(config.layers + 1)]
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Conv1d(POSE, widths[0], 3, stride=2, padding=1), nn.LeakyReLU(0.2))]
        )
        for index, (inputs, outputs) in enumerate(pairwise(widths), 1):
            stride = 2 if index < config.layers else 1
            conv = nn.Conv1d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            self.layers.append(_normed(conv, nn.LeakyReLU(0.2)))
        self.layers.append(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, poses: Tensor) -> list[list[Tensor]]:
        """The features of its one scale, the judgement last, as `fastface.models.losses` takes them.

        Args:
            poses: ``[B, T, 6]``, normalised (`PoseStatistics.normalize`).

        Raises:
            ValueError: another shape, or fewer than two frames.
        """
        if poses.dim() != 3 or poses.shape[1] < 2 or poses.shape[2] != POSE:
            raise ValueError(f"poses must be [B, T, {POSE}] with T at least 2, got {list(poses.shape)}")
        x = torch.cat([poses, poses.diff(dim=1)], 1).mT  # [B, 6, 2 T - 1]
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return [maps]


class PGFace(nn.Module):
    """Speech and poses to the shape of the face, each frame from the 16 around it."""

    def __init__(self, config: PGFaceConfig | None = None, statistics: PoseStatistics | None = None) -> None:
        super().__init__()
        self.config = config = config or PGFaceConfig()
        self.statistics = statistics or PoseStatistics()
        # A norm right behind a convolution takes the place of its bias.
        convs = [
            nn.Conv1d(inputs, outputs, 3, stride=2, padding=1, bias=config.norm_last)
            for inputs, outputs in pairwise((config.features + POSE, *config.widths))
        ]
        self.convs = nn.Sequential(*(_normed(conv, last=config.norm_last) for conv in convs))
        first, second = config.hidden
        self.linears = nn.Sequential(
            nn.Linear(config.widths[-1], first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(),
            nn.Linear(second, config.identities + config.expressions),
        )  # fmt: skip

    def forward(self, features: Tensor, poses: Tensor) -> Shape:
        """The shapes of all frames in one pass, identity ``[B, T, I]`` and expression ``[B, T, E]``.

        Frame t sees frames t - 8 to t + 7; beyond the ends there are zeros, which as a pose are the mean.

        Args:
            features: ``[B, T, 29]``.
            poses: ``[B, T, 6]``, radians and millimetres.

        Raises:
            ValueError: other shapes, or no frame.
        """
        _check_features(features, self.config.features)
        batch, frames, _ = features.shape
        if poses.shape != (batch, frames, POSE):
            raise ValueError(f"poses must be [{batch}, {frames}, {POSE}], got {list(poses.shape)}")
        rows = F.pad(self.pack(features, poses), (BEFORE, WINDOW - BEFORE - 1))
        shape = self.shapes(rows.unfold(2, WINDOW, 1).transpose(1, 2).flatten(0, 1))
        return Shape(*(each.unflatten(0, (batch, frames)) for each in shape))

    def pack(self, features: Tensor, poses: Tensor) -> Tensor:
        """What the convolutions see of frames: normalised poses, then features, ``[B, 35, T]``."""
        return torch.cat([self.statistics.normalize(poses), features], 2).mT

    def shapes(self, windows: Tensor) -> Shape:
        """Identity ``[N, I]`` and expression ``[N, E]`` of packed windows ``[N, 35, 16]``."""
        outputs = self.linears(self.convs(windows).flatten(1))
        return Shape(*outputs.split([self.config.identities, self.config.expressions], 1))


def _normed(conv: nn.Module, activation: nn.Module | None = None, *, last: bool = False) -> nn.Sequential:
    """A convolution, its batch norm and an activation, ReLU by default; `last` has the norm behind the activation."""
    norms = nn.BatchNorm2d if isinstance(conv, nn.Conv2d) else nn.BatchNorm1d
    behind = [norms(conv.out_channels), activation or nn.ReLU()]  # type: ignore[arg-type]  # a convolution's number
    return nn.Sequential(conv, *(reversed(behind) if last else behind))


def _check_features(features: Tensor, expected: int) -> None:
    if features.dim() != 3 or features.shape[1] < 1 or features.shape[2] != expected:
        raise ValueError(f"features must be [B, T, {expected}] with T at least 1, got {list(features.shape)}")
