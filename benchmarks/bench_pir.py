"""PIR and EG3D at their published sizes: planes, whole frames, and expressions from sound.

"eager" is plain PyTorch as the papers write it (`plain_pir`): weights modulated per sample, rendering by the op's
reference, the decoder over the whole past for every frame. On a GPU it runs under autocast, ours in float16 throughout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from fastface import engine
from fastface.models.pir import (
    DecoderConfig,
    ExpressionDecoder,
    GeneratorConfig,
    InpaintingGenerator,
    TriplaneGenerator,
    diagonal_fov,
    orbit,
)
from fastface.ops._verify import Verdict

from . import plain_pir
from .harness import Case, Contenders

SLUG = "pir"
OPS = ("pir_synthesis", "pir_frame", "eg3d_frame", "pir_expressions")
FLOPS = {OPS[0]: 93_900_000_000, OPS[2]: 294_800_000_000}
FRAMES = 600
_LAST, _ALL = f"frame {FRAMES}", f"{FRAMES} frames"


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Batch 1, random weights. All 600 frames over again for each of them take minutes to time on a CPU: by default it
    is the last one alone.
    """
    for op, shape in ((OPS[0], "256x256"), (OPS[1], "512x512"), (OPS[2], "512x512")):
        if not quick or op == OPS[0]:
            dtype = "float32" if device == "cpu" else "float16"
            yield _case(op, shape, dtype, device, partial(_make, op, device), FLOPS.get(op, 0))
    for shape, rounds in ((_LAST, 7),) if quick else ((_LAST, 7), (_ALL, 2)):
        make = partial(_expressions, device, shape == _ALL)
        yield replace(_case(OPS[3], shape, "float32", device, make), rounds=rounds)


def _case(op: str, shape: str, dtype: str, device: str, make: Callable[[], Contenders], flops: int = 0) -> Case:
    return Case(
        op=op,
        shape=shape,
        variant="",
        dtype=dtype,
        layout="contiguous",
        batch=1,
        device=device,
        make=make,
        flops=flops,
        kernels=device == "cuda",
    )


class Frame(nn.Module):
    """Styles to planes (pir_synthesis), on to features and an image (eg3d_frame), or to a painted frame (pir_frame)."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op
        self.generator = TriplaneGenerator(GeneratorConfig() if op == "pir_frame" else GeneratorConfig.eg3d())
        self.inpainter = InpaintingGenerator() if op == "pir_frame" else None

    def forward(self, styles: Tensor, pose: Tensor, intrinsics: Tensor, masked: Tensor) -> Tensor:
        planes = self.generator.planes(styles)
        if self.op == "pir_synthesis":
            return planes
        seen = self.generator.render(planes, pose, intrinsics)
        if self.inpainter is None:
            return self.generator.image(seen.features, styles)
        return self.inpainter(masked, seen.features)


class PlainFrame(Frame):
    """The same in plain PyTorch."""

    def planes(self, styles: Tensor) -> Tensor:
        return plain_pir.synthesis(self.generator.synthesis, styles).unflatten(1, (3, -1))

    def forward(self, styles: Tensor, pose: Tensor, intrinsics: Tensor, masked: Tensor) -> Tensor:
        planes = self.planes(styles)
        if self.op == "pir_synthesis":
            return planes
        seen = self.generator.render(planes, pose, intrinsics)
        if self.inpainter is None:
            assert self.generator.superresolution is not None
            return plain_pir.super_resolution(self.generator.superresolution, seen.features, styles[:, -1])
        return self.inpainter(masked, seen.features)


def _make(op: str, device: str) -> Contenders:
    torch.manual_seed(0)
    with torch.device(device):
        plain = Frame(op).eval().requires_grad_(False)
        given = torch.randn(1, 14, 512), orbit(10).to(device), diagonal_fov().to(device), torch.rand(1, 3, 512, 512)
    eager = copy.deepcopy(plain)
    eager.__class__ = PlainFrame
    for part in eager.modules():
        if hasattr(part, "backend"):
            part.backend = "reference"
    contenders: dict[str, Callable[[], Tensor]]
    if device == "cpu":
        fast = engine.optimize(plain)
        contenders = {
            "eager": partial(_run, eager, given),
            "plain": partial(_run, plain, given),
            "optimized": partial(_run, fast, given),
            "bfloat16": partial(_run, engine.reduce_convs(fast), given),
        }
        if op == "pir_synthesis":  # what static weights and their layout give without another algorithm
            contenders["static"] = partial(_run, engine.optimize(plain, winograd=False), given)
    else:
        half = engine.optimize(copy.deepcopy(plain).half())
        narrow = given[0].half(), *given[1:3], given[3].half()
        contenders = {"eager": partial(_autocast, eager, given), "optimized": partial(_run, half, narrow)}
    truth = _run(eager, given)
    # Random networks amplify what 16 bits round in the planes: a bound of sense.
    return contenders, _checks(contenders, truth, 1e-4 if device == "cpu" else 0.05, bfloat16=0.05)


def _checks(
    contenders: dict[str, Callable[[], Tensor]], truth: Tensor, limit: float, **limits: float
) -> dict[str, Callable[[], Verdict]]:
    """All but the baseline, held to a share of the range of its values."""

    def check(name: str) -> Verdict:
        error = float((truth - contenders[name]().float()).abs().max() / (truth.max() - truth.min()))
        allowed = limits.get(name, limit)
        return Verdict(error, allowed, error <= allowed)

    return {name: partial(check, name) for name in contenders if name != "eager"}


def _run(model: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Tensor:
    with torch.inference_mode():
        return model(*given)


def _autocast(model: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        return model(*given)


@torch.inference_mode()
def _expressions(device: str, every: bool) -> Contenders:
    """Every frame or the last one: from the whole past again, or from what was kept of it, with narrow weights too."""
    torch.manual_seed(0)
    with torch.device(device):
        decoder = ExpressionDecoder(DecoderConfig()).eval().requires_grad_(False)
        audio, style = torch.randn(1, FRAMES, decoder.config.audio), torch.randn(1, decoder.config.style)
    plain = plain_pir.Recomputing(decoder, FRAMES)
    own = decoder.style(style)[:, None]
    past = torch.cat([own, decoder.encode(decoder(audio, style)[:, :-1]) + own], 1), decoder.audio_map(audio)
    truth = plain.prefix(*past)  # only the right past gives itself again
    ours = {"kept": decoder, "bfloat16": decoder.narrowed()}
    contenders: dict[str, Callable[[], Tensor]]
    if every:
        contenders = {name: partial(_run, model, (audio, style)) for name, model in {"eager": plain, **ours}.items()}
    else:
        truth = truth[:, -1]
        contenders = {"eager": partial(_run, plain.prefix, past)}
        contenders |= {name: _last_step(each, audio, style) for name, each in ours.items()}
    return contenders, _checks(contenders, truth, 1e-4, bfloat16=0.02)  # a few roundings of 2^-9 each


def _last_step(decoder: ExpressionDecoder, audio: Tensor, style: Tensor) -> Callable[[], Tensor]:
    state = decoder.start(style)
    for frame in range(FRAMES - 1):
        decoder.step(state, audio[:, frame])
    token = state.token

    def step() -> Tensor:
        state.token = token
        for memory in state.memories:
            memory.length = FRAMES - 1  # so that it is the same frame again
        with torch.inference_mode():
            return decoder.step(state, audio[:, -1])

    return step
