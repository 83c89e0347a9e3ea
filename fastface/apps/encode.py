"""`fastface encode`: a video of a face to a face stream, 35 numbers a frame in a few kbit/s."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fastface.apps import _headgan as shared
from fastface.apps._common import UserError, check_places, check_seconds, guarded, within

_EPILOG = """\
examples:
  fastface encode clip.mp4                             clip.ffs, with the first frame as the portrait to be moved
  fastface encode clip.mp4 --portrait me.jpg           the clip moves me.jpg
  fastface encode clip.mp4 --live --frames-per-packet 1    as a call would send it: fixed steps, no delay
  fastface decode clip.ffs -o again.mp4

The coefficients mean something on one morphable model only; the stream carries its hash, and with --checkpoint that of
the weights, for which it cuts the portrait as they know it. docs/face_stream.md has the
format. The parameters of a face are personal data, and the stream is not encrypted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("video", metavar="VIDEO", help="a video of a face")
    parser.add_argument("-o", "--output", metavar="OUT", help="the stream (default: named after the video, .ffs)")
    parser.add_argument("--portrait", metavar="PHOTO", help="the photo to be moved (default: the video's first frame)")
    parser.add_argument("--face", type=int, metavar="N", help="which face of the photo, 1 being the largest")
    parser.add_argument("--no-reference", action="store_true", help="leave the portrait out; the receiver has its own")
    parser.add_argument("--seconds", type=float, metavar="S", help="of the video (default: all of it)")
    parser.add_argument("--smoothing", type=float, default=0.0, metavar="X", help="of the parameters (default: 0)")
    parser.add_argument(
        "--live", action="store_true", help="fixed steps in place of steps fitted to the recording's ranges"
    )
    parser.add_argument("--frames-per-packet", type=int, default=2, metavar="N", help="1 to 8 (default: %(default)s)")
    parser.add_argument("--key-interval", type=int, default=25, metavar="N", help="in frames (default: %(default)s)")
    shared.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("encode", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.face import FaceTracker
    from fastface.media import face_stream
    from fastface.media.face_stream import Quantizer, Reference, StreamHeader

    check_seconds(args.seconds)
    within("--smoothing", args.smoothing, 0, 100)
    within("--frames-per-packet", args.frames_per_packet, 1, 8)
    within("--key-interval", args.key_interval, 1, 65535)
    output = Path(args.output or f"{Path(args.video).stem}.ffs")
    if output.suffix.lower() != ".ffs":
        raise UserError(f"the stream's extension must be .ffs, got {output.suffix or 'none'}: {output}")
    check_places([args.video, args.portrait, args.face_model], output)
    system = shared.make_system(args)
    with media.VideoReader(args.video) as reader:
        photo = media.read_image(args.portrait) if args.portrait else next(iter(reader))[0]
    source = shared.prepare(system, photo, args.portrait or args.video, args.face)
    own = source.parameters
    with media.VideoReader(args.video) as reader:
        tracker = FaceTracker(system.model, identity=None if args.portrait else own.identity)
        track = shared.follow(reader, tracker, args.seconds).smoothed(args.smoothing)
        fps = reader.fps
    track = track.adapted(own, relative=True) if args.portrait else track.in_crop(source.box, args.size)
    vectors = [row if found else None for row, found in zip(track.vectors.numpy(), track.found.tolist(), strict=True)]
    area = (args.size, args.size)
    if args.live:
        quantizer = Quantizer.physical(system.model.expressions, area)
    else:
        quantizer = Quantizer.adaptive(np.stack([row for row in vectors if row is not None]), area)
    reference = None
    if not args.no_reference:
        reference = Reference.of(media.to_jpeg(shared.to_image(source.portrait[0])), own)
    header = StreamHeader(
        system.renderer,
        system.model.content_hash,
        quantizer,
        fps=fps,
        key_interval=args.key_interval,
        weights_hash=shared.file_hash(args.checkpoint),
        reference=reference,
    )
    frames = zip(vectors, track.seconds.tolist(), strict=True)
    packets = list(face_stream.encode_face_stream(header, frames, frames_per_packet=args.frames_per_packet))
    face_stream.write_face_stream(output, header, packets)
    report = face_stream.measure(header, packets, vectors)
    if args.json:
        rates = {"payload_kbps": round(report.payload_kbps, 3), "wire_kbps": round(report.wire_kbps, 3)}
        print(json.dumps(asdict(report) | rates | {"output": str(output)}))
        return 0
    print(report)
    print(f"stream: {output}")
    return 0
