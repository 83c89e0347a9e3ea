"""The model `lifted` at 512x512 on scikit-image's portrait: one frame of a preset, with the warp op on each backend."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from fastface.ops import _native
from fastface.ops._verify import Verdict

from .harness import Case

SLUG = "lifted"
OPS = ("lifted_prepare", "lifted_render")
NEEDS = ("mediapipe", "skimage", "cv2")


def cases(device: str, quick: bool, compiled: bool) -> Iterator[Case]:
    """The stages of the model. It runs on CPUs alone, and needs the extra `demo` for a face to work on."""
    if device != "cpu" or any(importlib.util.find_spec(name) is None for name in NEEDS):
        return
    motions = ("talk",) if quick else ("talk", "shake", "idle")
    for op, motion in [("lifted_prepare", ""), *(("lifted_render", motion) for motion in motions)]:
        yield Case(
            op=op,
            shape="512x512",
            variant=motion,
            dtype="float32",
            layout="contiguous",
            batch=1,
            device=device,
            make=partial(_make, op, motion),
        )


def _make(op: str, motion: str) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], Verdict]]]:
    from skimage.data import astronaut

    from fastface.models.lifted import PRESETS, Lifted

    backends = {"eager": "reference"} | ({"cpu": "cpu"} if _native.reason_missing("cpu") is None else {})
    models = {provider: Lifted(backend=backend) for provider, backend in backends.items()}
    portrait = astronaut()
    if op == "lifted_prepare":
        return {"cpu" if "cpu" in models else "eager": partial(models["eager"].prepare, portrait)}, {}
    source = models["eager"].prepare(portrait)
    frames = [PRESETS[motion](index / 25) for index in range(100)]

    def check() -> Verdict:
        """The share of values that differ: a rounding of the flow may move an 8-bit value by a step here and there."""
        truth, result = (models[provider].render(source, frames[40]) for provider in ("eager", "cpu"))
        share = float(((truth - result).abs() > 0.5 / 255).float().mean())
        return Verdict(share, 1e-3, share <= 1e-3)

    contenders: dict[str, Callable[[], object]] = {}
    for provider, model in models.items():
        turn = itertools.cycle(frames)
        contenders[provider] = lambda model=model, turn=turn: _render(model, source, next(turn))
    return contenders, {"cpu": check} if "cpu" in models else {}


def _render(model, source, motion) -> torch.Tensor:
    with torch.inference_mode():
        return model.render(source, motion)
