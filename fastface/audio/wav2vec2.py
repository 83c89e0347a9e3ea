"""wav2vec 2.0 with a CTC head, through transformers, in place of DeepSpeech: log-probabilities and characters.

The 29 classes are DeepSpeech's, in its order: space, a to z, apostrophe, blank. The distribution is another one (CTC
of wav2vec 2.0 is peaky), so a network trained on DeepSpeech's values needs calibration; the characters are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.audio.characters import Characters
from fastface.audio.sound import SAMPLE_RATE, Samples

DEEPSPEECH_CLASSES = (*" abcdefghijklmnopqrstuvwxyz'", "")  # the last one is the blank

_BLANK = len(DEEPSPEECH_CLASSES) - 1
_BLANK_TOKENS = ("<pad>", "-")  # transformers', torchaudio's
_INSTALL = "wav2vec 2.0 needs transformers: pip install 'fastface-kernels[audio]'"


def deepspeech_order(vocabulary: Mapping[str, int]) -> list[int]:
    """Which outputs of a character CTC model are DeepSpeech's 29 classes, in their order.

    Args:
        vocabulary: token to output, with the space as "|", letters in either case, the blank as "<pad>" or "-". Other
            tokens are left out.

    Raises:
        ValueError: a class is missing.
    """
    names = [("|", " ")] + [(letter.upper(), letter) for letter in DEEPSPEECH_CLASSES[1:-1]] + [_BLANK_TOKENS]
    missing = ["/".join(options) for options in names if not any(name in vocabulary for name in options)]
    if missing:
        raise ValueError(f"vocabulary must hold DeepSpeech's 29 characters, got none for {', '.join(missing)}")
    return [next(vocabulary[name] for name in options if name in vocabulary) for options in names]


def greedy_ctc(log_probabilities: NDArray[np.float32], rate: float = 50.0) -> Characters:
    """The best class of every step ``[T, 29]``, repeats merged and blanks dropped; `rate` steps per second. A character
    starts at its first step.
    """
    best = log_probabilities.argmax(1)
    starts = np.flatnonzero((best != _BLANK) & (best != np.concatenate([[-1], best[:-1]])))
    return Characters("".join(DEEPSPEECH_CLASSES[index] for index in best[starts]), starts / rate)


class Wav2Vec2Recognizer:
    """A `CharacterRecognizer` around transformers' ``Wav2Vec2ForCTC`` and its processor.

    Sound longer than `chunk` is heard in pieces of that length with `context` on both sides: attention costs the
    square of the length.

    Args:
        model: ``Wav2Vec2ForCTC`` or alike, on any device.
        processor: ``Wav2Vec2Processor`` or alike, with its tokenizer and feature extractor.
        chunk, context: seconds.

    Raises:
        ValueError: the vocabulary lacks one of the 29 characters, or a chunk or context of no use.
    """

    def __init__(self, model: Any, processor: Any, *, chunk: float = 20.0, context: float = 1.0) -> None:
        if not (chunk >= 1 and context >= 0):
            raise ValueError(f"chunk must be at least 1 s and context at least 0, got {chunk} and {context}")
        self._model, self._processor = model.eval(), processor
        self._order = deepspeech_order(processor.tokenizer.get_vocab())
        self._hop = math.prod(model.config.conv_stride)  # samples per step
        self._field = 1  # samples that one step sees
        for kernel, stride in zip(reversed(model.config.conv_kernel), reversed(model.config.conv_stride), strict=True):
            self._field = (self._field - 1) * stride + kernel
        self._chunk, self._context = (round(part * SAMPLE_RATE / self._hop) for part in (chunk, context))

    @classmethod
    def from_pretrained(cls, name: str = "facebook/wav2vec2-base-960h", **options: Any) -> Wav2Vec2Recognizer:
        """From a folder, or from a model hub's name; what has been downloaded is not asked for again.

        Raises:
            ImportError: transformers is not installed.
            ValueError: no such model, or no hub that answers.
        """
        try:
            from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor
        except ImportError as error:
            raise ImportError(_INSTALL) from error
        try:
            parts = _load(name, Wav2Vec2ForCTC, Wav2Vec2Processor)
        except OSError as error:
            raise ValueError(f"cannot load the recogniser {name}: {error}") from error
        return cls(*parts, **options)

    def log_probabilities(self, samples: Samples, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
        """``[T, 29]`` in DeepSpeech's order, one step per 20 ms, normalised over the 29; none for under 25 ms of sound.

        Raises:
            ValueError: samples that are not ``[N]``, or a rate other than 16000 Hz.
        """
        if np.ndim(samples) != 1:
            raise ValueError(f"samples must be [N], got {list(np.shape(samples))}")
        if sample_rate != SAMPLE_RATE:
            raise ValueError(f"wav2vec 2.0 hears {SAMPLE_RATE} Hz, got {sample_rate}")
        steps = max(0, (len(samples) - self._field) // self._hop + 1)
        parts = [np.zeros((0, len(DEEPSPEECH_CLASSES)), dtype=np.float32)]
        if steps:
            values = self._processor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values  # [1, N]
        for begin in range(0, steps, self._chunk):
            first = max(0, begin - self._context)
            end = (begin + self._chunk + self._context) * self._hop + self._field
            heard = self._hear(values[:, first * self._hop : end])
            parts.append(heard[begin - first :][: self._chunk])
        return np.concatenate(parts)

    def __call__(self, samples: Samples, sample_rate: int) -> Characters:
        return greedy_ctc(self.log_probabilities(samples, sample_rate), SAMPLE_RATE / self._hop)

    @torch.inference_mode()
    def _hear(self, values: Tensor) -> NDArray[np.float32]:
        logits = self._model(values.to(self._model.device, self._model.dtype)).logits[0]  # [T, tokens]
        return np.asarray(logits[:, self._order].float().log_softmax(-1).cpu())


def _load(name: str, *kinds: Any) -> list[Any]:
    try:
        return [kind.from_pretrained(name, local_files_only=True) for kind in kinds]
    except OSError:
        if Path(name).exists():
            raise
    _ask_hub(name)
    return [kind.from_pretrained(name) for kind in kinds]


def _ask_hub(name: str) -> None:
    """Raises OSError at once where a model's hub does not answer or has none such: loading would try for minutes."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # of whichever HTTP library the hub's client uses
        raise OSError(f"neither a folder nor downloaded, and the hub says: {error}") from error
