"""`fastface dub` as a user meets it, on a system with small random weights."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'fastface-kernels[audio]'")
data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")

from fastface.apps.cli import main  # noqa: E402  # after the skips
from fastface.audio import read_audio  # noqa: E402
from fastface.face import built_in_head  # noqa: E402
from fastface.media import VideoReader, VideoWriter  # noqa: E402
from fastface.models.pir import (  # noqa: E402
    PIR,
    AudioEncoder,
    AudioToExpression,
    DecoderConfig,
    ExpressionDecoder,
    GeneratorConfig,
    InpaintingConfig,
    InpaintingGenerator,
    Rendering,
    SynthesisConfig,
    TriplaneGenerator,
    load_networks,
    save_networks,
)

HEAD = built_in_head()
ENCODER = {
    "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32,
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "do_stable_layer_norm": True, "feat_extract_norm": "layer",
}  # fmt: skip
FPS, FRAMES = 10, 6


def networks() -> tuple[TriplaneGenerator, InpaintingGenerator, AudioToExpression]:
    torch.manual_seed(0)
    synthesis = SynthesisConfig(outputs=12, size=16, style=16, base=128, most=16)
    latent = HEAD.identities + HEAD.expressions
    generator = TriplaneGenerator(
        GeneratorConfig(latent, 0, 2, synthesis, 4, 8, 0, rendering=Rendering(coarse=8, fine=8))
    )
    decoder = ExpressionDecoder(DecoderConfig(HEAD.expressions, 16, 16, HEAD.identities, 16))
    hears = AudioToExpression(AudioEncoder.large(**ENCODER), decoder)
    return generator, InpaintingGenerator(InpaintingConfig(4, 8)), hears


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained system, six frames of which the first and the fourth have no face, and half a second of sound."""
    folder = tmp_path_factory.mktemp("dub")
    save_networks(folder / "pir.safetensors", *networks())
    face = data.astronaut()[:300, 60:400]
    with VideoWriter(folder / "clip.mp4", fps=FPS) as writer:
        for index in range(FRAMES):
            writer.write(np.full_like(face, 90) if index in (0, 3) else np.roll(face, index, 1))
    say(folder / "words.wav", 0.6)
    return folder


def say(path: Path, seconds: float, rate: int = 22_050, channels: int = 2) -> None:
    count = round(seconds * rate) * channels
    with wave.open(str(path), "wb") as sound:
        sound.setparams((channels, 2, rate, 0, "NONE", ""))
        sound.writeframes(np.random.default_rng(0).integers(-9000, 9000, count, dtype=np.int16).tobytes())


def dub(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    rest = [str(argument) for argument in arguments]
    paths = ["--audio", str(folder / "words.wav"), "--weights", str(folder / "pir.safetensors")]
    assert main(["dub", str(folder / "clip.mp4"), *paths, "--size", "64", "--json", *rest]) == 0
    return json.loads(capsys.readouterr().out)


def frames(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [frame.astype(int) for frame, _ in reader]


def test_a_video_says_something_else(folder, tmp_path, capsys) -> None:
    told = dub(folder, capsys, "-o", tmp_path / "out.mp4")
    assert (told["frames"], told["missed_frames"], told["seconds"]) == (FRAMES, 2, 0.6)
    stages = {"features", "expressions", "following", "planes", "rendering", "painting", "pasting"}
    assert set(told["milliseconds"]) == stages and min(told["milliseconds"].values()) >= 0 and told["fps"] > 0
    given, made = frames(folder / "clip.mp4"), frames(tmp_path / "out.mp4")
    assert len(made) == FRAMES
    changed = [float(np.abs(a - b).max(-1).mean()) for a, b in zip(given, made, strict=True)]
    assert max(changed[0], changed[3]) < 0.5 * min(changed[i] for i in (1, 2, 4, 5)), "what has no face stays"
    top = slice(0, 40)  # above the face
    assert max(np.abs(a[top] - b[top]).mean() for a, b in zip(given, made, strict=True)) < 2
    new, old = (read_audio(path).samples for path in (tmp_path / "out.mp4", folder / "words.wav"))
    assert abs(len(new) - len(old)) < 3000 and new.std() > 0.3 * old.std(), "the sound is the new one"


def test_the_shorter_one_ends_it(folder, tmp_path, capsys) -> None:
    say(tmp_path / "long.wav", 2.0, rate=8000, channels=1)
    told = dub(folder, capsys, "-o", tmp_path / "out", "--audio", tmp_path / "long.wav")
    assert told["frames"] == FRAMES and "1.40 s of the sound are left out" in told["notes"][0]
    say(tmp_path / "short.wav", 0.3)
    told = dub(folder, capsys, "-o", tmp_path / "out", "--audio", tmp_path / "short.wav")
    assert told["frames"] == 3 and "0.30 s of the video are left out" in told["notes"][0]
    assert len(list((tmp_path / "out").iterdir())) == 3
    told = dub(folder, capsys, "-o", tmp_path / "out", "--seconds", 0.2)
    assert told["frames"] == 2 and not any("are left out" in note for note in told["notes"]), "as was asked"


def test_expressions_made_elsewhere(folder, tmp_path, capsys) -> None:
    generator, inpainter, _ = networks()
    save_networks(tmp_path / "deaf.safetensors", generator, inpainter)
    pictures = {}
    for name, value in (("rest", 0.0), ("moved", 1.5)):
        array = np.full((4, HEAD.expressions), value)
        np.save(tmp_path / f"{name}.npy", array)
        arguments = ["--weights", tmp_path / "deaf.safetensors", "--expressions", tmp_path / f"{name}.npy"]
        told = dub(folder, capsys, "-o", tmp_path / name, "--region", "face", *arguments)
        assert told["frames"] == 4 and not {"features", "expressions"} & set(told["milliseconds"])
        pictures[name] = frames_of(tmp_path / name)
    given = frames(folder / "clip.mp4")
    assert np.array_equal(pictures["rest"][3], given[3]) and not np.array_equal(pictures["rest"][1], given[1])
    assert np.abs(pictures["rest"][1] - pictures["moved"][1]).max() > 0, "expressions are seen"


def frames_of(folder: Path) -> list[np.ndarray]:
    from fastface.media import read_image

    return [read_image(path).astype(int) for path in sorted(folder.iterdir())]


def test_saved_networks_are_the_same(tmp_path) -> None:
    saved = networks()
    save_networks(tmp_path / "pir.safetensors", *saved)
    loaded = load_networks(tmp_path / "pir.safetensors")
    for one, other in zip(saved, loaded, strict=True):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert loaded[0].config == saved[0].config and loaded[1].config == saved[1].config
    assert loaded[2].decoder.config == saved[2].decoder.config
    sound = torch.randn(1, 4000)
    assert torch.equal(loaded[2].features(sound, 5), saved[2].eval().features(sound, 5))
    system = PIR.from_checkpoint(tmp_path / "pir.safetensors", size=64)
    assert system.audio is not None and system.size == 64


def test_files_that_do_not_fit_are_refused(folder, tmp_path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(folder / "pir.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    configs = json.loads(metadata["fastface.pir"])
    told = {
        "{": "cannot be read",
        "[1]": "must hold a generator and an inpainter of PIR",
        json.dumps(configs | {"generator": configs["generator"] | {"more": 1}}): "unexpected keyword argument 'more'",
        json.dumps(configs | {"generator": "text"}): "generator of .* does not fit layout pir.generator",
        json.dumps(configs | {"decoder": configs["decoder"] | {"features": 32}}): "of another shape",
        json.dumps(configs | {"audio_encoder": {}}): "hidden_size is missing",
    }
    for configuration, message in told.items():
        save_file(tensors, tmp_path / "bad.safetensors", metadata | {"fastface.pir": configuration})
        with pytest.raises(ValueError, match=message):
            load_networks(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_networks(tmp_path / "pir.pth", *networks())


TRAINED = ["--audio", "{sound}", "--weights", "{weights}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{clip}", "--audio", "{sound}"], "needs --weights FILE, a trained PIR; --untrained times it"),
        (["{clip}", *TRAINED, "--untrained"], "exclude one another"),
        (["{clip}", *TRAINED, "--audio", "none.wav"], "no such sound file: none.wav"),
        (["{clip}", *TRAINED, "--audio", "{clip}"], "cannot read sound from"),
        (["none.mp4", *TRAINED], "no such video: none.mp4"),
        (["{empty}", *TRAINED, "--size", "64"], "no face found in the video"),
        (["{clip}", *TRAINED, "--weights", "none.safetensors"], "no such checkpoint file"),
        (["{clip}", *TRAINED, "--weights", "{other}"], "must hold a generator and an inpainter of PIR"),
        (["{clip}", *TRAINED, "--size", "100"], "multiple of 8 from 64 on, got 100"),
        (["{clip}", *TRAINED, "-o", "{clip}"], "would overwrite the input"),
        (["{clip}", *TRAINED, "--expressions", "{sound}"], "cannot read expressions"),
        (["{clip}", *TRAINED, "--expressions", "{flat}"], "must be [frames, E] floats, got [3] float64"),
        (
            ["{clip}", *TRAINED, "--expressions", "{wide}"],
            "expressions must be [frames, 28] for the face model, got [1, 52]",
        ),
        (["{clip}", *TRAINED, "--audio", "{blip}", "--size", "64"], "samples must last at least 25 ms"),
    ],
)
def test_bad_input(folder, tmp_path, capsys, monkeypatch, arguments, message) -> None:
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "wide.npy", np.zeros((1, 52)))
    say(tmp_path / "blip.wav", 10 / 16_000, rate=16_000, channels=1)
    with VideoWriter(tmp_path / "empty.mp4", fps=FPS) as writer:
        writer.write(np.full((64, 64, 3), 90, np.uint8))
    names = {
        "clip": folder / "clip.mp4", "sound": folder / "words.wav", "weights": folder / "pir.safetensors",
        "other": tmp_path / "other.safetensors", "empty": tmp_path / "empty.mp4", "flat": tmp_path / "flat.npy",
        "wide": tmp_path / "wide.npy", "blip": tmp_path / "blip.wav",
    }  # fmt: skip
    given = set(tmp_path.iterdir())
    assert main(["dub", *(argument.format(**names) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastface dub: ") and message in line
    assert set(tmp_path.iterdir()) == given


@pytest.mark.parametrize("arguments", [["none.mp4"], ["{clip}", "--expressions", "{wide}"]])
def test_mistakes_are_found_before_networks_are_built(folder, tmp_path, capsys, monkeypatch, arguments) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("the networks are built")

    monkeypatch.setattr(PIR, "untrained", built)
    np.save(tmp_path / "wide.npy", np.zeros((1, 52)))
    names = {"clip": folder / "clip.mp4", "wide": tmp_path / "wide.npy"}
    rest = ["--audio", str(folder / "words.wav"), "--untrained", "-o", str(tmp_path / "out.mp4")]
    assert main(["dub", *(argument.format(**names) for argument in arguments), *rest]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interruption_leaves_nothing(folder, tmp_path, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PIR, "repaint", interrupted)
    monkeypatch.chdir(tmp_path)
    arguments = ["--audio", str(folder / "words.wav"), "--weights", str(folder / "pir.safetensors"), "--size", "64"]
    assert main(["dub", str(folder / "clip.mp4"), *arguments]) == 130
    assert not list(tmp_path.iterdir())
