"""`fastface orbit`: a turntable video of a fitted tri-plane, or of what an EG3D generator makes."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastface.apps._common import (
    Clock,
    Image,
    Sampler,
    UserError,
    check_places,
    check_seconds,
    guarded,
    tell_notes,
    within,
)
from fastface.apps._headgan import progress, to_image
from fastface.apps._style_mapping import device

if TYPE_CHECKING:
    from fastface.models.pir import Rendering
    from fastface.ops.triplane import PlaneDecoder

_EPILOG = """\
examples:
  fastface orbit --weights head.safetensors                           of fastface fit-triplane: a full turn
  fastface orbit --weights ffhq.safetensors --seed 7 -o seven.mp4     an EG3D generator: 35 degrees to either side
  fastface orbit --weights head.safetensors --yaw -60 60 --pitch 15 --size 512

EG3D's pickles are converted first: fastface convert ffhqrebalanced512-64.pkl ffhq.safetensors
Rays go through the fused kernel `triplane`, the fastest backend that there is. Every file says in its metadata that it
is synthetic. Needs: pip install 'fastface-kernels[video]'
"""
_WITHOUT = (
    "needs --weights FILE: `fastface fit-triplane` makes one without any download, "
    "`fastface convert` one of EG3D's pickles"
)
_SWING = 35.0  # degrees to which EG3D's faces have been seen often


class _Subject(NamedTuple):
    """What turns."""

    camera: Callable[[float, float], Tensor]  # yaw and pitch, degrees, to a pose [1, 4, 4]
    render: Callable[[Tensor], Tensor]  # a pose to a picture [3, H, W] in [0, 1]
    yaw: tuple[float, float]
    backend: str

    def picture(self, yaw: float, pitch: float) -> Image:
        return to_image(self.render(self.camera(yaw, pitch)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("--weights", metavar="FILE", help="a fitted tri-plane, or an EG3D generator, .safetensors")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="out.mp4, .mov, .mkv, .gif, or a folder of PNGs (default: named after FILE)",
    )
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="length (default: %(default)g)")
    parser.add_argument("--fps", type=float, default=25.0, metavar="N", help="frames a second (default: %(default)g)")
    parser.add_argument(
        "--size", type=int, metavar="PX", help="side of a frame (default: 256; EG3D's have the generator's)"
    )
    parser.add_argument(
        "--yaw",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="degrees, there and back, or round for 360 (default: 0 360; EG3D -35 35)",
    )
    parser.add_argument("--pitch", type=float, default=0.0, metavar="DEG", help="from above (default: %(default)g)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the face that EG3D makes (default: 0)")
    parser.add_argument("--truncation", type=float, metavar="X", help="of it, 0 is the average face (default: 0.7)")
    parser.add_argument("--contact-sheet", metavar="PATH", help="also write a picture of eight frames, .png or .jpg")
    parser.add_argument(
        "--backend", choices=("reference", "cpu", "triton", "cuda"), help="of the op (default: fastest)"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("orbit", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media

    _check(args)
    output = Path(args.output or f"{Path(args.weights).stem}_orbit.mp4")
    sheet = None if args.contact_sheet is None else Path(args.contact_sheet)
    media.check_output(output)
    if sheet is not None:
        media.check_image_output(sheet)
    check_places([args.weights], output, sheet)
    subject = _open(args)
    yaws = _yaws(tuple(args.yaw or subject.yaw), max(1, round(args.seconds * args.fps)))
    clock, sampler = Clock(), Sampler(8)
    with media.VideoWriter(output, fps=args.fps) as writer:
        for yaw in progress(yaws, "rendering", len(yaws)):
            frame = clock.time("frame", subject.picture, yaw, args.pitch)
            sampler.add(frame)
            writer.write(frame)
    if sheet is not None:
        media.write_image(sheet, media.contact_sheet(sampler.frames()))
    summary = {
        "output": str(output),
        "contact_sheet": None if sheet is None else str(sheet),
        "frames": writer.frames,
        "milliseconds": {stage: round(value, 2) for stage, value in clock.medians().items()},
        "backend": subject.backend,
        "notes": writer.notes,
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    tell_notes(writer.notes)
    median = clock.medians()["frame"]
    print(f"{writer.frames} frames, {median:.1f} ms each (median); tri-planes rendered by backend {subject.backend}")
    print(f"video: {output}")
    if sheet is not None:
        print(f"contact sheet: {sheet}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.weights is None:
        raise UserError(_WITHOUT)
    if not Path(args.weights).is_file():
        raise UserError(f"no such file: {args.weights}")
    if Path(args.weights).suffix == ".pkl":
        converted = Path(args.weights).with_suffix(".safetensors").name
        raise UserError(f"a pickle is converted first: fastface convert {args.weights} {converted}")
    check_seconds(args.seconds)
    within("--fps", args.fps, 1, 240)
    within("--size", args.size, 16, 2048)
    within("--pitch", args.pitch, -80, 80)
    within("--truncation", args.truncation, 0, 1)
    for yaw in args.yaw or ():
        within("--yaw", yaw, -720, 720)


def _yaws(span: tuple[float, float], frames: int) -> list[float]:
    """Round and round where `span` is a full turn, else there and back, so that the video's end meets its start."""
    start, end = span
    if (end - start) % 360 == 0:
        return [start + (end - start) * index / frames for index in range(frames)]
    return [start + (end - start) * (1 - math.cos(2 * math.pi * index / frames)) / 2 for index in range(frames)]


def _open(args: argparse.Namespace) -> _Subject:
    from fastface.models.pir import holds_fitted_head

    return _fitted(args) if holds_fitted_head(args.weights) else _generated(args)


def _fitted(args: argparse.Namespace) -> _Subject:
    from fastface.models.pir import FittedHead, head_cameras

    for option in ("seed", "truncation"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option} is for EG3D's weights, and {args.weights} is a fitted tri-plane")
    head = FittedHead.load(args.weights).to(device())
    size = args.size or 256

    def render(pose: Tensor) -> Tensor:
        return head.render(pose.to(head.planes.device), size, backend=args.backend)[0]

    return _Subject(
        head_cameras, render, (0.0, 360.0), _backend(head.rendering, head.planes, head.decoder, args.backend)
    )


@torch.inference_mode()
def _generated(args: argparse.Namespace) -> _Subject:
    from fastface.models.pir import camera_vector, diagonal_fov, load_generator, orbit, plane_decoder

    generator = load_generator(args.weights).to(device()).eval()
    generator.backend = args.backend
    if args.size is not None:
        side = generator.config.image
        raise UserError(f"--size is for fitted tri-planes: this generator makes {side}x{side}")
    random = torch.Generator().manual_seed(args.seed or 0)
    latent = torch.randn(1, generator.config.latent, generator=random).to(device())
    fov = diagonal_fov().to(device())
    condition = camera_vector(orbit(0.0).to(device()), fov)
    truncation = 0.7 if args.truncation is None else args.truncation
    styles = generator.styles(latent, condition, truncation=truncation)
    planes = generator.planes(styles)

    @torch.inference_mode()
    def render(pose: Tensor) -> Tensor:
        features = generator.render(planes, pose.to(device()), fov).features
        return ((generator.image(features, styles)[0] + 1) / 2).clamp(0, 1)

    backend = _backend(generator.config.rendering, planes, plane_decoder(generator.decoder), args.backend)
    return _Subject(orbit, render, (-_SWING, _SWING), backend)


def _backend(rendering: Rendering, planes: Tensor, decoder: PlaneDecoder, wanted: str | None) -> str:
    """Which one renders."""
    from fastface.ops.triplane import registry

    ray = planes.new_ones(1, 1, 3)
    with torch.no_grad():
        call = registry.build("render_planes", planes, ray, ray, decoder, **asdict(rendering))
    return registry.choose(call, wanted or "")[0]
