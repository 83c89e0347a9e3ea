"""`fastface frontalize`: a portrait that looks straight ahead, and how far its head was and is turned (ARE)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastface.apps import _headgan as shared
from fastface.apps._common import beside, check_places, guarded

_EPILOG = """\
examples:
  fastface frontalize me.jpg                   me_frontal.png
  fastface frontalize me.jpg -o front.png --side-by-side
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("portrait", metavar="PORTRAIT", help="a photo with a face")
    parser.add_argument("-o", "--output", metavar="OUT", help=".png or .jpg (default: named after the portrait)")
    parser.add_argument("--face", type=int, metavar="N", help="which face of the photo, 1 being the largest")
    parser.add_argument("--side-by-side", action="store_true", help="show portrait, 3D face and result")
    shared.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("frontalize", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.face import FaceTracker
    from fastface.models.headgan import HeadGANMotion, metrics
    from fastface.models.headgan.edits import frontal

    output = Path(args.output or f"{Path(args.portrait).stem}_frontal.png")
    media.check_image_output(output)
    check_places([args.portrait, args.checkpoint, args.face_model], output)
    photo = shared.read_portrait(args.portrait)
    system = shared.make_system(args)
    source = shared.prepare(system, photo, args.portrait, args.face)
    motion = HeadGANMotion.of(frontal(source.parameters, system.model))
    frame = shared.to_image(system.render(source, motion)[0])
    picture = frame
    if args.side_by_side:
        picture = beside(shared.to_image(source.portrait[0]), shared.to_image(system.draw(source, motion)[0]), frame)
    media.write_image(output, picture)
    again = FaceTracker(system.model, system.landmarks, identity=source.parameters.identity)(frame)
    summary = {
        "output": str(output),
        "renderer": system.renderer,
        "are_before_degrees": round(metrics.are(source.parameters.camera.angles), 3),
        "are_after_degrees": None if again is None else round(metrics.are(again.camera.angles), 3),
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    print(shared.describe(system, args))
    after = "no face found again" if again is None else f"{summary['are_after_degrees']:.1f} degrees"
    print(f"mean turn of the head (ARE): {summary['are_before_degrees']:.1f} degrees before, {after} after")
    print(f"picture: {output}")
    return 0
