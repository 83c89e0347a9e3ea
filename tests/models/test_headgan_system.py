"""HeadGAN as a system: the chain from photo and video to frames, with and without weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastface.face import FaceParameters, FaceTracker, MediaPipeLandmarks, built_in_head
from fastface.models.headgan import (
    FaceTrack,
    Generator,
    GeneratorConfig,
    HeadGAN,
    HeadGANMotion,
    LiveDriver,
    metrics,
    track_faces,
)
from fastface.models.headgan.edits import express, frontal, turn

pytest.importorskip("mediapipe", reason="needs MediaPipe: pip install 'fastface-kernels[face]'")
data = pytest.importorskip("skimage.data", reason="needs scikit-image: pip install 'fastface-kernels[demo]'")


@pytest.fixture(scope="module")
def detector() -> MediaPipeLandmarks:
    return MediaPipeLandmarks()


@pytest.fixture(scope="module")
def system(detector) -> HeadGAN:
    return HeadGAN(size=384, landmarks=detector)


@pytest.fixture(scope="module")
def source(system):
    return system.prepare(data.astronaut())


@pytest.fixture(scope="module")
def with_weights(detector) -> HeadGAN:
    torch.manual_seed(0)
    return HeadGAN(Generator(GeneratorConfig(channels=(4, 16, 64), hidden=8)).eval(), landmarks=detector, size=128)


def shown(frame: torch.Tensor) -> np.ndarray:
    return (frame[0].permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy()


def test_no_motion_gives_the_portrait(system, source) -> None:
    frame = system.render(source, HeadGANMotion.of(source.parameters))
    assert (frame - source.portrait).abs().max() < 1 / 254
    assert torch.equal(system.draw(source, HeadGANMotion.of(source.parameters)), source.render)


def test_the_render_covers_the_face(source, detector) -> None:
    """The drawn head lies over the face of the crop."""
    points = detector(shown(source.portrait))[0].points[:468, :2].round().astype(int)
    covered = (source.render[0].sum(0) > 0).numpy()
    assert covered[points[:, 1], points[:, 0]].mean() > 0.97
    assert source.render.min() >= 0 and source.render.max() <= 1


@pytest.mark.parametrize("angles", [dict(yaw=12), dict(yaw=-12), dict(pitch=8), dict(roll=-12)], ids=str)
def test_the_head_turns_as_the_parameters_say(system, source, detector, angles) -> None:
    tracker = FaceTracker(system.model, detector, identity=source.parameters.identity)
    still = tracker(shown(source.portrait)).camera.angles
    moved = turn(source.parameters, system.model, **angles)
    wanted = torch.tensor([[angles.get(name, 0.0) for name in ("yaw", "pitch", "roll")]])
    assert metrics.ard(moved.camera.angles - source.parameters.camera.angles, wanted) < 1.5
    found = tracker(shown(system.render(source, HeadGANMotion.of(moved)))).camera.angles
    assert metrics.ard(found - still, wanted) < 3


def test_the_mouth_opens_as_the_parameters_say(system, source, detector) -> None:
    from fastface.face import lip_gap_in_widths

    openings = []
    for amount in (0.0, 0.2, 0.4, 0.6):
        motion = HeadGANMotion.of(express(source.parameters, system.model, {"jaw_open": amount}))
        openings.append(lip_gap_in_widths(detector(shown(system.render(source, motion)))[0].points))
    assert np.corrcoef(openings, [0.0, 0.2, 0.4, 0.6])[0, 1] > 0.95 and openings[-1] > openings[0] + 0.05


def test_frontal(system, source) -> None:
    turned = turn(source.parameters, system.model, yaw=20, pitch=-5)
    assert metrics.are(turned.camera.angles) > 5
    assert metrics.are(frontal(turned, system.model).camera.angles) < 1e-3
    with pytest.raises(ValueError, match="expression must be from 0 to 27 .* got 'jaw'"):
        express(source.parameters, system.model, {"jaw": 1.0})


def test_with_weights(with_weights) -> None:
    source = with_weights.prepare(data.astronaut())
    assert with_weights.renderer == "headgan" and source.encoding is not None and source.moving is None
    one = HeadGANMotion.of(source.parameters)
    frame = with_weights.render(source, one)
    assert frame.shape == (1, 3, 128, 128) and frame.min() >= 0 and frame.max() <= 1
    # Missing history is the first frame repeated, missing sound is silence.
    history = HeadGANMotion.of(*[source.parameters] * 3, audio=torch.zeros(1, 300))
    assert torch.equal(frame, with_weights.render(source, history))
    other = turn(source.parameters, with_weights.model, yaw=10)
    assert not torch.equal(frame, with_weights.render(source, HeadGANMotion.of(other, source.parameters)))
    loud = HeadGANMotion.of(source.parameters, audio=torch.ones(1, 300))
    assert not torch.equal(frame, with_weights.render(source, loud))
    batch = HeadGANMotion(torch.cat([one.parameters, HeadGANMotion.of(other).parameters]))
    both = with_weights.render(source, batch)
    assert torch.allclose(both[:1], frame, atol=1e-5) and both.shape[0] == 2


def test_with_a_sketch(detector) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(channels=(4, 16, 64), hidden=8)).eval()
    system = HeadGAN(generator, landmarks=detector, size=128, face="sketch")
    source = system.prepare(data.astronaut())
    assert 0 < (source.render > 0).float().mean() < 0.2
    assert system.render(source, HeadGANMotion.of(source.parameters)).shape == (1, 3, 128, 128)
    with pytest.raises(ValueError, match="face must be 'pncc' or 'sketch', got 'mesh'"):
        HeadGAN(face="mesh")


def test_bad_arguments(system, source) -> None:
    with pytest.raises(ValueError, match=r"\[B, T, expressions \+ 7\] with no size 0, got \[1, 35\]"):
        HeadGANMotion(torch.zeros(1, 35))
    with pytest.raises(ValueError, match=r"parameters must be \[B, T, 35\], got \[1, 1, 20\]"):
        system.render(source, HeadGANMotion(torch.ones(1, 1, 20)))
    with pytest.raises(ValueError, match="parameters must be finite"):
        HeadGANMotion(torch.full((1, 1, 35), float("nan")))
    with pytest.raises(ValueError, match=r"audio must be \[1, 300\], got \[2, 300\]"):
        HeadGANMotion(torch.zeros(1, 1, 35), torch.zeros(2, 300))
    with pytest.raises(ValueError, match="size must be a multiple of 4, at least 64, got 130"):
        HeadGAN(size=130)
    with pytest.raises(ValueError, match="no face found in the portrait"):
        system.prepare(np.zeros((200, 200, 3), dtype=np.uint8))


# Tracks


@pytest.fixture(scope="module")
def track(system, source, detector) -> FaceTrack:
    """The astronaut, turning; the third frame shows nobody."""
    frames = []
    for index in range(8):
        moved = turn(source.parameters, system.model, yaw=2.0 * index)
        image = shown(system.render(source, HeadGANMotion.of(moved)))
        frames.append((np.zeros_like(image) if index == 2 else image, index / 25))
    return track_faces(frames, FaceTracker(system.model, detector))


def test_a_track(track, source) -> None:
    assert len(track) == 8 and track.found.tolist() == [True, True, False] + [True] * 5
    assert torch.equal(track.vectors[2], track.vectors[1])
    yaw = track.parameters.camera.angles[:, 0]
    assert abs(float(yaw[-1] - yaw[0]) - 14) < 3
    calm = track.smoothed()
    assert (calm.vectors - track.vectors).abs().max() > 0 and torch.equal(calm.vectors[0], track.vectors[0])
    assert track.smoothed(0) is track


def test_a_track_is_adapted_to_the_source(track, source) -> None:
    adapted = track.adapted(source.parameters)
    cameras = adapted.parameters.camera
    assert float(cameras.scale.mean()) == pytest.approx(float(source.parameters.camera.scale), rel=1e-3)
    assert torch.allclose(cameras.translation.mean(0), source.parameters.camera.translation[0], atol=0.01)
    assert torch.equal(cameras.rotation, track.parameters.camera.rotation)
    relative = track.adapted(source.parameters, relative=True)
    assert torch.allclose(relative.vectors[0, :-7], source.parameters.expression[0])
    assert torch.equal(adapted.identity, source.parameters.identity)


def test_a_motion_has_its_history(track) -> None:
    assert torch.equal(track.motion(5).parameters[0], track.vectors[3:6])
    assert torch.equal(track.motion(0).parameters[0], track.vectors[:1])
    with pytest.raises(ValueError, match="index must be from 0 to 7, got 8"):
        track.motion(8)


def test_pixels_of_a_crop(track) -> None:
    """A point of the face lies at the same place of the photo, whichever pixels the camera speaks of."""
    shape = built_in_head().shape(track.identity)
    whole = track.parameters.camera.project(shape)[0]
    crop = track.in_crop((40, 30, 200), 100).parameters.camera.project(shape)[0]
    assert torch.allclose((whole[:, :2] - torch.tensor([40.0, 30.0]) + 0.5) / 2 - 0.5, crop[:, :2], atol=1e-3)


def test_nobody_in_the_video(detector) -> None:
    empty = [(np.zeros((64, 64, 3), dtype=np.uint8), 0.0)] * 2
    with pytest.raises(ValueError, match="no face found in any of the 2 frames"):
        track_faces(empty, FaceTracker(landmarks=detector))


def test_live(system, source, detector) -> None:
    """One frame in, one motion out; a frame without a face repeats the last."""
    driver = LiveDriver(source.parameters, FaceTracker(system.model, detector), smoothing=0, relative=True)
    image = shown(source.portrait)
    nobody = np.zeros_like(image)
    assert torch.equal(driver(nobody, 0.0).parameters[:, 0], source.parameters.vector)
    first = driver(image, 0.04)
    assert first.parameters.shape == (1, 1, 35)
    found = FaceParameters.of_vector(first.parameters[:, -1], source.parameters.identity)
    assert float(found.camera.scale) == pytest.approx(float(source.parameters.camera.scale), rel=1e-4)
    assert torch.allclose(found.expression, source.parameters.expression)
    missing = driver(nobody, 0.08)
    assert missing.parameters.shape == (1, 2, 35) and torch.equal(missing.parameters[0, -1], missing.parameters[0, -2])
    with pytest.raises(ValueError, match="smoothing must be at least 0, got -1"):
        LiveDriver(source.parameters, smoothing=-1)


def test_live_agrees_with_the_whole_track(system, source, track, detector) -> None:
    """The same frames give the same expressions and turns; the place differs by statistics of the future."""
    driver = LiveDriver(source.parameters, FaceTracker(system.model, detector), smoothing=0)
    frames = [shown(system.render(source, HeadGANMotion.of(turn(source.parameters, system.model, yaw=4.0 * i))))
              for i in range(3)]  # fmt: skip
    live = torch.cat([driver(frame, i / 25).parameters[:, -1] for i, frame in enumerate(frames)])
    tracker = FaceTracker(system.model, detector)
    whole = track_faces([(frame, i / 25) for i, frame in enumerate(frames)], tracker).adapted(source.parameters)
    assert torch.allclose(live[:, :28], whole.vectors[:, :28], atol=1e-5)
    assert torch.allclose(live[:, 29:32], whole.vectors[:, 29:32], atol=1e-5)


def test_a_source_belongs_to_its_system(system, source, with_weights) -> None:
    with pytest.raises(ValueError, match="prepared for headgan at size 128, got one for lifted at size 384"):
        with_weights.render(source, HeadGANMotion.of(source.parameters))
    with pytest.raises(ValueError, match="smoothing must be at least 0, got nan"):
        FaceTrack(*[torch.zeros(1, 35)] * 4).smoothed(float("nan"))


def test_a_model_with_the_68_landmarks_alone(detector, source) -> None:
    """They carry the dense points over from the built-in head; a model with neither is refused."""
    from dataclasses import replace as change

    head = built_in_head()
    tracker = FaceTracker(change(head, dense=None), detector)
    found = tracker(shown(source.portrait)).camera.angles
    assert metrics.ard(found, source.parameters.camera.angles) < 3
    with pytest.raises(ValueError, match="must have dense points or the 68 landmarks to fit a face, got neither"):
        HeadGAN(model=change(head, dense=None, landmarks68=None), landmarks=detector)


def test_lifted_sees_the_same_directions() -> None:
    """The two conventions of angles are one: degrees asked of lifted are those that a camera of the 3D face shows."""
    head = built_in_head()
    straight = FaceParameters.of_vector(
        torch.cat([torch.zeros(1, 28), torch.tensor([[10.0, 0, 0, 0, 100, 100, 0]])], 1),
        torch.zeros(1, head.identities),
    )
    for angles in ((15.0, 0.0, 0.0), (0.0, -10.0, 0.0), (0.0, 0.0, 20.0), (10.0, 5.0, -8.0)):
        turned = turn(straight, head, yaw=angles[0], pitch=angles[1], roll=angles[2])
        assert torch.allclose(turned.camera.angles, torch.tensor([angles]), atol=1e-3)
