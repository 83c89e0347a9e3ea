"""The family's networks in the forms that `fastface.engine.optimize` gives them: the same functions, exactly.

What they say in ``rewrites`` goes into its report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import ops
from fastface.engine.fold import fold_batch_norm, fold_pointwise
from fastface.nn import ActivatedConv, ModulatedNorm, UpsampledModulation, merge_convs
from fastface.ops import _memory

if TYPE_CHECKING:
    from fastface.models.style_mapping.generator import SPADEDecoder, SPADEResnetBlock
    from fastface.models.style_mapping.warping import DenseMotion

__all__ = ["OptimizedDecoder", "OptimizedDenseMotion"]


class OptimizedDenseMotion(nn.Module):
    """`DenseMotion` with its motions packed straight into the buffer that the hourglass's last convolution reads, in
    which they are the last skip.
    """

    rewrites = (
        (
            "batch norm and activation folded",
            ("hourglass.conv", "hourglass.norm", "compress", "compress_norm"),
            ("last", "compress"),
        ),
        ("motions packed into the buffer of the last skip", ("$", "hourglass$"), ("$",)),
    )

    def __init__(self, motion: DenseMotion) -> None:
        super().__init__()
        hourglass = motion.hourglass
        self.compress = ActivatedConv(fold_batch_norm(motion.compress, motion.compress_norm), "relu")
        self.encoder, self.decoder = hourglass.encoder, hourglass.decoder
        self.last = ActivatedConv(fold_batch_norm(hourglass.conv, hourglass.norm), "relu")
        self.mask, self.occlusion = motion.mask, motion.occlusion
        self.channels, self.backend = hourglass.conv.in_channels, motion.backend

    def compressed(self, feature: Tensor) -> Tensor:
        return self.compress(feature)

    def forward(
        self, compressed: Tensor, kp_source: Tensor, kp_driving: Tensor, linear: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shape = (compressed.shape[0], self.channels, *compressed.shape[2:])
        buffer = _memory.empty(shape, compressed, memory_format=_memory.memory_format(compressed))
        packed = (kp_source.shape[1] + 1) * (compressed.shape[1] + 1)
        upsampled, motions = buffer.split([self.channels - packed, packed], dim=1)
        x = ops.pack_motions(compressed, kp_source, kp_driving, linear=linear, out=motions, backend=self.backend)
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        skips.pop()
        for block in self.decoder[:-1]:
            x = torch.cat([block(x), skips.pop()], dim=1)
        upsampled.copy_(self.decoder[-1](x))
        prediction = self.last(buffer)
        return self.mask(prediction), torch.sigmoid_(self.occlusion(prediction.flatten(1, 2)))


class _MiddleBlock(nn.Module):
    """A block that keeps size and channels, from the hidden maps of its norms on."""

    def __init__(self, block: SPADEResnetBlock) -> None:
        super().__init__()
        self.norm_0, self.conv_0 = block.norm_0.merged(), block.conv_0
        self.norm_1, self.conv_1 = block.norm_1.merged(), block.conv_1

    def forward(self, x: Tensor, hidden_0: Tensor, hidden_1: Tensor) -> Tensor:
        y = self.conv_0(self.norm_0(x, hidden_0))
        return self.conv_1(self.norm_1(y, hidden_1)).add_(x)


class _UpBlock(nn.Module):
    """Upsampling by 2 and a block that narrows, of a map upsampled by `scale`.

    Statistics are those of x before its upsampling. The skip ``conv_s((1 + gamma) n + beta)`` is ``conv_s((1 + gamma)
    n) + beta'``, where the convolution that gives beta' has conv_s in it.
    """

    def __init__(self, block: SPADEResnetBlock, scale: int) -> None:
        super().__init__()
        norm_s, conv_s = block.norm_s, block.conv_s
        assert norm_s is not None and conv_s is not None
        norms = block.norm_0, block.norm_1, norm_s
        convs = [merge_convs(norm.gamma, norm.beta) for norm in norms[:2]]
        convs.append(merge_convs(norm_s.gamma, fold_pointwise(norm_s.beta, conv_s)))
        self.modulation = UpsampledModulation(merge_convs(*(norm.shared for norm in norms)), convs, scale)
        self.norm_0, self.norm_1, self.norm_s = (ModulatedNorm.of(norm) for norm in norms)
        self.conv_0, self.conv_1, self.conv_s = block.conv_0, block.conv_1, conv_s

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        stats = ops.instance_stats(x, self.norm_0.eps, backend=self.norm_0.backend)
        x = F.interpolate(x, scale_factor=2.0)
        hidden = self.modulation.shared(features).chunk(3, dim=1)
        map_0, map_1, map_s = self.modulation.convs
        gamma, beta = map_s(hidden[2]).split([x.shape[1], self.conv_s.out_channels], dim=1)
        skip = self.conv_s(self.norm_s(x, gamma, None, stats)).add_(beta)
        y = self.conv_0(self.norm_0(x, *map_0(hidden[0]).chunk(2, dim=1), stats))
        y = self.conv_1(self.norm_1(y, *map_1(hidden[1]).chunk(2, dim=1)))
        return y.add_(skip)


class OptimizedDecoder(nn.Module):
    """`SPADEDecoder` with one shared convolution for all blocks of the map's size, and one for each block above."""

    rewrites = (
        ("shared convolutions of one map merged", ("middle.*.norm_?.shared",), ("shared",)),
        ("gamma|beta merged", ("middle.*.norm_?.gamma", "middle.*.norm_?.beta"), ("middle.*.norm_?.modulation",)),
        *(
            step
            for up in ("up_0", "up_1")
            for step in (
                (
                    "shared convolutions of one map merged",
                    (f"{up}.norm_?.shared",),
                    (f"{up}.modulation.shared",),
                ),
                (
                    "gamma|beta merged, beta taken through the 1x1 skip",
                    (f"{up}.norm_?.gamma", f"{up}.norm_?.beta"),
                    (f"{up}.modulation.convs",),
                ),
                (
                    "statistics before the upsampling, shared by two norms",
                    (f"{up}.norm_?$",),
                    (f"{up}.norm_?$", f"{up}$"),
                ),
            )
        ),
    )

    def __init__(self, decoder: SPADEDecoder) -> None:
        super().__init__()
        self.config = decoder.config
        self.fc = decoder.fc
        blocks = cast("list[SPADEResnetBlock]", list(decoder.middle))
        shared = [norm.shared for block in blocks for norm in (block.norm_0, block.norm_1)]
        self.shared = ActivatedConv(merge_convs(*shared), "relu")
        self.middle = nn.ModuleList(map(_MiddleBlock, blocks))
        self.up_0, self.up_1 = _UpBlock(decoder.up_0, 2), _UpBlock(decoder.up_1, 4)
        self.to_image = decoder.to_image

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 4 or features.shape[1] != self.config.features:
            raise ValueError(f"features must be [B, {self.config.features}, h, w], got {list(features.shape)}")
        x = self.fc(features)
        hidden = self.shared(features).chunk(2 * len(self.middle), dim=1)
        for index, block in enumerate(self.middle):
            x = block(x, hidden[2 * index], hidden[2 * index + 1])
        x = self.up_1(self.up_0(x, features), features)
        x = self.to_image(F.leaky_relu_(x, 0.2))
        return torch.sigmoid_(F.pixel_shuffle(x, self.config.upscale))
