"""The models of `fastface animate`, each as the command calls it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastface.apps._common import Image, UserError, within

MODELS = ("lifted", "live_portrait", "style_mapping")
_ONLY: dict[str, tuple[str, Any]] = {  # options that one model alone understands, and their defaults
    "size": ("lifted", None),
    "animals": ("live_portrait", False),
    "region": ("live_portrait", "all"),
    "retarget": ("live_portrait", []),
    "no_stitching": ("live_portrait", False),
    "close_mouth": ("live_portrait", False),
}


@dataclass(frozen=True)
class Animator:
    """What the command needs of a model.

    Attributes:
        model: has `detect(photo)`, `prepare(photo, face=)` and `render_uint8(source, motion)`.
        driver: makes what turns frames of a driving video and their times into motions.
        preset: the motion of that name for a source, a function of seconds.
        clip: recorded motions instead of a driving video: `at(seconds)`, `fps` and a length.
        paste: for a source, what puts a frame back into its photo.
    """

    model: Any
    driver: Callable[[], Any]
    preset: Callable[[str, Any], Callable[[float], Any]]
    paste: Callable[[Any], Callable[[Image], Image]]
    clip: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, its weights and what only some models understand."""
    from fastface.apps import _live_portrait

    parser.add_argument(
        "--model",
        choices=MODELS,
        default="lifted",
        help="lifted needs no weights, the others do (default: %(default)s)",
    )
    _live_portrait.add_arguments(parser)


def check(args: argparse.Namespace) -> None:
    """Refuse options of another model."""
    from fastface.apps._live_portrait import TEMPLATES

    for name, (model, default) in _ONLY.items():
        if getattr(args, name) != default and args.model != model:
            raise UserError(f"--{name.replace('_', '-')} is for --model {model}, got --model {args.model}")
    if args.model == "lifted":
        for name in ("weights", "untrained", "absolute"):
            if getattr(args, name):
                raise UserError(f"--{name} is for --model live_portrait or style_mapping, got --model lifted")
    if args.driving and Path(args.driving).suffix in TEMPLATES and args.model != "live_portrait":
        raise UserError(f"a motion template is for --model live_portrait, got {args.driving}")
    if args.driving and Path(args.driving).suffix in TEMPLATES and args.smoothing != 1:
        raise UserError(f"--smoothing is for a driving video, got the motion template {args.driving}")
    if args.model == "live_portrait" and args.absolute and (args.pose_strength, args.expression_strength) != (1, 1):
        raise UserError("--pose-strength and --expression-strength scale relative motions, not those of --absolute")
    within("--size", args.size, 64, 2048)


def open_animator(args: argparse.Namespace) -> Animator:
    """The animator that the arguments describe; refuses before any work is done."""
    return {"lifted": _lifted, "live_portrait": _live_portrait, "style_mapping": _style_mapping}[args.model](args)


def _lifted(args: argparse.Namespace) -> Animator:
    import torch

    from fastface import ops
    from fastface.models.lifted import PRESETS, DrivingMotion, Lifted, LiftedConfig

    point = torch.zeros(1, 1, 3)
    ops.motion_field(torch.zeros(1, 2, 1, 1, 1), point, point, backend=args.backend)  # refuses a backend by itself
    return Animator(
        model=Lifted(LiftedConfig(size=args.size or 512), backend=args.backend),
        driver=lambda: DrivingMotion(smoothing=args.smoothing),
        preset=lambda name, source: PRESETS[name],
        paste=_Paste,
    )


def _live_portrait(args: argparse.Namespace) -> Animator:
    from fastface.apps import _live_portrait as shared

    clip = shared.open_template(args)
    model = shared.open_model(args)
    return Animator(
        model=model,
        driver=lambda: shared.open_driver(model, args),
        preset=shared.preset,
        paste=lambda source: source.paste,
        clip=clip,
    )


def _style_mapping(args: argparse.Namespace) -> Animator:
    from fastface.apps import _style_mapping as shared

    shared.check_weights(args.weights, args.untrained, "--weights")
    model = shared.Animator(shared.open_model(args.weights, args.backend))
    return Animator(
        model=model,
        driver=lambda: shared.VideoDriving(model, relative=not args.absolute, smoothing=args.smoothing),
        preset=shared.preset,
        paste=_Paste,
    )


class _Paste:
    """Put a rendered crop back into its photo; pixels that did not change stay exactly what they were."""

    def __init__(self, source: Any) -> None:
        self._photo = source.photo.numpy()
        self._portrait = source.portrait.numpy()
        self._box = source.box
        side = len(self._portrait)
        edge = np.minimum(np.arange(side), np.arange(side)[::-1]) / max(1, side // 16)
        self._inside = np.clip(np.minimum(edge[:, None], edge), 0, 1).astype(np.float32)

    def __call__(self, frame: Image) -> Image:
        import cv2

        x0, y0, side = self._box
        changed = (cv2.absdiff(frame, self._portrait).max(2) > 0).astype(np.uint8) * 255
        changed = cv2.blur(cv2.dilate(changed, np.ones((9, 9), dtype=np.uint8)), (7, 7)) * self._inside
        how = cv2.INTER_AREA if side < frame.shape[0] else cv2.INTER_CUBIC
        mask = cv2.resize(changed, (side, side), interpolation=cv2.INTER_LINEAR)[..., None] / 255
        crop = cv2.resize(frame, (side, side), interpolation=how)
        out = self._photo.copy()
        under = out[y0 : y0 + side, x0 : x0 + side]
        out[y0 : y0 + side, x0 : x0 + side] = np.rint(under + mask * (crop.astype(np.float32) - under)).astype(np.uint8)
        return out
