"""`fastface decode`: a face stream to video, on the portrait that it carries or on another."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastface.apps import _headgan as shared
from fastface.apps._common import UserError, beside, check_places, guarded, within

_EPILOG = """\
examples:
  fastface decode clip.ffs -o again.mp4
  fastface decode clip.ffs --portrait me.jpg --sound clip.mp4 -o me.mp4
  fastface decode clip.ffs --loss 5 --side-by-side             what a receiver sees when 5 % of the packets are lost
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("stream", metavar="STREAM", help="what `fastface encode` has written")
    parser.add_argument("-o", "--output", metavar="OUT", help="out.mp4, .mov, .mkv, .gif, or a folder of PNGs")
    parser.add_argument("--portrait", metavar="PHOTO", help="another portrait than the stream's own")
    parser.add_argument("--face", type=int, metavar="N", help="which face of the photo, 1 being the largest")
    parser.add_argument("--sound", metavar="FILE", help="put the sound of this file under the video")
    parser.add_argument("--side-by-side", action="store_true", help="show the 3D face next to the frame")
    parser.add_argument("--loss", type=float, default=0.0, metavar="PERCENT", help="lose packets at random, to see it")
    parser.add_argument("--measure", action="store_true", help="find the heads in the frames again, and report ARD")
    shared.add_recognizer_argument(parser)
    shared.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("decode", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.face import FaceTracker
    from fastface.media import face_stream
    from fastface.models.headgan import FaceTrack, metrics

    within("--loss", args.loss, 0, 100)
    if args.face is not None and args.portrait is None:
        raise UserError("--face needs --portrait: the stream's own portrait has one face")
    output = Path(args.output or f"{Path(args.stream).stem}_decoded.mp4")
    media.check_output(output)
    check_places([args.stream, args.portrait, args.sound, args.checkpoint, args.face_model], output)
    stream = face_stream.read_face_stream(args.stream)
    header = stream.header
    system = shared.make_system(args)
    header.check(system.model, weights_hash=shared.file_hash(args.checkpoint))
    notes = []
    if header.model_id != system.renderer:
        notes.append(f"the stream was made for {header.model_id}, {system.renderer} draws it")
    if header.reference is None and args.portrait is None:
        raise UserError(f"the stream carries no portrait, name one with --portrait: {args.stream}")
    decoder = face_stream.FaceStreamDecoder(header)
    frames = [frame for packet in _lossy(stream.packets, args.loss) for frame in decoder.push(packet)]
    if not frames:
        raise UserError(f"no frame of the stream can be decoded ({decoder.counts}): {args.stream}")
    if args.portrait or header.reference is None:
        source = shared.prepare(system, media.read_image(args.portrait), args.portrait, args.face)
    else:
        image = media.from_bytes(header.reference.image)
        source = system.prepare(image, parameters=header.reference.parameters)
    track = FaceTrack(
        torch.from_numpy(np.stack([frame.vector for frame in frames])),
        torch.tensor([frame.seconds for frame in frames], dtype=torch.float64),
        torch.tensor([frame.state != "no face" for frame in frames]),
        source.parameters.identity,
    )
    if args.portrait:
        track = track.adapted(source.parameters, relative=system.renderer == "lifted")
    else:
        width, height = header.quantizer.image_size
        if width != height:
            raise UserError(f"the stream's portrait must be square, got {width}x{height}: {args.stream}")
        track = track.in_crop((0, 0, width), args.size)
    audio = None
    if args.sound:
        audio, said = shared.audio_of(args.sound, None, header.fps, system, track, args.recognizer)
        notes += said
    judge = FaceTracker(system.model, identity=source.parameters.identity)
    turned, truth = [], []
    film = shared.Film(system, source, track, audio)
    with media.VideoWriter(output, fps=header.fps, audio=args.sound) as writer:
        for index, frame in film.frames():
            again = judge(frame) if args.measure else None
            if again is not None:
                turned.append(again.camera.angles[0])
                truth.append(track.parameters.camera.angles[index])
            film.write(writer, index, beside(film.face(index), frame) if args.side_by_side else frame)
    summary: dict[str, Any] = film.summary() | {
        "output": str(output),
        "renderer": system.renderer,
        "stream": asdict(decoder.counts),
        "broken": stream.broken,
        "notes": notes + ([stream.broken] if stream.broken else []) + writer.notes,
        "ard_degrees": round(metrics.ard(torch.stack(turned), torch.stack(truth)), 3) if turned else None,
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    shared.tell(summary, shared.describe(system, args))
    print(f"stream: {decoder.counts}")
    if args.measure:
        print(
            "ARD not measured, no face was found again" if not turned else f"ARD {summary['ard_degrees']:.2f} degrees"
        )
    print(f"video: {output}")
    return 0


def _lossy(packets: Sequence[bytes], percent: float) -> Sequence[bytes]:
    """The packets that arrive; the same ones every time."""
    kept = np.random.default_rng(0).random(len(packets)) * 100 >= percent
    return [packet for packet, arrives in zip(packets, kept, strict=True) if arrives]
