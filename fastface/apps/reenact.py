"""`fastface reenact`: the face of a driving video moves a portrait, through HeadGAN's whole chain."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastface.apps import _headgan as shared
from fastface.apps._common import beside, check_places, check_seconds, guarded, within

_EPILOG = """\
examples:
  fastface reenact me.jpg --driving clip.mp4                      me_clip.mp4
  fastface reenact me.jpg --driving clip.mp4 --checkpoint headgan.safetensors --side-by-side
  fastface reenact --driving clip.mp4 -o out.gif                  the astronaut that scikit-image ships

Every frame of the driving video becomes 28 expression coefficients and 7 camera numbers of a 3D face. The camera is
adapted to the portrait (its size, its place), the face is drawn with the portrait's identity, and the frame is made of
that. Every file says in its metadata that it is synthetic. Needs: pip install 'fastface-kernels[face,video]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("portrait", nargs="?", metavar="PORTRAIT", help="a photo with a face")
    parser.add_argument("--driving", metavar="VIDEO", required=True, help="a video of a face to follow")
    parser.add_argument("-o", "--output", metavar="OUT", help="out.mp4, .mov, .mkv, .gif, or a folder of PNGs")
    parser.add_argument("--seconds", type=float, metavar="S", help="of the driving video (default: all of it)")
    parser.add_argument("--face", type=int, metavar="N", help="which face of the photo, 1 being the largest")
    parser.add_argument(
        "--smoothing", type=float, default=1.0, metavar="X", help="of the parameters, 0 is none (default: 1)"
    )
    expression = parser.add_mutually_exclusive_group()
    expression.add_argument(
        "--relative",
        action="store_true",
        default=None,
        help="take the expression of the first driving frame as neutral (default without trained weights)",
    )
    expression.add_argument(
        "--absolute",
        action="store_false",
        dest="relative",
        help="take expressions as they are, as published (default with trained weights)",
    )
    parser.add_argument("--side-by-side", action="store_true", help="show driving frame, 3D face and frame")
    parser.add_argument("--contact-sheet", metavar="PATH", help="also write a picture of eight frames, .png or .jpg")
    shared.add_recognizer_argument(parser)
    shared.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("reenact", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.face import FaceTracker

    check_seconds(args.seconds)
    within("--smoothing", args.smoothing, 0, 100)
    stem = Path(args.portrait).stem if args.portrait else "astronaut"
    output = Path(args.output or f"{stem}_{Path(args.driving).stem}.mp4")
    sheet = None if args.contact_sheet is None else Path(args.contact_sheet)
    media.check_output(output)
    if sheet is not None:
        media.check_image_output(sheet)
    check_places([args.portrait, args.driving, args.checkpoint, args.face_model, args.face_landmarks], output, sheet)
    photo = shared.read_portrait(args.portrait)
    with media.VideoReader(args.driving) as reader:
        system = shared.make_system(args)
        source = shared.prepare(system, photo, args.portrait, args.face)
        track = shared.follow(reader, FaceTracker(system.model), args.seconds)
    relative = system.renderer == "lifted" if args.relative is None else args.relative
    adapted = track.smoothed(args.smoothing).adapted(source.parameters, relative=relative)
    with media.VideoReader(args.driving) as reader:
        sound, audio, notes = None, None, list[str]()
        if reader.has_audio:
            sound = args.driving
            audio, notes = shared.audio_of(sound, reader.start, reader.fps, system, adapted, args.recognizer)
        film = shared.Film(system, source, adapted, audio)
        driving = iter(reader)
        with media.VideoWriter(output, fps=reader.fps, audio=sound, audio_start=reader.start) as writer:
            for index, frame in film.frames():
                image, _ = next(driving)
                film.write(writer, index, beside(image, film.face(index), frame) if args.side_by_side else frame)
    if reader.broken:
        notes.append(f"the driving video breaks off after {len(track)} frames: {reader.broken}")
    if sheet is not None:
        media.write_image(sheet, media.contact_sheet(film.sampler.frames()))
    summary = film.summary() | {
        "output": str(output),
        "contact_sheet": None if sheet is None else str(sheet),
        "renderer": system.renderer,
        "relative": relative,
        "notes": notes + writer.notes,
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    shared.tell(summary, shared.describe(system, args))
    print(f"video: {output}")
    if sheet is not None:
        print(f"contact sheet: {sheet}")
    return 0
