"""`fastface speak` as a user meets it, with small networks."""

from __future__ import annotations

import json
import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
pytest.importorskip("av", reason="needs PyAV: pip install 'fastface-kernels[video]'")
data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")

from fastface.apps.cli import main  # noqa: E402  # after the skips
from fastface.audio import read_audio  # noqa: E402
from fastface.face import FaceTracker, built_in_head  # noqa: E402
from fastface.media import VideoReader, VideoWriter, read_image, write_image  # noqa: E402
from fastface.models.headgan import Generator, GeneratorConfig, track_faces  # noqa: E402
from fastface.models.posegan import PGFace, PoseGAN, save  # noqa: E402
from tests.models.small_posegan import small_pgface, small_posegan  # noqa: E402

HEAD = built_in_head()
JAW = HEAD.expression_names.index("jaw_open")


def talker(speech: str = "spectral") -> tuple[PoseGAN, PGFace]:
    """Networks whose head hardly moves and whose jaw opens with the loudness of the frame."""
    about = {"speech": speech, "fps": 25.0}
    posegan = small_posegan(**about)
    posegan.statistics.std.fill_(1e-3)
    pgface = small_pgface(**about, widths=(2, 2, 2, 2), hidden=(1, 1), identities=46, expressions=28)
    with torch.no_grad():
        for parameter in pgface.parameters():
            parameter.zero_()
        for conv, norm, *_ in pgface.convs:
            conv.weight[0, 6 + 23 if conv.in_channels > 2 else 0] = 1 / 3  # six of a pose, then the features
            norm.weight.fill_(1)
            norm.running_mean.zero_()
            norm.running_var.fill_(1)
        for linear in pgface.linears[::2]:
            linear.weight[46 + JAW if linear.out_features > 1 else 0, 0] = 1
    return posegan, pgface


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, a portrait, and a second of speech: quiet, loud, quiet, in stereo at 22.05 kHz."""
    folder = tmp_path_factory.mktemp("speak")
    keep(folder, *talker())
    write_image(folder / "me.png", data.astronaut())
    say(folder / "words.wav", voice(1.2, 22_050), 22_050, channels=2)
    return folder


def keep(folder: Path, posegan: PoseGAN, pgface: PGFace) -> None:
    save(posegan, folder / "posegan.safetensors")
    save(pgface, folder / "pgface.safetensors")


def voice(seconds: float, rate: int) -> np.ndarray:
    at = np.arange(round(seconds * rate)) / rate
    hum = sum(np.sin(2 * np.pi * 140 * k * at) / k for k in range(1, 15))
    return 0.1 * hum * ((at > 0.4) & (at < 0.8))


def say(path: Path, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> Path:
    pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as sound:
        sound.setparams((channels, 2, rate, 0, "NONE", ""))
        sound.writeframes(np.repeat(pcm, channels).tobytes())
    return path


def speak(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: object, sound: Path | None = None) -> dict:
    capsys.readouterr()
    paths = [str(folder / "me.png"), str(sound or folder / "words.wav"), "--speaker", str(folder)]
    assert main(["speak", *paths, "--size", "128", "--json", *(str(argument) for argument in arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def frames(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [frame.astype(int) for frame, _ in reader]


def jaws(path: Path) -> torch.Tensor:
    with VideoReader(path) as reader:
        return track_faces(reader, FaceTracker()).vectors[:, JAW]


def test_a_portrait_speaks(folder, tmp_path, capsys) -> None:
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    told = speak(folder, capsys, "-o", out, "--size", 256, "--contact-sheet", sheet)
    assert (told["frames"], told["seconds"], told["model"], told["lips"]) == (30, 1.2, "lifted", None)
    assert told["real_time_factor"] > 0 and set(told["milliseconds"]) == {"level", "motion", "render", "write"}
    made = frames(out)
    assert len(made) == 30 and made[0].shape == (256, 256, 3) and read_image(sheet).shape[1] > 256
    jaw = jaws(out)
    assert jaw[13:19].mean() > jaw[[2, 3, 4, 27, 28, 29]].mean() + 0.15, "the mouth opens with the sound"
    new, old = (read_audio(path).samples for path in (out, folder / "words.wav"))
    assert abs(len(new) - len(old)) < 3000
    loud = np.flatnonzero(np.abs(new) > 0.02) / 16_000
    assert loud[0] == pytest.approx(0.4, abs=0.05) and loud[-1] == pytest.approx(0.8, abs=0.05)


def test_the_same_seed_makes_the_same_video(folder, tmp_path, capsys) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        speak(folder, capsys, "-o", tmp_path / name, "--seed", seed, "--fps", 10)
    a, b, c = ([read_image(path) for path in sorted((tmp_path / name).iterdir())] for name in "abc")
    assert all(map(np.array_equal, a, b)) and not all(map(np.array_equal, a, c))


def test_strengths(folder, tmp_path, capsys) -> None:
    speak(folder, capsys, "-o", tmp_path / "still", "--pose-strength", 0, "--expression-strength", 0)
    still = [read_image(path).astype(int) for path in sorted((tmp_path / "still").iterdir())]
    quiet = [np.abs(frame - still[0]).mean() for frame in still]
    assert np.median(quiet) == 0, "nothing but blinks and brows"


def test_the_head_of_a_video(folder, tmp_path, capsys) -> None:
    clip = tmp_path / "clip.mp4"
    assert main(["animate", "--motion", "shake", "--seconds", "1", "--size", "256", "-o", str(clip)]) == 0
    speak(folder, capsys, "-o", tmp_path / "out.mp4", "--pose-from", clip, "--size", 256)
    with VideoReader(tmp_path / "out.mp4") as made, VideoReader(clip) as given:
        turned, asked = (track_faces(reader, FaceTracker()).parameters.camera.angles[:, 0] for reader in (made, given))
    assert np.corrcoef(turned[:25], asked[:25])[0, 1] > 0.9
    assert turned[29] == pytest.approx(float(turned[20]), abs=4), "then back again"


def test_headgan_hears_and_speaks(folder, tmp_path, capsys) -> None:
    from safetensors.torch import save_file

    from fastface.checkpoints import fold_spectral_norm
    from fastface.checkpoints.loading import find
    from tests.goldens import seeded_state_dict

    small, layout = Generator(GeneratorConfig(channels=(4, 16, 64), hidden=8)).state_dict(), find("headgan.generator")
    torch.manual_seed(0)
    shapes = {name: small[layout.rename(name)].shape for name in fold_spectral_norm(seeded_state_dict(layout.name))}
    state = {name: 0.5 * torch.randn(shape) / max(1, shape[1:].numel()) ** 0.5 for name, shape in shapes.items()}
    save_file(state, tmp_path / "g.safetensors")
    extra = ["--checkpoint", tmp_path / "g.safetensors", "--fps", 10]
    told = speak(folder, capsys, "-o", tmp_path / "out.mp4", *extra)
    assert told["frames"] == 12 and told["model"] == "headgan", "as the weights are"
    first, *others = frames(tmp_path / "out.mp4")
    assert any(np.abs(first - other).mean() > 0.1 for other in others)


def test_live_portrait_speaks(folder, tmp_path, capsys, monkeypatch) -> None:
    from fastface.models.live_portrait import LivePortrait, LivePortraitConfig

    made = LivePortrait.from_random
    monkeypatch.setattr(
        LivePortrait,
        "from_random",
        lambda **options: made(width=0.05, **options | {"config": LivePortraitConfig(size=256, network=128)}),
    )
    capsys.readouterr()
    arguments = ["--speaker", str(folder), "--untrained", "--device", "cpu", "--fps", "5", "--json"]
    sounds = [str(folder / "me.png"), str(folder / "words.wav"), "-o", str(tmp_path / "out.mp4")]
    assert main(["speak", *sounds, *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == 6 and len(frames(tmp_path / "out.mp4")) == 6


def test_a_recogniser_for_networks_that_were_trained_with_it(folder, tmp_path, capsys, monkeypatch) -> None:
    from fastface.audio import SpectralSpeech, Wav2Vec2Recognizer

    class Recognizer:
        def log_probabilities(self, samples: np.ndarray, rate: int) -> np.ndarray:
            return SpectralSpeech()(samples, rate)

    loaded: list[str] = []
    monkeypatch.setattr(Wav2Vec2Recognizer, "from_pretrained", lambda name: loaded.append(name) or Recognizer())
    keep(tmp_path, *talker("wav2vec2"))
    extra = ["--speaker", tmp_path, "--recognizer", "any"]
    assert speak(folder, capsys, "-o", tmp_path / "out.mp4", *extra)["frames"] == 30
    paths = [str(folder / "me.png"), str(folder / "words.wav"), "--speaker", str(tmp_path)]
    assert main(["speak", *paths]) == 2
    assert "the networks hear 'wav2vec2' features: pass a recognizer" in capsys.readouterr().err
    assert main(["speak", *paths[:2], "--speaker", str(folder), "--recognizer", "any"]) == 2
    assert "neither the speaker nor the model listens to a recogniser" in capsys.readouterr().err
    assert loaded == ["any"], "not for nothing"


def test_precomputed_features_in_the_place_of_any_recogniser(folder, tmp_path, capsys) -> None:
    from fastface.audio import SpectralSpeech

    keep(tmp_path, *talker("deepspeech"))
    sound = read_audio(folder / "words.wav").samples
    for name, samples in (("whole", sound), ("short", sound[:12_000])):
        np.save(tmp_path / f"{name}.npy", SpectralSpeech()(samples))
    given = ["--speaker", tmp_path, "--features", tmp_path / "whole.npy"]
    for name, extra in (("a", []), ("b", given)):
        speak(folder, capsys, "-o", tmp_path / name, "--fps", 10, *extra)
    a, b = ([read_image(path) for path in sorted((tmp_path / name).iterdir())] for name in "ab")
    assert len(a) == 12 and all(map(np.array_equal, a, b)), "the same features, the same face"
    paths = [str(folder / "me.png"), str(folder / "words.wav"), "--speaker", str(tmp_path), "--features"]
    assert main(["speak", *paths, str(tmp_path / "short.npy")]) == 2
    assert "must be features of 1.20 s of sound, got 0.76 s" in capsys.readouterr().err


def test_long_sound_needs_no_more_memory(folder, tmp_path, capsys, monkeypatch) -> None:
    """Three minutes; not the peak, which is that of other tests."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux: memory is read in its units")
    resident: list[float] = []
    write = VideoWriter.write

    def watched(self: VideoWriter, *arguments: object) -> None:
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        write(self, *arguments)

    monkeypatch.setattr(VideoWriter, "write", watched)
    sound = say(tmp_path / "long.wav", np.tile(voice(1.2, 16_000), 150))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps as small as these wait for one another
    try:
        told = speak(folder, capsys, "-o", tmp_path / "out.mp4", "--size", 64, "--fps", 2, sound=sound)
    finally:
        torch.set_num_threads(threads)
    assert told["frames"] == len(resident) == 360
    assert max(resident[240:]) - max(resident[:120]) < 5, "MiB; the last two minutes have 8 of sound"


def test_lips_are_measured(folder, tmp_path, capsys) -> None:
    say(tmp_path / "long.wav", np.concatenate([voice(1.2, 16_000), voice(0.9, 16_000), voice(1.2, 16_000)]))
    extra = ["--size", "256", "--measure", "--pose-strength", "0"]
    told = speak(folder, capsys, "-o", tmp_path / "out.mp4", *extra, sound=tmp_path / "long.wav")
    assert told["lips"]["correlation"] > 0.7 and abs(told["lips"]["lag_ms"]) <= 80


def test_lips_that_hardly_follow_have_no_lag(folder, tmp_path, capsys, monkeypatch) -> None:
    from fastface.models.posegan import sync

    monkeypatch.setattr(sync, "lip_sync", lambda *_: sync.LipSync(0.16, -0.39, 2.0))
    arguments = [str(folder / "me.png"), str(folder / "words.wav"), "--speaker", str(folder), "--size", "64"]
    assert main(["speak", *arguments, "--fps", "2", "--measure", "-o", str(tmp_path / "out.mp4")]) == 0
    assert "lips hardly follow the sound: r 0.16\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("samples", "rate", "count"),
    [
        (np.zeros(16_000), 16_000, 25),
        (voice(1.0, 8_000), 8_000, 25),
        (20 * voice(1.0, 44_100), 44_100, 25),
        (voice(1.0, 16_000)[7000:8600], 16_000, 3),
        (np.ones(1), 16_000, 1),
        (1e-3 * voice(1.0, 16_000), 16_000, 25),
    ],
    ids=["silence", "8 kHz", "clipping", "0.1 s", "one sample", "too quiet"],
)
def test_any_sound(folder, tmp_path, capsys, samples, rate, count) -> None:
    sound = say(tmp_path / "it.wav", samples, rate)
    told = speak(folder, capsys, "-o", tmp_path / "out.mp4", *(["--measure"] if count == 1 else []), sound=sound)
    assert told["frames"] == count == len(frames(tmp_path / "out.mp4"))
    assert ("not measured: lips need 0.5 s of voiced sound" in str(told["notes"])) == (count == 1)
    silent = not samples.any()
    assert ("the sound is silent: the mouth stays closed" in told["notes"]) == silent
    quiet = np.abs(samples).max() < 0.01 and not silent
    assert ("the sound is too quiet, -75 dB of full scale" in str(told["notes"])) == quiet


def test_words_for_people(folder, tmp_path, capsys) -> None:
    arguments = [str(folder / "me.png"), str(folder / "words.wav"), "--speaker", str(folder), "--size", "128"]
    assert main(["speak", *arguments, "-o", str(tmp_path / "out.gif")]) == 0
    said = capsys.readouterr()
    assert "30 frames of 1.2 s of sound; ms per frame (mean): " in said.out and "real-time factor: " in said.out
    assert f"a gif has no sound, that of {folder / 'words.wav'} is left out" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{me}", "none.wav"], "no such sound file: none.wav"),
        (["{me}", "{me}"], "cannot read sound from"),
        (["{me}", "{text}"], "cannot read sound from"),
        (["none.png", "{words}"], "no such image: none.png"),
        (["{grey}", "{words}"], "no face found in the portrait"),
        (["{me}", "{words}", "--face", "2"], "--face must be from 1 to 1"),
        (["{me}", "{words}", "--fps", "0"], "--fps must be from 1 to 240, got 0"),
        (["{me}", "{words}", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["{me}", "{words}", "--speaker", "none"], "no such checkpoint file"),
        (["{me}", "{words}", "--model", "headgan"], "--model headgan needs --checkpoint FILE"),
        (
            ["{me}", "{words}", "--model", "lifted", "--checkpoint", "{text}"],
            "is for --model headgan, got --model lifted",
        ),
        (
            ["{me}", "{words}", "--checkpoint", "{text}", "--weights", "."],
            "for --model live_portrait, got --model headgan",
        ),
        (["{me}", "{words}", "--checkpoint", "{text}"], "text.txt"),
        (["{me}", "{words}", "--device", "cuda:99"], "--device cuda:99 needs --checkpoint"),
        (["{me}", "{words}", "--untrained", "--device", "cuda:99"], "must be one that torch can use here, got cuda:99"),
        (["{me}", "{words}", "--features", "none.npy"], "'spectral' features: they are measured here"),
        (
            ["{me}", "{words}", "--speaker", "{deepspeech}", "--features", "none.npy"],
            "cannot read speech features from",
        ),
        (["{me}", "{words}", "--model", "live_portrait"], "needs --weights DIR; --untrained tries it"),
        (
            ["{me}", "{words}", "--model", "live_portrait", "--untrained", "--size", "512"],
            "frames are 512x512, got 512",
        ),
        (["{me}", "{words}", "--pose-from", "none.mp4"], "no such video: none.mp4"),
        (["{me}", "{words}", "--pose-from", "{me}", "--pose-strength", "2"], "leave it out with --pose-from"),
        (["{me}", "{words}", "-o", "{words}"], "the extension must be one of"),
        (["{me}", "{words}", "-o", "pngs", "--measure"], "--measure reads the video again, got a folder of PNGs"),
        (
            ["{me}", "{words}", "--speaker", "{deepspeech}"],
            "the networks hear 'deepspeech' features: pass precomputed features",
        ),
    ],
)
def test_bad_input(folder, tmp_path, capsys, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "grey.png", np.full((64, 64, 3), 90, np.uint8))
    (tmp_path / "text.txt").write_text("words")
    keep(tmp_path / "deepspeech", *talker("deepspeech"))
    before = {path.name for path in tmp_path.iterdir()}
    names = {
        "me": folder / "me.png", "words": folder / "words.wav", "grey": tmp_path / "grey.png",
        "text": tmp_path / "text.txt", "deepspeech": tmp_path / "deepspeech",
    }  # fmt: skip
    given = [argument.format(**names) for argument in arguments]
    speaker = [] if "--speaker" in given else ["--speaker", str(folder)]
    assert main(["speak", *given, *speaker]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastface speak: ") and message in line
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_interruption_leaves_nothing(folder, tmp_path, monkeypatch) -> None:
    from fastface.models.posegan.speaker import Speaker

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Speaker, "finish", interrupted)
    monkeypatch.chdir(tmp_path)
    assert main(["speak", str(folder / "me.png"), str(folder / "words.wav"), "--speaker", str(folder)]) == 130
    assert not list(tmp_path.iterdir())
