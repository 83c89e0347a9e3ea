"""What `fastface animate --model live_portrait` takes and makes, beside the command itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastface.apps._common import UserError, torch_device

if TYPE_CHECKING:
    from fastface.models.live_portrait import (
        LivePortrait,
        LivePortraitDriving,
        LivePortraitMotion,
        LivePortraitSource,
        MotionTemplate,
    )

TEMPLATES = (".safetensors", ".pkl", ".pickle")  # extensions of motion templates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--weights, --untrained and what only this model understands."""
    parser.add_argument("--weights", metavar="DIR", help="folder of LivePortrait's public weights")
    parser.add_argument("--untrained", action="store_true", help="random networks: for timing, the frames are noise")
    parser.add_argument("--animals", action="store_true", help="take the weights for animals in that folder")
    parser.add_argument(
        "--region",
        choices=("all", "exp", "pose", "lip", "eyes"),
        default="all",
        help="what may move: exp is the face without the head's pose (default: %(default)s)",
    )
    parser.add_argument("--absolute", action="store_true", help="take over the driver's own pose and expression")
    parser.add_argument(
        "--retarget",
        nargs="+",
        choices=("eyes", "lips"),
        default=[],
        help="open eyes or lips as far as the driver's, whatever the portrait's shape",
    )
    parser.add_argument("--no-stitching", action="store_true", help="do not fit the shoulders to the photo")
    parser.add_argument("--close-mouth", action="store_true", help="close the portrait's mouth before it moves")


def open_model(args: argparse.Namespace) -> LivePortrait:
    """The animator that the arguments describe, on a GPU where there is one."""
    from fastface.models.live_portrait import LivePortrait, LivePortraitConfig

    if args.weights is None and not args.untrained:
        raise UserError("--model live_portrait needs --weights DIR; --untrained tries it with random networks")
    if args.weights is not None and args.untrained:
        raise UserError("--weights and --untrained exclude one another")
    config = LivePortraitConfig(
        region=args.region, stitching=False if args.no_stitching else None, close_mouth=args.close_mouth
    )
    device = torch_device(getattr(args, "device", None))
    if args.untrained:
        print("note: untrained weights, what comes out is noise", file=sys.stderr)
        model = LivePortrait.from_random(config=config, backend=args.backend, device=device)
    else:
        model = LivePortrait.from_checkpoints(
            args.weights, animals=args.animals, config=config, backend=args.backend, device=device
        )
    return model.optimized()


def open_driver(model: LivePortrait, args: argparse.Namespace) -> LivePortraitDriving:
    """Frames of the driving video and their times to motions."""
    from fastface.models.live_portrait import LivePortraitDriving

    return LivePortraitDriving(model, relative=not args.absolute, smoothing=args.smoothing, retarget=args.retarget)


def open_template(args: argparse.Namespace) -> MotionTemplate | None:
    """The motion template that --driving names, or None for a video: its `at(seconds)` is the motion.

    Of its openings of eyes and lips those are kept that --retarget asks for, as of a video's.
    """
    from fastface.models.live_portrait import load_template

    if args.driving is None or Path(args.driving).suffix not in TEMPLATES:
        return None
    if args.absolute:
        raise UserError(f"--absolute is for a driving video, a motion template moves relatively, got {args.driving}")
    template = load_template(args.driving)
    return replace(
        template, motions=template.motions.with_ratios(eyes="eyes" in args.retarget, lips="lips" in args.retarget)
    )


def preset(name: str, source: LivePortraitSource) -> Callable[[float], LivePortraitMotion]:
    """A made motion as this model does it: pose, jaw and lids."""
    from fastface.models.lifted import PRESETS
    from fastface.models.live_portrait import from_controls

    return lambda seconds: from_controls(PRESETS[name](seconds), source)
