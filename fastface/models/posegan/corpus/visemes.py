"""Phonemes to the mouth of the built-in head: targets, coarticulation, closures.

Each phoneme has a target for the mouth's expression modes. Between phonemes they blend by dominance functions after
Cohen and Massaro, "Modeling coarticulation in synthetic visual speech" (1993):

    F(t) = Σ D_s(t) T_s / Σ D_s(t),  D_s(t) = α_s exp(-θ τ_s(t))

with τ the time to segment s, 0 within it, and α apart for the jaw and the lips: what a phoneme needs of either. So a
consonant made by the tongue takes the lips of its vowels. What blending may not miss are contacts: in p, b, m the lips
meet and in f, v the lip meets the teeth, so there the modes that part the lips go to the contact's values, in full from
its beginning to its end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastface.audio.sound import SAMPLE_RATE, Samples
from fastface.face import built_in_head, lip_gap_mm
from fastface.models.posegan.corpus.espeak import Phoneme, Speech

_Array = NDArray[np.float64]

WIDEST = 12.0  # mm between the lips that count as an opening of 1: a clear "ah"
_JAW = ("jaw_open",)
_PARTING = ("jaw_open", "funnel", "upper_lip_raise", "lower_lip_drop", "lips_press", "lips_roll", "chin_raise")
_JAW_DECAY, _LIPS_DECAY = 1 / 0.025, 1 / 0.040  # θ, per second: lips round ahead of the vowel, the jaw waits
_RAMP = 0.075  # seconds from open to a contact
_LEAST_CONTACT = 0.045  # seconds; over a frame at 25 fps, so that every contact has one
_LONGEST_SILENCE = 0.12  # seconds before a burst that the lips are held
_SILENT = 10 ** (-45 / 20)  # of the peak


@dataclass(frozen=True)
class Viseme:
    """How the mouth stands for some phonemes: `jaw` and `lips` are its α, `modes` its target."""

    jaw: float
    lips: float
    modes: dict[str, float] = field(default_factory=dict)
    contact: bool = False
    vowel: bool = False


def _wide(amount: float, smile: float = 0.0) -> dict[str, float]:
    """Corners apart, and up in part."""
    return {"stretch_left": amount, "stretch_right": amount, "smile_left": smile, "smile_right": smile}


_BILABIAL = Viseme(2, 1, {"lips_press": 0.35}, contact=True)
# Each with its reason: what is seen of it in the mirror.
VISEMES = {
    # The lips meet and press; the corners are left to the vowels around.
    "p": _BILABIAL, "b": _BILABIAL, "m": _BILABIAL, "ɱ": _BILABIAL,
    # Lips almost meet, without pressure (Spanish).
    "β": Viseme(2, 1, {"jaw_open": 0.04}),
    # The lower lip rises to the upper teeth, which show.
    **dict.fromkeys("fvʋ", Viseme(2, 1, {"jaw_open": 0.04, "chin_raise": 0.2, "upper_lip_raise": 0.2}, contact=True)),
    # The tongue shows between the teeth.
    **dict.fromkeys("θð", Viseme(1.5, 0.6, {"jaw_open": 0.11, "lower_lip_drop": 0.12, **_wide(0.1)})),
    # The tongue is behind the teeth, lips are free.
    **dict.fromkeys("tdnlɫɾɬɲʎɳʈɖ", Viseme(0.8, 0.25, {"jaw_open": 0.09, "lower_lip_drop": 0.12, **_wide(0.1)})),
    # Teeth together and seen, corners apart.
    **dict.fromkeys("szc", Viseme(1.8, 0.7, {"jaw_open": 0.05, "lower_lip_drop": 0.15, **_wide(0.25)})),
    # Teeth together, lips pushed forward.
    **dict.fromkeys("ʃʒçʝɕʑ", Viseme(1.8, 1.2, {"jaw_open": 0.05, "funnel": 0.35, "pucker": 0.25})),
    # Made in the throat: the mouth is already the next vowel's.
    **dict.fromkeys("kɡgŋxɣhɦʔqχʁ?", Viseme(0.4, 0.1, {"jaw_open": 0.13})),
    # Lips a little forward and round.
    **dict.fromkeys("ɹr", Viseme(0.8, 0.9, {"jaw_open": 0.08, "pucker": 0.35, "funnel": 0.2})),
    # The smallest round opening.
    **dict.fromkeys("wʍɥ", Viseme(1.6, 2, {"jaw_open": 0.05, "pucker": 0.85, "funnel": 0.08})),
    "j": Viseme(1.2, 0.6, {"jaw_open": 0.07, **_wide(0.3)}),
    # Close and wide.
    **dict.fromkeys("iɨ", Viseme(1, 1, {"jaw_open": 0.08, "lower_lip_drop": 0.1, **_wide(0.4, 0.15)}, vowel=True)),
    **dict.fromkeys("ɪeᵻ", Viseme(1, 0.8, {"jaw_open": 0.14, "lower_lip_drop": 0.1, **_wide(0.3, 0.1)}, vowel=True)),
    "ɛ": Viseme(1, 0.8, {"jaw_open": 0.22, **_wide(0.25)}, vowel=True),
    # The jaw is lowest.
    **dict.fromkeys("æa", Viseme(1.2, 0.8, {"jaw_open": 0.34, **_wide(0.2)}, vowel=True)),
    "ɑ": Viseme(1.2, 0.8, {"jaw_open": 0.36}, vowel=True),
    **dict.fromkeys("ʌɐ", Viseme(1, 0.5, {"jaw_open": 0.23}, vowel=True)),
    # Half rounded over a low jaw.
    **dict.fromkeys("ɔɒ", Viseme(1.1, 1.2, {"jaw_open": 0.22, "funnel": 0.35, "pucker": 0.2}, vowel=True)),
    # Round.
    **dict.fromkeys("oøœɵɤ", Viseme(1.1, 1.4, {"jaw_open": 0.13, "funnel": 0.2, "pucker": 0.55}, vowel=True)),
    # Close and round.
    **dict.fromkeys("uyʊʏʉ", Viseme(1.2, 1.6, {"jaw_open": 0.07, "funnel": 0.1, "pucker": 0.8}, vowel=True)),
    **dict.fromkeys("ɜɚɝ", Viseme(1, 0.9, {"jaw_open": 0.14, "funnel": 0.15, "pucker": 0.2}, vowel=True)),
    # Neutral, and ready to give way.
    "ə": Viseme(0.6, 0.3, {"jaw_open": 0.13}, vowel=True),
}  # fmt: skip
REST = Viseme(1, 1)
_NO_SOUND_OF_THEIR_OWN = "ː:ˑˈˌʲʰʷ̩̯̪̃͡.-;ˠ"


@dataclass(frozen=True)
class Segment:
    """A viseme from `start` to `end` in seconds."""

    viseme: Viseme
    start: float
    end: float

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class Mouth:
    """The mouth, frame t at t / fps: expression ``[T, E]`` of the built-in head, opening ``[T]`` in [0, 1], and the
    frames ``[T]`` in which the lips meet.
    """

    expression: _Array
    opening: _Array
    closed: NDArray[np.bool_]


def segments(speech: Speech) -> list[Segment]:
    """The visemes of speech; a phoneme of several symbols, such as a diphthong, in equal parts.

    eSpeak NG dates a voiceless stop at its burst, so the silence before it becomes the stop's.

    Raises ValueError for a symbol of IPA that `VISEMES` does not have.
    """
    found: list[Segment] = []
    for phoneme in speech.phonemes:
        symbols = [symbol for symbol in phoneme.symbol if symbol not in _NO_SOUND_OF_THEIR_OWN]
        unknown = [symbol for symbol in symbols if symbol not in VISEMES]
        if unknown:
            raise ValueError(f"phonemes must be among {''.join(VISEMES)}, got {unknown[0]} in {phoneme.symbol}")
        start = phoneme.start
        if symbols and symbols[0] == "p" and found:
            start = _silence_before(speech.samples, phoneme)
            found[-1] = Segment(found[-1].viseme, found[-1].start, start)
        edges = np.linspace(start, phoneme.end, max(1, len(symbols)) + 1).tolist()
        visemes = [VISEMES[symbol] for symbol in symbols] or [REST]
        found += [Segment(*each) for each in zip(visemes, edges[:-1], edges[1:], strict=True)]
    return found


def mouth(parts: Sequence[Segment], frames: int, fps: float) -> Mouth:
    """The mouth of visemes, `frames` of them; it rests beyond their ends."""
    names = built_in_head().expression_names
    time = np.arange(frames) / fps
    ends = [Segment(REST, -1.0, 0.0), *parts, Segment(REST, parts[-1].end, parts[-1].end + 1)]
    target = np.array([[part.viseme.modes.get(name, 0.0) for name in names] for part in ends])
    start, end = np.array([(part.start, part.end) for part in ends]).T
    away = np.maximum(start - time[:, None], time[:, None] - end).clip(min=0)  # [T, segments]
    expression = np.empty((frames, len(names)))
    for of_jaw, decay in ((True, _JAW_DECAY), (False, _LIPS_DECAY)):
        strength = np.array([part.viseme.jaw if of_jaw else part.viseme.lips for part in ends])
        dominance = strength * np.exp(-decay * away)
        modes = [(name in _JAW) == of_jaw for name in names]
        expression[:, modes] = dominance @ target[:, modes] / dominance.sum(1, keepdims=True)
    closed = np.zeros(frames, dtype=bool)
    parting = [name in _PARTING for name in names]
    contacts = [(part, goal[parting]) for part, goal in zip(ends, target, strict=True) if part.viseme.contact]
    # Bilabials last: beside f and v it is the lips that must meet.
    for part, goal in sorted(contacts, key=lambda contact: contact[0].viseme is _BILABIAL):
        share = _contact(time, part)
        expression[:, parting] += share[:, None] * (goal - expression[:, parting])
        closed |= (share == 1) & (part.viseme is _BILABIAL)
    return Mouth(expression, mouth_opening(expression), closed)


def mouth_opening(expression: NDArray[np.floating]) -> _Array:
    """How far the built-in head's inner lips are apart under expressions ``[..., E]``: 0 if not, 1 at 12 mm."""
    rest, slopes = _lip_gap()
    return np.asarray((rest + expression @ slopes) / WIDEST).clip(0, 1)


@functools.cache
def _lip_gap() -> tuple[float, _Array]:
    rest, slopes = lip_gap_mm(built_in_head())
    return rest, slopes.double().numpy()


def _contact(time: _Array, part: Segment) -> _Array:
    """1 during a contact, raised cosines to 0 around it."""
    half = max(part.end - part.start, _LEAST_CONTACT) / 2
    beyond = (np.abs(time - part.middle) - half).clip(0, _RAMP)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * beyond / _RAMP))


def _silence_before(samples: Samples, phoneme: Phoneme) -> float:
    """When the silence before a burst begins, at least the least contact before it."""
    burst = round(phoneme.start * SAMPLE_RATE)
    before = samples[max(0, burst - round(_LONGEST_SILENCE * SAMPLE_RATE)) : burst]
    loud = np.flatnonzero(np.abs(before) > _SILENT * np.abs(samples).max())
    silent = len(before) - (loud[-1] + 1 if len(loud) else 0)
    return max(0.0, phoneme.start - max(silent / SAMPLE_RATE, _LEAST_CONTACT))
