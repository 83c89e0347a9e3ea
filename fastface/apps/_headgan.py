"""What the commands around HeadGAN share: the model they build, the video they follow, the frames they write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastface.apps._common import Clock, Image, Sampler, UserError, demo_portrait, within

if TYPE_CHECKING:
    from fastface.media import VideoReader, VideoWriter
    from fastface.models.headgan import FaceTrack, HeadGAN, HeadGANSource


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
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="side of the frames (default: %(default)s)")
    parser.add_argument("--backend", choices=("reference", "cpu", "triton", "cuda"), help="of the ops")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON instead of words")


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
        generator = optimize(loaded)
    model = load_face_model(args.face_model) if args.face_model else None
    return HeadGAN(generator, model=model, size=args.size, backend=args.backend)


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
    if face is not None and face < 1:
        raise UserError(f"--face counts from 1, got {face}")
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
    return (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


class Film:
    """A track rendered frame by frame: `clock` has the milliseconds, `sampler` frames for a contact sheet."""

    def __init__(self, system: HeadGAN, source: HeadGANSource, track: FaceTrack, audio: Tensor | None = None) -> None:
        self._system, self._source, self._track, self._audio = system, source, track, audio
        self.clock = Clock()
        self.sampler = Sampler(8)

    def frames(self) -> Iterator[tuple[int, Image, Image]]:
        """Per frame its index, the render of the 3D face, and the frame itself."""
        for index in progress(range(len(self._track)), "rendering", len(self._track)):
            audio = None if self._audio is None else self._audio[index]
            motion = self._track.motion(index, audio)
            face = to_image(self.clock.time("draw", self._system.draw, self._source, motion)[0])
            yield index, face, to_image(self.clock.time("render", self._system.render, self._source, motion)[0])

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


def audio_of(reader: VideoReader, system: HeadGAN, track: FaceTrack) -> Tensor | None:
    """The audio vectors of a video's frames, where the generator listens and the video has sound."""
    if system.generator is None or not system.generator.config.audio or not reader.has_audio:
        return None
    from fastface.audio import audio_vectors, read_audio

    sound = read_audio(reader.path, start=reader.start)
    for note in sound.notes:
        print(f"note: sound {note}", file=sys.stderr)
    return torch.from_numpy(audio_vectors(sound.samples, sound.sample_rate, reader.fps, frames=len(track)))


def tell(summary: dict[str, Any], said: str) -> None:
    """The words that every command with frames ends with."""
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in summary["milliseconds"].items())
    print(said)
    print(
        f"{summary['frames']} frames; ms per frame (median): {stages}; rendering alone {summary['fps_render']:.0f} fps"
    )
    if summary["missed_frames"]:
        print(f"note: no face in {summary['missed_frames']} frames; the last one's is held there", file=sys.stderr)
