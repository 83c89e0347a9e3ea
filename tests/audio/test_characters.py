"""Characters, their one-hots, and recognising them live."""

from __future__ import annotations

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastface.audio import Characters, LiveCharacters, one_hots
from tests import goldens

TEXT = st.text(alphabet=string.ascii_letters + " '2é", max_size=12)


def said(text: str, gaps: list[int]) -> Characters:
    return Characters(text, np.cumsum(gaps[: len(text)]) / 50)


@given(text=TEXT, gaps=st.lists(st.integers(0, 9), min_size=12, max_size=12), fps=st.sampled_from([25.0, 29.97]))
def test_one_hots_by_hand(text: str, gaps: list[int], fps: float) -> None:
    characters, count = said(text, gaps), 20
    result = one_hots(characters, np.arange(count), fps, count=count).reshape(count, 8, 27)
    for frame in range(count):
        for slot in range(8):
            time = (min(max(frame - 4 + slot, 0), count - 1) + 5) / fps
            begun = [c for c, start in zip(text, characters.starts, strict=True) if start <= time]
            letter = begun[-1].lower() if begun else " "
            expected = ord(letter) - ord("a") if "a" <= letter <= "z" else 26
            assert result[frame, slot].nonzero()[0].tolist() == [expected]


@given(text=TEXT, gaps=st.lists(st.integers(1, 9), min_size=12, max_size=12))
def test_published_ties_go_to_one_of_the_two(text: str, gaps: list[int]) -> None:
    characters = said(text, gaps)
    between = np.arange(0, 120) / 50 + 0.007
    assert np.array_equal(characters.at_published(between), characters.at(between))
    ties = characters.starts
    earlier, later = characters.at(ties - 1e-6), characters.at(ties)
    assert all(p in pair for p, *pair in zip(characters.at_published(ties), earlier, later, strict=True))


@pytest.mark.parametrize(("fps", "frames"), [(25, 50), (30, 60)])
def test_goldens(fps: int, frames: int) -> None:
    recipe, arrays = goldens.load("audio.features.npz")
    characters = Characters(recipe["notes"]["tokens.text"], arrays["in.tokens.start"])
    published = one_hots(characters, np.arange(frames), fps, count=frames, published=True)
    assert np.array_equal(published.reshape(-1, 8, 27).argmax(-1), arrays[f"onehot_index.fps{fps}"])
    silent = one_hots(Characters.none(), np.arange(3), fps, count=3, published=True).reshape(-1, 8, 27).argmax(-1)
    assert (silent == arrays["onehot_index.no_speech"]).all()


def test_a_later_batch_of_an_open_end() -> None:
    characters = said("abcdefghij", [3] * 10)
    whole = one_hots(characters, np.arange(30), 25.0)
    assert np.array_equal(one_hots(characters, np.array([7, 8, 21]), 25.0), whole[[7, 8, 21]])


def test_bad_characters() -> None:
    with pytest.raises(ValueError, match=r"starts must be \[2\], one per character, got \[3\]"):
        Characters("ab", np.zeros(3))
    with pytest.raises(ValueError, match=r"must not fall, got \[0.5, 0.2\]"):
        Characters("ab", np.array([0.5, 0.2]))
    with pytest.raises(ValueError, match="finite"):
        Characters("a", np.array([np.nan]))


class Level:
    """Hears a letter where samples change: 'b' for level 1 and on. Sees nothing but the samples it is given."""

    def __init__(self) -> None:
        self.longest = 0

    def __call__(self, samples: np.ndarray, rate: int) -> Characters:
        self.longest = max(self.longest, len(samples))
        starts = np.flatnonzero(np.diff(samples, prepend=samples[0])) if len(samples) else np.zeros(0, dtype=int)
        return Characters("".join(string.ascii_lowercase[int(samples[i]) % 26] for i in starts), starts / rate)


@given(
    lengths=st.lists(st.integers(5, 90), min_size=2, max_size=15),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=3),
)
def test_live_characters_hear_what_the_whole_has(lengths: list[int], sizes: list[int]) -> None:
    sound = np.repeat(np.arange(len(lengths)), lengths).astype(np.float32)
    recognizer = Level()
    live = LiveCharacters(recognizer, 100, left=0.1, stride=0.3, right=0.2)
    at, index = 0, 0
    while at < len(sound):
        size = sizes[index % len(sizes)]
        live.push(sound[at : at + size])
        at, index = min(at + size, len(sound)), index + 1
        assert at / 100 - 0.5 < live.known <= at / 100
    assert recognizer.longest <= 60
    live.finish()
    expected = Level()(sound, 100)
    assert live.known == np.inf
    assert live.characters.text == expected.text and np.allclose(live.characters.starts, expected.starts)


def test_live_characters_forget_what_has_ended() -> None:
    live = LiveCharacters(Level(), 100, left=0.1, stride=0.1, right=0)
    live.push(np.repeat(np.arange(8), 10).astype(np.float32))
    classes = live.characters.at([0.25, 0.35, 0.75])
    live.forget(0.25)
    assert live.characters.text == "cdefgh"
    assert np.array_equal(live.characters.at([0.25, 0.35, 0.75]), classes)


def test_bad_strides() -> None:
    for options in ({"stride": 0.0}, {"stride": 1e-9}, {"left": -1.0}, {"right": -1.0}):
        with pytest.raises(ValueError, match="stride must be positive and the context at least 0"):
            LiveCharacters(Level(), **options)
