"""Clips as training sees them: features at the frame rate, of the clean sound and of what recordings make of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastface.audio import SpectralSpeech, SpeechFeatures, to_frame_rate
from fastface.audio.sound import SAMPLE_RATE
from fastface.models.posegan.corpus import Clip, Corpus, augment

__all__ = ["Example", "Windows", "prepare", "read_examples", "with_silence"]

_TO_REST = 25  # frames


@dataclass(frozen=True)
class Example:
    """A clip whose sound has become features.

    Attributes:
        name: of the clip.
        features: ``[C, T, 29]`` of the clean sound, then of augmented copies of it.
        pose: ``[T, 6]``, radians and millimetres.
        identity, expression: ``[I]`` and ``[T, E]``.
        opening, closed: ``[T]`` as in `Clip`, None where unknown.
    """

    name: str
    features: Tensor
    pose: Tensor
    identity: Tensor
    expression: Tensor
    opening: Tensor | None = None
    closed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pose)


def prepare(
    name: str, clip: Clip, *, speech: SpeechFeatures | None = None, copies: int = 0, seed: Sequence[int] = (0,)
) -> Example:
    """The example of a clip.

    Args:
        name: of the clip.
        clip: its sound and its face.
        speech: what hears it; `SpectralSpeech` by default.
        copies: of the sound that go through `augment` (gain, noise, a room, a microphone, a telephone's band).
        seed: of the copies.
    """
    speech, rng = speech or SpectralSpeech(), np.random.default_rng(seed)
    sounds = [clip.samples, *(augment(clip.samples, rng) for _ in range(copies))]
    features = [to_frame_rate(speech(sound, SAMPLE_RATE), len(clip.pose), clip.fps) for sound in sounds]
    return Example(
        name,
        torch.from_numpy(np.stack(features)),
        *(torch.from_numpy(values) for values in (clip.pose, clip.identity, clip.expression)),
        *(None if values is None else torch.from_numpy(values) for values in (clip.opening, clip.closed)),
    )


def read_examples(
    corpus: Corpus, split: str, *, speech: SpeechFeatures | None = None, copies: int = 0, seed: int = 0
) -> Iterator[Example]:
    """The clips of "train" or "held_out" one after the other; arguments and errors as of `prepare` and `read_clip`."""
    for index, name in enumerate(corpus.names(split)):
        yield prepare(name, corpus.read(name), speech=speech, copies=copies, seed=(seed, index))


def with_silence(examples: Sequence[Example], frames: int, silence: Tensor) -> list[Example]:
    """Every sixteenth example between silences, half as long again as windows of so many frames: some hear just that.

    In silence the head comes from the mean of all poses and goes back to it, within 25 frames. A corpus of speech has
    no silence as long, and a network makes up motion for what it never heard. `silence` are its features ``[29]``.
    None where no example has that many frames: silence alone is nothing to learn from.
    """
    if max(map(len, examples)) < frames:
        return []
    mean = torch.cat([example.pose for example in examples]).mean(0)
    return [_between_silences(example, frames * 3 // 2, silence, mean) for example in examples[::16]]


def _between_silences(example: Example, frames: int, silence: Tensor, mean: Tensor) -> Example:
    quiet = silence.expand(len(example.features), frames, -1)
    index = torch.arange(-frames, len(example) + frames)
    inside = index.clamp(0, len(example) - 1)
    away = ((index - inside).abs() / _TO_REST).clamp(max=1)
    pose = torch.lerp(mean, example.pose[inside], (1 + torch.cos(torch.pi * away))[:, None] / 2)
    rest = torch.zeros(frames, example.expression.shape[1])
    return Example(
        f"{example.name} between silences",
        torch.cat([quiet, example.features, quiet], 1),
        pose,
        example.identity,
        torch.cat([rest, example.expression, rest]),
    )


class Windows:
    """All stretches of so many frames in examples, to draw from: each is as likely as any other.

    Raises:
        ValueError: no example is that long.
    """

    def __init__(self, examples: Sequence[Example], frames: int) -> None:
        self._examples = [example for example in examples if len(example) >= frames]
        self.frames = frames
        if not self._examples:
            longest = max(map(len, examples), default=0)
            raise ValueError(f"a clip of at least {frames} frames is needed to train, got at most {longest} frames")
        self._ends = np.cumsum([len(example) - frames + 1 for example in self._examples])

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[Example, int, int]]:
        """That many, each as example, first frame and copy of the sound."""
        drawn = []
        for place in rng.integers(self._ends[-1], size=count):
            index = int(np.searchsorted(self._ends, place, side="right"))
            example = self._examples[index]
            start = int(place) - (int(self._ends[index - 1]) if index else 0)
            drawn.append((example, start, int(rng.integers(len(example.features)))))
        return drawn
