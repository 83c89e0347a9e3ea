"""`fastface dub`: a video of a person and other sound, to the video of that person saying it (PIR)."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastface.apps._common import Clock, UserError, check_places, check_seconds, guarded, tell_notes, within
from fastface.apps._headgan import progress, until

if TYPE_CHECKING:
    from fastface.audio import Audio
    from fastface.face import MorphableModel
    from fastface.models.pir import PIR, PIRSource

_EPILOG = """\
examples:
  fastface dub clip.mp4 --audio words.wav --weights pir.safetensors     clip_words.mp4
  fastface dub clip.mp4 --audio words.mp3 --weights pir.safetensors --region face --seconds 5 -o out.mp4
  fastface dub clip.mp4 --audio words.wav --weights pir.safetensors --expressions mouth.npy
  fastface dub clip.mp4 --audio words.wav --untrained --seconds 2       how long it takes; the faces are noise

The video ends where the shorter of video and sound ends, and has the new sound. What lies outside of the painted region
stays as it is, as do frames without a face. Every file says in its metadata that it is synthetic. No weights of PIR are
public; fastface.models.pir.save_networks writes yours. Needs: pip install 'fastface-kernels[face,video,audio]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("video", metavar="VIDEO", help="a video of one person")
    parser.add_argument(
        "--audio", metavar="SOUND", required=True, help="what to say: wav, mp3, ..., or a video's sound"
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="out.mp4, .mov, .mkv, .gif, or a folder of PNGs")
    parser.add_argument("--weights", metavar="FILE", help="a trained PIR, .safetensors")
    parser.add_argument("--untrained", action="store_true", help="random networks: for timing, the faces are noise")
    parser.add_argument(
        "--region", choices=("lower", "face"), default="lower", help="what is painted anew (default: %(default)s)"
    )
    parser.add_argument(
        "--expressions", metavar="FILE", help="[frames, E] numbers (.npy) instead of those of the sound"
    )
    parser.add_argument(
        "--face-model", metavar="FILE", help="the morphable model of the weights (default: the built-in head)"
    )
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="side of the crop (default: %(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of the video (default: all of it)")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("dub", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.audio import read_audio
    from fastface.face import built_in_head, load_face_model

    check_seconds(args.seconds)
    within("--size", args.size, 64, 2048)
    output = Path(args.output or f"{Path(args.video).stem}_{Path(args.audio).stem}.mp4")
    media.check_output(output)
    check_places([args.video, args.audio, args.weights, args.expressions, args.face_model], output)
    sound = read_audio(args.audio, start=0.0)
    model = load_face_model(args.face_model) if args.face_model else built_in_head()
    made_elsewhere = None if args.expressions is None else _read_expressions(args.expressions, model.expressions)
    with media.VideoReader(args.video) as reader:
        system = _open_system(args, model)
        fps = reader.fps
        source, length = _look(system, reader, args.seconds)
        notes = [f"the video breaks off after {length:.2f} s: {reader.broken}"] if reader.broken else []
    what, other = ("sound", sound.seconds) if made_elsewhere is None else ("expressions", len(made_elsewhere) / fps)
    seconds, told = _shorter(length, what, min(other, args.seconds or other))
    clock = Clock()
    timed = _timer(clock, system.device)
    expressions = _hear(system, source, sound, seconds, fps, timed) if made_elsewhere is None else made_elsewhere
    tracker, frames, missed = system.follow(source), 0, 0
    with (
        media.VideoReader(args.video) as reader,
        media.VideoWriter(output, fps=fps, audio=args.audio) as writer,
    ):
        for image, time in progress(until(reader, seconds), "dubbing", round(seconds * fps)):
            expression = expressions[min(round(time * fps), len(expressions) - 1)]
            painted = system.repaint(source, tracker, image, expression, timed=timed)
            frames, missed = frames + 1, missed + (painted is None)
            writer.write(image if painted is None else painted, time)
    milliseconds = {stage: sum(times) / frames for stage, times in clock.stages.items()}
    summary = {
        "output": str(output),
        "weights": args.weights,
        "frames": frames,
        "missed_frames": missed,
        "seconds": round(seconds, 3),
        "milliseconds": {stage: round(value, 2) for stage, value in milliseconds.items()},
        "fps": round(1e3 / max(sum(milliseconds.values()), 1e-6), 2),
        "notes": [*told, *notes, *(f"sound: {note}" for note in sound.notes), *writer.notes],
    }
    if args.json:
        print(json.dumps(summary))
    else:
        _tell(summary)
    return 0


def _open_system(args: argparse.Namespace, model: MorphableModel) -> PIR:
    from fastface.models.pir import PIR

    if args.weights is None and not args.untrained:
        raise UserError("needs --weights FILE, a trained PIR; --untrained times it with random networks")
    if args.weights is not None and args.untrained:
        raise UserError("--weights and --untrained exclude one another")
    options: dict[str, Any] = {
        "model": model,
        "size": args.size,
        "region": args.region,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    if args.untrained:
        print("note: untrained weights, the faces are noise", file=sys.stderr)
        return PIR.untrained(audio=args.expressions is None, **options)
    system = PIR.from_checkpoint(args.weights, **options)
    if args.expressions is None and (system.audio is None or system.audio.encoder is None):
        raise UserError(f"the weights have no part that hears, pass --expressions FILE: {args.weights}")
    return system


def _read_expressions(path: str, count: int) -> Tensor:
    """``[frames, count]`` numbers of a file."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"cannot read expressions from {path}: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not len(array) or array.dtype.kind != "f":
        found = f"{list(array.shape)} {array.dtype}" if isinstance(array, np.ndarray) else "several arrays"
        raise UserError(f"expressions must be [frames, E] floats, got {found}: {path}")
    if array.shape[1] != count:
        raise UserError(f"expressions must be [frames, {count}] for the face model, got {list(array.shape)}: {path}")
    if not np.isfinite(array).all():
        raise UserError(f"expressions must be finite, got {int((~np.isfinite(array)).sum())} that are not: {path}")
    return torch.from_numpy(array).float()


def _look(system: PIR, reader: Any, seconds: float | None) -> tuple[PIRSource, float]:
    """The person of the first frame with a face, and how long the video is."""
    source, end = None, 0.0
    for image, time in progress(until(reader, seconds), "looking for the face", reader.expected_frames):
        end = time + 1 / reader.fps
        if source is None and system.landmarks(image):
            source = system.prepare(image)
    if source is None:
        raise UserError(f"no face found in the video, expected one: {reader.path}")
    return source, end if seconds is None else min(end, seconds)


def _shorter(video: float, what: str, other: float) -> tuple[float, list[str]]:
    """The seconds that both last, and what to say of a rest longer than a frame."""
    if other > video + 0.05:
        return video, [f"the video ends first: {other - video:.2f} s of the {what} are left out"]
    if video > other + 0.05:
        return other, [
            f"the {what} end{'s' * (what == 'sound')} first: {video - other:.2f} s of the video are left out"
        ]
    return video, []


def _timer(clock: Clock, device: torch.device) -> Callable[..., Any]:
    """`Clock.time` that waits for the device."""
    if device.type != "cuda":
        return clock.time

    def waited(function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        torch.cuda.synchronize(device)
        return result

    return lambda stage, function, *arguments: clock.time(stage, waited, function, *arguments)


def _hear(
    system: PIR, source: PIRSource, sound: Audio, seconds: float, fps: float, timed: Callable[..., Any]
) -> Tensor:
    """One expression for each frame of the seconds."""
    samples = sound.samples[: math.ceil(seconds * sound.sample_rate)]
    return system.expressions(source, samples, max(1, round(seconds * fps)), timed=timed)


def _tell(summary: dict[str, Any]) -> None:
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in summary["milliseconds"].items())
    print(f"faces by PIR, {'weights ' + summary['weights'] if summary['weights'] else 'untrained: they are noise'}")
    print(f"{summary['frames']} frames; ms per frame (mean): {stages}")
    print(f"together: {summary['fps']:.2f} frames per second")
    print(f"video: {summary['output']}")
    missed = summary["missed_frames"]
    tell_notes(summary["notes"] + ([f"no face in {missed} frames; they stay as they were"] if missed else []))
