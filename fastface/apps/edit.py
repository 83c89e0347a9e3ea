"""`fastface edit`: a picture of a portrait with other poses and expressions, one tile for each."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastface.apps import _headgan as shared
from fastface.apps._common import UserError, check_places, guarded, labelled, within

_EPILOG = """\
examples:
  fastface edit me.jpg                                        a grid of turns and expressions
  fastface edit me.jpg --yaw 15 --expression 0=1.5            one edit
  fastface edit me.jpg --yaw -20 0 20 --expression smile_left=1 --expression jaw_open=0,0.5,1
  fastface edit --list                                        the expressions by number and name

A list of values makes a row (poses) or a column (expressions) of tiles. Angles are degrees beyond the portrait's own
pose: yaw > 0 turns the face to the image's right, pitch > 0 raises the chin, roll > 0 tilts the head clockwise.
Expression coefficients are added to the portrait's own; 1 is a full expression.
"""
_MOST = 100  # tiles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("portrait", nargs="?", metavar="PORTRAIT", help="a photo with a face")
    parser.add_argument("-o", "--output", metavar="OUT", help=".png or .jpg (default: named after the portrait)")
    for name in ("yaw", "pitch", "roll"):
        parser.add_argument(f"--{name}", nargs="+", default=["0"], metavar="DEG", help="degrees from -60 to 60")
    parser.add_argument(
        "--expression",
        action="append",
        default=[],
        metavar="NAME=VALUE[,VALUE...]",
        help="a coefficient by its number or name, from -3 to 3; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="print the expressions of the face model and stop")
    parser.add_argument("--face", type=int, metavar="N", help="which face of the photo, 1 being the largest")
    parser.add_argument("--show-3d", action="store_true", help="draw the 3D face next to every tile")
    shared.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("edit", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.face import built_in_head, load_face_model
    from fastface.models.headgan import HeadGANMotion
    from fastface.models.headgan.edits import express, turn

    if args.list:
        model = load_face_model(args.face_model) if args.face_model else built_in_head()
        names = model.expression_names or [""] * model.expressions
        print("\n".join(f"{index:>3} {name}" for index, name in enumerate(names)))
        return 0
    turns = {name: _degrees(name, args) for name in ("yaw", "pitch", "roll")}
    expressions = [_expression(text) for text in args.expression]
    if not args.expression and all(values == [0.0] for values in turns.values()):
        turns["yaw"] = [-20.0, 0.0, 20.0]
        expressions = [("jaw_open", [0.0, 0.5])] if not args.face_model else [("0", [0.0, 1.0])]
    named = [key for key, _ in expressions]
    if len(set(named)) < len(named):
        raise UserError(f"--expression must name each coefficient once, with commas between values, got {named}")
    rows = list(itertools.product(*([(key, value) for value in values] for key, values in expressions))) or [()]
    columns = list(itertools.product(*turns.values()))
    if len(rows) * len(columns) > _MOST:
        raise UserError(f"at most {_MOST} tiles fit into one picture, got {len(rows)} x {len(columns)}")
    stem = Path(args.portrait).stem if args.portrait else "astronaut"
    output = Path(args.output or f"{stem}_edited.png")
    media.check_image_output(output)
    check_places([args.portrait, args.checkpoint, args.face_model], output)
    photo = shared.read_portrait(args.portrait)
    system = shared.make_system(args)
    source = shared.prepare(system, photo, args.portrait, args.face)
    own = source.parameters
    lines = []
    tiles = shared.progress(itertools.product(rows, columns), "editing", len(rows) * len(columns))
    for changes, (yaw, pitch, roll) in tiles:
        moved = turn(express(own, system.model, dict(changes)), system.model, yaw=yaw, pitch=pitch, roll=roll)
        motion = HeadGANMotion.of(moved)
        tile = shared.to_image(system.render(source, motion)[0])
        if args.show_3d:
            tile = np.concatenate([shared.to_image(system.draw(source, motion)[0]), tile], 1)
        lines.append(labelled(tile, _label(changes, yaw, pitch, roll)))
    picture = media.contact_sheet(lines, columns=len(columns), side=lines[0].shape[0])
    media.write_image(output, picture)
    if args.json:
        print(json.dumps({"output": str(output), "renderer": system.renderer, "tiles": len(lines)}))
        return 0
    print(shared.describe(system, args))
    print(f"picture of {len(lines)} tiles: {output}")
    return 0


def _degrees(name: str, args: argparse.Namespace) -> list[float]:
    """The numbers of an angle; a portrait that follows them is not one of them."""
    words = list(getattr(args, name))
    try:
        float(words[-1])
    except ValueError:
        if args.portrait is None and len(words) > 1:
            args.portrait = words.pop()
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise UserError(f"--{name} must be numbers, got {' '.join(words)!r}") from None
    for value in values:
        within(f"--{name}", value, -60, 60)
    return values


def _expression(text: str) -> tuple[str, list[float]]:
    key, equals, numbers = text.partition("=")
    try:
        values = [float(part) for part in numbers.split(",")]
    except ValueError:
        equals = ""
    if not key or not equals:
        raise UserError(f"--expression must be NAME=VALUE or NAME=VALUE,VALUE..., got {text!r}")
    for value in values:
        within(f"--expression {key}", value, -3, 3)
    return key, values


def _label(changes: Sequence[tuple[str, float]], yaw: float, pitch: float, roll: float) -> str:
    turns = [f"{name} {value:+g}" for name, value in (("yaw", yaw), ("pitch", pitch), ("roll", roll)) if value]
    return ", ".join(turns + [f"{key} {value:+g}" for key, value in changes if value]) or "portrait"
