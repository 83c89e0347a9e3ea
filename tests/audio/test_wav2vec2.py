"""CTC outputs in DeepSpeech's order, from a tiny wav2vec 2.0 with random weights."""

from __future__ import annotations

import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastface.audio import (
    DEEPSPEECH_CLASSES,
    AudioVectorStream,
    LiveCharacters,
    Wav2Vec2Recognizer,
    deepspeech_order,
    greedy_ctc,
)
from tests.audio.signals import talk

# The published orders of facebook/wav2vec2-base-960h and of torchaudio's pipelines.
LETTERS = ("|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
TRANSFORMERS = ("<pad>", "<s>", "</s>", "<unk>", *LETTERS)
TORCHAUDIO = ("-", *LETTERS)


def vocabulary(tokens: tuple[str, ...]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


@pytest.mark.parametrize("tokens", [TRANSFORMERS, TORCHAUDIO, tuple(t.lower() for t in TRANSFORMERS)])
def test_deepspeech_order(tokens) -> None:
    order = deepspeech_order(vocabulary(tokens))
    assert len(DEEPSPEECH_CLASSES) == len(set(order)) == 29
    named = [tokens[index].lower() for index in order]
    assert named[0] == "|" and named[-1] in ("<pad>", "-") and tuple(named[1:-1]) == DEEPSPEECH_CLASSES[1:-1]


def test_an_incomplete_vocabulary() -> None:
    with pytest.raises(ValueError, match="29 characters, got none for Q/q, <pad>/-"):
        deepspeech_order(vocabulary(tuple(t for t in LETTERS if t != "Q")))


@given(st.lists(st.integers(25, 28), max_size=30))
def test_greedy_path_by_hand(classes: list[int]) -> None:
    probabilities = np.log(np.eye(29, dtype=np.float32)[np.array(classes, dtype=int)] + 0.01)
    found = greedy_ctc(probabilities)
    expected, at = [], 0
    for value, run in itertools.groupby(classes):
        if value != 28:
            expected.append((DEEPSPEECH_CLASSES[value], at / 50))
        at += len(list(run))
    assert list(zip(found.text, found.starts.tolist(), strict=True)) == expected


class Local(torch.nn.Module):
    """A CTC model whose steps see nothing but their own 400 samples."""

    config = SimpleNamespace(conv_kernel=(10, 3, 3, 3, 3, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2))
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[int] = []

    def forward(self, values: torch.Tensor) -> SimpleNamespace:
        self.heard.append(values.shape[1])
        weight = torch.randn(len(TORCHAUDIO), 1, 400, generator=torch.Generator().manual_seed(0))
        logits = torch.nn.functional.conv1d(values[:, None], weight, stride=320)
        return SimpleNamespace(logits=logits.transpose(1, 2))


class Processor:
    tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary(TORCHAUDIO))

    def __call__(self, samples: np.ndarray, **options: object) -> SimpleNamespace:
        return SimpleNamespace(input_values=torch.from_numpy(samples)[None])


@pytest.mark.parametrize("samples", [0, 399, 400, 719, 720, 16_000, 16_400, 50_001])
def test_long_sound_is_heard_in_pieces(samples) -> None:
    sound = talk(4)[:samples]
    model = Local()
    whole = Wav2Vec2Recognizer(model, Processor(), chunk=1000).log_probabilities(sound)
    model.heard.clear()
    pieces = Wav2Vec2Recognizer(model, Processor(), chunk=1, context=0.2).log_probabilities(sound)
    assert pieces.shape == (max(0, (samples - 80) // 320), 29)
    assert np.array_equal(pieces, whole) or np.abs(pieces - whole).max() < 1e-4
    assert np.allclose(np.exp(pieces).sum(1), 1, atol=1e-5)
    assert max(model.heard, default=0) <= round(1.4 * 16_000) + 400


def test_bad_sound() -> None:
    recognizer = Wav2Vec2Recognizer(Local(), Processor())
    with pytest.raises(ValueError, match="hears 16000 Hz, got 8000"):
        recognizer(talk(1), 8000)
    with pytest.raises(ValueError, match=r"samples must be \[N\], got \[1, 9\]"):
        recognizer.log_probabilities(np.zeros((1, 9), dtype=np.float32))
    with pytest.raises(ValueError, match="chunk must be at least 1 s"):
        Wav2Vec2Recognizer(Local(), Processor(), chunk=0.5)


def test_missing_transformers_say_how_to_get_them(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'fastface-kernels\[audio\]'"):
        Wav2Vec2Recognizer.from_pretrained("nowhere")


def test_no_model_is_said_at_once_in_one_line(monkeypatch, tmp_path) -> None:
    pytest.importorskip("transformers", reason="needs transformers: pip install 'fastface-kernels[audio]'")
    from huggingface_hub import HfApi

    asked: list[str] = []

    def away(self: HfApi, name: str, *, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError("the net is down")

    monkeypatch.setattr(HfApi, "model_info", away)
    for name, message in (("no-one/nothing", "the hub says: the net is down"), (str(tmp_path), "no file named")):
        with pytest.raises(ValueError, match=f"cannot load the recogniser {name}: .*{message}"):
            Wav2Vec2Recognizer.from_pretrained(name)
    assert asked == ["no-one/nothing"], "a folder is nothing to ask a hub for"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A checkpoint as the hub has them, tiny and random."""
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers: pip install 'fastface-kernels[audio]'"
    )
    path = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    transformers.Wav2Vec2ForCTC(config).save_pretrained(path)
    (path / "vocab.json").write_text(json.dumps(vocabulary(TRANSFORMERS)))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(path / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(path)
    return str(path)


def test_a_checkpoint_of_transformers(folder) -> None:
    import transformers

    sound = talk(2)
    recognizer = Wav2Vec2Recognizer.from_pretrained(folder)
    result = recognizer.log_probabilities(sound)
    assert result.shape == (99, 29)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(folder).eval()
    normal = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
    with torch.no_grad():
        logits = model(torch.from_numpy(normal)[None]).logits[0]
    kept = logits[:, [TRANSFORMERS.index(t) for t in ("|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'", "<pad>")]]
    assert np.abs(result - kept.log_softmax(-1).numpy()).max() < 1e-4
    characters = recognizer(sound, 16_000)
    assert characters.text == greedy_ctc(result).text and characters.starts.max(initial=0) < 2


def test_live_with_a_stream(folder) -> None:
    recognizer = Wav2Vec2Recognizer.from_pretrained(folder)
    sound = talk(2)
    results = []
    for size in (640, 7001):
        stream = AudioVectorStream(characters=LiveCharacters(recognizer))
        parts = [stream.push(sound[i : i + size]) for i in range(0, len(sound), size)]
        results.append(np.concatenate([*parts, stream.finish()]))
    assert results[0].shape == (50, 300) and (results[0][:, 84:].sum(1) == 8).all()
    assert np.array_equal(*results)
