"""`fastface stylize`: a portrait as four style references hold their heads and mouths (Style Mapping)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastface.apps import _style_mapping as shared
from fastface.apps._common import (
    Clock,
    Image,
    UserError,
    check_places,
    check_seconds,
    guarded,
    labelled,
    tell_notes,
    within,
)
from fastface.apps._headgan import follow, progress, to_image

if TYPE_CHECKING:
    from fastface.media import VideoReader
    from fastface.models.headgan import FaceTrack
    from fastface.models.style_mapping import StyleAwareGenerator

_EPILOG = """\
examples:
  fastface stylize --portrait me.jpg --references rest.png m.png r.png o.png --checkpoint vox.pth.tar -o patterns
  fastface stylize --portrait me.jpg --references rest.png m.png r.png o.png --checkpoint vox.pth.tar -o sheet.png
  fastface stylize --portrait me.jpg --references rest.png m.png r.png o.png --checkpoint vox.pth.tar \\
      --driving clip.mp4 --style-weights style.safetensors -o out.mp4

The portrait, with a neutral face, takes over pose and expression of each reference: frames of somebody else that show
the key motions None, M, R and O, in this order. The four results are the intermediate style patterns. With a driving
video its landmarks, carried to the portrait, and the patterns go through the style-aware generator, frame by frame.
No weights come with fastface: --checkpoint reads those of the face-vid2vid family, --untrained tries the command with
random ones. Every file says in its metadata that it is synthetic. Needs: pip install 'fastface-kernels[face,video]'
"""
_MAP = 512  # side of the facial map and of the style-aware generator's frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("--portrait", metavar="P", required=True, help="a photo with a face, neutral")
    parser.add_argument(
        "--references", metavar="IMAGE", nargs="+", required=True, help="four pictures: the key motions None, M, R, O"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="a folder for the four patterns and a labelled picture of all; out.png or .jpg for that picture alone; "
        "with --driving out.mp4, .mov, .mkv, .gif, or a folder of PNGs",
    )
    shared.add_model_arguments(parser)
    parser.add_argument("--no-crop", action="store_true", help="the pictures are squares about the face already")
    parser.add_argument("--driving", metavar="VIDEO", help="a video of a face to follow, for the style-aware generator")
    parser.add_argument("--style-weights", metavar="FILE", help="trained weights of the style-aware generator")
    parser.add_argument("--seconds", type=float, metavar="S", help="of the driving video (default: all of it)")
    parser.add_argument(
        "--smoothing", type=float, default=1.0, metavar="X", help="of the driving face, 0 is none (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("stylize", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface.face import MediaPipeLandmarks
    from fastface.models.style_mapping import REFERENCES

    _check(args, REFERENCES)
    output = Path(args.output)
    files = _files(args, output, REFERENCES)
    check_places([args.portrait, *args.references, args.checkpoint, args.driving, args.style_weights], *files)
    detector = None if args.no_crop else MediaPipeLandmarks()
    portrait, *references = (shared.read_square(path, detector) for path in (args.portrait, *args.references))
    clock = Clock()
    summary: dict[str, Any] = {"output": str(output), "notes": []}
    if args.driving:
        generator, (reader, track) = _style_aware(args), _follow(args, portrait)
        patterns = _patterns(args, portrait, references, clock)
        summary |= _film(output, generator, reader, track, patterns, clock)
    else:
        patterns = _patterns(args, portrait, references, clock)
        _write(files, portrait, references, patterns, REFERENCES)
    summary["milliseconds"] = {stage: round(value, 2) for stage, value in clock.medians().items()}
    if args.json:
        print(json.dumps(summary))
        return 0
    tell_notes(summary["notes"])
    stages = ", ".join(f"{stage} {value:.0f}" for stage, value in summary["milliseconds"].items())
    print(f"ms (median): {stages}")
    print(f"video: {output}" if args.driving else f"{len(patterns)} patterns: {output}")
    return 0


def _check(args: argparse.Namespace, names: Sequence[str]) -> None:
    from fastface import media

    if len(args.references) != len(names):
        raise UserError(f"--references must be {len(names)} pictures ({', '.join(names)}), got {len(args.references)}")
    shared.check_weights(args.checkpoint, args.untrained)
    check_seconds(args.seconds)
    within("--smoothing", args.smoothing, 0, 100)
    if args.driving is None:
        for option in ("style_weights", "seconds"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option.replace('_', '-')} needs --driving VIDEO")
        return
    if args.style_weights is None and not args.untrained:
        raise UserError(
            "--driving needs --style-weights FILE, trained weights of the style-aware generator; without --driving the "
            "four patterns are made"
        )
    media.check_output(args.output)


def _files(args: argparse.Namespace, output: Path, names: Sequence[str]) -> list[Path]:
    """What will be written: a video, or pictures, the labelled one last."""
    from fastface import media

    if args.driving:
        return [output]
    if output.suffix:
        pictures = [output]
    elif output.is_file():
        raise UserError(f"a folder of pictures is to be written, but a file is there: {output}")
    else:
        pictures = [output / f"pattern_{name.lower()}.png" for name in names] + [output / "all.png"]
    for picture in pictures:
        media.check_image_output(picture)
    return pictures


def _style_aware(args: argparse.Namespace) -> StyleAwareGenerator:
    from fastface.engine import optimize
    from fastface.models.style_mapping import StyleAwareGenerator

    weights = args.style_weights
    generator = StyleAwareGenerator() if weights is None else StyleAwareGenerator.from_checkpoint(weights)
    return optimize(generator.to(shared.device()))


def _patterns(
    args: argparse.Namespace, portrait: shared.Square, references: Sequence[shared.Square], clock: Clock
) -> Tensor:
    """``[4, 3, 256, 256]`` in [0, 1]."""
    model = shared.open_model(args.checkpoint)
    source = clock.time("prepare", model.prepare, portrait.tensor())
    patterns = []
    for reference in progress(references, "rendering", len(references)):
        motion = clock.time("pose", model.motion_of, reference.tensor())
        patterns.append(clock.time("render", model.render, source, motion))
    return torch.cat(patterns)


def _write(
    files: Sequence[Path],
    portrait: shared.Square,
    references: Sequence[shared.Square],
    patterns: Tensor,
    names: Sequence[str],
) -> None:
    """The patterns, and the labelled picture: portrait and references, and below them the patterns."""
    from fastface import media

    made = [to_image(pattern) for pattern in patterns]
    for path, image in zip(files[:-1], made, strict=False):
        media.write_image(path, image)
    blank = np.full_like(made[0], 255)
    tiles = [labelled(portrait.image(), "portrait")]
    tiles += [labelled(each.image(), f"reference {name}") for each, name in zip(references, names, strict=True)]
    tiles.append(labelled(blank, ""))
    tiles += [labelled(each, f"pattern {name}") for each, name in zip(made, names, strict=True)]
    media.write_image(files[-1], media.contact_sheet(tiles, columns=1 + len(names), side=tiles[0].shape[0]))


def _follow(args: argparse.Namespace, portrait: shared.Square) -> tuple[VideoReader, FaceTrack]:
    """The driving video, and its face carried to the portrait, in pixels of the facial map."""
    from fastface import media
    from fastface.face import FaceTracker, MediaPipeLandmarks

    own = FaceTracker(landmarks=MediaPipeLandmarks())(portrait.image(_MAP))
    if own is None:
        raise UserError(f"no face found in the portrait, expected one: {args.portrait}")
    with media.VideoReader(args.driving) as reader:
        track = follow(reader, FaceTracker(), args.seconds)
    return reader, track.smoothed(args.smoothing).adapted(own, relative=True)


def _film(
    output: Path,
    generator: StyleAwareGenerator,
    reader: VideoReader,
    track: FaceTrack,
    patterns: Tensor,
    clock: Clock,
) -> dict[str, Any]:
    """The portrait as the style-aware generator shows it with the driving video's landmarks."""
    from fastface import media
    from fastface.face import FaceParameters, LandmarkSketch, built_in_head
    from fastface.models.style_mapping import stack_patterns

    draw = LandmarkSketch(built_in_head(), (_MAP, _MAP))
    stacked = stack_patterns(patterns, (_MAP, _MAP))

    def frame(index: int) -> Image:
        face = FaceParameters.of_vector(track.vectors[index : index + 1], track.identity)
        facial_map = draw(face)[:, :1].to(stacked.device)
        with torch.inference_mode():
            return to_image((generator(torch.cat([facial_map, stacked], 1))[0] + 1) / 2)

    sound = reader.path if reader.has_audio else None
    with media.VideoWriter(output, fps=reader.fps, audio=sound, audio_start=reader.start) as writer:
        for index in progress(range(len(track)), "rendering", len(track)):
            writer.write(clock.time("frame", frame, index), float(track.seconds[index]))
    missed = int((~track.found).sum())
    notes = [*writer.notes, *([f"no face in {missed} frames; the last one's is held there"] if missed else [])]
    if reader.broken:
        notes.append(f"the driving video breaks off after {len(track)} frames: {reader.broken}")
    return {"frames": len(track), "missed_frames": missed, "notes": notes}
