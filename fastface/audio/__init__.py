"""Features from sound: reading it, HeadGAN's audio vector, characters and their log-probabilities, speech for faces."""

from fastface.audio.characters import CharacterRecognizer, Characters, LiveCharacters, one_hots
from fastface.audio.headgan import AudioVectorStream, Normalization, audio_vectors, low_level
from fastface.audio.short_term import ShortTermFeatures
from fastface.audio.sound import Audio, Resampler, as_audio, read_audio
from fastface.audio.speech import (
    PrecomputedSpeech,
    PrecomputedSpeechStream,
    SpectralSpeech,
    SpectralSpeechStream,
    SpeechFeatures,
    speech_level,
    to_frame_rate,
)
from fastface.audio.wav2vec2 import DEEPSPEECH_CLASSES, Wav2Vec2Recognizer, deepspeech_order, greedy_ctc

__all__ = [
    "DEEPSPEECH_CLASSES",
    "Audio",
    "AudioVectorStream",
    "CharacterRecognizer",
    "Characters",
    "LiveCharacters",
    "Normalization",
    "PrecomputedSpeech",
    "PrecomputedSpeechStream",
    "Resampler",
    "ShortTermFeatures",
    "SpectralSpeech",
    "SpectralSpeechStream",
    "SpeechFeatures",
    "Wav2Vec2Recognizer",
    "as_audio",
    "audio_vectors",
    "deepspeech_order",
    "greedy_ctc",
    "low_level",
    "one_hots",
    "read_audio",
    "speech_level",
    "to_frame_rate",
]
