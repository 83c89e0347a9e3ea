"""`fastface train` as a user meets it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastface.apps.cli import main
from fastface.audio import SpectralSpeech
from fastface.face import built_in_head
from fastface.models.posegan import PGFace, PGFaceConfig, PoseGAN, load, save
from fastface.models.posegan.corpus import read_corpus
from fastface.models.posegan.default import small_pgface
from tests.models.made_speech import made_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    made_corpus(folder)
    return folder


def summary(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    assert main([str(argument) for argument in (*arguments, "--json")]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_train_resume_and_evaluate(tmp_path: Path, corpus: Path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib: pip install 'fastface-kernels[demo]'")
    command = ("train", "pgface", corpus, "-o", tmp_path, "--every", 5, "--batch", 4, "--copies", 1)
    first = summary(capsys, *command, "--steps", 10)
    names = ("pgface.safetensors", "pgface.last.safetensors", "pgface.last.pt", "pgface.csv", "pgface.png")
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert "--resume" in refused(capsys, *command)
    assert main([*map(str, command), "--steps", "20", "--resume"]) == 0
    assert "20 steps" in capsys.readouterr().out
    assert (tmp_path / "pgface.csv").read_text().count("\n") == 5
    found = summary(capsys, "train", "pgface", corpus, "--evaluate", "--weights", first["output"])
    assert found["closures"] > 10 and -1 <= found["correlation"] <= 1
    config = load(tmp_path / "pgface.safetensors", PGFace).config
    assert (config.identities, config.expressions, config.fps, config.speech) == (46, 28, 25.0, "spectral")
    assert config.face == built_in_head().content_hash


def test_posegan_and_its_published_widths(tmp_path: Path, corpus: Path, capsys) -> None:
    options = ("--steps", 1, "--batch", 2, "--frames", 33, "--copies", 0)
    summary(capsys, "train", "posegan", corpus, "-o", tmp_path, *options)
    found = summary(capsys, "train", "posegan", corpus, "--evaluate", "--weights", tmp_path / "posegan.safetensors")
    assert found["error"] > 0 and found["jitter"] > 0
    assert [each["hop"] for each in found["live"]] == [8, 2] and found["live"][0]["speed"] >= 0
    assert load(tmp_path / "posegan.safetensors", PoseGAN).config.frames == 33
    summary(capsys, "train", "pgface", corpus, "-o", tmp_path, "--published", "--steps", 1, "--copies", 0)
    assert load(tmp_path / "pgface.safetensors", PGFace).config.widths == PGFaceConfig().widths


def test_one_seed_one_result_and_on_from_weights(tmp_path: Path, corpus: Path, capsys) -> None:
    options = ("--steps", 4, "--batch", 2, "--every", 4, "--copies", 1)
    scores = [
        summary(capsys, "train", "pgface", corpus, "-o", tmp_path / name, "--seed", seed, *options)["score"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert scores[0] == scores[1] != scores[2]
    weights = tmp_path / "a" / "pgface.safetensors"
    further = summary(capsys, "train", "pgface", corpus, "-o", tmp_path / "d", "--weights", weights, *options)
    assert further["score"] < scores[0]


def test_features_of_another_program(tmp_path: Path, corpus: Path, capsys) -> None:
    heard = tmp_path / "heard"
    heard.mkdir()
    data = read_corpus(corpus)
    for clip in data.clips:
        np.save(heard / f"{clip['name']}.npy", SpectralSpeech()(data.read(clip["name"]).samples))
    options = ("--steps", 2, "--every", 2, "--batch", 2, "--seed", 3)
    for network, sizes in (("pgface", ()), ("posegan", ("--frames", 33))):
        command = ("train", network, corpus, *options, *sizes)
        given = summary(capsys, *command, "-o", tmp_path / "given", "--features", heard)
        if network == "pgface":
            measured = summary(capsys, *command, "-o", tmp_path / "measured", "--copies", 0)
            assert given["score"] == measured["score"], "the same numbers"
        evaluated = ("train", network, corpus, "--evaluate", "--weights", tmp_path / "given" / f"{network}.safetensors")
        assert "got (25.0, 'precomputed')" in refused(capsys, *evaluated)
        assert summary(capsys, *evaluated, "--features", heard)
    assert load(tmp_path / "given" / "posegan.safetensors", PoseGAN).config.speech == "precomputed"
    assert "'precomputed'), got (25.0, 'spectral')" in refused(
        capsys, "train", "pgface", corpus, "--evaluate", "--features", heard
    )
    (heard / f"{data.names('held_out')[0]}.npy").unlink()
    assert "cannot read speech features" in refused(capsys, *command[:3], "-o", tmp_path / "more", "--features", heard)


def test_what_is_refused(tmp_path: Path, corpus: Path, capsys) -> None:
    assert "corpus.json" in refused(capsys, "train", "pgface", tmp_path)
    assert "500" in refused(capsys, "train", "posegan", corpus, "-o", tmp_path, "--frames", 500)
    assert "--device" in refused(capsys, "train", "pgface", corpus, "-o", tmp_path, "--device", "nowhere")
    assert "steps" in refused(capsys, "train", "pgface", corpus, "-o", tmp_path, "--steps", 0)
    assert "--resume" in refused(capsys, "train", "pgface", corpus, "--resume", "--evaluate")
    for option in (("--published",), ("--frames", 64)):
        for other in (("--weights", "any.safetensors"), ("--evaluate",)):
            assert "is for new networks" in refused(capsys, "train", "posegan", corpus, *option, *other)
    assert "--frames is for posegan" in refused(capsys, "train", "pgface", corpus, "--frames", 64)
    for option in (("--recognizer", "any"), ("--copies", 2)):
        assert "leave --recognizer and --copies out" in refused(
            capsys, "train", "pgface", corpus, "--features", tmp_path, *option
        )
    assert "last.safetensors" in refused(capsys, "train", "pgface", corpus, "-o", tmp_path, "--resume")
    save(PGFace(), tmp_path / "other.safetensors")
    evaluated = ("train", "pgface", corpus, "--evaluate", "--weights", tmp_path / "other.safetensors")
    assert "(25.0, 'spectral'), got (30.0, 'deepspeech')" in refused(capsys, *evaluated)
    assert "PoseGAN" in refused(capsys, "train", "posegan", corpus, *evaluated[3:])
    other = replace(small_pgface(), face="another")
    save(PGFace(other), tmp_path / "other.safetensors")
    for option in (("--evaluate",), ("-o", tmp_path / "out")):
        found = refused(capsys, *evaluated[:3], *option, "--weights", tmp_path / "other.safetensors")
        assert f"must be for the face model {built_in_head().content_hash}, got another" in found
    assert "batch must be at least 2" in refused(
        capsys, "train", "posegan", corpus, "-o", tmp_path / "out", "--frames", 20, "--batch", 1, "--copies", 0
    )
    only = made_corpus(tmp_path / "only", train=1, held_out=0)
    assert "held_out" in refused(capsys, "train", "pgface", only.folder, "-o", tmp_path / "out")
