"""The style side: four intermediate style patterns and a facial map of landmarks to a frame.

    references None, M, R, O  ->  Style Mapping on (portrait, reference)  ->  four patterns, 12 channels
    landmarks of the frame    ->  facial map, 1 channel                   ->  style-aware generator -> frame

Source: Style Transfer for 2D Talking Head Generation (arXiv 2303.09799). The paper prints no layers of its style-aware
generator; the published code's is a residual U-Net of 8 halvings from 64 channels, with batch norm and tanh, and the
order of the layers inside a step is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.checkpoints import read_state_dict, shape_of
from fastface.face import draw_landmarks

__all__ = [
    "REFERENCES",
    "StyleAwareConfig",
    "StyleAwareGenerator",
    "facial_map",
    "retrieve_references",
    "stack_patterns",
]

REFERENCES = ("None", "M", "R", "O")  # the key motions, in the order of the generator's channels


@dataclass(frozen=True)
class StyleAwareConfig:
    """Sizes: `inputs` is 1 channel of the facial map and 3 of each pattern; `channels` double up to `widest`."""

    inputs: int = 1 + 3 * len(REFERENCES)
    outputs: int = 3
    channels: int = 64
    widest: int = 512
    halvings: int = 8

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.channels, self.widest) < 1 or self.halvings < 2:
            raise ValueError(f"sizes must be positive, with at least 2 halvings, got {self}")

    @property
    def widths(self) -> list[int]:
        """Channels behind each halving."""
        return [min(self.channels * 2**i, self.widest) for i in range(self.halvings)]


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.BatchNorm2d(outputs))


class _Residual(nn.Module):
    """``relu(x + norm(conv(relu(norm(conv(x))))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class _Down(nn.Module):
    """Half the size: a convolution with stride 2, a residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.residual = _conv(inputs, outputs, stride=2), _Residual(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(F.relu(self.conv(x)))


class _Up(nn.Module):
    """Twice the size, nearest: a convolution, a residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.residual = _conv(inputs, outputs), _Residual(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(F.relu(self.conv(F.interpolate(x, scale_factor=2.0))))


class StyleAwareGenerator(nn.Module):
    """The style-aware generator: ``[B, 13, H, W]``, a facial map and four patterns, to ``[B, 3, H, W]`` in [-1, 1].

    Each step up is concatenated with the step down of its size. H and W are multiples of 256 (2^halvings); 512 in the
    paper.
    """

    def __init__(self, config: StyleAwareConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or StyleAwareConfig()
        widths = config.widths
        self.downs = nn.ModuleList(_Down(a, b) for a, b in pairwise([config.inputs, *widths]))
        below = [widths[-1], *(2 * width for width in reversed(widths[:-1]))]  # concatenated from the second on
        self.ups = nn.ModuleList(_Up(a, b) for a, b in zip(below, reversed(widths[:-1]), strict=False))
        self.to_image = nn.Conv2d(below[-1], config.outputs, 3, padding=1)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> StyleAwareGenerator:
        """The generator of a file of its own state dict, .safetensors or of ``torch.save``, in evaluation mode.

        Raises:
            ValueError: a file that cannot be read, or entries that are not those of this generator.
        """
        state = read_state_dict(path)
        try:
            channels, inputs = shape_of(state, "downs.0.conv.0.weight", 4)[:2]
            halvings = len({name.split(".")[1] for name in state if name.startswith("downs.")})
            widths = [shape_of(state, f"downs.{i}.conv.0.weight", 4)[0] for i in range(halvings)]
            outputs = shape_of(state, "to_image.weight", 4)[0]
            generator = cls(StyleAwareConfig(inputs, outputs, channels, max(widths), halvings))
            generator.load_state_dict(state)
        except KeyError as error:
            raise ValueError(f"{path} holds no style-aware generator: {error.args[0]} is missing") from None
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} holds no style-aware generator: {' '.join(str(error).split())[:200]}") from None
        return generator.eval()

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        step = 2**config.halvings
        if x.dim() != 4 or x.shape[1] != config.inputs or x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"x must be [B, {config.inputs}, H, W] with H and W multiples of {step}, got {list(x.shape)}"
            )
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = skips.pop()
        for up in self.ups:
            x = torch.cat([up(x), skips.pop()], 1)
        return torch.tanh(self.to_image(F.interpolate(x, scale_factor=2.0)))


def facial_map(landmarks: Tensor, size: tuple[int, int] = (512, 512)) -> Tensor:
    """The facial map ``[B, 1, H, W]`` in [0, 1]: landmarks ``[B, 68, 2]`` in its pixels, joined by lines.

    Raises:
        ValueError: landmarks of another shape.
    """
    return draw_landmarks(landmarks, size)


def stack_patterns(patterns: Tensor, size: tuple[int, int] = (512, 512)) -> Tensor:
    """Four patterns ``[4, 3, h, w]`` in [0, 1] as the generator reads them: ``[1, 12, H, W]`` in [-1, 1], bilinear.

    With a facial map before them (``torch.cat([map, patterns], 1)``) they are the generator's 13 channels.

    Raises:
        ValueError: not four patterns.
    """
    count = len(REFERENCES)
    if patterns.dim() != 4 or patterns.shape[:2] != (count, 3):
        raise ValueError(f"patterns must be [{count}, 3, h, w], got {list(patterns.shape)}")
    if patterns.shape[2:] != size:
        patterns = F.interpolate(patterns, size, mode="bilinear", align_corners=False, antialias=True)
    return patterns.flatten(0, 1)[None] * 2 - 1


def retrieve_references(landmarks: Tensor, templates: Tensor) -> list[int]:
    """The frames of a video that show key motions best: for each template the frame of the smallest distance.

    Distances are between landmarks with place, size and turn removed (Procrustes), so that the mouth counts and not
    where the head is.

    Args:
        landmarks: ``[N, P, D]`` of the frames, D 2 or 3.
        templates: ``[T, P, D]``: the key motions.

    Raises:
        ValueError: shapes that do not fit, or no frame.
    """
    if landmarks.dim() != 3 or not len(landmarks) or templates.dim() != 3 or landmarks.shape[1:] != templates.shape[1:]:
        raise ValueError(
            f"landmarks and templates must be [N, P, D] and [T, P, D], "
            f"got {list(landmarks.shape)} and {list(templates.shape)}"
        )
    frames, wanted = _normalized(landmarks), _normalized(templates)
    # Of unit norm, |a - b R|² = 2 - 2 tr(aᵀ b R), and the best rotation makes the trace the sum of the singular values
    # of aᵀ b, the last one negative where R would be a reflection.
    products = torch.einsum("tpi,npj->tnij", wanted, frames)
    values = torch.linalg.svdvals(products)
    values[..., -1] *= torch.linalg.det(products).sign()
    return values.sum(-1).argmax(1).tolist()


def _normalized(points: Tensor) -> Tensor:
    """About their middle, of unit norm."""
    points = points.double() - points.double().mean(1, keepdim=True)
    return points / torch.linalg.vector_norm(points, dim=(1, 2), keepdim=True)
