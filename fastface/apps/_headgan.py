"""What the commands around HeadGAN share: the model they build, the video they follow, the frames they write."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastface.apps._common import Clock, Image, Sampler, UserError, demo_portrait, tell_notes, torch_device, within

if TYPE_CHECKING:
    from fastface.face import SurfacePoints
    from fastface.media import VideoReader, VideoWriter
    from fastface.models.headgan import FaceTrack, HeadGAN, HeadGANMotion, HeadGANSource


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--checkpoint, --face-model, --size, --backend and --json."""
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="trained weights of HeadGAN's generator, .safetensors or of torch.save (default: none, and the 3D face "
        "moves the photo itself)",
    )
    parser.add_argument(
        "--face-model",
        metavar="FILE",
        help="a morphable model, such as BFM, LSFM or FLAME (default: the built-in head); weights want the model that "
        "they were trained with",
    )
    parser.add_argument(
        "--face-landmarks",
        metavar="FILE",
        help="text with the numbers of the model's 68 landmark vertices, for a model that does not bring them",
    )
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="side of the frames (default: %(default)s)")
    parser.add_argument("--backend", choices=("reference", "cpu", "triton", "cuda"), help="of the ops")
    parser.add_argument(
        "--device", metavar="DEVICE", help="of the networks: cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


def add_recognizer_argument(parser: argparse.ArgumentParser) -> None:
    """--recognizer."""
    parser.add_argument(
        "--recognizer",
        metavar="NAME",
        help="a wav2vec2-CTC model of transformers, name or folder, which hears the characters for the generator",
    )


def make_system(args: argparse.Namespace) -> HeadGAN:
    """The model that the arguments describe."""
    from fastface.checkpoints import load_checkpoint
    from fastface.engine import optimize
    from fastface.face import load_face_model
    from fastface.models.headgan import Generator, HeadGAN

    within("--size", args.size, 64, 2048)
    generator = None
    if args.checkpoint:
        loaded = load_checkpoint(args.checkpoint, "headgan.generator")
        assert isinstance(loaded, Generator)
        generator = optimize(loaded.to(torch_device(args.device)))
    elif args.device not in (None, "cpu"):
        raise UserError(f"--device {args.device} needs --checkpoint: without weights the CPU makes the frames")
    elif getattr(args, "recognizer", None):
        raise UserError("--recognizer needs --checkpoint: without weights the sound moves nothing")
    model = load_face_model(args.face_model) if args.face_model else None
    if args.face_landmarks:
        if model is None:
            raise UserError("--face-landmarks needs --face-model: the built-in head has its landmarks")
        model = replace(model, landmarks68=_landmarks(Path(args.face_landmarks), len(model.mean)))
    if model is not None and model.dense is None and model.landmarks68 is None:
        raise UserError(f"the face model has no landmarks, name its 68 with --face-landmarks FILE: {args.face_model}")
    return HeadGAN(generator, model=model, size=args.size, backend=args.backend)


def _landmarks(path: Path, vertices: int) -> SurfacePoints:
    from fastface.face import SurfacePoints

    numbers = path.read_text().replace(",", " ").split()
    if len(numbers) != 68 or not all(number.isdecimal() and int(number) < vertices for number in numbers):
        raise UserError(f"expected 68 vertex numbers from 0 to {vertices - 1}, got {len(numbers)} words: {path}")
    return SurfacePoints.at([int(number) for number in numbers])


def file_hash(path: str | None) -> str | None:
    """The SHA-256 of a file, None without one."""
    if path is None:
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(system: HeadGAN, args: argparse.Namespace) -> str:
    """What makes the frames, in words."""
    if system.renderer == "headgan":
        return f"frames by HeadGAN's generator, weights {args.checkpoint}"
    return "frames by the 3D face moving the photo itself (lifted); --checkpoint FILE takes trained weights"


def read_portrait(path: str | None) -> Image:
    """A photo, or the public-domain portrait without a path."""
    from fastface.media import read_image

    return demo_portrait() if path is None else read_image(path)


def prepare(system: HeadGAN, photo: Image, path: str | None, face: int | None) -> HeadGANSource:
    """The source, with errors that name the file; `face` counts from 1, the largest by default."""
    if face is not None:
        if face < 1:
            raise UserError(f"--face counts from 1, got {face}")
        count = len(system.landmarks(photo))
        if face > count > 0:
            raise UserError(f"--face must be from 1 to {count} (the faces found), got {face}")
    try:
        return system.prepare(photo, face=None if face is None else face - 1)
    except ValueError as error:
        raise UserError(f"{error}: {path or 'the built-in portrait'}") from error


def follow(reader: VideoReader, tracker: Any, seconds: float | None = None) -> FaceTrack:
    """The face of a video over time, with a progress bar."""
    from fastface.models.headgan import track_faces

    frames = progress(until(reader, seconds), "following the face", reader.expected_frames)
    try:
        return track_faces(frames, tracker)
    except ValueError as error:
        raise UserError(f"{error}: {reader.path}") from error


def until(reader: Iterable[tuple[Image, float]], seconds: float | None) -> Iterator[tuple[Image, float]]:
    """The frames of the first seconds."""
    for image, time in reader:
        if seconds is not None and time >= seconds:
            return
        yield image, time


def progress(items: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total or None, unit="frame", disable=not sys.stderr.isatty(), leave=False)


def to_image(frame: Tensor) -> Image:
    """``[3, H, W]`` in [0, 1] to ``[H, W, 3]`` uint8."""
    return (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


class Film:
    """A track rendered frame by frame: `clock` has the milliseconds, `sampler` frames for a contact sheet."""

    def __init__(self, system: HeadGAN, source: HeadGANSource, track: FaceTrack, audio: Tensor | None = None) -> None:
        self._system, self._source, self._track, self._audio = system, source, track, audio
        self.clock = Clock()
        self.sampler = Sampler(8)

    def frames(self) -> Iterator[tuple[int, Image]]:
        """Per frame its index and the frame."""
        for index in progress(range(len(self._track)), "rendering", len(self._track)):
            yield index, to_image(self.clock.time("render", self._system.render, self._source, self._motion(index))[0])

    def face(self, index: int) -> Image:
        """The 3D face of a frame."""
        return to_image(self.clock.time("draw", self._system.draw, self._source, self._motion(index))[0])

    def _motion(self, index: int) -> HeadGANMotion:
        return self._track.motion(index, None if self._audio is None else self._audio[index])

    def write(self, writer: VideoWriter, index: int, picture: Image) -> None:
        """Write a picture at its frame's time, and keep some."""
        self.sampler.add(picture)
        self.clock.time("write", writer.write, picture, float(self._track.seconds[index]))

    def summary(self) -> dict[str, Any]:
        """What it took, for --json."""
        medians = self.clock.medians()
        return {
            "frames": len(self._track),
            "missed_frames": int((~self._track.found).sum()),
            "milliseconds": {stage: round(value, 2) for stage, value in medians.items()},
            "fps_render": round(1e3 / max(medians["render"], 1e-6), 1),
        }


def audio_of(
    path: str | Path, start: float | None, fps: float, system: HeadGAN, track: FaceTrack, recognizer: str | None
) -> tuple[Tensor | None, list[str]]:
    """The audio vectors of a track's frames from a file's sound, where the generator listens; and what to say of it."""
    if system.generator is None or not system.generator.config.audio:
        return None, []
    from fastface.audio import Wav2Vec2Recognizer, audio_vectors, read_audio

    sound = read_audio(path, start=start)
    notes = [f"sound: {note}" for note in sound.notes]
    characters = None
    if recognizer:
        characters = Wav2Vec2Recognizer.from_pretrained(recognizer)(sound.samples, sound.sample_rate)
    else:
        notes.append("sound: no --recognizer, so 216 of the 300 audio numbers are zero")
    vectors = torch.from_numpy(audio_vectors(sound.samples, sound.sample_rate, fps, characters=characters))
    index = (track.seconds * fps).round().long().clamp(0, len(vectors) - 1)
    return vectors[index], notes


def tell(summary: dict[str, Any], said: str) -> None:
    """The words that every command with frames ends with."""
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in summary["milliseconds"].items())
    print(said)
    print(f"{summary['frames']} frames; ms per frame (median): {stages}")
    print(f"rendering alone: {summary['fps_render']:.0f} fps")
    missed = summary["missed_frames"]
    tell_notes(summary["notes"] + ([f"no face in {missed} frames; the last one's is held there"] if missed else []))
