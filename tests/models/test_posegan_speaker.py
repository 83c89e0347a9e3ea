"""Sound to the face of a portrait: pieces, silence, closures, blinks, poses; and lips against the sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastface.audio import PrecomputedSpeech, SpectralSpeech
from fastface.face import Camera, FaceParameters, built_in_head, topology
from fastface.models.posegan.extraction import _poses
from fastface.models.posegan.idle import Blinks, Drift
from fastface.models.posegan.neck import carried
from fastface.models.posegan.speaker import (
    SPECTRAL,
    WAV2VEC2,
    Lips,
    RecognizedSpeechStream,
    Resampling,
    Speaker,
    SpeakerConfig,
    posed,
)
from fastface.models.posegan.sync import lip_openings, lip_sync
from tests.models.small_posegan import small_pgface, small_posegan

HEAD = built_in_head()
RATE = 16_000
MODES = {name: index for index, name in enumerate(HEAD.expression_names)}
FIXED = [index for name, index in MODES.items() if not name.startswith(("blink", "brow"))]


def portrait(**expression: float) -> FaceParameters:
    coefficients = torch.zeros(1, HEAD.expressions)
    for name, value in expression.items():
        coefficients[0, MODES[name]] = value
    camera = Camera(torch.tensor([7.0]), torch.tensor([[0.1, -0.2, 0.05]]), torch.tensor([[120.0, 130.0, 3.0]]))
    return FaceParameters(torch.zeros(1, HEAD.identities), coefficients, camera)


def networks(speech: str = SPECTRAL, fps: float = 25.0):
    sizes = {"identities": HEAD.identities, "expressions": HEAD.expressions}
    return small_posegan(speech=speech, fps=fps), small_pgface(speech=speech, fps=fps, **sizes)


def speaker(reference: FaceParameters | None = None, **options) -> Speaker:
    return Speaker(*networks(), reference or portrait(), **options)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def vectors(of: Speaker, *pieces: np.ndarray) -> torch.Tensor:
    tracks = [*(of.push(piece) for piece in pieces), of.finish()]
    seconds = torch.cat([track.seconds for track in tracks])
    assert torch.allclose(seconds, torch.arange(len(seconds), dtype=torch.float64) / of.fps, rtol=0, atol=1e-9)
    return torch.cat([track.vectors for track in tracks])


@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 3 * RATE), max_size=6).map(sorted),
    fps=st.sampled_from([10.0, 24.0, 25.0, 29.97, 60.0]),
)
def test_pieces_change_nothing(cuts, fps) -> None:
    sound = noise(3.0)
    whole = vectors(speaker(fps=fps, level=-20.0), sound)
    assert len(whole) == pytest.approx(3.0 * fps, abs=fps / 25 + 1)
    torch.testing.assert_close(vectors(speaker(fps=fps, level=-20.0), *np.split(sound, cuts)), whole)


@pytest.mark.parametrize(("fps", "hop"), [(25.0, 8), (60.0, 4), (12.0, None)])
def test_frames_come_in_time(fps, hop) -> None:
    talk, frames = speaker(fps=fps, hop=hop), 0
    for second, piece in enumerate(np.split(noise(12.0), 12), 1):
        frames += len(talk.push(piece))
        assert frames + 1 >= (second - talk.latency) * fps - 1e-6


@pytest.mark.parametrize("samples", [1, 319, 1600])
def test_the_shortest_sounds_have_a_frame(samples) -> None:
    assert 1 <= len(vectors(speaker(), noise(1.0)[:samples])) <= 3


def test_memory_does_not_grow() -> None:
    talk = speaker()
    kept = []
    for index in range(24):
        talk.push(noise(1.0, index))
        kept.append(len(talk._loud))
    assert max(kept[12:]) <= max(kept[:12]) and sum(map(len, (talk._at_rate._rows, talk._at_fps._rows))) < 8


def test_silence_is_a_closed_mouth_and_idle_motion() -> None:
    reference = portrait(jaw_open=0.3, smile_left=0.5)
    still = vectors(speaker(reference), np.zeros(8 * RATE, np.float32))
    rest = Lips(reference, HEAD).closed(reference.expression)
    torch.testing.assert_close(still[:, FIXED], rest[:, FIXED].expand(len(still), -1))
    lids = still[:, MODES["blink_left"]]
    assert lids.min() == 0 and lids.max() == 1 and (lids > 0).float().mean() < 0.3
    moved = still[:, -6:-3] - still[:1, -6:-3]
    assert 0.005 < moved.abs().max() < 0.3, "the head drifts"


def test_sound_opens_and_a_pause_closes_the_mouth() -> None:
    sound = np.concatenate([noise(1.0), np.zeros(2 * RATE, np.float32), noise(1.0)])
    said = (vectors(speaker(), sound)[:, FIXED]).abs().max(1).values
    assert min(said[5:20].min(), said[82:95].min()) > 0
    assert said[36:64].max() == 0, "a third of a second after the word, and before the next"
    talk = speaker(level=-20.0)
    assert vectors(talk, 1e-3 * sound)[:, FIXED].abs().max() == 0, "noise far below the level of speech moves nothing"
    assert not talk.heard


def test_the_seed_moves_lids_and_head_alone() -> None:
    sound = noise(9.0)
    first, again, other = (vectors(speaker(config=SpeakerConfig(seed=seed)), sound) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[:, FIXED], other[:, FIXED])
    assert not torch.equal(first[:, MODES["blink_left"]], other[:, MODES["blink_left"]])


def test_strengths() -> None:
    sound, reference = noise(2.0), portrait()
    still = vectors(speaker(reference, config=SpeakerConfig(pose=0, expression=0)), sound)
    torch.testing.assert_close(still[:, -7:], reference.vector[:, -7:].expand(len(still), -1), rtol=1e-4, atol=1e-3)
    assert still[:, FIXED].abs().max() == 0
    once, twice = (
        vectors(speaker(reference, config=SpeakerConfig(expression=strength)), sound)[:, FIXED] for strength in (1, 2)
    )
    torch.testing.assert_close(twice, 2 * once)


def lip_gap(expression: torch.Tensor) -> float:
    """Beyond that of a face at rest, in centimetres."""
    points = HEAD.dense.of(HEAD.shape(expression=expression) - HEAD.mean)[0]
    return float(points[13, 1] - points[14, 1])


@given(st.floats(0, 0.6), st.floats(0, 0.6), st.floats(-0.5, 0.9))
@settings(max_examples=30, deadline=None)
def test_lips_are_closed(jaw, lower, smile) -> None:
    face = portrait(jaw_open=jaw, lower_lip_drop=lower, smile_left=smile, smile_right=smile)
    own = face.expression
    shut, gap = Lips(face, HEAD).closed(own), lip_gap(own)
    assert lip_gap(shut) == pytest.approx(-0.1 * gap if gap > 0 else gap, abs=1e-4)
    kept = [index for name, index in MODES.items() if name not in ("jaw_open", "upper_lip_raise", "lower_lip_drop")]
    assert torch.equal(shut[:, kept], own[:, kept])
    nameless = Lips(face, replace(HEAD, expression_names=())).closed(own)
    assert lip_gap(nameless) == pytest.approx(lip_gap(shut), abs=1e-4)


def test_lips_are_as_far_apart_as_they_were_seen() -> None:
    face = portrait(jaw_open=0.2, smile_left=0.5, smile_right=0.5)
    own, points = face.expression, HEAD.dense.of(HEAD.mean)
    width = float(torch.linalg.vector_norm(points[topology.EAR_LEFT] - points[topology.EAR_RIGHT]))
    seen = lip_gap(own) / width + 0.02
    shut = Lips(face, HEAD, seen).closed(own)
    assert lip_gap(shut) - lip_gap(own) == pytest.approx(-1.1 * seen * width, abs=1e-4)
    serious = portrait(jaw_open=0.2).expression
    gone = seen * width + lip_gap(serious) - lip_gap(own)
    shut = Lips(face, HEAD, seen).closed(serious)
    assert lip_gap(shut) - lip_gap(serious) == pytest.approx(-1.1 * gone, abs=1e-4), "without its smile"
    closed = portrait().expression
    assert torch.equal(Lips(portrait(), HEAD, 0.0).closed(closed), closed)


def test_poses_turn_the_head_and_move_it_in_millimetres() -> None:
    reference = replace(portrait(), camera=Camera(torch.tensor([7.0]), torch.zeros(1, 3), torch.tensor([[9.0, 8, 0]])))
    poses = torch.tensor([[0.1, -0.2, 0.05, 0, 0, 0], [0, 0, 0, 10, 20, 0], [0, 0, 0, 0, 0, 60], [3.0, 0, 0, 0, 0, 0]])
    camera = posed(reference, HEAD, poses)
    torch.testing.assert_close(camera.angles[0].deg2rad(), torch.tensor([-0.2, 0.1, 0.05]), atol=1e-5, rtol=1e-5)
    assert camera.angles[3, 1] == pytest.approx(20, abs=1e-3), "no further than a photo shows"
    # 7 pixels a centimetre; the image's y runs down.
    torch.testing.assert_close(camera.translation[1], torch.tensor([9.0 + 7, 8 - 14, 0]))
    assert camera.scale[2] == pytest.approx(7 / 0.9) and camera.scale[0] == pytest.approx(7)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_poses_put_the_head_where_a_video_showed_it(seed) -> None:
    random = torch.Generator().manual_seed(seed)
    shown = torch.rand(9, 7, generator=random) - 0.5
    scale, place = 9 * (1 + 0.1 * shown[:, 0]), torch.tensor([70.0, 90.0, 5.0]) + 20 * shown[:, 4:]
    cameras = Camera(scale, 0.4 * shown[:, 1:4], place)
    poses = _poses(cameras, torch.ones(9, dtype=torch.bool), HEAD.millimetres)
    straight = Camera(scale.median()[None], torch.zeros(1, 3), place.median(0).values[None])
    again = posed(replace(portrait(), camera=straight), HEAD, poses)
    torch.testing.assert_close(again.scale, cameras.scale)
    torch.testing.assert_close(again.rotation, cameras.rotation, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.translation[:, :2], place[:, :2], atol=1e-4, rtol=1e-5)


@given(st.lists(st.floats(-6, 6), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_head_carried_by_its_neck_turns_about_it_once(degrees) -> None:
    reference = replace(portrait(), camera=Camera(torch.tensor([10.0]), torch.zeros(1, 3), torch.zeros(1, 3)))
    angles = np.radians(degrees)
    camera = posed(reference, HEAD, torch.from_numpy(np.r_[angles, carried(angles)])[None].float())
    face = HEAD.dense.of(HEAD.mean)
    neck = face.mean(0) - torch.tensor([0, 0.35, 0.45]) * (face[:, 0].max() - face[:, 0].min())
    moved = (camera.project(neck[None, None]) - reference.camera.project(neck[None, None]))[0, 0, :2]
    assert moved.abs().max() < 1.5, "pixels, here millimetres: to first order, and perspective"


@given(st.integers(0, 10_000), st.lists(st.integers(1, 200), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_blinks(seed, lengths) -> None:
    seconds = np.arange(60 * 25) / 25
    whole, pieces = Blinks(seed)(seconds), Blinks(seed)
    cut = np.cumsum(lengths)
    assert np.array_equal(np.concatenate([pieces(part) for part in np.split(seconds, cut)]), whole)
    whole = whole[: np.flatnonzero(whole == 0)[-1] + 1]  # without one that the end cuts
    shut = np.flatnonzero(np.diff(np.r_[0, whole == 1, 0]) == 1)  # every blink has a frame that is all closed
    parts = np.flatnonzero(np.diff(np.r_[0, whole > 0, 0]) == 1)
    assert len(shut) == len(parts) and 9 <= len(parts) <= 30
    assert (np.diff(parts) / 25 >= 2.0).all() and (np.diff(parts) / 25 <= 6.5).all()


def test_drift() -> None:
    seconds = np.arange(0, 600, 0.04)
    poses = Drift(1)(seconds)
    assert (poses[0] == 0).all() and not np.array_equal(poses, Drift(2)(seconds))
    assert np.array_equal(Drift(1)(seconds[77:99]), poses[77:99]), "of the time alone"
    degrees = np.degrees(poses[:, :3])
    assert (np.abs(degrees) < [1.6, 2.8, 1.6]).all() and (degrees.std(0) > [0.3, 0.5, 0.3]).all()
    assert np.abs(degrees.mean(0)).max() < 0.2 and np.abs(np.diff(degrees, axis=0)).max() / 0.04 < 8, "degrees a second"


@given(st.floats(5, 60), st.floats(5, 60), st.integers(1, 40), st.lists(st.integers(0, 40), max_size=4).map(sorted))
@settings(max_examples=50, deadline=None)
def test_resampling(source, target, count, cuts) -> None:
    rows = torch.from_numpy(np.random.default_rng(count).normal(size=(count, 3))).float()
    stream = Resampling(source, target)
    parts = [stream.push(torch.from_numpy(part)) for part in np.split(rows.numpy(), [c for c in cuts if c < count])]
    result = torch.cat([*parts, stream.push(rows[:0], end=True)]).numpy()
    assert len(result) == pytest.approx(count * target / source, abs=1) and len(result) >= 1
    at = np.arange(len(result)) / target
    expected = [np.interp(at, np.arange(count) / source, column) for column in rows.numpy().T]
    np.testing.assert_allclose(result, np.stack(expected, 1), atol=1e-4)


def test_a_recogniser_hears_pieces_with_what_surrounds_them() -> None:
    def recognize(samples: np.ndarray, rate: int) -> np.ndarray:
        """Each step the mean of its 20 ms and of the half second around it, as a recogniser with context has."""
        steps = np.arange(len(samples) // 320) * 320
        around = [samples[max(0, step - 4000) : step + 4000].mean() for step in steps]
        return np.repeat(np.array(around, dtype=np.float32)[:, None], 29, 1)

    sound = noise(7.03)
    stream = RecognizedSpeechStream(recognize, chunk=2.0, context=0.5)
    heard = np.concatenate([*(stream.push(piece) for piece in np.split(sound, [5, 9000, 90000])), stream.finish()])
    whole = recognize(np.pad(sound, (0, RATE)), RATE)[: len(heard)]
    assert len(heard) == -(-len(sound) // 320)
    np.testing.assert_allclose(heard, whole, atol=1e-6)
    assert len(stream._buffer) <= 0.5 * RATE


def test_networks_that_hear_something_else_are_refused() -> None:
    def recognize(samples: np.ndarray, rate: int) -> np.ndarray:
        return np.full((len(samples) // 320, 29), -3.0, np.float32)

    assert len(vectors(Speaker(*networks(WAV2VEC2), portrait(), recognize=recognize), noise(1.0))) == 25
    for speech, given_one, hint in (
        (SPECTRAL, recognize, "they are measured here, leave recognizer and features out"),
        (WAV2VEC2, None, "pass a recognizer"),
        ("deepspeech", recognize, "pass precomputed features and no recognizer"),
        ("deepspeech", None, "pass precomputed features and no recognizer"),
    ):
        with pytest.raises(ValueError, match=f"networks hear '{speech}' features: {hint}"):
            Speaker(*networks(speech), portrait(), recognize=given_one)


def test_features_that_were_computed_elsewhere(tmp_path: Path) -> None:
    sound = np.concatenate([noise(1.3), np.zeros(RATE // 2, np.float32)])
    np.save(tmp_path / "a.npy", SpectralSpeech(-20.0)(sound))
    features = PrecomputedSpeech(tmp_path / "a.npy")
    measured = speaker(level=-20.0)
    measured._silent = torch.zeros(HEAD.expressions)  # what is said of silence is known of measured features alone
    expected = vectors(measured, sound)
    for cuts in ([], [5, 900, 22_000]):
        talk = Speaker(*networks("deepspeech"), portrait(), level=-20.0, features=features)
        found = vectors(talk, *np.split(sound, cuts))
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="leave recognizer and features out"):
        Speaker(*networks(), portrait(), features=features)
    short = Speaker(*networks("deepspeech"), portrait(), features=features)
    short.push(sound[:RATE])
    with pytest.raises(ValueError, match="must be features of 1.00 s of sound, got 1.80 s"):
        short.finish()


def test_networks_of_another_face_are_refused() -> None:
    ours = HEAD.content_hash

    def trained_on(*faces: str | None) -> Speaker:
        pair = networks()
        for network, face in zip(pair, faces, strict=True):
            network.config = replace(network.config, face=face)
        return Speaker(*pair, portrait())

    trained_on(ours, None)
    for faces in ((None, "another"), ("another", ours)):
        with pytest.raises(ValueError, match=f"must be for the face model {ours}, got another"):
            trained_on(*faces)


def test_refusals() -> None:
    posegan, pgface = networks()
    with pytest.raises(ValueError, match="must give the face model's 28 expressions, got 5"):
        Speaker(posegan, small_pgface(speech=SPECTRAL, fps=25.0), portrait())
    with pytest.raises(ValueError, match="unit must be one of um, mm, cm, m, got 'inch'"):
        Speaker(posegan, pgface, portrait(), model=replace(HEAD, unit="inch"))
    with pytest.raises(ValueError, match="fps must be above 0 and at most 1000, got 0"):
        Speaker(posegan, pgface, portrait(), fps=0)
    with pytest.raises(ValueError, match="hop must be at least 1 and under half of 64 frames, got 0"):
        speaker(hop=0)
    with pytest.raises(ValueError, match="level must be finite dB of full scale, got nan"):
        speaker(level=float("nan"))
    one = portrait()
    for bad, message in (
        (replace(one, expression=one.expression[:, :5]), r"reference.expression must be \[1, 28\], got \[1, 5\]"),
        (replace(one, identity=one.identity[0]), r"reference.identity must be \[1, 46\], got \[46\]"),
        (FaceParameters.of_vector(one.vector.repeat(2, 1), one.identity), r"must be \[1, 46\], got \[2, 46\]"),
    ):
        with pytest.raises(ValueError, match=message):
            speaker(bad)
    with pytest.raises(ValueError, match="strengths must be at least 0"):
        SpeakerConfig(pose=-1)
    with pytest.raises(ValueError, match="that do not fall"):
        SpeakerConfig(blink=(4.0, 2.0))
    talk = speaker()
    with pytest.raises(ValueError, match="samples must be finite"):
        talk.push(np.full(100, np.nan))
    talk.finish()
    with pytest.raises(ValueError, match="after finish"):
        talk.push(noise(0.1))


def syllables(seconds: float) -> np.ndarray:
    """A voice of 120 Hz whose loudness comes and goes at three different rates."""
    at = np.arange(round(seconds * RATE)) / RATE
    loud = 0.5 + 0.5 * np.sin(2 * np.pi * (2.1 * at + 0.3 * np.sin(2 * at))) * np.sin(2 * np.pi * 0.31 * at)
    voice = sum(np.sin(2 * np.pi * 120 * k * at) / k for k in range(1, 20))
    return (0.1 * loud**2 * voice).astype(np.float32)


@pytest.mark.parametrize("late", [-0.21, -0.08, 0.0, 0.05, 0.3])
def test_the_lag_of_lips(late) -> None:
    features = SpectralSpeech()(syllables(8.0))
    seconds = np.arange(8 * 25) / 25
    lips = 0.1 * np.interp(seconds - late, np.arange(len(features)) / 50, features[:, 5])
    found = lip_sync(seconds, lips, features)
    assert found.correlation > 0.97 and found.lag == pytest.approx(late, abs=0.011) and found.seconds > 6
    holes = np.random.default_rng(0).random(len(seconds)) > 0.2
    assert lip_sync(seconds[holes], lips[holes], features).lag == pytest.approx(late, abs=0.021)
    assert lip_sync(seconds, np.zeros(len(seconds)), features).correlation == 0
    assert lip_sync(seconds, np.random.default_rng(1).random(len(seconds)), features).correlation < 0.5


def test_lips_without_speech_are_not_compared() -> None:
    features = SpectralSpeech()(np.zeros(RATE, np.float32))
    with pytest.raises(ValueError, match=r"need 0.5 s of voiced sound to be compared with, got 0.00 s"):
        lip_sync([0.0, 1.0], [0.0, 1.0], features)
    with pytest.raises(ValueError, match=r"must be \[T\], got \[2\] and \[3\]"):
        lip_sync([0.0, 1.0], [0.0, 1.0, 2.0], features)
    with pytest.raises(ValueError, match=r"features must be \[N, 29\], got \[3, 2\]"):
        lip_sync([0.0], [0.0], np.zeros((3, 2), np.float32))


def test_openings_of_frames_with_a_face() -> None:
    from fastface.face import Face

    points = HEAD.dense.of(HEAD.mean).numpy() * [1, -1, -1]
    apart = points.copy()
    apart[list(topology.LIPS_INNER_LOWER), 1] += 2.0
    faces = iter([[Face(points.astype(np.float32))], [], [Face(apart.astype(np.float32))]])
    image = np.zeros((8, 8, 3), np.uint8)
    seconds, openings = lip_openings([(image, 0.0), (image, 0.1), (image, 0.2)], lambda image: next(faces))
    width = np.linalg.norm(points[topology.EAR_LEFT] - points[topology.EAR_RIGHT])
    assert seconds.tolist() == [0.0, 0.2] and openings[1] - openings[0] == pytest.approx(2 / width, abs=0.02)
