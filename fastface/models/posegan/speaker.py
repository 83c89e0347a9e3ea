"""Sound to the motion of a portrait's 3D face, as it comes: what `fastface speak` renders.

    samples -> speech features -> PoseGAN, PGFace -> head and mouth, laid over the portrait's own
    seconds -> blinks, brows, a slow drift of the head            -> the same, with or without sound

The face is what PGFace says beyond what it says of silence, laid over the portrait with its lips closed. So closures
close whatever the portrait does, and a silent mouth is a closed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from fastface.audio import PrecomputedSpeech, SpectralSpeechStream
from fastface.audio.sound import SAMPLE_RATE, Samples, to_float
from fastface.audio.speech import FEATURES, LOUDNESS, STEP_RATE, Features, PrecomputedSpeechStream
from fastface.face import (
    Camera,
    FaceParameters,
    MorphableModel,
    built_in_head,
    lip_gap_mm,
    rotation_matrix,
    rotation_vector,
    topology,
    trackable,
)
from fastface.face.camera import FLIP
from fastface.models import lifted
from fastface.models.headgan.driving import FaceTrack
from fastface.models.posegan.idle import Blinks, Drift
from fastface.models.posegan.networks import CAMERA_DISTANCE, POSE, PGFace, PoseGAN
from fastface.models.posegan.streams import MotionStream

__all__ = ["Lips", "RecognizedSpeechStream", "Resampling", "Speaker", "SpeakerConfig", "posed"]

Recognize = Callable[[Samples, int], Features]

# Front ends, as the networks' configurations name them; any other name wants precomputed features.
SPECTRAL, WAV2VEC2, PRECOMPUTED = "spectral", "wav2vec2", "precomputed"
_STEP = SAMPLE_RATE // STEP_RATE
_QUIET, _HEARD = 0.15, 0.35  # loudness, -43 and -33 dB, between which the mouth is let open
_HELD = 6  # frames before and after a loud one at most in which it is: the silence in a stop is part of the word
_MOST = math.radians(20)  # of a turn: what a photo does not show begins there
_FARTHEST = 60.0  # mm
_CLOSING = ("jaw_open", "upper_lip_raise", "lower_lip_drop")  # modes that close a mouth
_OVERLAP = 1.1  # of the gap: lips that cross are drawn closed
_ROUNDING = ("pucker", "funnel")
_LIP_SHAPES = (
    "smile_left", "smile_right", "frown_left", "frown_right", "stretch_left", "stretch_right", "pucker", "funnel",
    "lips_press", "lips_roll",
)  # fmt: skip
_BROWS = ("brow_inner_up", "brow_up_left", "brow_up_right")


@dataclass(frozen=True)
class SpeakerConfig:
    """How much a face does.

    Attributes:
        pose: strength of the head's motion.
        expression: strength of the face's motion, blinks left out.
        blink: seconds between blinks, at least and at most.
        brow: how far brows rise at times, 1 being all the way.
        seed: of blinks, brows and the head's drift.
    """

    pose: float = 1.0
    expression: float = 1.0
    blink: tuple[float, float] = (2.0, 6.0)
    brow: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not min(self.pose, self.expression, self.brow) >= 0:
            raise ValueError(f"strengths must be at least 0, got {self}")
        if not 0.5 <= self.blink[0] <= self.blink[1]:
            raise ValueError(f"blink must be two numbers of at least 0.5 s that do not fall, got {self.blink}")


class Speaker:
    """Sound in pieces to the face of a portrait: `push` samples, get the frames that they complete, then `finish`.

    Frame t stands for t / fps seconds of the sound. How the sound is cut into pieces changes nothing, and memory does
    not grow with it.

    Args:
        posegan, pgface: trained networks, of one front end and one rate.
        reference: the portrait's own face, batch 1 (`HeadGANSource.parameters`).
        model: whose parameters these are; the built-in head by default.
        opening: how far its lips are apart, as of `Lips`.
        fps: of the frames; the networks keep their own rate.
        level: of the speech in dB (`fastface.audio.speech_level`); None takes that of the last minutes.
        recognize: `Wav2Vec2Recognizer(...).log_probabilities`, for networks trained with it.
        features: those of the whole sound in its place, for networks that hear what is not measured here, such as the
            published DeepSpeech. What they say of silence is not known then, and taken for a face at rest.
        config: how much it does.
        hop: of `PoseStream`. A quarter of PoseGAN's window by default: little work, long latency; live wants 8.

    Attributes:
        heard: whether any sound so far was loud enough to open the mouth.

    Raises:
        ValueError: networks that hear something else, were trained on another face model, or give another number of
            expressions than the model has; a reference of another size; a model in an unknown unit; fps, level or hop
            out of range.
    """

    def __init__(
        self,
        posegan: PoseGAN,
        pgface: PGFace,
        reference: FaceParameters,
        *,
        model: MorphableModel | None = None,
        opening: float | None = None,
        fps: float = 25.0,
        level: float | None = None,
        recognize: Recognize | None = None,
        features: PrecomputedSpeech | None = None,
        config: SpeakerConfig | None = None,
        hop: int | None = None,
    ) -> None:
        self.config, self.reference, self.fps = config or SpeakerConfig(), reference, fps
        self.model = trackable(model or built_in_head())
        if not 0 < fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, got {fps}")
        if pgface.config.expressions != self.model.expressions:
            found = pgface.config.expressions
            raise ValueError(f"pgface must give the face model's {self.model.expressions} expressions, got {found}")
        for network in (posegan, pgface):
            if network.config.face not in (None, self.model.content_hash):
                raise ValueError(
                    f"networks must be for the face model {self.model.content_hash}, got {network.config.face}"
                )
        _ = self.model.millimetres  # refused now, not with the first frame
        _check_reference(reference, self.model)
        check_front_end(pgface.config.speech, recognized=recognize is not None, precomputed=features is not None)
        hop = max(1, posegan.config.frames // 4) if hop is None else hop
        self._motion = MotionStream(posegan, pgface, hop=hop)
        self._mean = posegan.statistics.mean.cpu()
        self._spectral = SpectralSpeechStream(level)
        self._other: PrecomputedSpeechStream | RecognizedSpeechStream | None = None
        if features is not None:
            self._other, self._silent = PrecomputedSpeechStream(features), torch.zeros(self.model.expressions)
        else:
            self._other = None if recognize is None else RecognizedSpeechStream(recognize)
            self._silent = _said_of_silence(pgface, recognize)
        self._rate = rate = pgface.config.fps
        self._at_rate, self._loud_at_rate, self._at_fps = (
            Resampling(*rates) for rates in ((STEP_RATE, rate), (STEP_RATE, rate), (rate, fps))
        )
        self._loud = torch.zeros(_HELD)  # from _HELD frames before the one that PGFace gives next
        self._frames, self.heard = 0, False
        self._lips = Lips(reference, self.model, opening)
        drift, blinks, brows = np.random.SeedSequence(self.config.seed).spawn(3)
        self._drift, self._blinks = Drift(drift), Blinks(blinks, self.config.blink)
        self._brows = Blinks(brows, (3.0, 10.0), lasting=(0.5, 1.2))
        self._lids, self._raised, self._rounding, self._shapes = (
            [index for index, name in enumerate(self.model.expression_names) if name in names]
            for names in (("blink_left", "blink_right"), _BROWS, _ROUNDING, _LIP_SHAPES)
        )

    @property
    def latency(self) -> float:
        """Seconds by which a frame comes later than its sound at most, those of a recogniser (21) left out."""
        return (self._motion.latency + 1) / self._rate + 1 / STEP_RATE + SpectralSpeechStream.latency

    def push(self, samples: ArrayLike) -> FaceTrack:
        """The frames, often none, that mono samples ``[N]`` at 16 kHz complete.

        Raises:
            TypeError, ValueError: samples that are not numbers, not ``[N]`` or not finite, or sound after `finish`.
        """
        values = to_float(samples)
        spectral = self._spectral.push(values)
        return self._speak(spectral, self._other.push(values) if self._other else spectral)

    def finish(self) -> FaceTrack:
        """The frames that are left, once the sound has ended. Raises ValueError where `features` are of other sound."""
        spectral = self._spectral.finish()
        return self._speak(spectral, self._other.finish() if self._other else spectral, end=True)

    def _speak(self, spectral: Features, features: Features, *, end: bool = False) -> FaceTrack:
        loud = torch.from_numpy(spectral[:, LOUDNESS : LOUDNESS + 1])
        self._loud = torch.cat([self._loud, self._loud_at_rate.push(loud, end=end)[:, 0]])
        motions = [self._motion.push(self._at_rate.push(torch.from_numpy(features), end=end))]
        if end:
            motions.append(self._motion.finish())
        poses, _, expression = (torch.cat(parts).cpu() for parts in zip(*motions, strict=True))
        said = (expression - self._silent) * self._openness(len(expression))
        motion = self._at_fps.push(torch.cat([poses - self._mean, said], 1), end=end)
        return self._on_portrait(motion[:, :POSE], motion[:, POSE:])

    def _openness(self, count: int) -> Tensor:
        """How far the sound lets the mouth open in the next frames, ``[count, 1]`` from 0 to 1."""
        around = self._loud[: count + 2 * _HELD]
        around = F.pad(around, (0, count + 2 * _HELD - len(around)))  # beyond the end of the sound
        self._loud = self._loud[count:]
        if count == 0:
            return torch.zeros(0, 1)
        share = ((around - _QUIET) / (_HEARD - _QUIET)).clamp(0, 1)[None]
        self.heard |= bool(share.any())
        held = F.max_pool1d(share, _HELD + 1, 1)
        return F.avg_pool1d(held, _HELD + 1, 1).T  # so that it fades

    def _on_portrait(self, poses: Tensor, said: Tensor) -> FaceTrack:
        """Poses ``[n, 6]`` and expressions ``[n, E]``, both beyond rest, on the portrait."""
        count, own = len(poses), self.reference.expression
        seconds = np.arange(self._frames, self._frames + count) / self.fps
        self._frames += count
        drift, lids, brows = (torch.from_numpy(f(seconds)).float() for f in (self._drift, self._blinks, self._brows))
        said = self.config.expression * said
        # Lips do not smile and round at once: the portrait's own shape makes way.
        rest = own.repeat(count, 1)
        rest[:, self._shapes] *= 1 - said[:, self._rounding].clamp(min=0).sum(1, keepdim=True).clamp(max=1)
        expression = self._lips.closed(rest) + said
        expression[:, self._raised] += self.config.brow * brows[:, None]
        expression[:, self._lids] = own[:, self._lids] + lids[:, None] * (1 - own[:, self._lids])
        camera = posed(self.reference, self.model, self.config.pose * (poses + drift))
        return FaceTrack(
            torch.cat([expression, camera.vector], 1),
            torch.from_numpy(seconds),
            torch.ones(count, dtype=torch.bool),
            self.reference.identity,
        )


def posed(reference: FaceParameters, model: MorphableModel, poses: Tensor) -> Camera:
    """The cameras of a face that departs from its own by poses ``[n, 6]``: undoes what `extract` makes of cameras.

    Pitch, yaw and roll are radians, with the signs of `Camera.angles`, about the model's origin; x, y and z are
    millimetres of that origin along the axes of model space, z becoming a change of size. So a turn about the neck is
    in them already (`carried`). Both are kept within what a photo can show, 20° and 60 mm.
    """
    angles, shift = poses[:, :3].clamp(-_MOST, _MOST).rad2deg(), poses[:, 3:].clamp(-_FARTHEST, _FARTHEST)
    own, flip = reference.camera, poses.new_tensor(FLIP)
    turn = flip[:, None] * lifted.rotation_matrix(angles[:, [1, 0, 2]]) * flip
    scale = own.scale * CAMERA_DISTANCE / (CAMERA_DISTANCE - shift[:, 2])
    moved = scale[:, None] / model.millimetres * flip * shift  # pixels
    return Camera(scale, rotation_vector(turn @ rotation_matrix(own.rotation)), own.translation + moved)


class Lips:
    """What closes the lips of a portrait: the least change of jaw and lips.

    The gap between the lips' inner edges is linear in the coefficients e, ∂g·e beyond that of a face at rest. With the
    portrait's own gap g and own e₀, ``e - ∂g (g + ∂g·(e - e₀)) / |∂g|²`` closes it, the outer ∂g having the modes of
    jaw and lips alone, or all of a model without names. A closed mouth stays as it is.

    Args:
        own: the portrait's face, batch 1.
        model: whose parameters these are.
        opening: how far its lips are apart in face widths (`lip_gap_in_widths` of its landmarks); None: as the fit
            has it, which takes it for smaller than it is.
    """

    def __init__(self, own: FaceParameters, model: MorphableModel, opening: float | None = None) -> None:
        assert model.dense is not None
        self._gradient = lip_gap_mm(model).slopes
        ears = model.dense.of(model.shape(own.identity))[0, [topology.EAR_LEFT, topology.EAR_RIGHT]]
        width = torch.linalg.vector_norm(ears[0] - ears[1]) * model.millimetres
        self._own = own.expression
        self._gap = own.expression @ self._gradient if opening is None else opening * width[None]
        closing = self._gradient.clone()
        if model.expression_names:
            closing[[name not in _CLOSING for name in model.expression_names]] = 0
        self._closing = _OVERLAP * closing / closing.square().sum().clamp(min=1e-12)

    def closed(self, expression: Tensor) -> Tensor:
        """Expressions ``[n, E]`` of the portrait with its lips closed."""
        gap = self._gap + (expression - self._own) @ self._gradient
        return expression - gap.clamp(min=0)[:, None] * self._closing


class Resampling:
    """Rows ``[n, C]`` at one rate as rows at another, in pieces: row n at n / rate seconds, linear, the last held."""

    def __init__(self, source: float, target: float) -> None:
        self._ratio = source / target
        self._rows: Tensor | None = None
        self._first = self._next = 0  # of the rows that are kept; of the rows to come

    def push(self, rows: Tensor, *, end: bool = False) -> Tensor:
        """What the rows so far allow; at the end, all that start before the time after the last one."""
        kept = rows if self._rows is None else torch.cat([self._rows, rows])
        known = self._first + len(kept)
        stop = max(self._next, math.ceil((known if end else known - 1) / self._ratio))
        at = torch.arange(self._next, stop, dtype=torch.float64) * self._ratio - self._first
        left = at.long().clamp(max=len(kept) - 1)
        right = (left + 1).clamp(max=len(kept) - 1)
        result = torch.lerp(kept[left], kept[right], (at - left).float().clamp(max=1)[:, None])
        first = min(int(stop * self._ratio), known)
        self._rows, self._first, self._next = kept[first - self._first :], first, stop
        return result


class RecognizedSpeechStream:
    """A recogniser of whole sounds, live: push samples, get the features of 20 s at once, heard with a second of sound
    before and after them.
    """

    def __init__(self, recognize: Recognize, *, chunk: float = 20.0, context: float = 1.0) -> None:
        self._recognize = recognize
        self._chunk, self._context = (_STEP * round(part * STEP_RATE) for part in (chunk, context))
        self._buffer: Samples = np.zeros(0, dtype=np.float32)
        self._before = 0  # of the buffer, samples that have had their features

    def push(self, samples: Samples) -> Features:
        """``[n, 29]``, often none."""
        self._buffer = np.concatenate([self._buffer, samples])
        parts = [np.zeros((0, FEATURES), dtype=np.float32)]
        while len(self._buffer) >= self._before + self._chunk + self._context:
            parts.append(self._hear(self._chunk))
        return np.concatenate(parts)

    def finish(self) -> Features:
        """The features that are left, once the sound has ended."""
        return self._hear(len(self._buffer) - self._before)

    def _hear(self, count: int) -> Features:
        """Those of the next `count` samples."""
        done = self._before + count
        # A second of silence behind the end, since the last steps of a recogniser see more than their 20 ms.
        heard = self._recognize(np.pad(self._buffer[: done + self._context], (0, SAMPLE_RATE)), SAMPLE_RATE)
        first = self._before // _STEP
        keep = max(0, done - self._context)
        self._buffer, self._before = self._buffer[keep:], done - keep
        return heard[first : first - (-count // _STEP)]


def _check_reference(reference: FaceParameters, model: MorphableModel) -> None:
    parts = (
        ("identity", reference.identity, model.identities),
        ("expression", reference.expression, model.expressions),
        ("camera", reference.camera.vector, 7),
    )
    for name, values, count in parts:
        if values.shape != (1, count):
            raise ValueError(f"reference.{name} must be [1, {count}], got {list(values.shape)}")


def check_front_end(speech: str, *, recognized: bool, precomputed: bool) -> None:
    """Raises ValueError where networks for the front end of that name are given something else to hear."""
    if speech == SPECTRAL:
        fits, hint = not (recognized or precomputed), "they are measured here, leave recognizer and features out"
    elif speech == WAV2VEC2:
        fits, hint = recognized != precomputed, "pass a recognizer or its features"
    else:
        fits, hint = precomputed and not recognized, "pass precomputed features and no recognizer"
    if not fits:
        raise ValueError(f"the networks hear {speech!r} features: {hint}")


@torch.inference_mode()
def _said_of_silence(pgface: PGFace, recognize: Recognize | None) -> Tensor:
    """The expression ``[E]`` for silence."""
    mean = pgface.statistics.mean
    features = mean.new_zeros(2 * STEP_RATE, pgface.config.features)
    if recognize is not None:
        features = torch.from_numpy(recognize(np.zeros(2 * SAMPLE_RATE, dtype=np.float32), SAMPLE_RATE)).to(mean)
    shape = pgface(features[None], mean.expand(1, len(features), POSE))
    return shape.expression[0, len(features) // 2].cpu()
