"""Speech with the times of its phonemes, from eSpeak NG's library."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastface.audio.sound import SAMPLE_RATE, Samples, as_audio

_INSTALL = "synthesising speech needs eSpeak NG: apt install espeak-ng"
_SYNCHRONOUS, _PHONEME_EVENTS, _IPA, _DO_NOT_EXIT = 2, 0x0001, 0x0002, 0x8000
_UTF8, _END_PAUSE = 0x0001, 0x1000
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4  # espeak_PARAMETER
_EVENT_PHONEME = 7


@dataclass(frozen=True)
class Voice:
    """How a text is spoken.

    Attributes:
        name: of eSpeak NG, such as "en-us+f2": an accent and a variant.
        rate: words per minute.
        pitch, pitch_range: 0 to 100, 50 is usual.
        tract: the length of the vocal tract over the voice's own. The sound is played slower by it, so that formants,
            pitch and rate are divided by it: many speakers from few voices.
    """

    name: str
    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50
    tract: float = 1.0


@dataclass(frozen=True)
class Phoneme:
    """A phoneme in IPA, empty in a pause, from `start` to `end` in seconds."""

    symbol: str
    start: float
    end: float


@dataclass(frozen=True)
class Speech:
    """Sound ``[N]`` at 16 kHz, and the phonemes that fill it from its beginning to its end."""

    samples: Samples
    phonemes: tuple[Phoneme, ...]


class _Identifier(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@contextlib.contextmanager
def synthesizer() -> Iterator[Callable[[str, Voice], Speech]]:
    """A function from text and voice to speech: the same for the same, whatever was spoken before.

    eSpeak NG carries state from one text to the next, so that each is spoken by a process of its own.

    Raises:
        ImportError: eSpeak NG is not installed.
        ValueError: (the function) a voice that it does not have, or a text of nothing that sounds.
    """
    _library()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        yield lambda text, voice: pool.submit(_speak, text, voice).result()


def _library() -> Any:
    try:
        return ctypes.CDLL(ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1")
    except OSError as error:
        raise ImportError(_INSTALL) from error


def _speak(text: str, voice: Voice) -> Speech:
    library = _library()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS | _IPA | _DO_NOT_EXIT)
    if rate <= 0:
        raise ValueError(f"eSpeak NG must have its data (apt install espeak-ng-data), got error {rate}")
    parts: list[np.ndarray] = [np.zeros(0, dtype=np.int16)]
    events: list[tuple[int, str]] = []

    @_Callback
    def receive(samples: Any, count: int, event: Any) -> int:
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while event[index].type:
            if event[index].type == _EVENT_PHONEME:
                events.append((event[index].audio_position, event[index].id.string.decode("utf-8", "replace")))
            index += 1
        return 0

    library.espeak_SetSynthCallback(receive)
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise ValueError(f"voice must be one that `espeak-ng --voices` lists, got {voice.name}")
    for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_PITCH_RANGE, voice.pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8 | _END_PAUSE, None, None)
    spoken = np.concatenate(parts)
    if not spoken.any():
        raise ValueError(f"text must hold something to speak, got {text!r}")
    played = round(rate / voice.tract)
    stretched = [(at / 1000 * rate / played, symbol) for at, symbol in events]
    return Speech(as_audio(spoken, played, to=SAMPLE_RATE).samples, _phonemes(stretched, len(spoken) / played))


def _phonemes(events: list[tuple[float, str]], seconds: float) -> tuple[Phoneme, ...]:
    """Phonemes from their starts. Changes of language, such as "(en)", are no phonemes."""
    spoken = [(at, symbol) for at, symbol in events if not symbol.startswith("(")]
    if not spoken or spoken[0][0] > 0:
        spoken.insert(0, (0.0, ""))
    ends = [*(start for start, _ in spoken[1:]), seconds]
    return tuple(Phoneme(symbol, start, end) for (start, symbol), end in zip(spoken, ends, strict=True) if end > start)
