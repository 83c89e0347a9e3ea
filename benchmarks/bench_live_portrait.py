"""LivePortrait's networks at their published sizes: what depends on a frame, in plain PyTorch, optimised, and with
convolutions in 16 bits.

On a GPU the baselines are what its users run: eager under autocast, and torch.compile with max-autotune.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from fastface import engine
from fastface.models.style_mapping import DecoderConfig, SPADEDecoder, WarpingConfig, WarpingNetwork
from fastface.ops._verify import Verdict

from .harness import Case, Contenders

SLUG = "live_portrait"
OPS = ("live_portrait_warping", "live_portrait_decoder", "live_portrait_frame")
FLOPS = {OPS[0]: 342_100_000_000, OPS[1]: 891_600_000_000, OPS[2]: 1_233_700_000_000}  # of the plain networks


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """Batch 1, random weights: the time does not depend on them."""
    for op in OPS[:2] if quick else OPS:
        yield Case(
            op=op,
            shape="512x512",
            variant="",
            dtype="float32" if device == "cpu" else "float16",
            layout="contiguous",
            batch=1,
            device=device,
            make=partial(_make, op, device, compiled),
            flops=FLOPS[op],
            kernels=True,
        )


class Frame(nn.Module):
    """Warping and decoder, or one of them, from what they are given per frame."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.warping = WarpingNetwork(WarpingConfig(keypoints=21)) if op != OPS[1] else None
        self.decoder = SPADEDecoder(DecoderConfig(upscale=2)) if op != OPS[0] else None

    def forward(self, features: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        if self.warping is not None:
            features = self.warping(self.source, kp_source, kp_driving).features
        return features if self.decoder is None else self.decoder(features)

    def prepared(self, volume: Tensor) -> Frame:
        self.source = None if self.warping is None else self.warping.prepare(volume)
        return self


def _make(op: str, device: str, compiled: bool) -> Contenders:
    torch.manual_seed(0)
    with torch.device(device):
        plain = Frame(op).eval().requires_grad_(False)
        volume, features = torch.randn(1, 32, 16, 64, 64), torch.randn(1, 256, 64, 64)
        kp_source = torch.rand(1, 21, 3) - 0.5
        kp_driving = kp_source + 0.05 * torch.randn(1, 21, 3)
    given = features, kp_source, kp_driving
    models: dict[str, nn.Module] = {"plain": plain, "optimized": engine.optimize(plain)}
    contenders: dict[str, Callable[[], Tensor]] = {}
    with torch.inference_mode():
        if device == "cpu":
            models["bfloat16"] = engine.reduce_convs(models["optimized"], torch.bfloat16)
            for name, model in models.items():
                contenders[name] = partial(_run, model.prepared(volume), given)
        else:
            reduced = engine.reduce_convs(models["optimized"], torch.float16)
            autocast = copy.deepcopy(plain).prepared(volume)
            contenders = {
                "eager": partial(_autocast, autocast, given),
                "optimized": partial(_run, reduced.prepared(volume), given),
            }
            if compiled:
                half = copy.deepcopy(plain).half().prepared(volume.half())
                fast = torch.compile(half, mode="max-autotune-no-cudagraphs", fullgraph=True)
                contenders["compile"] = partial(_run, fast, tuple(each.half() for each in given))
        truth = _run(plain.prepared(volume), given)

    def check(name: str, limit: float) -> Verdict:
        error = float((truth - contenders[name]().float()).abs().max() / (truth.max() - truth.min()))
        return Verdict(error, limit, error <= limit)

    # In 16 bits an error of the flow moves the white noise of these features: a bound of sense, not of rounding.
    limits = {"optimized": 1e-4 if device == "cpu" else 0.1, "bfloat16": 0.1, "compile": 0.1}
    checks = {name: partial(check, name, limit) for name, limit in limits.items() if name in contenders}
    return contenders, checks


def _run(model: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    with torch.inference_mode():
        return model(*given)


def _autocast(model: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        return model(*given)
