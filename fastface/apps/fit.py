"""`fastface fit`: videos of a person talking to clips that `fastface train` learns from."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastface.apps._common import UserError, check_seconds, guarded, tell_notes, within
from fastface.apps._headgan import follow

if TYPE_CHECKING:
    from fastface.face import MorphableModel
    from fastface.models.posegan.corpus import Clip

_EPILOG = """\
examples:
  fastface fit interview.mp4 -o clips
  fastface fit lessons/*.mp4 -o clips --seconds 600    the first ten minutes of each
  fastface train pgface clips -o mine

The face of each video is followed through the 3D face. What comes out are clips of up to 10 s: NAME.wav (16 kHz) and
NAME.npz (poses in radians and millimetres, identity, expression per frame), and corpus.json. The expression counts from
the person's face at rest. Every fifth of ten clips of a video is held out for validation, or its last, or the end of
its only one. A video that cannot be used, such as one without a face or without sound, is left out, and the exit status
is 1 then. Videos that are in the folder already are left out too, so the same command goes on after Ctrl+C.
Needs: pip install 'fastface-kernels[face,video]'
"""
_BY = "fastface fit"
_SILENT = 1e-3  # of full scale, -60 dB: nobody talks
_TAIL, _LEAST = 0.2, 2.0  # share and seconds of an only clip that are held out, and that must be left to train on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="of one person who talks, with sound")
    parser.add_argument("-o", "--output", metavar="DIR", default="clips", help="folder (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=25.0, metavar="N", help="of the clips (default: 25)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each video (default: all of it)")
    parser.add_argument("--face-model", metavar="FILE", help="a morphable model (default: the built-in head)")
    parser.add_argument("--force", action="store_true", help="do videos again that are there already")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("fit", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface.face import built_in_head, load_face_model, trackable

    check_seconds(args.seconds)
    within("--fps", args.fps, 10, 120)
    folder = Path(args.output)
    stems = [Path(video).stem for video in args.videos]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise UserError(f"videos must have names of their own, which the clips take, got {twice[0]} twice")
    model = trackable(load_face_model(args.face_model) if args.face_model else built_in_head())
    clips = _there(folder, args.fps, model)
    notes: list[str] = []
    failed = 0
    for video, stem in zip(args.videos, stems, strict=True):
        if not args.force and any(clip["video"] == stem for clip in clips):
            notes.append(f"{stem} is there already: --force does it again")
            continue
        try:
            made, said = _fit(Path(video), folder, args, model)
        except (UserError, ValueError) as error:
            print(f"fastface fit: {' '.join(str(error).split())}", file=sys.stderr)
            failed += 1
            continue
        notes += [f"{video}: {note}" for note in said]
        clips = [clip for clip in clips if clip["video"] != stem] + made
        _write(folder, args.fps, model, clips)
    if failed == len(args.videos):
        return 2
    minutes = sum(clip["seconds"] for clip in clips) / 60
    held_out = sum(clip["split"] == "held_out" for clip in clips)
    if not held_out:
        notes.append(f"no clip is held out, which training needs: add a video that shows a face for {2 * _LEAST:g} s")
    if failed:
        notes.append(f"{failed} of {len(args.videos)} videos could not be used")
    if args.json:
        print(json.dumps({"output": str(folder), "clips": len(clips), "held_out": held_out, "failed": failed,
                          "minutes": round(minutes, 2), "notes": notes}))  # fmt: skip
    else:
        print(f"{len(clips)} clips, {minutes:.1f} minutes, {held_out} held out: {folder}")
        tell_notes(notes)
    return 1 if failed else 0


def _there(folder: Path, fps: float, model: MorphableModel) -> list[dict[str, Any]]:
    """The clips that the folder has; refuses those of another rate, face model or origin."""
    from fastface.models.posegan.corpus import read_corpus

    if not (folder / "corpus.json").exists():
        return []
    corpus = read_corpus(folder)
    found, expected = (corpus.made.get("by"), corpus.fps, corpus.face), (_BY, fps, model.content_hash)
    if found != expected:
        raise UserError(f"{folder} must be empty or hold clips of {expected}, got {found}")
    return [dict(clip) for clip in corpus.clips]


def _write(folder: Path, fps: float, model: MorphableModel, clips: Sequence[dict[str, Any]]) -> None:
    from fastface.models.posegan.corpus import Corpus, write_corpus

    write_corpus(Corpus(folder, fps, model.content_hash, clips, {"by": _BY}))


def _fit(
    video: Path, folder: Path, args: argparse.Namespace, model: MorphableModel
) -> tuple[list[dict[str, Any]], list[str]]:
    """A video's clips, written, as lines of corpus.json; and what to say of it."""
    from fastface.audio import read_audio
    from fastface.face import FaceTracker
    from fastface.media import VideoReader
    from fastface.models.posegan.corpus import write_clip
    from fastface.models.posegan.extraction import cut, extract

    with VideoReader(video) as reader:
        sound = read_audio(video, start=reader.start)
        if np.abs(sound.samples).max() < _SILENT:
            raise UserError(f"the video must have sound of someone who talks, got silence: {video}")
        track = follow(reader, FaceTracker(model), args.seconds)
    clips = list(cut(extract(track, model, args.fps), sound.samples, args.fps, model))
    if not clips:
        raise UserError(f"the video must show a face for 2 s or more, got {int(track.found.sum())} frames: {video}")
    if len(clips) == 1:
        clips = _parted(clips[0])
    made = []
    for index, clip in enumerate(clips):
        name = f"{video.stem}_{index:03}"
        write_clip(folder, name, clip)
        held_out = len(clips) > 1 and index in (range(4, len(clips), 10) or [len(clips) - 1])
        made.append({"name": name, "split": "held_out" if held_out else "train", "video": video.stem,
                     "seconds": round(clip.seconds, 2)})  # fmt: skip
    missed = int((~track.found).sum())
    return made, [*sound.notes, *([f"no face in {missed} of {len(track)} frames"] if missed else [])]


def _parted(clip: Clip) -> list[Clip]:
    """A clip without its end, and that end; the clip alone where it is too short."""
    from fastface.audio.sound import SAMPLE_RATE

    at = round(clip.fps * min(clip.seconds * (1 - _TAIL), clip.seconds - _LEAST))
    if at < _LEAST * clip.fps:
        return [clip]
    sample = round(at / clip.fps * SAMPLE_RATE)

    def part(sound: slice, frames: slice) -> Clip:
        opening = None if clip.opening is None else clip.opening[frames]
        return replace(clip, samples=clip.samples[sound], pose=clip.pose[frames], expression=clip.expression[frames],
                       opening=opening)  # fmt: skip

    return [part(slice(sample), slice(at)), part(slice(sample, None), slice(at, None))]
