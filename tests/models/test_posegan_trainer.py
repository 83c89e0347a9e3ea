"""Training of PoseGAN and PGFace: what is drawn from clips, the loop and its files, and the measures."""

from __future__ import annotations

import csv
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastface.models.posegan import (
    PGFace,
    PoseDiscriminatorConfig,
    PoseGAN,
    PoseGANConfig,
    PoseStatistics,
    Shape,
    load,
    save,
)
from fastface.models.posegan.corpus import mouth_opening
from fastface.models.posegan.dataset import Example, Windows, prepare, read_examples, with_silence
from fastface.models.posegan.default import small_pgface
from fastface.models.posegan.evaluation import CLOSED, measure_face, measure_pose, measure_stream
from fastface.models.posegan.training import FaceLearner, Learner, PoseLearner, Run, TrainingConfig, _around, train
from tests.models.made_speech import made_clip, made_corpus
from tests.models.small_posegan import small_posegan

TINY = replace(small_pgface(), widths=(8, 8, 8, 8), hidden=(8, 8))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [prepare(f"clip {seed}", made_clip(seed, 60 + 7 * seed), copies=1, seed=(seed,)) for seed in range(5)]


def statistics(examples: list[Example]) -> PoseStatistics:
    return PoseStatistics.of(torch.cat([example.pose for example in examples]))


def face_learner(examples: list[Example], **options) -> FaceLearner:
    torch.manual_seed(0)
    return FaceLearner(PGFace(TINY, statistics(examples)), examples[:4], examples[4:], TrainingConfig(**options))


def pose_learner(examples: list[Example], **options) -> PoseLearner:
    torch.manual_seed(0)
    config = PoseGANConfig(trunk=(4, 4, 4, 4), levels=(4, 4, 4, 4, 4), decoder=4, frames=33, aligned=True)
    network = PoseGAN(config, statistics(examples))
    judge = PoseDiscriminatorConfig(4)
    return PoseLearner(network, examples[:4], examples[4:], TrainingConfig(**options), judge=judge)


# What is drawn


def test_examples_hear_the_clean_sound_and_copies(tmp_path: Path) -> None:
    corpus = made_corpus(tmp_path)
    found = list(read_examples(corpus, "train", copies=2, seed=3))
    assert [example.name for example in found] == corpus.names("train")
    assert [list(example.features.shape) for example in found] == [[3, 60 + 7 * i, 29] for i in range(4)]
    for example, again in zip(found, read_examples(corpus, "train", copies=2, seed=3), strict=True):
        assert torch.equal(example.features, again.features)
    other = next(read_examples(corpus, "train", copies=2, seed=4)).features
    assert torch.equal(found[0].features[0], other[0])
    assert not torch.allclose(found[0].features[1], other[1], atol=0.01)
    assert not torch.allclose(found[0].features[0], found[0].features[1], atol=0.01)


def test_every_window_is_as_likely(examples: list[Example]) -> None:
    windows, rng = Windows(examples, 70), np.random.default_rng(0)
    drawn = windows.draw(rng, 6000)
    starts = {(example.name, start) for example, start, _ in drawn}
    possible = sum(max(0, len(example) - 69) for example in examples)
    assert len(starts) == possible
    assert all(start + 70 <= len(example) for example, start, _ in drawn)
    assert np.mean([copy for _, _, copy in drawn]) == pytest.approx(0.5, abs=0.03)
    counts = np.unique([f"{e.name} {s}" for e, s, _ in drawn], return_counts=True)[1]
    assert counts.std() < 1.3 * (6000 / possible) ** 0.5


def test_heads_rest_in_silence(examples: list[Example]) -> None:
    silence = torch.randn(29)
    (found,) = with_silence(examples, 27, silence)  # times 3 / 2
    example = examples[0]
    assert found.features.shape == (2, len(example) + 80, 29) and len(found) == len(example) + 80
    assert torch.equal(found.features[:, 40:-40], example.features)
    assert (found.features[:, :40] == silence).all() and (found.features[:, -40:] == silence).all()
    assert torch.equal(found.pose[40:-40], example.pose)
    mean = torch.cat([each.pose for each in examples]).mean(0)
    for silent, end in ((found.pose[:40].flip(0), example.pose[0]), (found.pose[-40:], example.pose[-1])):
        assert torch.allclose(silent[24:], mean, atol=1e-5)
        share = (silent - mean)[:24] / (end - mean)
        assert (share.diff(dim=0) < 0).all() and (share[0] > 0.99).all() and (share < 1).all()
    assert not found.expression[-40:].any()


def test_windows_longer_than_all_clips_are_refused(examples: list[Example]) -> None:
    with pytest.raises(ValueError, match=r"at least 500 frames .* at most 88 frames"):
        Windows(examples, 500)


@pytest.mark.parametrize(("start", "frames"), [(0, 5), (3, 20), (40, 20), (0, 60)])
def test_pgface_learns_from_what_it_sees_in_a_clip(examples: list[Example], start: int, frames: int) -> None:
    network, example = PGFace(TINY, statistics(examples)).eval(), examples[0]
    features, poses = example.features[0], example.pose
    rows = torch.cat([_around(network.statistics.normalize(poses), start, frames), _around(features, start, frames)], 1)
    with torch.inference_mode():
        found = network.shapes(rows.T.unfold(1, 16, 1).transpose(0, 1))
        whole = network(features[None], poses[None])
    assert torch.allclose(found.expression, whole.expression[0, start : start + frames], atol=1e-5)


# The loop


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background, which ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(learner: Learner, step: int, times: int = 1) -> Learner:
    """The learner, which gets that many Ctrl+C in the middle of a step."""
    update, updates = learner.update, iter(range(1, 100))

    def signalled(name: str, loss: torch.Tensor) -> None:
        if next(updates) == (step - 1) * len(learner.parts) + 1:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        update(name, loss)

    learner.update = signalled  # type: ignore[method-assign]
    return learner


@pytest.mark.parametrize("make", [face_learner, pose_learner])
def test_a_run_that_was_interrupted_gives_the_same(
    tmp_path: Path, examples: list[Example], make: Callable[..., Learner]
) -> None:
    name = "pgface" if make is face_learner else "posegan"
    options = {"steps": 8, "batch": 4, "every": 4}
    whole, expected = make(examples, **options), Run(tmp_path / "whole", name)
    train(whole, expected)

    broken, run = make(examples, **options), Run(tmp_path / "broken", name)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted(broken, step=6), run)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    learner, run = make(examples, **options), Run(tmp_path / "broken", name)
    save(learner.network, run.path("last.safetensors"))  # as where a kill leaves one file older than the other
    run.resume(learner)
    assert run.step == 6 and [row["step"] for row in run.history] == [4]
    train(learner, run)
    for part in whole.parts:
        truth = whole.parts[part].state_dict()
        for key, value in learner.parts[part].state_dict().items():
            assert torch.equal(value, truth[key]), key
    for row, other in zip(run.history, expected.history, strict=True):
        assert row | {"seconds": 0} == pytest.approx(other | {"seconds": 0}, rel=0, abs=0, nan_ok=True)


def test_a_second_interruption_ends_at_once(tmp_path: Path, examples: list[Example]) -> None:
    learner, run = interrupted(face_learner(examples, batch=2), step=2, times=2), Run(tmp_path, "pgface")
    with pytest.raises(KeyboardInterrupt):
        train(learner, run)
    assert run.step == 1 and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_in_another_thread(tmp_path: Path, examples: list[Example]) -> None:
    learner, run = face_learner(examples, steps=1, batch=2), Run(tmp_path, "pgface")
    thread = threading.Thread(target=train, args=(learner, run))
    thread.start()
    thread.join()
    assert run.step == 1 and len(run.history) == 1


def test_training_learns_and_leaves_its_files(tmp_path: Path, examples: list[Example]) -> None:
    learner, run = face_learner(examples, steps=120, every=40, batch=8, rate=1e-2), Run(tmp_path, "pgface")
    before = learner.validate()["score"]
    seen: list[int] = []
    train(learner, run, lambda run: seen.append(run.step))
    assert seen == list(range(1, 121))
    assert run.best == min(row["score"] for row in run.history) < 0.7 * before
    kept = measure_face(load(tmp_path / "pgface.safetensors", PGFace), examples[4:])
    assert kept.row()["score"] == pytest.approx(run.best, rel=1e-6)
    with (tmp_path / "pgface.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [40, 80, 120]
    assert {"seconds", "rate", "expression", "opening", "correlation", "score"} <= set(rows[0])
    assert not list(tmp_path.glob(".*partial*"))


def test_time_ends_a_training(tmp_path: Path, examples: list[Example]) -> None:
    learner, run = face_learner(examples, steps=10**6, seconds=0.5, batch=2), Run(tmp_path, "pgface")
    train(learner, run)
    assert 0.5 <= run.seconds < 20 and run.step < 10**5
    assert run.history[-1]["step"] == run.step


def test_both_sides_of_posegan_learn(examples: list[Example]) -> None:
    learner = pose_learner(examples, batch=4)
    before = {name: [p.clone() for p in part.parameters()] for name, part in learner.parts.items()}
    row = learner.step(np.random.default_rng(0))
    assert set(row) == {"initial", "pose", "velocity", "adversarial", "acceleration", "discriminator"}
    assert all(np.isfinite(value) for value in row.values())
    for name, part in learner.parts.items():
        moved = [not torch.equal(a, b) for a, b in zip(part.parameters(), before[name], strict=True)]
        assert sum(moved) > 0.8 * len(moved)


def test_bfloat16_is_near_float32(examples: list[Example]) -> None:
    exact, rough = (face_learner(examples, precision=p).step(np.random.default_rng(0)) for p in ("float32", "bfloat16"))
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.1)


def test_what_cannot_be_gone_on_with(tmp_path: Path, examples: list[Example]) -> None:
    learner, run = face_learner(examples, steps=1, batch=2), Run(tmp_path, "pgface")
    with pytest.raises(ValueError, match="pgface.last.safetensors"):
        run.resume(learner)
    train(learner, run)
    other = FaceLearner(PGFace(replace(TINY, hidden=(8, 9))), examples[:4], examples[4:], TrainingConfig())
    with pytest.raises(ValueError, match=r"must be .*hidden=\(8, 9\).* got .*hidden=\(8, 8\)"):
        run.resume(other)
    learner.network.config = replace(TINY, face="ours")
    Run(tmp_path, "pgface").resume(learner)  # the files do not say which face
    run.save(learner)
    learner.network.config = replace(TINY, face="another")
    with pytest.raises(ValueError, match="must be .*face='another'.* got .*face='ours'"):
        run.resume(learner)
    learner.network.config = replace(TINY, face="ours")
    (tmp_path / "pgface.last.pt").write_bytes(b"no state")
    with pytest.raises(ValueError, match="cannot go on from"):
        run.resume(learner)


def test_a_batch_too_small_for_batch_norm(examples: list[Example]) -> None:
    def learner(frames: int, batch: int) -> PoseLearner:
        network = PoseGAN(small_posegan(frames=frames).config)
        return PoseLearner(network, examples, examples, TrainingConfig(batch=batch))

    for frames in (20, 32):
        with pytest.raises(ValueError, match=f"batch must be at least 2 .* got 1 for {frames} frames"):
            learner(frames, 1)
    for frames, batch in ((2, 2), (33, 1)):
        learner(frames, batch).step(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"steps": 0}, "steps"), ({"rate": float("nan")}, "rate"), ({"seconds": -1.0}, "seconds must be positive, got -1"),
     ({"precision": "float16"}, "float32 or bfloat16, got 'float16'"), ({"seed": -1}, "seed at least 0")],
)  # fmt: skip
def test_bad_configurations(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig(**options)


# The measures


class _Told(PGFace):
    """Gives what it is told for the features of each example, moved by so many frames, and `add`."""

    def __init__(self, examples: list[Example], late: int = 0, factor: float = 1.0) -> None:
        super().__init__(small_pgface())
        self.examples, self.late, self.factor = examples, late, factor

    def forward(self, features: torch.Tensor, poses: torch.Tensor) -> Shape:
        example = next(e for e in self.examples if torch.equal(e.features[0], features[0]))
        index = (torch.arange(len(example)) - self.late).clamp(0, len(example) - 1)
        expression = self.factor * example.expression[index]
        return Shape(example.identity.expand(2, len(index), -1), expression.expand(2, -1, -1))


def test_the_truth_measures_best(examples: list[Example]) -> None:
    found = measure_face(_Told(examples), examples)
    assert found.correlation == pytest.approx(1) and found.clip_correlation == pytest.approx(1)
    assert (found.closed, found.open, found.lag, found.pose_dependence, found.error) == (1, 1, 0, 0, 0)
    runs = sum(int((np.diff(e.closed.numpy().astype(int), prepend=0) == 1).sum()) for e in examples)
    assert found.closures == runs > 30
    assert found.row()["score"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("late", [-3, 2, 4])
def test_lag_is_found(examples: list[Example], late: int) -> None:
    found = measure_face(_Told(examples, late), examples)
    assert found.lag == late and found.correlation < 0.9


def test_a_mouth_that_never_opens_has_all_closures_and_no_score(examples: list[Example]) -> None:
    found = measure_face(_Told(examples, factor=0.0), examples)
    assert (found.closed, found.open) == (1, 0)
    assert abs(found.correlation) < 1e-9 and found.row()["score"] > 2
    wide = replace(examples[0], closed=torch.tensor(mouth_opening(examples[0].expression.numpy()) > 2 * CLOSED))
    assert measure_face(_Told([wide]), [wide]).closed == 0


def test_what_cannot_be_measured_is_left_out(examples: list[Example]) -> None:
    single = measure_face(_Told(examples), examples[:1])
    assert np.isnan(single.pose_dependence) and "pose" not in str(single)
    assert str(single).count("\n") == 3
    shut = replace(examples[0], expression=torch.zeros_like(examples[0].expression))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure_face(_Told([shut]), [replace(shut, closed=None)])
    assert np.isnan(found.open) and np.isnan(found.closed) and np.isfinite(found.row()["score"])
    assert "nan" not in str(found)


class _ToldPoses(PoseGAN):
    def __init__(self, poses: list[torch.Tensor]) -> None:
        super().__init__(PoseGANConfig(trunk=(1, 1, 1, 1), levels=(1, 1, 1, 1, 1), decoder=1, frames=500))
        self.poses = iter(poses)

    def forward(self, features: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
        return next(self.poses)[None]


def test_poses_are_measured_against_the_data(examples: list[Example]) -> None:
    truth = measure_pose(_ToldPoses([e.pose for e in examples]), examples)
    assert truth.error == truth.initial == 0
    assert (truth.diversity, truth.speed, truth.jitter, truth.nods) == pytest.approx((1, 1, 1, 1))
    assert truth.row()["score"] == pytest.approx(0, abs=1e-6)
    half = measure_pose(_ToldPoses([0.5 * e.pose for e in examples]), examples)
    assert (half.diversity, half.speed, half.jitter, half.nods) == pytest.approx((0.5, 0.5, 0.5, 1))
    assert half.row()["score"] == pytest.approx(1.5 + half.error)
    shaken = [e.pose + 0.3 * e.pose.std(0) * torch.randn(e.pose.shape) for e in examples]
    rough = measure_pose(_ToldPoses(shaken), examples)
    assert rough.jitter > 1.5 * rough.diversity


class _Loud(PoseGAN):
    """Nods as loud as the sound is, wherever it starts."""

    def forward(self, features: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
        return features[:, :, :1].expand(-1, -1, 6)


def test_poses_are_measured_as_they_are_streamed(examples: list[Example]) -> None:
    network = _Loud(PoseGANConfig(trunk=(1, 1, 1, 1), levels=(1, 1, 1, 1, 1), decoder=1, frames=40))
    loud = [replace(example, pose=example.features[0, :, :1].expand(-1, 6)) for example in examples]
    found = measure_stream(network, loud, hop=5)
    assert (found.hop, found.diversity, found.speed, found.nods) == pytest.approx((5, 1, 1, 1), abs=0.06)
    away = [replace(example, pose=example.pose + 5) for example in loud]  # the true first pose is not told
    assert measure_stream(network, away, hop=5).diversity == pytest.approx(found.diversity, abs=1e-5)
    with pytest.raises(ValueError, match="got none"):
        measure_stream(network, [], hop=5)


def test_nothing_to_measure_on_and_other_faces(examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="got none"):
        measure_pose(_ToldPoses([]), [])
    with pytest.raises(ValueError, match="clip 0 must have 5 expressions, got 28"):
        measure_face(PGFace(replace(TINY, expressions=5)), examples)
    others = [replace(example, expression=example.expression[:, :5]) for example in examples]
    found = measure_face(PGFace(replace(TINY, expressions=5)), others)
    assert np.isnan(found.correlation) and np.isfinite(found.row()["score"])
    assert str(found).startswith("expression: ") and "\n" not in str(found)
