"""The folder that training reads: for each clip NAME.wav and NAME.npz, and corpus.json about all of them.

NAME.wav is mono PCM of 16 bits at 16 kHz. NAME.npz holds `fps`, `pose`, `identity`, `expression` and, where the truth
is known, `opening` and `closed`; frame t stands for t / fps s of the sound. corpus.json holds the face model's
`content_hash`, as coefficients mean nothing without it, and a line for each clip.
"""

from __future__ import annotations

import json
import wave
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastface._files import replacing
from fastface.audio.sound import SAMPLE_RATE, Samples, to_float

Array = NDArray[np.float32]

_FORMAT = "fastface.corpus/1"
_INDEX = "corpus.json"
_REQUIRED, _OPTIONAL = ("fps", "pose", "identity", "expression"), ("opening", "closed")


@dataclass(frozen=True)
class Clip:
    """Sound and the face that made it.

    Attributes:
        samples: ``[N]`` mono at 16 kHz in [-1, 1].
        fps: frames per second; ``T / fps`` is the sound's length to a frame.
        pose: ``[T, 6]`` pitch, yaw, roll in radians, with the signs of `Camera.angles`, then x, y, z in millimetres
            along the axes of model space.
        identity, expression: ``[I]`` and ``[T, E]`` coefficients of the corpus' face model.
        opening: ``[T]`` in [0, 1], how far the lips are apart; None where unknown.
        closed: ``[T]`` bool, frames of a closure of the lips (p, b, m); None where unknown.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, no frames, sound of another length.
    """

    samples: Samples
    fps: float
    pose: Array
    identity: Array
    expression: Array
    opening: Array | None = None
    closed: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        frames = len(self.pose)
        if not 0 < self.fps < np.inf:
            raise ValueError(f"fps must be positive, got {self.fps}")
        if self.pose.shape != (frames, 6) or not frames:
            raise ValueError(f"pose must be [T, 6] with T of at least 1, got {list(self.pose.shape)}")
        if self.identity.ndim != 1:
            raise ValueError(f"identity must be [I], got {list(self.identity.shape)}")
        if self.expression.ndim != 2 or len(self.expression) != frames:
            raise ValueError(f"expression must be [{frames}, E], got {list(self.expression.shape)}")
        for name in _OPTIONAL:
            values = getattr(self, name)
            if values is not None and values.shape != (frames,):
                raise ValueError(f"{name} must be [{frames}], got {list(values.shape)}")
        for name in ("samples", "pose", "identity", "expression", "opening"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite")
        sound = len(self.samples) / SAMPLE_RATE * self.fps
        if self.samples.ndim != 1 or abs(sound - frames) > 1:
            raise ValueError(
                f"samples must be [N] that last {frames} frames, got {list(self.samples.shape)}, {sound:.1f}"
            )

    @property
    def seconds(self) -> float:
        return len(self.pose) / self.fps


@dataclass(frozen=True)
class Corpus:
    """What corpus.json says.

    Attributes:
        folder: where the clips lie.
        fps: of every clip.
        face: the `content_hash` of the face model whose coefficients the clips hold.
        clips: one mapping a clip with its `name` and `split` ("train" or "held_out"), and whatever else is known of it.
        made: how, where it was synthesised.
    """

    folder: Path
    fps: float
    face: str
    clips: Sequence[Mapping[str, Any]]
    made: Mapping[str, Any]

    def names(self, split: str) -> list[str]:
        """The clips of "train" or of "held_out"."""
        return [clip["name"] for clip in self.clips if clip["split"] == split]

    def read(self, name: str) -> Clip:
        """One clip. Errors as in `read_clip`."""
        return read_clip(self.folder, name)


def write_clip(folder: str | Path, name: str, clip: Clip) -> None:
    """Write NAME.wav, then NAME.npz, each whole or not at all: a clip whose .npz is there is complete.

    Raises:
        ValueError: a name that is not that of a file.
    """
    if not name or Path(name).name != name:
        raise ValueError(f"a clip's name must be that of a file, got {name!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pcm = np.rint(clip.samples * 2.0**15).clip(-(2**15), 2**15 - 1).astype("<i2")
    with replacing(folder / f"{name}.wav") as temporary, wave.open(str(temporary), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(pcm.tobytes())
    arrays = {key: getattr(clip, key) for key in (*_REQUIRED, *_OPTIONAL) if getattr(clip, key) is not None}
    with replacing(folder / f"{name}.npz") as temporary:
        np.savez_compressed(temporary, **arrays)


def read_clip(folder: str | Path, name: str) -> Clip:
    """The clip that NAME.wav and NAME.npz in a folder hold.

    Raises:
        ValueError: a file is missing, damaged or something else; sound that is not mono PCM of 16 bits at 16 kHz; all
            that `Clip` refuses.
    """
    folder = Path(folder)
    values, path = _arrays(folder / f"{name}.npz"), folder / f"{name}.wav"
    try:
        with wave.open(str(path), "rb") as sound:
            form = (sound.getnchannels(), 8 * sound.getsampwidth(), sound.getframerate())
            pcm = sound.readframes(sound.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise ValueError(f"cannot read the sound of a clip from {path}: {error}") from error
    if form != (1, 16, SAMPLE_RATE):
        raise ValueError(
            f"{path} must have 1 channel of 16 bits at {SAMPLE_RATE} Hz, got {form[0]}, {form[1]}, {form[2]}"
        )
    try:
        return Clip(to_float(np.frombuffer(pcm, "<i2")), float(values.pop("fps")), **values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot read the clip {folder / name}: {error}") from error


def clip_seconds(folder: Path, name: str) -> float | None:
    """How long a clip is that is there and complete; None where it is not."""
    if not ((folder / f"{name}.npz").exists() and (folder / f"{name}.wav").exists()):
        return None
    values = _arrays(folder / f"{name}.npz")
    return len(values["pose"]) / float(values["fps"])


def write_corpus(corpus: Corpus) -> None:
    """Write corpus.json, whole or not at all."""
    about = {"format": _FORMAT, "fps": corpus.fps, "face": corpus.face, "made": dict(corpus.made)}
    lines = ",\n".join(json.dumps(dict(clip), ensure_ascii=False) for clip in corpus.clips)
    corpus.folder.mkdir(parents=True, exist_ok=True)
    with replacing(corpus.folder / _INDEX) as temporary:
        temporary.write_text(f'{json.dumps(about)[:-1]}, "clips": [\n{lines}\n]}}\n', encoding="utf-8")


def read_corpus(folder: str | Path) -> Corpus:
    """What corpus.json in a folder says. Raises ValueError where there is none, or another file of that name."""
    path = Path(folder) / _INDEX
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about.get("format") != _FORMAT:
            raise ValueError(f"its format must be {_FORMAT}, got {about.get('format')}")
        return Corpus(Path(folder), float(about["fps"]), about["face"], about["clips"], about["made"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read a corpus from {path}: {error}") from error


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in (*_REQUIRED, *(key for key in _OPTIONAL if key in stored))}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read the face of a clip from {path}: {error}") from error
