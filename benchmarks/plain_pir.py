"""What PIR's networks are held against and timed against: plain PyTorch, as the papers write it.

StyleGAN2's synthesis scales and normalises weights per sample, for grouped convolutions; FaceFormer's decoder runs over
the whole past again for every frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.models.pir.audio import ExpressionDecoder, slopes
from fastface.models.pir.synthesis import SuperResolution, SynthesisBlock, SynthesisLayer, SynthesisNetwork

FILTER = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def modulated_conv(x: Tensor, weight: Tensor, style: Tensor, *, up: bool = False, demodulate: bool = True) -> Tensor:
    """Equations (1) to (3) of arXiv 1912.04958; weight ``[O, I, k, k]``."""
    batch, channels, height, width = x.shape
    scaled = weight * style[:, None, :, None, None]  # [B, O, I, k, k]
    if demodulate:
        scaled = scaled * torch.rsqrt(scaled.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, batch * channels, height, width)
    if up:
        y = F.conv_transpose2d(x, scaled.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
        outputs = y.shape[1]
        y = F.conv2d(y, 4 * FILTER.to(y).expand(outputs, 1, 4, 4), padding=1, groups=outputs)
    else:
        y = F.conv2d(x, scaled.flatten(0, 1), padding=weight.shape[2] // 2, groups=batch)
    return y.unflatten(1, (batch, -1)).squeeze(0)


def upsample(x: Tensor) -> Tensor:
    """Zeros between the pixels, then the filter."""
    channels = x.shape[1]
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = x
    return F.conv2d(F.pad(spread, (2, 1, 2, 1)), 4 * FILTER.to(x).expand(channels, 1, 4, 4), groups=channels)


def layer(module: SynthesisLayer, x: Tensor, style: Tensor, noise: bool = True) -> Tensor:
    conv = module.modulated
    up = isinstance(conv.conv, nn.ConvTranspose2d)
    weight = conv.conv.weight.transpose(0, 1) if up else conv.conv.weight
    y = modulated_conv(x, weight, module.affine(style), up=up)
    if noise:
        y = y + module.noise * module.noise_strength
    y = y + module.bias[:, None, None]
    y = F.leaky_relu(y, 0.2) * 2**0.5
    return y if module.clamp is None else y.clamp(-module.clamp, module.clamp)


def block(
    module: SynthesisBlock, x: Tensor | None, image: Tensor | None, styles: Tensor, noise: bool = True
) -> tuple[Tensor, Tensor]:
    start = module.layer0 is None
    x = module.const.expand(len(styles), -1, -1, -1) if start else layer(module.layer0, x, styles[:, 0], noise)
    x = layer(module.layer1, x, styles[:, -2], noise)
    rgb = module.to_rgb
    style = rgb.affine(styles[:, -1]) * rgb.gain
    y = modulated_conv(x, rgb.weight[:, :, None, None], style, demodulate=False) + rgb.bias[:, None, None]
    if rgb.clamp is not None:
        y = y.clamp(-rgb.clamp, rgb.clamp)
    if image is None:
        return x, y
    return x, (upsample(image) if module.up else image) + y


def synthesis(network: SynthesisNetwork, styles: Tensor) -> Tensor:
    x, image, first = None, None, 0
    for module in network.blocks:
        layers = 1 if module.layer0 is None else 2
        x, image = block(module, x, image, styles[:, first : first + layers + 1])
        first += layers
    return image


def super_resolution(network: SuperResolution, features: Tensor, style: Tensor) -> Tensor:
    x, side = features, network.start
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    image = x[:, :3]
    for module in network.blocks:
        x, image = block(module, x, image, style[:, None].expand(-1, 3, -1), noise=False)
    return image


def attention_bias(frames: int, period: int, heads: int) -> Tensor:
    """As FaceFormer masks: ``[heads, T, T]``."""
    i, j = torch.arange(frames)[:, None], torch.arange(frames)
    bias = -slopes(heads)[:, None, None] * ((i - j) // period)
    return bias.masked_fill(j > i, -torch.inf)


def blocked(frames: int, per_frame: int) -> Tensor:
    """Where aligned attention does not look: ``[T, T per_frame]``."""
    return torch.arange(frames * per_frame)[None] // per_frame != torch.arange(frames)[:, None]


class Recomputing(nn.Module):
    """An `ExpressionDecoder` through torch's decoder layers, batch 1, for so many frames at most."""

    bias: Tensor
    mask: Tensor
    periods: Tensor

    def __init__(self, decoder: ExpressionDecoder, frames: int) -> None:
        super().__init__()
        self.decoder = decoder
        config = decoder.config
        like = decoder.positions
        self.register_buffer("bias", attention_bias(frames, config.period, config.heads).to(like))
        self.register_buffer("mask", blocked(frames, config.per_frame).to(like.device))
        self.register_buffer("periods", like[torch.arange(frames, device=like.device) % config.period])
        self.layers = nn.ModuleList()
        names = {"attention": "self_attn.in_proj_", "alignment": "multihead_attn.in_proj_"}
        names |= {"attention_out": "self_attn.out_proj.", "alignment_out": "multihead_attn.out_proj."}
        for part in decoder.blocks:
            made = nn.TransformerDecoderLayer(config.features, config.heads, config.hidden, 0.0, batch_first=True)
            state = {}
            for name, tensor in part.state_dict().items():
                module, leaf = name.rsplit(".", 1)
                state[names.get(module, f"{module}.") + leaf] = tensor
            made.load_state_dict(state)
            self.layers.append(made.to(like).eval())

    def prefix(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """All outputs ``[1, T, outputs]`` of the tokens ``[1, T, d]`` so far."""
        length = tokens.shape[1]
        heard = length * self.decoder.config.per_frame
        x = tokens + self.periods[:length]
        for made in self.layers:
            x = made(
                x,
                memory[:, :heard],
                tgt_mask=self.bias[:, :length, :length],
                memory_mask=self.mask[:length, :heard],
            )
        return self.decoder.decode(x)

    def forward(self, audio: Tensor, style: Tensor) -> Tensor:
        """All expressions ``[1, T, outputs]``, the whole prefix again for every frame."""
        memory, own = self.decoder.audio_map(audio), self.decoder.style(style)[:, None]
        tokens = own
        for _ in range(audio.shape[1] // self.decoder.config.per_frame):
            outputs = self.prefix(tokens, memory)
            tokens = torch.cat([tokens, self.decoder.encode(outputs[:, -1:]) + own], 1)
        return outputs
