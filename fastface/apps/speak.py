"""`fastface speak`: a portrait and sound to a video of the portrait saying it (PoseGAN and PGFace)."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastface.apps import _headgan as shared
from fastface.apps._common import Clock, Image, Sampler, UserError, check_places, guarded, tell_notes, within

if TYPE_CHECKING:
    from fastface.audio import AudioVectorStream, PrecomputedSpeech, Wav2Vec2Recognizer
    from fastface.audio.reader import AudioReader
    from fastface.audio.sound import Samples
    from fastface.face import FaceParameters, MorphableModel
    from fastface.models.posegan import PGFace, PoseGAN, Speaker

MODELS = ("lifted", "headgan", "live_portrait")
_ONLY = {"checkpoint": "headgan", "weights": "live_portrait", "untrained": "live_portrait"}  # options of one model
_LEAST_AGREEMENT = 0.3  # of lips and sound, below which the lag is chance
_LEVEL_SECONDS = 300  # of the sound, whose level is taken for that of all of it

_EPILOG = """\
examples:
  fastface speak me.jpg words.wav                      me_words.mp4, with the sound
  fastface speak me.jpg words.mp3 --seed 2 -o out.mp4  other blinks, another drift of the head
  fastface speak me.jpg words.wav --pose-from clip.mp4 the head of clip.mp4, which turns round at its end
  fastface speak me.jpg words.wav --checkpoint headgan.safetensors
  fastface speak me.jpg words.wav --weights liveportrait/
  fastface speak me.jpg words.wav --speaker mine --features words.npy
  fastface speak me.jpg words.wav --measure            also how well the lips follow the sound, found in the video

Sound is whatever FFmpeg opens, of any length; in silence the mouth stays closed. The same seed gives the same video.
Every file says in its metadata that it is synthetic. Needs: pip install 'fastface-kernels[face,video]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("portrait", metavar="PORTRAIT", help="a photo with a face")
    parser.add_argument("audio", metavar="AUDIO", help="what to say: wav, mp3, ..., or a video's sound")
    parser.add_argument("-o", "--output", metavar="OUT", help="out.mp4, .mov, .mkv, .gif, or a folder of PNGs")
    parser.add_argument("--fps", type=float, default=25.0, metavar="N", help="frames per second (default: 25)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of blinks, brows and drift (default: 0)")
    parser.add_argument("--face", type=int, metavar="N", help="which face of the photo, 1 being the largest")
    parser.add_argument("--pose-from", metavar="VIDEO", help="take the head's motion from the face in a video")
    parser.add_argument(
        "--pose-strength", type=float, default=1.0, metavar="X", help="multiply the motion of the head (default: 1)"
    )
    parser.add_argument(
        "--expression-strength", type=float, default=1.0, metavar="X", help="multiply that of the face (default: 1)"
    )
    parser.add_argument(
        "--model",
        choices=MODELS,
        help="what renders (default: headgan with --checkpoint, live_portrait with --weights, lifted without weights)",
    )
    parser.add_argument("--weights", metavar="DIR", help="folder of LivePortrait's public weights")
    parser.add_argument("--untrained", action="store_true", help="a random LivePortrait: for timing, frames are noise")
    parser.add_argument(
        "--speaker",
        metavar="DIR",
        help="folder with posegan.safetensors and pgface.safetensors (default: those that come with the package)",
    )
    parser.add_argument(
        "--recognizer",
        metavar="NAME",
        help="a wav2vec2-CTC model of transformers, name or folder, for a speaker trained with it and for HeadGAN",
    )
    parser.add_argument(
        "--features",
        metavar="FILE",
        help=".npy or .npz with features [T, 29] of AUDIO, 50 a second, for a speaker trained with such (DeepSpeech)",
    )
    parser.add_argument("--measure", action="store_true", help="find the lips in the video and compare with the sound")
    parser.add_argument("--contact-sheet", metavar="PATH", help="also write a picture of eight frames, .png or .jpg")
    shared.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return guarded("speak", _run, args)


def _run(args: argparse.Namespace) -> int:
    from fastface import media
    from fastface.audio.reader import AudioReader

    output = Path(args.output or f"{Path(args.portrait).stem}_{Path(args.audio).stem}.mp4")
    sheet = None if args.contact_sheet is None else Path(args.contact_sheet)
    args.model = args.model or next((model for name, model in _ONLY.items() if getattr(args, name)), "lifted")
    _check(args, output, sheet)
    clock = Clock()
    with AudioReader(args.audio) as sound:
        level = clock.time("level", _level, sound)
    stage, speaker = _open(args, level)
    sampler, peak, count = Sampler(8), 0.0, 0
    started = time.perf_counter()
    head = None if args.pose_from is None else clock.time("follow", _Head, args.pose_from, stage)
    with (
        AudioReader(args.audio) as sound,
        media.VideoWriter(output, fps=args.fps, audio=args.audio, audio_start=sound.track.start) as writer,
        _bar(math.ceil(sound.expected_seconds * args.fps)) as bar,
    ):
        for samples in itertools.chain(sound, [None]):
            stage.hear(samples)
            if samples is None:
                track = clock.time("motion", speaker.finish)
            else:
                track = clock.time("motion", speaker.push, samples)
                peak, count = max(peak, float(np.abs(samples).max(initial=0))), count + len(samples)
            for vector, seconds in zip(track.vectors, track.seconds.tolist(), strict=True):
                if head is not None:
                    vector[-7:] = head(seconds)
                frame = clock.time("render", stage.render, vector)
                sampler.add(frame)
                clock.time("write", writer.write, frame, seconds)
                bar.update()
    worked = time.perf_counter() - started + clock.stages["level"][0] / 1e3
    if sheet is not None:
        media.write_image(sheet, media.contact_sheet(sampler.frames()))
    length = count / sound.sample_rate
    notes, lips = _notes(sound, length, peak, speaker), None
    if args.measure:
        try:
            lips = _measured(output, args.audio, level)
        except ValueError as error:
            notes.append(f"not measured: {error}")
    summary = {
        "output": str(output),
        "contact_sheet": None if sheet is None else str(sheet),
        "model": args.model,
        "speaker": args.speaker,
        "frames": writer.frames,
        "seconds": round(length, 3),
        "real_time_factor": round(worked / length, 3),
        "milliseconds": {stage: round(sum(ms) / writer.frames, 2) for stage, ms in clock.stages.items()},
        "lips": lips,
        "notes": notes + writer.notes,
    }
    if args.json:
        print(json.dumps(summary))
    else:
        _tell(summary, stage.words)
    return 0


def _open(args: argparse.Namespace, level: float) -> tuple[_Stage, Speaker]:
    """What renders the portrait, and what moves it; what takes long to load comes last."""
    from fastface import media
    from fastface.audio import Wav2Vec2Recognizer
    from fastface.models.posegan.speaker import WAV2VEC2, Speaker, SpeakerConfig, check_front_end

    posegan, pgface = _load_speaker(args.speaker)
    recognized = bool(args.recognizer) and not args.features and pgface.config.speech == WAV2VEC2
    check_front_end(pgface.config.speech, recognized=recognized, precomputed=bool(args.features))
    features = _features(args.features, args.audio) if args.features else None
    kind = _LivePortraitStage if args.model == "live_portrait" else _HeadGANStage
    stage = kind(args, media.read_image(args.portrait))
    if args.recognizer and not recognized and not stage.listens:
        raise UserError("neither the speaker nor the model listens to a recogniser: leave --recognizer out")
    recognizer = Wav2Vec2Recognizer.from_pretrained(args.recognizer) if args.recognizer else None
    stage.listen(recognizer)
    speaker = Speaker(
        posegan,
        pgface,
        stage.parameters,
        model=stage.face_model,
        opening=stage.opening,
        fps=args.fps,
        level=level,
        recognize=recognizer.log_probabilities if recognizer is not None and recognized else None,
        features=features,
        config=SpeakerConfig(pose=args.pose_strength, expression=args.expression_strength, seed=args.seed),
    )
    return stage, speaker


def _check(args: argparse.Namespace, output: Path, sheet: Path | None) -> None:
    from fastface import media

    within("--fps", args.fps, 1, 240)
    within("--pose-strength", args.pose_strength, 0, 3)
    within("--expression-strength", args.expression_strength, 0, 3)
    if args.seed < 0:
        raise UserError(f"--seed must be at least 0, got {args.seed}")
    for name, model in _ONLY.items():
        if getattr(args, name) and args.model != model:
            raise UserError(f"--{name} is for --model {model}, got --model {args.model}")
    if args.model == "headgan" and not args.checkpoint:
        raise UserError("--model headgan needs --checkpoint FILE, trained weights")
    if args.model == "live_portrait" and args.size != 256:
        raise UserError(f"--size is for lifted and headgan, LivePortrait's frames are 512x512, got {args.size}")
    if args.pose_from and args.pose_strength != 1:
        raise UserError("--pose-strength multiplies made motion, leave it out with --pose-from")
    kind = media.check_output(output)
    if args.measure and kind == "folder":
        raise UserError(f"--measure reads the video again, got a folder of PNGs: {output}")
    if sheet is not None:
        media.check_image_output(sheet)
    inputs = [args.portrait, args.audio, args.pose_from, args.checkpoint, args.weights, args.speaker, args.features]
    check_places([*inputs, args.face_model], output, sheet)


def _level(sound: Any) -> float:
    """The level of the speech in dB, from its first minutes."""
    from fastface.audio import speech_level

    pieces: list[Samples] = []
    for samples in sound:
        pieces.append(samples)
        if sum(map(len, pieces)) > _LEVEL_SECONDS * sound.sample_rate:
            break
    return speech_level(np.concatenate(pieces))


def _notes(sound: AudioReader, length: float, peak: float, speaker: Speaker) -> list[str]:
    """What a user should know of the sound."""
    notes = []
    if sound.track.broken:
        notes.append(f"the sound breaks off after {length:.2f} s: {sound.track.broken}")
    if sound.track.damaged:
        notes.append(f"{sound.track.damaged:.2f} s of the sound are damaged, and silent")
    if peak < 2**-15:
        notes.append("the sound is silent: the mouth stays closed")
    elif not speaker.heard:
        notes.append(f"the sound is too quiet, {20 * math.log10(peak):.0f} dB of full scale: the mouth stays closed")
    return notes


def _load_speaker(folder: str | None) -> tuple[PoseGAN, PGFace]:
    from fastface.models import posegan

    if folder is None:
        return posegan.load_default()
    return (
        posegan.load(Path(folder) / "posegan.safetensors", posegan.PoseGAN),
        posegan.load(Path(folder) / "pgface.safetensors", posegan.PGFace),
    )


def _features(path: str, audio: str) -> PrecomputedSpeech:
    """The features of the sound; refuses those of another length before an hour of frames is made."""
    from fastface.audio import PrecomputedSpeech
    from fastface.audio.reader import AudioReader

    features = PrecomputedSpeech(path)
    with AudioReader(audio) as sound:
        features.check(sum(map(len, sound)) / sound.sample_rate)
    return features


class _Stage(Protocol):
    """What renders the portrait's face."""

    parameters: FaceParameters  # the portrait's own
    face_model: MorphableModel
    opening: float | None  # of its lips, in face widths
    listens: bool  # whether sound moves more than the face
    words: str

    def listen(self, recognizer: Wav2Vec2Recognizer | None) -> None:
        """Before the first sound: what hears its characters."""

    def hear(self, samples: Samples | None) -> None:
        """The next sound, None at its end."""

    def render(self, vector: Tensor) -> Image:
        """The next frame, of a face's parameters ``[E+7]``."""


class _HeadGANStage:
    """HeadGAN's generator, or `lifted` behind the same 3D face."""

    def __init__(self, args: argparse.Namespace, photo: Image) -> None:
        from fastface.face import largest_face, lip_gap_in_widths

        self._system = shared.make_system(argparse.Namespace(**{**vars(args), "recognizer": None}))
        self._source = shared.prepare(self._system, photo, args.portrait, args.face)
        self.parameters, self.face_model = self._source.parameters, self._system.model
        faces = self._system.landmarks(shared.to_image(self._source.portrait[0]))
        self.opening = lip_gap_in_widths(faces[largest_face(faces)].points) if faces else None
        self.words = shared.describe(self._system, args)
        self._recent: deque[Tensor] = deque(maxlen=3)
        generator = self._system.generator
        self.listens = generator is not None and bool(generator.config.audio)
        self._fps, self._heard = args.fps, deque[Tensor]()
        self._audio: AudioVectorStream | None = None

    def listen(self, recognizer: Wav2Vec2Recognizer | None) -> None:
        from fastface.audio import AudioVectorStream, LiveCharacters

        if self.listens:
            characters = None if recognizer is None else LiveCharacters(recognizer)
            self._audio = AudioVectorStream(fps=self._fps, characters=characters)

    def hear(self, samples: Samples | None) -> None:
        if self._audio is not None:
            vectors = self._audio.finish() if samples is None else self._audio.push(samples)
            self._heard.extend(torch.from_numpy(vectors))

    def render(self, vector: Tensor) -> Image:
        from fastface.models.headgan import HeadGANMotion

        self._recent.append(vector)
        audio = None
        if self._heard:  # frames come later than their sound; the last vector serves the rest
            audio = (self._heard.popleft() if len(self._heard) > 1 else self._heard[0])[None]
        motion = HeadGANMotion(torch.stack(list(self._recent))[None], audio)
        return shared.to_image(self._system.render(self._source, motion)[0])


class _LivePortraitStage:
    """LivePortrait's networks, moved by what the 3D face changes."""

    listens = False

    def __init__(self, args: argparse.Namespace, photo: Image) -> None:
        from fastface.apps._live_portrait import open_model
        from fastface.face import FaceTracker, built_in_head, lip_gap_in_widths, load_face_model, trackable

        rest = {"animals": False, "region": "all", "no_stitching": False, "close_mouth": False}
        self._model = open_model(argparse.Namespace(**vars(args), **rest))
        self.face_model = trackable(load_face_model(args.face_model) if args.face_model else built_in_head())
        faces = self._model.detect(photo)
        if not 1 <= (args.face or 1) <= len(faces):
            raise UserError(
                f"--face must be from 1 to {len(faces)} (the faces found), got {args.face}: {args.portrait}"
                if faces
                else f"no face found in the portrait, expected one: {args.portrait}"
            )
        face = faces[(args.face or 1) - 1]
        self.parameters = FaceTracker(self.face_model).follow(face)
        self.opening: float | None = lip_gap_in_widths(face.points)
        self._source = self._model.prepare(photo, face=face)
        self.words = f"frames by LivePortrait, {'weights ' + args.weights if args.weights else 'untrained: noise'}"

    def listen(self, recognizer: Wav2Vec2Recognizer | None) -> None:
        pass

    def hear(self, samples: Samples | None) -> None:
        pass

    def render(self, vector: Tensor) -> Image:
        from fastface.face import FaceParameters
        from fastface.models.live_portrait import from_face

        moved = FaceParameters.of_vector(vector[None], self.parameters.identity)
        motion = from_face(moved, self.parameters, self._source, model=self.face_model)
        return self._model.render_uint8(self._source, motion)[0].numpy()


class _Head:
    """The cameras ``[7]`` of the head in a video, carried to the portrait, at any time: there and back again."""

    def __init__(self, path: str, stage: _Stage) -> None:
        from fastface import media
        from fastface.face import FaceTracker

        with media.VideoReader(path) as reader:
            track = shared.follow(reader, FaceTracker(stage.face_model))
        self._vectors = track.smoothed().adapted(stage.parameters).vectors[:, -7:].numpy()
        self._seconds = track.seconds.numpy()

    def __call__(self, seconds: float) -> Tensor:
        end = float(self._seconds[-1])
        at = end - abs(end - seconds % (2 * end)) if end > 0 else 0.0
        return torch.tensor([np.interp(at, self._seconds, column) for column in self._vectors.T], dtype=torch.float32)


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total or None, unit="frame", desc="speaking", disable=not sys.stderr.isatty(), leave=False)


def _measured(video: Path, audio: str, level: float) -> dict[str, float | None]:
    """How the lips of a video follow the sound, in r and milliseconds; None where they hardly do."""
    from fastface import media
    from fastface.audio import SpectralSpeechStream
    from fastface.audio.reader import AudioReader
    from fastface.models.posegan.sync import lip_openings, lip_sync

    stream = SpectralSpeechStream(level)
    with AudioReader(audio) as sound:
        features = np.concatenate([*map(stream.push, sound), stream.finish()])
    with media.VideoReader(video) as reader:
        seconds, openings = lip_openings(shared.progress(reader, "looking at the lips", reader.expected_frames))
    found = lip_sync(seconds, openings, features)
    lag = round(1e3 * found.lag) if found.correlation >= _LEAST_AGREEMENT else None
    return {"correlation": round(found.correlation, 3), "lag_ms": lag}


def _tell(summary: dict[str, Any], words: str) -> None:
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in summary["milliseconds"].items())
    print(words)
    print(f"{summary['frames']} frames of {summary['seconds']:.1f} s of sound; ms per frame (mean): {stages}")
    print(f"real-time factor: {summary['real_time_factor']:.2f}")
    if summary["lips"]:
        print(_follows(**summary["lips"]))
    print(f"video: {summary['output']}")
    if summary["contact_sheet"]:
        print(f"contact sheet: {summary['contact_sheet']}")
    tell_notes(summary["notes"])


def _follows(correlation: float, lag_ms: int | None) -> str:
    if lag_ms is None:
        return f"lips hardly follow the sound: r {correlation:.2f}"
    when = f"{abs(lag_ms)} ms {'late' if lag_ms > 0 else 'early'}" if lag_ms else "at the same time"
    return f"lips follow the sound: r {correlation:.2f}, {when}"
