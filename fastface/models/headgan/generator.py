"""HeadGAN's generator: the dense flow network F and the rendering network R.

Source: HeadGAN (arXiv 2012.08261), section 3.3, figure 9, tables 4 and 5. Where the authors' published code differs
from the paper, `GeneratorConfig` has both and defaults to the code, so that public checkpoints fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.nn import SPADE, ActivatedConv, AdaIN, InstanceNorm, merge_convs, resize_nearest

__all__ = ["Encoding", "FlowNetwork", "Generator", "GeneratorConfig", "GeneratorOutput", "RenderingNetwork", "warp"]


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes and variants of the generator.

    Attributes:
        frames: driving renders per frame, oldest first: x_{t-2}, x_{t-1}, x_t.
        face_channels: of one render (PNCC: 3; a landmark sketch: 3).
        audio: length of the audio vector h_a; 0 is the variant without audio.
        channels: of the three scales, finest first.
        hidden: of SPADE's shared convolution (256 in the code; SPADE itself has 128).
        flow: False is the variant without F's decoder: features and image go on unwarped.
        mask: the code's second head, (tanh + 1) / 2, which multiplies the flow; not in the paper.
        residual: the identity skip of the SPADE blocks (the code; the paper's figure 9 has none).
        face_first: the reference's render before its image (the code); the paper's text has them the other way.
    """

    frames: int = 3
    face_channels: int = 3
    audio: int = 300
    channels: tuple[int, int, int] = (32, 128, 512)
    hidden: int = 256
    flow: bool = True
    mask: bool = True
    residual: bool = True
    face_first: bool = True

    def __post_init__(self) -> None:
        fine, middle, coarse = self.channels
        if middle != 4 * fine or coarse != 4 * middle:
            raise ValueError(f"channels must grow fourfold, as PixelShuffle divides by 4, got {self.channels}")
        if min(self.frames, self.face_channels, fine, self.hidden) < 1 or self.audio < 0:
            raise ValueError(f"sizes must be positive and audio at least 0, got {self}")

    @classmethod
    def paper(cls) -> GeneratorConfig:
        """As printed: no mask head, no skip, the image before the render, SPADE's own hidden width."""
        return cls(hidden=128, mask=False, residual=False, face_first=False)


@dataclass(frozen=True)
class Encoding:
    """What depends on the reference alone: its image ``[B, 3, H, W]`` in [-1, 1] and the three feature maps of F."""

    image: Tensor
    features: tuple[Tensor, Tensor, Tensor]  # [B, 32, H, W], [B, 128, H/2, W/2], [B, 512, H/4, W/4]


@dataclass(frozen=True)
class GeneratorOutput:
    """``[B, ., H, W]``: the frame and the warped reference in [-1, 1], the flow in pixels after the mask, the mask."""

    image: Tensor
    warped: Tensor
    flow: Tensor | None  # [B, 2, H, W], x then y; None without F's decoder
    mask: Tensor | None  # [B, 1, H, W]; None without the mask head
    features: tuple[Tensor, Tensor, Tensor]  # warped


class _Down(nn.Module):
    """Convolution without bias, instance norm, ReLU; the first 7x7 at full size, the others 3x3 with stride 2."""

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        if first:
            self.conv = nn.Conv2d(inputs, outputs, 7, padding=3, padding_mode="reflect", bias=False)
        else:
            self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm = InstanceNorm(outputs, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _Encoder(nn.Module):
    def __init__(self, inputs: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.layers = nn.ModuleList([_Down(inputs, fine, first=True), _Down(fine, middle), _Down(middle, coarse)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps[0], maps[1], maps[2]


class SPADEBlock(nn.Module):
    """``x + conv1(lrelu(spade1(conv0(lrelu(spade0(x, m))), m)))`` (figure 9a; the skip is the code's)."""

    def __init__(self, channels: int, map_channels: int, hidden: int, residual: bool) -> None:
        super().__init__()
        self.norm0 = SPADE(channels, map_channels, hidden, activation="leaky_relu")
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = SPADE(channels, map_channels, hidden, activation="leaky_relu")
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.residual = residual

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        dx = self.conv0(self.norm0(x, modulation))
        dx = self.conv1(self.norm1(dx, modulation))
        return x + dx if self.residual else dx

    def optimized(self) -> nn.Module:
        return _MergedSPADEBlock(self)


class _MergedSPADEBlock(nn.Module):
    """A `SPADEBlock` whose two shared convolutions, which read the same map, are one."""

    rewrites = (
        ("shared convolutions of one map merged", ("norm?.shared",), ("shared",)),
        ("gamma|beta merged", ("norm?.gamma", "norm?.beta"), ("norm?.modulation",)),
    )

    def __init__(self, block: SPADEBlock) -> None:
        super().__init__()
        self.shared = ActivatedConv(merge_convs(block.norm0.shared, block.norm1.shared), "relu")
        self.norm0, self.conv0 = block.norm0.merged(), block.conv0
        self.norm1, self.conv1 = block.norm1.merged(), block.conv1
        self.residual = block.residual

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        hidden = self.shared(resize_nearest(modulation, x.shape[2], x.shape[3]))
        hidden0, hidden1 = hidden.chunk(2, dim=1)
        dx = self.conv0(self.norm0(x, hidden0))
        dx = self.conv1(self.norm1(dx, hidden1))
        return x + dx if self.residual else dx


class AdaINBlock(nn.Module):
    """``conv1(lrelu(adain1(conv0(lrelu(adain0(x, h))), h)))`` (figure 9b)."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.norm0 = AdaIN(channels, style, activation="leaky_relu")
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = AdaIN(channels, style, activation="leaky_relu")
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.conv1(self.norm1(self.conv0(self.norm0(x, style)), style))


def _last_conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 7, padding=3, padding_mode="reflect")


class FlowNetwork(nn.Module):
    """F (table 4): features of the reference, and the flow that moves them to the driving face."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.channels
        faces = config.frames * config.face_channels
        self.encoder = _Encoder(config.face_channels + 3, config.channels)
        if not config.flow:
            return
        self.blocks = nn.ModuleList(
            SPADEBlock(coarse, faces, config.hidden, config.residual) for _ in range(3)
        )  # 64x64 of a 256x256 image
        self.block_middle = SPADEBlock(middle, faces, config.hidden, config.residual)  # 128x128
        self.to_flow = _last_conv(fine, 2)
        self.to_mask = _last_conv(fine, 1) if config.mask else None

    def forward(self, features: Tensor, faces: Tensor) -> tuple[Tensor, Tensor | None]:
        """The flow ``[B, 2, H, W]`` in pixels, multiplied by the mask, and the mask ``[B, 1, H, W]``.

        Args:
            features: ``[B, 512, H/4, W/4]``, the coarsest of the encoder.
            faces: ``[B, 9, H, W]``, the driving renders.
        """
        x = features
        for block in self.blocks:
            x = block(x, faces)
        x = self.block_middle(F.pixel_shuffle(x, 2), faces)
        x = F.pixel_shuffle(x, 2)
        flow = self.to_flow(x)
        if self.to_mask is None:
            return flow, None
        mask = (torch.tanh(self.to_mask(x)) + 1) / 2
        return flow * mask, mask


class RenderingNetwork(nn.Module):
    """R (table 5): the driving face, dressed with the warped features and moved by the audio."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.channels
        self.encoder = _Encoder(config.frames * config.face_channels, config.channels)

        def spade(channels: int, map_channels: int) -> SPADEBlock:
            return SPADEBlock(channels, map_channels, config.hidden, config.residual)

        self.spade = nn.ModuleList([spade(coarse, coarse), spade(middle, middle), spade(fine, fine), spade(fine, 3)])
        self.adain = nn.ModuleList(AdaINBlock(n, config.audio) for n in (coarse, middle, fine) if config.audio)
        self.to_image = _last_conv(fine, 3)

    def forward(
        self, faces: Tensor, features: tuple[Tensor, Tensor, Tensor], warped: Tensor, audio: Tensor | None
    ) -> Tensor:
        """The frame ``[B, 3, H, W]`` in [-1, 1].

        Args:
            faces: ``[B, 9, H, W]``.
            features: warped, finest first.
            warped: the warped reference image ``[B, 3, H, W]``.
            audio: ``[B, 300]``, None in the variant without.
        """
        x = self.encoder(faces)[2]
        for scale in range(3):
            x = self.spade[scale](x, features[2 - scale])
            if audio is not None:
                x = self.adain[scale](x, audio)
            if scale < 2:
                x = F.pixel_shuffle(x, 2)
        x = self.spade[3](x, warped)
        return torch.tanh(self.to_image(F.leaky_relu(x, 0.2)))


class Generator(nn.Module):
    """G: a reference, three driving faces and the sound to a frame.

    `encode` once per reference, `forward` per frame.
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config or GeneratorConfig()
        self.flow_network = FlowNetwork(self.config)
        self.rendering_network = RenderingNetwork(self.config)

    def encode(self, image: Tensor, face: Tensor) -> Encoding:
        """The reference's features.

        Args:
            image: ``[B, 3, H, W]`` in [-1, 1], H and W multiples of 4.
            face: its render, ``[B, 3, H, W]`` in [0, 1].

        Raises:
            ValueError: shapes that do not fit.
        """
        config = self.config
        _expect("image", image, (None, 3, None, None))
        _expect("face", face, (image.shape[0], config.face_channels, *image.shape[2:]))
        _check_size("image", image)
        pair = (face, image) if config.face_first else (image, face)
        return Encoding(image, self.flow_network.encoder(torch.cat(pair, dim=1)))

    def forward(self, reference: Encoding, faces: Tensor, audio: Tensor | None = None) -> GeneratorOutput:
        """One frame for each element of the batch.

        Args:
            faces: ``[B, 9, H, W]`` in [0, 1], the oldest render first.
            audio: ``[B, 300]``, zeros for silence; None in the variant without audio, and only there.

        Raises:
            ValueError: shapes that do not fit.
        """
        config = self.config
        _expect("faces", faces, (None, config.frames * config.face_channels, *reference.image.shape[2:]))
        if (audio is not None) != bool(config.audio):
            wanted = (
                f"[{faces.shape[0]}, {config.audio}]" if config.audio else "None, this generator has no audio input"
            )
            raise ValueError(f"audio must be {wanted}, got {None if audio is None else list(audio.shape)}")
        if audio is not None:
            _expect("audio", audio, (faces.shape[0], config.audio))
        batch = faces.shape[0]
        if reference.image.shape[0] not in (1, batch):
            raise ValueError(f"reference must have batch 1 or {batch} like faces, got {reference.image.shape[0]}")
        image = reference.image.expand(batch, -1, -1, -1)
        fine, middle, coarse = (feature.expand(batch, -1, -1, -1) for feature in reference.features)
        flow, mask, warped = None, None, image
        if config.flow:
            flow, mask = self.flow_network(coarse, faces)
            half = F.avg_pool2d(flow, 2) / 2
            quarter = F.avg_pool2d(half, 2) / 2
            warped = warp(image, flow)
            fine, middle, coarse = warp(fine, flow), warp(middle, half), warp(coarse, quarter)
        features = fine, middle, coarse
        frame = self.rendering_network(faces, features, warped, audio)
        return GeneratorOutput(frame, warped, flow, mask, features)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """``out(y, x) = image(y + flow_y, x + flow_x)``, bilinear, the border repeated: ``[B, C, H, W]``, dtype of `image`.

    Args:
        flow: ``[B, 2, H, W]`` in pixels, x then y.
    """
    height, width = image.shape[2:]
    # In 256 pixels, coordinates of bfloat16 would step by a whole pixel, those of float16 by a sixteenth.
    wide = torch.promote_types(torch.promote_types(image.dtype, flow.dtype), torch.float32)
    flow = flow.to(wide)
    x = torch.arange(width, device=flow.device, dtype=wide) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=wide)[:, None] + flow[:, 1]
    # Divisor 1 for the axis of size 1, where any coordinate is the one pixel.
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1)
    sampled = F.grid_sample(image.to(wide), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.to(image.dtype)


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    if tensor.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, tensor.shape, strict=True)):
        told = ", ".join("." if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must be [{told}], got {list(tensor.shape)}")


def _check_size(name: str, image: Tensor) -> None:
    height, width = image.shape[2:]
    if height % 4 or width % 4 or min(height, width) < 8:
        raise ValueError(f"{name} must have sides that are multiples of 4, at least 8, got {height}x{width}")
