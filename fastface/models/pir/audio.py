"""Sound to expression parameters: wav2vec 2.0, then a causal decoder in the manner of FaceFormer.

    sound -> convolutions (50 Hz) -> interpolated to the frames -> 24 transformer blocks -> memory a_t
    x_t = style(identity) + encode(expression_{t-1}) + P_{t mod p};   expression_t = decode(block(x_0 .. x_t, a_t))

Frame by frame a block sees all frames before, biased by ``-slope_h floor((i - j) / p)`` in head h. Its inputs never
change, so keys and values are kept and a frame costs one pass, exactly; nothing limits the length. Aligned attention
sees one frame of the memory alone: its softmax is 1 and what it gives is ``W_o W_v a_t``, for all frames at once.
Sources: PIR (CVPR 2023), supplement, section 1, where the sign of equation (2) must be negative for the past to fade;
FaceFormer (arXiv 2112.05329), section 3.2; ALiBi (arXiv 2108.12409) for the slopes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface.audio.sound import SAMPLE_RATE

__all__ = ["AudioEncoder", "AudioToExpression", "DecoderConfig", "DecoderState", "ExpressionDecoder", "slopes"]

_INSTALL = "wav2vec 2.0 needs transformers: pip install 'fastface-kernels[audio]'"


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; the paper's by default.

    Attributes:
        outputs: numbers per frame, an expression or the coordinates of a mesh.
        features: d, of a token.
        audio: of the memory that the audio encoder gives.
        style: of the identity, or of a one-hot of a speaker.
        hidden: of the feed-forward layer.
        heads, blocks: of attention.
        period: p, frames.
        per_frame: memory entries that a frame is aligned with; 2 where the encoder's 50 Hz go with 25 frames a second.
    """

    outputs: int = 64
    features: int = 1024
    audio: int = 1024
    style: int = 80
    hidden: int = 2048
    heads: int = 4
    blocks: int = 1
    period: int = 25
    per_frame: int = 1

    def __post_init__(self) -> None:
        sizes = (self.outputs, self.audio, self.style, self.hidden, self.blocks, self.period, self.per_frame)
        if min(sizes) < 1 or self.heads < 1 or self.features % (2 * self.heads):
            raise ValueError(f"sizes must be positive and features a multiple of 2 heads, got {self}")


def slopes(heads: int) -> Tensor:
    """How fast each head forgets, ``[heads]``: 2^(-8/n), 2^(-16/n), ...; of a count that is no power of 2, those of the
    next lower one and every other of the next higher.
    """
    lower = 2 ** int(math.log2(heads))
    exponents = [8 * (index + 1) / lower for index in range(lower)]
    exponents += [4 * (index + 1) / lower for index in range(0, 2 * (heads - lower), 2)]
    return torch.tensor([2**-exponent for exponent in exponents])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In the dtype of the weights, returned in that of the input."""
    narrow = x.to(weight.dtype)
    if narrow.dtype == torch.bfloat16 and bias is not None and x.numel() == weight.shape[1]:
        # For one row PyTorch's product with a vector gains by bfloat16, its matrix product does not.
        return torch.addmv(bias, weight, narrow.flatten()).view(*x.shape[:-1], -1).to(x.dtype)
    return F.linear(narrow, weight, bias).to(x.dtype)


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias)


class _Memory:
    """Keys and values of the frames so far ``[B, heads, length, d / heads]``; the room doubles when it is full."""

    def __init__(self) -> None:
        self.length = 0
        self._room: Tensor | None = None  # [2, B, heads, capacity, d / heads]

    def append(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """With those of one frame more, ``[2, B, heads, 1, d / heads]``."""
        if self._room is None or self.length == self._room.shape[3]:
            capacity = max(64, 2 * self.length)
            with torch.inference_mode(False):  # so that a stream may be stepped with and without that mode
                grown = both.new_empty(*both.shape[:3], capacity, both.shape[4])
            if self._room is not None:
                grown[:, :, :, : self.length] = self._room
            self._room = grown
        self._room[:, :, :, self.length : self.length + 1] = both
        self.length += 1
        keys, values = self._room[:, :, :, : self.length]
        return keys, values


class _Block(nn.Module):
    """A decoder block that is fed frame by frame; norms come behind, as in the first transformers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d = config.features
        self.heads = config.heads
        self.attention, self.attention_out = _Linear(d, 3 * d), _Linear(d, d)
        self.alignment, self.alignment_out = _Linear(d, 3 * d), _Linear(d, d)
        self.linear1, self.linear2 = _Linear(d, config.hidden), _Linear(config.hidden, d)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d) for _ in range(3))

    def aligned(self, memory: Tensor) -> Tensor:
        """What aligned attention needs of memory ``[B, T, per_frame, d]``.

        For one entry per frame the result itself ``[B, T, d]``; else keys and values
        ``[B, T, 2, heads, per_frame, d / heads]``.
        """
        weight, bias = self.alignment.weight, self.alignment.bias
        d = memory.shape[-1]
        if memory.shape[2] == 1:
            return self.alignment_out(_linear(memory[:, :, 0], weight[2 * d :], bias[2 * d :]))
        return _linear(memory, weight[d:], bias[d:]).unflatten(-1, (2, self.heads, -1)).permute(0, 1, 3, 4, 2, 5)

    def forward(self, x: Tensor, memory: _Memory, bias: Tensor, aligned: Tensor) -> Tensor:
        """One frame ``[B, d]``.

        Args:
            memory: of the frames before; grows by this one.
            bias: ``[heads, 1, length]`` of attention to the frames so far.
            aligned: this frame's part of `aligned`.
        """
        query, *rest = self.attention(x).unflatten(1, (3, self.heads, 1, -1)).unbind(1)  # [B, heads, 1, d / heads]
        keys, values = memory.append(torch.stack(rest))
        x = self.norm1(x + self.attention_out(_attend(query, keys, values, bias)))
        x = self.norm2(x + self._align(x, aligned))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))

    def _align(self, x: Tensor, aligned: Tensor) -> Tensor:
        if aligned.dim() == 2:
            return aligned
        d = x.shape[1]
        query = _linear(x, self.alignment.weight[:d], self.alignment.bias[:d]).unflatten(1, (self.heads, 1, -1))
        return self.alignment_out(_attend(query, *aligned.unbind(1)))


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """``softmax(q kᵀ / √d_k + bias) v`` of one query, heads side by side ``[B, d]``."""
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias).flatten(1)


class DecoderState:
    """Where a stream is: made by `ExpressionDecoder.start`, moved on by every `step`."""

    def __init__(self, style: Tensor, blocks: int, slope: Tensor, period: int) -> None:
        self.style = style  # [B, d]
        self.token = style
        self.memories = [_Memory() for _ in range(blocks)]
        self._slope, self._period = slope, period
        self._biases: Tensor | None = None  # [heads, 1, capacity], of the frame that fills it

    @property
    def frames(self) -> int:
        """How many there have been."""
        return self.memories[0].length

    def bias(self) -> Tensor:
        """``-slope floor((i - j) / p)`` of the next frame i to all j up to itself, ``[heads, 1, i + 1]``."""
        length = self.frames + 1
        if self._biases is None or length > self._biases.shape[2]:
            distance = torch.arange(2 * length - 1, -1, -1, device=self.style.device)
            periods = distance.div(self._period, rounding_mode="floor").to(self.style.dtype)
            self._biases = -self._slope[:, None, None] * periods
        return self._biases[:, :, -length:]


class ExpressionDecoder(nn.Module):
    """Memory of sound and an identity to one expression per frame: all at once, or frame by frame as sound comes in.

    For evaluation: there are no gradients. With weights in 16 bits see `narrowed`.
    """

    positions: Tensor
    slope: Tensor

    def __init__(self, config: DecoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DecoderConfig()
        d = config.features
        self.audio_map = _Linear(config.audio, d)
        self.style = _Linear(config.style, d, bias=False)
        self.encode = _Linear(config.outputs, d)
        self.decode = _Linear(d, config.outputs)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.register_buffer("positions", _positions(config.period, d))
        self.register_buffer("slope", slopes(config.heads), persistent=False)

    def narrowed(self, dtype: torch.dtype = torch.bfloat16) -> ExpressionDecoder:
        """A copy whose weights are kept in 16 bits, half of what a frame has to read; the rest stays float32."""
        copied = copy.deepcopy(self)
        for module in copied.modules():
            if isinstance(module, _Linear):
                module.to(dtype)
        return copied

    @torch.no_grad()
    def start(self, style: Tensor) -> DecoderState:
        """A stream of identities ``[B, style]``."""
        if style.dim() != 2 or style.shape[1] != self.config.style:
            raise ValueError(f"style must be [B, {self.config.style}], got {list(style.shape)}")
        return DecoderState(self.style(style), self.config.blocks, self.slope.to(style.dtype), self.config.period)

    @torch.no_grad()
    def step(self, state: DecoderState, audio: Tensor) -> Tensor:
        """The next expression ``[B, outputs]``, from what the audio encoder gives for its frame.

        Args:
            audio: ``[B, audio]``, or ``[B, per_frame, audio]``.
        """
        if audio.dim() == 2:
            audio = audio[:, None]
        self._check(audio, len(state.style))
        if audio.shape[1] != self.config.per_frame:
            raise ValueError(f"audio must have {self.config.per_frame} entries for a frame, got {audio.shape[1]}")
        aligned = self._aligned(audio)
        output = self.decode(self._advance(state, aligned, 0))
        state.token = self.encode(output) + state.style
        return output

    @torch.no_grad()
    def forward(self, audio: Tensor, style: Tensor, template: Tensor | None = None) -> Tensor:
        """All expressions ``[B, T, outputs]``.

        Args:
            audio: ``[B, T per_frame, audio]``, what the audio encoder gives.
            style: ``[B, style]``.
            template: ``[B, outputs]``, added to every frame; of a mesh, the face at rest.

        Raises:
            ValueError: other shapes.
        """
        state = self.start(style)
        self._check(audio, len(style))
        feed = self._feedback()
        aligned = self._aligned(audio)
        frames = audio.shape[1] // self.config.per_frame
        hidden = state.style.new_empty(len(style), frames, self.config.features)
        for frame in range(frames):
            hidden[:, frame] = self._advance(state, aligned, frame)
            state.token = feed(hidden[:, frame]) + state.style
        outputs = self.decode(hidden)
        return outputs if template is None else outputs + template[:, None]

    def _check(self, audio: Tensor, batch: int) -> None:
        config = self.config
        per_frame = "" if config.per_frame == 1 else f" {config.per_frame}"
        fits = audio.dim() == 3 and len(audio) == batch and audio.shape[2] == config.audio
        if not fits or audio.shape[1] % config.per_frame:
            raise ValueError(f"audio must be [{batch}, T{per_frame}, {config.audio}], got {list(audio.shape)}")

    def _aligned(self, audio: Tensor) -> list[Tensor]:
        memory = self.audio_map(audio).unflatten(1, (-1, self.config.per_frame))
        return [block.aligned(memory) for block in self.blocks]  # type: ignore[operator]  # every one is a _Block

    def _advance(self, state: DecoderState, aligned: list[Tensor], frame: int) -> Tensor:
        """The last block's output ``[B, d]`` for the state's token."""
        x = state.token + self.positions[state.frames % self.config.period]
        bias = state.bias()
        for block, memory, each in zip(self.blocks, state.memories, aligned, strict=True):
            x = block(x, memory, bias, each[:, frame])
        return x

    def _feedback(self) -> nn.Module:
        """From a block's output to the next token. The two layers of a mesh are wide, their product is not."""
        if self.config.outputs <= self.config.features:
            return nn.Sequential(self.decode, self.encode)
        folded = _Linear(
            self.config.features, self.config.features, device=self.style.weight.device, dtype=torch.double
        )
        folded.weight.copy_(self.encode.weight.double() @ self.decode.weight.double())
        folded.bias.copy_(self.encode.weight.double() @ self.decode.bias.double() + self.encode.bias)
        return folded.to(self.encode.weight.dtype)


def _positions(period: int, features: int) -> Tensor:
    """Sines and cosines of one period ``[p, d]``, interleaved: equation (1)."""
    angles = torch.outer(torch.arange(period), 10000 ** (-torch.arange(0, features, 2) / features))
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)


class AudioEncoder(nn.Module):
    """wav2vec 2.0, its convolutions' output resampled to the frames of a video before its transformer hears it.

    Args:
        model: transformers' ``Wav2Vec2Model``, or alike; `large` makes one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def large(cls, **changes: Any) -> AudioEncoder:
        """Of random weights, at the paper's size: 24 blocks of 1024 and 16 heads; `changes` of ``Wav2Vec2Config``.

        Raises:
            ImportError: without transformers.
        """
        try:
            from transformers import Wav2Vec2Config, Wav2Vec2Model
        except ImportError as error:
            raise ImportError(_INSTALL) from error
        sizes = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
        return cls(Wav2Vec2Model(Wav2Vec2Config(**{**sizes, **changes})).eval())

    @classmethod
    def from_pretrained(cls, name: str = "facebook/wav2vec2-large") -> AudioEncoder:
        """From a model hub's name or a folder; either norm variant. Raises ImportError without transformers."""
        try:
            from transformers import Wav2Vec2Model
        except ImportError as error:
            raise ImportError(_INSTALL) from error
        return cls(Wav2Vec2Model.from_pretrained(name).eval())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The entries ``audio_encoder.*`` of a checkpoint of FaceFormer's, also as older releases of transformers name
        them.

        Raises:
            ValueError: entries that are missing or do not fit.
        """
        names = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
        prefix = "audio_encoder."
        found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for old, new in names.items():
            found = {
                name.removesuffix(old) + new if name.endswith(old) else name: tensor for name, tensor in found.items()
            }
        try:
            self.model.load_state_dict(found)
        except RuntimeError as error:
            raise ValueError(f"the audio encoder does not fit: {' '.join(str(error).split())[:300]}") from None

    def frames(self, samples: int, fps: float = 25.0) -> int:
        """How many frames a sound of so many samples at 16 kHz has: its steps of 20 ms, at the video's rate."""
        config: Any = self.model.config
        steps = samples
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            steps = max(0, (steps - kernel) // stride + 1)
        return int(steps * math.prod(config.conv_stride) / SAMPLE_RATE * fps)

    def check(self, samples: Tensor) -> None:
        """Raises ValueError for sound that is not ``[B, N]``, or too short."""
        if samples.dim() != 2:
            raise ValueError(f"samples must be [B, N], got {list(samples.shape)}")
        if not self.frames(samples.shape[1], 50):
            raise ValueError(f"samples must last at least 25 ms at {SAMPLE_RATE} Hz, got {samples.shape[1]}")

    def forward(self, samples: Tensor, frames: int | None = None) -> Tensor:
        """``[B, frames, features]``.

        Args:
            samples: ``[B, N]`` at 16 kHz, each of zero mean and unit variance where the weights want that.
            frames: of the video; None keeps the 50 steps a second of the convolutions.

        Raises:
            ValueError: another shape, too short a sound, or no frames.
        """
        self.check(samples)
        if frames is not None and frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}")
        model: Any = self.model
        hidden = model.feature_extractor(samples)  # [B, 512, steps]
        if frames is not None:
            hidden = F.interpolate(hidden, size=frames, mode="linear", align_corners=True)
        projected = model.feature_projection(hidden.mT)
        if isinstance(projected, tuple):  # as newer releases of transformers return it
            projected = projected[0]
        return model.encoder(projected).last_hidden_state


class AudioToExpression(nn.Module):
    """Sound and an identity to expressions.

    Args:
        encoder: the audio encoder; None for decoders that are fed features made elsewhere.
        decoder: the expression decoder, for example ``load_checkpoint(path, "faceformer.decoder_pir")``.
    """

    def __init__(self, encoder: AudioEncoder | None = None, decoder: ExpressionDecoder | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder or ExpressionDecoder()

    @torch.inference_mode()
    def features(self, samples: Tensor, frames: int | None = None, fps: float = 25.0) -> Tensor:
        """What the decoder hears of sound ``[B, N]`` at 16 kHz: ``[B, T per_frame, audio]``.

        Args:
            frames: of the video; by default as long as the sound.
            fps: of the video, where `frames` is None.

        Raises:
            ValueError: no encoder, another shape, too short a sound, or no frames.
        """
        if self.encoder is None:
            raise ValueError("there is no audio encoder: pass AudioEncoder.from_pretrained() or AudioEncoder.large()")
        self.encoder.check(samples)
        mean = samples.mean(1, keepdim=True)
        samples = (samples - mean) / torch.sqrt(samples.var(1, correction=0, keepdim=True) + 1e-7)
        if frames is None:
            frames = self.encoder.frames(samples.shape[1], fps)
        return self.encoder(samples, frames * self.decoder.config.per_frame)

    @torch.inference_mode()
    def forward(self, samples: Tensor, identity: Tensor, frames: int | None = None, fps: float = 25.0) -> Tensor:
        """Expressions ``[B, frames, outputs]`` of sound ``[B, N]`` and identities ``[B, style]``."""
        return self.decoder(self.features(samples, frames, fps), identity)
