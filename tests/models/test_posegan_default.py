"""The networks that come with the package: their measures on speech that is stored with the tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the sound is Opus, which needs PyAV: pip install 'fastface-kernels[audio]'")

from fastface.audio import SpectralSpeech, to_frame_rate  # noqa: E402  # after the skip
from fastface.face import built_in_head  # noqa: E402
from fastface.models.posegan.corpus import augment, mouth_opening  # noqa: E402
from fastface.models.posegan.dataset import Example, prepare  # noqa: E402
from fastface.models.posegan.default import DEFAULT_WEIGHTS, load_default, small_pgface, small_posegan  # noqa: E402
from fastface.models.posegan.evaluation import CLOSED, measure_face, measure_pose, measure_stream  # noqa: E402
from fastface.models.posegan.networks import PoseGAN  # noqa: E402
from fastface.models.posegan.streams import PoseStream  # noqa: E402
from fastface.models.posegan.windows import long_poses  # noqa: E402
from tests.models.held_out_speech import held_out_clips  # noqa: E402
from tests.models.small_posegan import assert_batch_is_single  # noqa: E402


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [prepare(str(index), clip) for index, clip in enumerate(held_out_clips())]


def test_the_mouth_follows_speech(examples: list[Example]) -> None:
    measures = measure_face(load_default()[1], examples)
    assert measures.closures >= 20
    assert measures.correlation >= 0.7 and measures.clip_correlation >= 0.7
    assert measures.closed >= 0.8  # of p, b, m
    assert measures.open >= 0.9  # and not by never opening
    assert measures.lag == 0
    assert measures.pose_dependence < 0.3


def test_the_mouth_follows_recordings() -> None:
    rng = np.random.default_rng(0)
    clips = held_out_clips()
    features = [SpectralSpeech()(augment(clip.samples, rng)) for clip in clips]
    pgface = load_default()[1]
    found, target = [], []
    for clip, heard in zip(clips, features, strict=True):
        frames = torch.from_numpy(to_frame_rate(heard, len(clip.pose), clip.fps))[None]
        with torch.inference_mode():
            expression = pgface(frames, torch.from_numpy(clip.pose)[None]).expression[0]
        found.append(mouth_opening(expression.numpy()))
        target.append(clip.opening)
    assert np.corrcoef(np.concatenate(found), np.concatenate(target))[0, 1] >= 0.7


def test_the_head_moves_as_the_data(examples: list[Example]) -> None:
    measures = measure_pose(load_default()[0], examples)
    assert measures.initial < 0.2
    assert 0.7 < measures.diversity < 1.3 and 0.7 < measures.speed < 1.3
    assert measures.jitter < 1.6
    assert measures.nods > 0.35


class _Decaying(PoseGAN):
    """Deaf: its first pose fades to the mean."""

    def forward(self, features: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
        share = 0.95 ** torch.arange(features.shape[1])[:, None]
        return torch.lerp(self.statistics.mean, initial[:, None], share)


@pytest.mark.parametrize(("hop", "diversity", "nods"), [(32, 0.55, 0.4), (8, 0.35, 0.2)])
def test_the_head_moves_by_the_sound_in_use(examples: list[Example], hop: int, diversity: float, nods: float) -> None:
    posegan = load_default()[0]
    found = measure_stream(posegan, examples, hop=hop)
    assert diversity < found.diversity < 1.2 and 0.6 < found.speed < 1.2 and found.nods > nods
    unheard = [replace(example, features=torch.zeros_like(example.features)) for example in examples]
    decaying = _Decaying(posegan.config, posegan.statistics)
    for deaf in (measure_stream(posegan, unheard, hop=hop), measure_stream(decaying, examples, hop=hop)):
        assert deaf.diversity < 0.1 and deaf.speed < 0.1 and deaf.nods < 0.15


@torch.inference_mode()
def test_batch_is_single(examples: list[Example]) -> None:
    posegan, pgface = load_default()
    heard, moved = (torch.cat(rows) for rows in ([e.features[0] for e in examples], [e.pose for e in examples]))
    starts = [start * (len(heard) - 256) // 3 for start in range(4)]
    features, poses = (torch.stack([rows[start : start + 256] for start in starts]) for rows in (heard, moved))
    assert_batch_is_single(lambda f, p: posegan.statistics.normalize(posegan(f, p[:, 0])), features, poses)
    assert_batch_is_single(lambda f, p: torch.cat(pgface(f, p), 2), features, poses)


def test_silence_is_a_closed_mouth_and_a_still_head() -> None:
    posegan, pgface = load_default()
    features = torch.from_numpy(to_frame_rate(SpectralSpeech()(np.zeros(160_000, dtype=np.float32)), 250, 25.0))[None]
    stream = PoseStream(posegan)
    poses = torch.cat([stream.push(features[0]), stream.finish()])[None]
    with torch.inference_mode():
        opening = mouth_opening(pgface(features, poses).expression[0].numpy())
    assert opening.max() < CLOSED
    for found in (poses, long_poses(posegan, features)):
        angles = (found - posegan.statistics.mean)[0, :, :3].rad2deg()
        assert angles.abs().max() < 2 and angles.diff(dim=0).abs().max() < 0.15


def test_they_fit_the_built_in_head_and_are_small() -> None:
    posegan, pgface = load_default()
    head = built_in_head()
    assert posegan.config == replace(small_posegan(), face=head.content_hash)
    assert pgface.config == replace(small_pgface(), face=head.content_hash)
    assert (pgface.config.identities, pgface.config.expressions) == (head.identities, head.expressions)
    assert not posegan.training and not pgface.training
    files = {path.name: path.stat().st_size for path in DEFAULT_WEIGHTS.iterdir()}
    assert set(files) == {"posegan.safetensors", "pgface.safetensors", "MODEL_CARD.md"}
    assert sum(files.values()) < 4 * 2**20


def test_the_package_has_them() -> None:
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    assert '"fastface.models.posegan": ["data/*"]' in setup
