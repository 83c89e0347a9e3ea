"""The synthetic corpus: format, sentences, visemes, head motion, augmentation; what speaks only with eSpeak NG."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.audio import SpectralSpeech, to_frame_rate
from fastface.face import built_in_head
from fastface.models.posegan.corpus import (
    Augmentation,
    Clip,
    Corpus,
    Options,
    augment,
    mouth_opening,
    read_clip,
    read_corpus,
    synthesize,
    write_clip,
    write_corpus,
)
from fastface.models.posegan.corpus.__main__ import main
from fastface.models.posegan.corpus.espeak import Phoneme, Speech, Voice, synthesizer
from fastface.models.posegan.corpus.motion import LIMIT, REACH, head_motion
from fastface.models.posegan.corpus.synthesis import plan
from fastface.models.posegan.corpus.text import sentence
from fastface.models.posegan.corpus.visemes import VISEMES, Mouth, mouth, segments
from fastface.models.posegan.neck import carried
from tests.audio.signals import talk
from tests.models.held_out_speech import held_out_clips

NAMES = built_in_head().expression_names
espeak = pytest.mark.skipif(
    ctypes.util.find_library("espeak-ng") is None, reason="needs eSpeak NG: apt install espeak-ng"
)


def spoken(symbols: str, each: float = 0.12) -> Speech:
    """Phonemes of equal length after a pause, "_" for a pause, over sound that is silent in stops."""
    phonemes = [Phoneme("" if s == "_" else s, each * (k + 1), each * (k + 2)) for k, s in enumerate(symbols)]
    sound = talk(each * (len(symbols) + 1))
    for phoneme in phonemes:
        if phoneme.symbol in "_pbtdkg":
            sound[round(phoneme.start * 16_000) : round(phoneme.end * 16_000)] = 0
    return Speech(sound, (Phoneme("", 0, each), *phonemes))


def shaped(symbols: str, fps: float = 25.0, each: float = 0.12) -> Mouth:
    speech = spoken(symbols, each)
    return mouth(segments(speech), round(len(speech.samples) / 16_000 * fps), fps)


def middle(symbols: str, index: int, each: float = 0.4) -> dict[str, float]:
    """The modes in the middle of a phoneme of that many seconds, and the opening."""
    found = shaped(symbols, 100, each)
    frame = round((index + 1.5) * each * 100)
    return dict(zip(NAMES, found.expression[frame], strict=True)) | {"opening": found.opening[frame]}


@given(st.integers(0, 2**31), st.booleans())
def test_sentences(seed: int, held_out: bool) -> None:
    text = sentence(np.random.default_rng(seed), held_out=held_out)
    assert text == sentence(np.random.default_rng(seed), held_out=held_out)
    assert text[0].isupper() and text[-1] in ".?!" and text.count(" ") >= 1


def test_sentences_are_many_and_splits_share_none() -> None:
    rng = np.random.default_rng(0)
    train, held = ({sentence(rng, held_out=kept) for _ in range(1000)} for kept in (False, True))
    assert len(train) > 950 and len(held) > 900 and not train & held
    letters = "".join(train).lower()
    assert sum(map(letters.count, "pbm")) / len(letters) > 0.08


def test_every_viseme_is_made_of_the_heads_modes() -> None:
    for symbol, viseme in VISEMES.items():
        assert set(viseme.modes) <= set(NAMES), symbol
        assert viseme.jaw > 0 and viseme.lips > 0, symbol
    for symbol in "pbmfvθðtdnlszʃʒkɡŋhɹwjiɪeɛæɑʌɔoʊuəɜɚaɒɐ":
        assert symbol in VISEMES


@given(st.text("pbmfvtskaioueə_", min_size=1, max_size=12), st.sampled_from([25.0, 30.0, 23.7]), st.floats(0.03, 0.3))
@settings(deadline=None, max_examples=60)
def test_lips_meet_at_every_bilabial(symbols: str, fps: float, each: float) -> None:
    found = shaped(symbols, fps, each)
    assert np.isfinite(found.expression).all() and (found.opening >= 0).all() and (found.opening <= 1).all()
    assert (found.opening[found.closed] < 0.05).all()
    frames = np.arange(len(found.closed)) / fps
    for k, symbol in enumerate(symbols):
        if symbol in "pbm" and each * (k + 1.5) <= frames[-1]:
            # A voiceless stop is dated at its burst, and its closure reaches back from there.
            begin = each * (k + 1) - (0.12 if symbol == "p" else 0) - 1 / fps
            assert found.closed[(frames >= begin) & (frames <= each * (k + 2) + 1 / fps)].any(), (k, symbol)
    if not set(symbols) & set("pbm"):
        assert not found.closed.any()


def test_shapes_of_the_mouth() -> None:
    a, i, u, f, s = (middle(f"t{symbol}t", 1) for symbol in "aiufs")
    assert a["opening"] > 0.8 and a["pucker"] < 0.05
    assert i["opening"] < 0.5 and i["stretch_left"] > 0.25
    assert u["opening"] < 0.4 and u["pucker"] > 0.6
    assert 0.05 < f["opening"] < 0.35 and f["upper_lip_raise"] > 0.15
    assert s["jaw_open"] < 0.08
    assert middle("_", 0)["opening"] < 0.05


def test_consonants_of_the_tongue_take_their_vowels_lips() -> None:
    assert middle("uku", 1, 0.08)["pucker"] > 0.5 > 0.1 > middle("iki", 1, 0.08)["pucker"]


def test_the_mouth_is_smooth() -> None:
    found = shaped("amapimufaboti", fps=200.0)
    assert np.abs(np.diff(found.opening)).max() < 0.12
    assert np.abs(np.diff(found.expression, axis=0)).max() < 0.08


def test_a_diphthong_moves() -> None:
    parts = segments(Speech(talk(1), (Phoneme("aɪ", 0.2, 0.6), Phoneme("", 0.6, 1.0))))
    assert [part.viseme for part in parts[:2]] == [VISEMES["a"], VISEMES["ɪ"]] and parts[0].end == pytest.approx(0.4)


def test_an_unknown_phoneme() -> None:
    with pytest.raises(ValueError, match="got ! in !x"):
        segments(Speech(talk(1), (Phoneme("!x", 0, 1),)))


def test_the_opening_is_the_distance_of_the_heads_lips() -> None:
    head = built_in_head()
    expression = torch.rand(7, len(NAMES), generator=torch.Generator().manual_seed(0)) * 0.2
    points = head.dense.of(head.shape(expression=expression))
    expected = ((points[:, 13, 1] - points[:, 14, 1]) / 1.2).clamp(0, 1)
    assert np.allclose(mouth_opening(expression.numpy()), expected.numpy(), atol=1e-4)


def heads(speech: Speech, *seeds: int) -> list[np.ndarray]:
    frames = round(len(speech.samples) / 16_000 * 25)
    return [head_motion(segments(speech), speech.samples, frames, 25, np.random.default_rng(seed)) for seed in seeds]


def test_head_motion() -> None:
    speech = spoken("atapimufabotiatapimufaboti" * 5 + "_" * 100)
    first, again, other = heads(speech, 0, 0, 1)
    frames = len(first)
    assert first.shape == (frames, 6) and np.array_equal(first, again) and not np.allclose(first, other)
    assert np.abs(first[:, :3]).max() < LIMIT
    assert np.abs(first[:, 3:] - carried(first[:, :3])).max() < REACH
    assert np.abs(np.diff(first[:, :3], axis=0)).max() < np.radians(2)  # of 25 frames per second
    speed = np.abs(np.diff(first[:, :3], axis=0)).sum(1)
    assert speed[: frames // 2].mean() > 2.5 * speed[-200:].mean()
    degrees = np.degrees(first[:, :3])
    assert degrees[: frames // 2].std() > 1 and np.abs(degrees[-200:]).max() < 3


def test_the_sound_tells_most_of_how_a_head_moves() -> None:
    speech = spoken("atapimufabotiseteloka" * 10)
    first, other = (np.diff(pose, axis=0) for pose in heads(speech, 0, 1))
    for of_first, of_other in zip(first.T, other.T, strict=True):
        assert np.corrcoef(of_first, of_other)[0, 1] > 0.7


def test_a_head_without_sound_rests() -> None:
    silent = spoken("_" * 50)
    (pose,) = heads(replace(silent, samples=np.zeros_like(silent.samples)), 0)
    assert np.isfinite(pose).all() and np.degrees(np.abs(pose[:, :3])).max() < 1.5


@given(st.integers(0, 2**31), st.integers(1, 30_000))
@settings(deadline=None, max_examples=20)
def test_augmented_sound(seed: int, samples: int) -> None:
    sound = talk(2)[:samples]
    result = augment(sound, np.random.default_rng(seed))
    assert result.shape == sound.shape and result.dtype == np.float32 and np.abs(result).max() <= 1
    assert np.array_equal(result, augment(sound, np.random.default_rng(seed)))


def test_augmented_sound_is_not_delayed() -> None:
    sound = talk(3)
    mild = Augmentation(noise=(30, 30), tilt=(0, 0), narrow=0, clip=0)
    result = augment(sound, np.random.default_rng(0), mild)
    correlation = np.correlate(result[8000:24_000], sound[8100:23_900])
    assert correlation.argmax() == 100
    assert not augment(np.zeros(500, dtype=np.float32), np.random.default_rng(0)).any()


def a_clip(frames: int = 37, fps: float = 25.0, **parts: object) -> Clip:
    rng = np.random.default_rng(frames)
    sound = (np.rint(talk(3) * 2**15) / 2**15).astype(np.float32)[: frames * 640]
    values = [rng.standard_normal(shape).astype(np.float32) for shape in ((frames, 6), (46,), (frames, 28))]
    return replace(Clip(sound, fps, *values), **parts)


@pytest.mark.parametrize("known", [False, True])
def test_a_clip_comes_back(tmp_path, known: bool) -> None:
    truth = {"opening": np.linspace(0, 1, 37, dtype=np.float32), "closed": np.arange(37) % 3 == 0} if known else {}
    clip = a_clip(**truth)
    write_clip(tmp_path / "new", "one", clip)
    back = read_clip(tmp_path / "new", "one")
    assert back.fps == clip.fps and back.seconds == 37 / 25
    for name in ("samples", "pose", "identity", "expression", "opening", "closed"):
        a, b = getattr(clip, name), getattr(back, name)
        assert (a is None and b is None) or np.array_equal(a, b)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.npz", "one.wav"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pose": np.zeros((37, 5))}, r"pose must be \[T, 6\] .*got \[37, 5\]"),
        ({"expression": np.zeros((36, 28))}, r"expression must be \[37, E\], got \[36, 28\]"),
        ({"identity": np.zeros((1, 46))}, r"identity must be \[I\], got \[1, 46\]"),
        ({"opening": np.zeros(3)}, r"opening must be \[37\], got \[3\]"),
        ({"fps": 0.0}, "fps must be positive, got 0.0"),
        ({"pose": np.full((37, 6), np.nan)}, "pose must be finite"),
        ({"samples": np.zeros(9, dtype=np.float32)}, r"last 37 frames, got \[9\]"),
    ],
)
def test_bad_clips(parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_clip(**parts)


def test_bad_files(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot read the face of a clip from .*none.npz"):
        read_clip(tmp_path, "none")
    with pytest.raises(ValueError, match="name must be that of a file, got '../a'"):
        write_clip(tmp_path, "../a", a_clip())
    write_clip(tmp_path, "a", a_clip())
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((2, 2, 44_100, 0, "NONE", ""))
        sound.writeframes(bytes(400))
    with pytest.raises(ValueError, match="1 channel of 16 bits at 16000 Hz, got 2, 16, 44100"):
        read_clip(tmp_path, "a")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="cannot read the sound of a clip from .*a.wav"):
        read_clip(tmp_path, "a")
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot read the face of a clip from .*a.npz"):
        read_clip(tmp_path, "a")


def test_the_index(tmp_path) -> None:
    with pytest.raises(ValueError, match="cannot read a corpus from .*corpus.json"):
        read_corpus(tmp_path)
    clips = [{"name": "a", "split": "train"}, {"name": "b", "split": "held_out"}]
    write_corpus(Corpus(tmp_path, 25.0, "hash", clips, {"by": "hand"}))
    back = read_corpus(tmp_path)
    assert (back.fps, back.face, back.names("train"), back.names("held_out")) == (25.0, "hash", ["a"], ["b"])
    (tmp_path / "corpus.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="format must be fastface.corpus/1, got other"):
        read_corpus(tmp_path)


def test_plans() -> None:
    options = Options(seconds=1, seed=4, augmented=0.5)
    plans = [plan(index, options) for index in range(200)]
    assert plans == [plan(index, options) for index in range(200)]
    held = [each for each in plans if each.split == "held_out"]
    train = [each for each in plans if each.split == "train"]
    assert len(held) == 20 and not any(each.augmented for each in held)
    assert 60 < sum(each.augmented for each in train) < 120
    for kind in (lambda v: v.voice.name.partition("+")[2], lambda v: v.voice.rate, lambda v: v.text):
        assert not {kind(each) for each in held} & {kind(each) for each in train}
    assert len({each.voice.name for each in train}) > 50
    with pytest.raises(ValueError, match="seconds and fps must be positive"):
        Options(seconds=0)


def test_the_held_out_set() -> None:
    pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[audio]'")
    clips = held_out_clips()
    assert len(clips) == 10 and sum(clip.seconds for clip in clips) > 25
    openings = np.concatenate([clip.opening for clip in clips])
    closed = np.concatenate([clip.closed for clip in clips])
    assert openings.max() > 0.8 and (openings[closed] < 0.05).all()
    assert np.diff(closed.astype(int)).clip(min=0).sum() > 40  # closures
    expression = np.concatenate([clip.expression for clip in clips])
    assert np.abs(mouth_opening(expression) - openings).max() < 0.01
    loudness = np.concatenate(
        [to_frame_rate(SpectralSpeech()(clip.samples), len(clip.pose), clip.fps)[:, 23] for clip in clips]
    )
    assert np.corrcoef(loudness, openings)[0, 1] > 0.35  # the sound lies where its mouth does
    assert loudness[closed].mean() < 0.8 * loudness[openings > 0.5].mean()


def indexed(folder: Path) -> int:
    return len(read_corpus(folder).clips)


@espeak
def test_a_corpus(tmp_path) -> None:
    pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[audio]'")
    heard: list[float] = []
    corpus = synthesize(tmp_path, Options(seconds=12, augmented=0.5), progress=heard.append)
    assert 12 <= sum(heard) == pytest.approx(sum(clip["seconds"] for clip in corpus.clips), abs=0.1)
    assert read_corpus(tmp_path).clips == corpus.clips and corpus.face == built_in_head().content_hash
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in corpus.names("train"):
        clip = corpus.read(name)
        assert clip.closed.any() and (clip.opening[clip.closed] < 0.05).all() and clip.expression.shape[1] == 28

    (tmp_path / "00001.npz").unlink()
    stamp = (tmp_path / "00000.npz").stat().st_mtime_ns
    synthesize(tmp_path, Options(seconds=12, augmented=0.5))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written
    assert (tmp_path / "00000.npz").stat().st_mtime_ns == stamp
    listed: list[int] = []
    less = synthesize(tmp_path, Options(seconds=2, augmented=0.5), progress=lambda _: listed.append(indexed(tmp_path)))
    assert less.clips == corpus.clips and set(listed) == {len(corpus.clips)}
    (tmp_path / "00001.npz").unlink()
    synthesize(tmp_path, Options(seconds=12, augmented=0.5), progress=lambda _: listed.append(indexed(tmp_path)))
    assert min(listed) == len(corpus.clips) - 1, "what a kill leaves"
    assert read_corpus(tmp_path).clips == corpus.clips
    with pytest.raises(ValueError, match="--force replaces it"):
        synthesize(tmp_path, Options(seconds=12, seed=1))
    other = synthesize(tmp_path, Options(seconds=2, seed=1), force=True)
    assert {f"{clip['name']}.npz" for clip in other.clips} == {path.name for path in tmp_path.glob("*.npz")}
    assert other.clips[0]["text"] != corpus.clips[0]["text"]


@espeak
def test_speech_is_the_same_whatever_was_spoken_before() -> None:
    pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[audio]'")
    voice = Voice("en-us+f2", rate=150, tract=0.9)
    with synthesizer() as speak:
        first, _, again = speak("Papa", voice), speak("Something else", Voice("en")), speak("Papa", voice)
        with pytest.raises(ValueError, match="voice must be one that .* got nobody"):
            speak("hello", Voice("nobody"))
    assert np.array_equal(first.samples, again.samples) and first.phonemes == again.phonemes
    assert [phoneme.symbol for phoneme in first.phonemes if phoneme.symbol][:3] == ["p", "ɑː", "p"]
    # eSpeak NG dates p at its burst: the silence before the second one is in its segment.
    stop = [part for part in segments(first) if part.viseme is VISEMES["p"]][1]
    burst = next(phoneme.start for phoneme in first.phonemes[3:] if phoneme.symbol == "p")
    assert 0.03 < burst - stop.start <= 0.12
    gap = first.samples[round((stop.start + 0.01) * 16_000) : round((burst - 0.01) * 16_000)]
    assert np.abs(gap).max() < 0.05 * np.abs(first.samples).max()


@espeak
def test_the_command(tmp_path) -> None:
    pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[audio]'")
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'fastface-kernels[demo]'")
    run = [sys.executable, "-m", "fastface.models.posegan.corpus", str(tmp_path / "corpus"), "--hours", "0.0005"]
    told = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert " clips, " in told
    assert main([str(tmp_path / "corpus"), "--picture", "00000", str(tmp_path / "look.png")]) == 0
    assert (tmp_path / "look.png").stat().st_size > 50_000


def test_the_command_refuses(tmp_path, capsys) -> None:
    assert main([str(tmp_path), "--hours", "-1"]) == 2
    assert main([str(tmp_path), "--picture", "00000", str(tmp_path / "look.png")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
