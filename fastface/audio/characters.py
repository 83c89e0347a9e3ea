"""Characters and when they sound: what a recogniser hears, and the one-hots that HeadGAN reads of it."""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastface.audio.sound import SAMPLE_RATE, Samples

CLASSES = 27  # a to z, anything else
SLOTS = range(-4, 4)  # frames around one that it sees the characters of
LOOK_AHEAD = 5  # a slot holds the character that sounds so many frames later

_OTHER = CLASSES - 1


@dataclass(frozen=True)
class Characters:
    """Character k of `text` sounds from `starts[k]` (seconds) until the next one starts, the last one for ever.

    Raises:
        ValueError: another number of starts than of characters, or starts that are not finite or fall.
    """

    text: str
    starts: NDArray[np.float64]  # [n] seconds

    def __post_init__(self) -> None:
        starts = np.asarray(self.starts, dtype=np.float64)
        if starts.shape != (len(self.text),):
            raise ValueError(f"starts must be [{len(self.text)}], one per character, got {list(starts.shape)}")
        if not np.isfinite(starts).all() or (np.diff(starts) < 0).any():
            raise ValueError(f"starts must be finite and must not fall, got {starts[:8].tolist()}")
        object.__setattr__(self, "starts", starts)

    @classmethod
    def none(cls) -> Characters:
        """Nothing was said."""
        return cls("", np.zeros(0))

    def at(self, seconds: ArrayLike) -> NDArray[np.intp]:
        """The classes at those times: a to z are 0 to 25, anything else and the time before the first one 26."""
        return self._classes()[np.searchsorted(self.starts, seconds, side="right")]

    def at_published(self, seconds: NDArray[np.float64]) -> NDArray[np.intp]:
        """`at` as HeadGAN's authors computed it: intervals are closed at both ends and searched by bisection, so that a
        shared boundary belongs to the one that the search meets first.
        """
        edges = [-np.inf, *self.starts.tolist(), np.inf]

        def find(time: float) -> int:
            left, right = 0, len(edges) - 1
            while True:
                middle = (left + right) // 2
                if time < edges[middle]:
                    right = middle
                elif time > edges[middle + 1]:
                    left = middle + 1
                else:
                    return middle

        return self._classes()[[find(time) for time in seconds.ravel().tolist()]].reshape(seconds.shape)

    def _classes(self) -> NDArray[np.intp]:
        """``[1 + n]``: a blank, then the characters."""
        letters = [string.ascii_lowercase.find(character.lower()) for character in self.text]
        return np.array([_OTHER, *(_OTHER if letter < 0 else letter for letter in letters)], dtype=np.intp)


class CharacterRecognizer(Protocol):
    """Anything that hears characters: called with mono samples ``[N]`` in [-1, 1] and their rate in Hz, it returns them
    with their times from the first sample.
    """

    def __call__(self, samples: Samples, sample_rate: int) -> Characters: ...


def one_hots(
    characters: Characters | None,
    frames: NDArray[np.intp],
    fps: float,
    *,
    count: int | None = None,
    published: bool = False,
) -> NDArray[np.float32]:
    """HeadGAN's 216 high-level numbers: for each of `frames` the one-hots of 27 classes in eight slots.

    Slot s of frame i is frame i - 4 + s, held within the sound, and shows the character that sounds five frames later.

    Args:
        characters: None gives zeros: no recogniser, as opposed to `Characters.none()`, where nothing was said.
        frames: ``[n]``, from 0.
        count: how many frames the sound has; None: it goes on.
        published: ties as in `Characters.at_published`.

    Returns:
        ``[n, 216]``.
    """
    if characters is None:
        return np.zeros((len(frames), len(SLOTS) * CLASSES), dtype=np.float32)
    slots = np.clip(frames[:, None] + np.array(SLOTS), 0, None if count is None else count - 1)
    times = (slots + LOOK_AHEAD) / fps
    classes = characters.at_published(times) if published else characters.at(times)
    return np.eye(CLASSES, dtype=np.float32)[classes].reshape(-1, len(SLOTS) * CLASSES)


class LiveCharacters:
    """A recogniser that hears sound as it comes, `stride` seconds at a time with `left` and `right` seconds around.

    A character is final at most ``stride + right`` seconds after it sounded. How the sound is cut into pieces makes no
    difference.

    Attributes:
        characters: those found so far, the oldest forgotten by `forget`.
        known: seconds up to which they are final.

    Raises:
        ValueError: a stride that is not positive, or a negative context.
    """

    def __init__(
        self,
        recognizer: CharacterRecognizer,
        sample_rate: int = SAMPLE_RATE,
        *,
        left: float = 0.64,
        stride: float = 0.32,
        right: float = 0.32,
    ) -> None:
        self._recognizer, self.sample_rate = recognizer, sample_rate
        self._left, self._stride, self._right = (round(part * sample_rate) for part in (left, stride, right))
        if self._stride < 1 or min(self._left, self._right) < 0:
            raise ValueError(f"stride must be positive and the context at least 0, got {stride} in {left} and {right}")
        self._buffer: Samples = np.zeros(0, dtype=np.float32)
        self._origin = 0  # of the buffer in the sound, samples
        self._done = 0  # samples whose characters are known
        self._ended = False
        self.characters = Characters.none()

    @property
    def known(self) -> float:
        return np.inf if self._ended else self._done / self.sample_rate

    def push(self, samples: Samples) -> None:
        self._buffer = np.concatenate([self._buffer, samples])
        while self._origin + len(self._buffer) >= self._done + self._stride + self._right:
            self._recognize(self._done + self._stride)

    def finish(self) -> None:
        """The sound has ended."""
        end = self._origin + len(self._buffer)
        if end > self._done:
            self._recognize(end)
        self._ended = True

    def forget(self, seconds: float) -> None:
        """Drop the characters that ended before a time."""
        first = max(0, int(np.searchsorted(self.characters.starts, seconds, side="right")) - 1)
        self.characters = Characters(self.characters.text[first:], self.characters.starts[first:])

    def _recognize(self, end: int) -> None:
        heard = self._recognizer(self._buffer[: end + self._right - self._origin], self.sample_rate)
        # In whole samples: seconds round, and a character on the seam must come exactly once.
        at = self._origin + np.rint(heard.starts * self.sample_rate)
        new = (at >= self._done) & (at < end)
        text = "".join(itertools.compress(heard.text, new))
        starts = np.concatenate([self.characters.starts, at[new] / self.sample_rate])
        self.characters = Characters(self.characters.text + text, starts)
        self._done = end
        drop = max(0, end - self._left - self._origin)
        self._buffer = self._buffer[drop:]
        self._origin += drop
