"""A synthetic corpus: sentences, spoken by many voices, with the mouth and the head that go with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastface.audio.sound import SAMPLE_RATE
from fastface.face.loaders import built_in_head
from fastface.models.posegan.corpus.augment import augment
from fastface.models.posegan.corpus.espeak import Speech, Voice, synthesizer
from fastface.models.posegan.corpus.format import Clip, Corpus, clip_seconds, read_corpus, write_clip, write_corpus
from fastface.models.posegan.corpus.motion import head_motion
from fastface.models.posegan.corpus.text import sentence
from fastface.models.posegan.corpus.visemes import mouth, segments

FPS = 25.0  # that of the commands and of `fastface.audio`'s frames; FACIAL has 30
SPLITS = ("train", "held_out")
_ACCENTS = ("en-us", "en-us", "en", "en", "en-gb-x-rp", "en-us-nyc", "en-029", "es", "it", "de")
_VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m6", "+f1", "+f2", "+f3", "+Alex", "+Andrea", "+linda", "+steph")
_HELD_OUT_ACCENTS = ("en-us", "en", "en-gb-scotland")
_HELD_OUT_VARIANTS = ("+m5", "+m7", "+f4", "+f5", "+belinda", "+max")
_HELD_OUT_EVERY = 10  # clips
_TRACTS, _HELD_OUT_TRACTS = (0.8, 1.15), (0.9, 1.1)
_PEOPLE = 0.6  # standard deviations of identities
_FACES = "[0-9]" * 5 + ".npz"  # the files of clips
_Line = dict[str, Any]  # of a clip in corpus.json


@dataclass(frozen=True)
class Plan:
    """What a clip will be, before it is spoken."""

    name: str
    split: str
    voice: Voice
    text: str
    augmented: bool
    seed: tuple[int, int]  # of its motion, identity and augmentation


@dataclass(frozen=True)
class Options:
    """Of a corpus.

    Attributes:
        seconds: of speech at least.
        seed: the same numbers for the same options.
        fps: of poses and expressions.
        augmented: share of the training clips that go through `augment`; the others stay clean.
    """

    seconds: float
    seed: int = 0
    fps: float = FPS
    augmented: float = 0.0

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.fps > 0 and 0 <= self.augmented <= 1 and self.seed >= 0):
            raise ValueError(f"seconds and fps must be positive, augmented in [0, 1], seed at least 0, got {self}")


def plan(index: int, options: Options) -> Plan:
    """Clip `index`: every tenth one is held out, with sentences, variants and rates that no other clip has."""
    rng = np.random.default_rng((options.seed, index))
    held_out = index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    accents, variants = (_HELD_OUT_ACCENTS, _HELD_OUT_VARIANTS) if held_out else (_ACCENTS, _VARIANTS)
    voice = Voice(
        str(rng.choice(accents)) + str(rng.choice(variants)),
        rate=10 * int(rng.integers(12, 22)) + (5 if held_out else 0),
        pitch=int(rng.integers(30, 71)),
        pitch_range=int(rng.integers(30, 81)),
        tract=round(float(rng.uniform(*(_HELD_OUT_TRACTS if held_out else _TRACTS))), 3),
    )
    text = " ".join(sentence(rng, held_out=held_out) for _ in range(rng.integers(1, 4)))
    augmented = not held_out and bool(rng.random() < options.augmented)
    return Plan(f"{index:05}", SPLITS[held_out], voice, text, augmented, (options.seed, index))


def make_clip(plan: Plan, speech: Speech, fps: float = FPS) -> Clip:
    """The clip of a plan that was spoken."""
    rng = np.random.default_rng((*plan.seed, 1))
    head = built_in_head()
    frames = max(1, round(len(speech.samples) / SAMPLE_RATE * fps))
    parts = segments(speech)
    face = mouth(parts, frames, fps)
    pose = head_motion(parts, speech.samples, frames, fps, rng)
    identity = _PEOPLE * rng.standard_normal(head.identities)
    return Clip(
        augment(speech.samples, rng) if plan.augmented else speech.samples,
        fps,
        pose,
        identity.astype(np.float32),
        face.expression.astype(np.float32),
        face.opening.astype(np.float32),
        face.closed,
    )


def synthesize(
    folder: Path, options: Options, *, force: bool = False, progress: Callable[[float], Any] = lambda seconds: None
) -> Corpus:
    """Write a corpus. Clips that are there already are kept, also those beyond `seconds`, unless `force`, which removes
    them first; corpus.json has every clip there is. `progress` hears the seconds of each clip up to `seconds`.

    Raises:
        ValueError: the folder holds a corpus of other options and `force` is not set.
        ImportError: eSpeak NG or PyAV is not installed.
    """
    made = {key: value for key, value in asdict(options).items() if key != "seconds"} | {"by": "eSpeak NG"}
    if (folder / "corpus.json").exists() and not force:
        there = read_corpus(folder).made
        if there != made:
            raise ValueError(
                f"{folder} must be empty or of the same options, got a corpus of {there}; --force replaces it"
            )
    if force:
        for path in folder.glob(_FACES):
            path.unlink()
    clips = _found(folder, options)
    corpus = Corpus(folder, options.fps, built_in_head().content_hash, [], made)
    write_corpus(_indexed(corpus, clips))  # before anything is spoken: it says of which options the clips are
    try:
        _speak(folder, options, clips, progress)
    finally:
        corpus = _indexed(corpus, clips)
        write_corpus(corpus)
    return corpus


def _found(folder: Path, options: Options) -> dict[int, _Line]:
    """The lines of the clips that are there, by their numbers."""
    found = ((int(path.stem), clip_seconds(folder, path.stem)) for path in sorted(folder.glob(_FACES)))
    return {index: _entry(plan(index, options), seconds) for index, seconds in found if seconds is not None}


def _indexed(corpus: Corpus, clips: Mapping[int, _Line]) -> Corpus:
    return replace(corpus, clips=[clips[index] for index in sorted(clips)])


def _speak(folder: Path, options: Options, clips: dict[int, _Line], progress: Callable[[float], Any]) -> None:
    """Write the clips that are missing up to the seconds, and their lines."""
    done = 0.0
    with synthesizer() as speak:
        for index in itertools.count():
            if done >= options.seconds:
                return
            if index not in clips:
                each = plan(index, options)
                clip = make_clip(each, speak(each.text, each.voice), options.fps)
                write_clip(folder, each.name, clip)
                clips[index] = _entry(each, clip.seconds)
            done += clips[index]["seconds"]
            progress(clips[index]["seconds"])


def _entry(plan: Plan, seconds: float) -> _Line:
    """The clip's line."""
    known = asdict(plan) | asdict(plan.voice) | {"voice": plan.voice.name, "seconds": round(seconds, 2)}
    return {key: value for key, value in known.items() if key != "seed"} | {"name": plan.name}
