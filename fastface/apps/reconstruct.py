"""`fastface reconstruct`: a video made again from its first frame and 35 numbers a frame, and how close it comes.

Self-reenactment as in HeadGAN's evaluation: L1 and PSNR against the true frames, and the average rotation distance
(ARD) between the heads of both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastface.apps import _headgan as shared
from fastface.apps._common import beside, check_places, check_seconds, guarded, within

_EPILOG = """\
examples:
  fastface reconstruct clip.mp4                                   clip_reconstructed.mp4: truth, 3D face, frame
  fastface reconstruct clip.mp4 --checkpoint headgan.safetensors --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("video", metavar="VIDEO", help="a video of a face; its first frame is the reference")
    parser.add_argument("-o", "--output", metavar="OUT", help="truth, 3D face and frame side by side: .mp4, .gif, ...")
    parser.add_argument("--seconds", type=float, metavar="S", help="of the video (default: all of it)")
    parser.add_argument("--smoothing", type=float, default=0.0, metavar="X", help="of the parameters (default: 0)")
    shared.add_recognizer_argument(parser)
    shared.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("reconstruct", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.face import FaceTracker, resized
    from fastface.models.headgan import metrics

    check_seconds(args.seconds)
    within("--smoothing", args.smoothing, 0, 100)
    output = Path(args.output or f"{Path(args.video).stem}_reconstructed.mp4")
    media.check_output(output)
    check_places([args.video, args.checkpoint, args.face_model], output)
    system = shared.make_system(args)
    with media.VideoReader(args.video) as reader:
        first, _ = next(iter(reader))
    source = shared.prepare(system, first, args.video, None)
    with media.VideoReader(args.video) as reader:
        track = shared.follow(reader, FaceTracker(system.model, identity=source.parameters.identity), args.seconds)
    track = track.smoothed(args.smoothing).in_crop(source.box, args.size)
    judge = FaceTracker(system.model, identity=source.parameters.identity)
    l1, squares, turned, truth_turned = [], [], [], []
    x, y, side = source.box
    with media.VideoReader(args.video) as reader:
        sound, audio, notes = None, None, list[str]()
        if reader.has_audio:
            sound = args.video
            audio, notes = shared.audio_of(sound, reader.start, reader.fps, system, track, args.recognizer)
        film = shared.Film(system, source, track, audio)
        truths = iter(reader)
        with media.VideoWriter(output, fps=reader.fps, audio=sound, audio_start=reader.start) as writer:
            for index, frame in film.frames():
                truth = resized(next(truths)[0][y : y + side, x : x + side], args.size)
                difference = frame.astype(np.float64) - truth
                l1.append(np.abs(difference).mean())
                squares.append((difference**2).mean())
                again = judge(frame)
                if again is not None:
                    turned.append(again.camera.angles[0])
                    truth_turned.append(track.parameters.camera.angles[index])
                film.write(writer, index, beside(truth, film.face(index), frame))
    if reader.broken:
        notes.append(f"the video breaks off after {len(track)} frames: {reader.broken}")
    summary: dict[str, Any] = film.summary() | {
        "output": str(output),
        "renderer": system.renderer,
        "l1": round(float(np.mean(l1)), 3),
        "psnr_db": round(float(10 * np.log10(255**2 / max(np.mean(squares), 1e-12))), 2),
        "ard_degrees": round(metrics.ard(torch.stack(turned), torch.stack(truth_turned)), 3) if turned else None,
        "faces_found_again": len(turned),
        "notes": notes + writer.notes,
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    shared.tell(summary, shared.describe(system, args))
    ard = "not measured, no face was found again" if not turned else f"{summary['ard_degrees']:.2f} degrees"
    print(f"L1 {summary['l1']:.2f} of 255, PSNR {summary['psnr_db']:.1f} dB, ARD {ard}")
    print(f"video (truth, 3D face, frame): {output}")
    return 0
