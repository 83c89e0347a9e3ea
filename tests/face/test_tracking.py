"""Following a face: who it is comes from the first frame, what it does from each, and a face at rest does nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastface.face import Camera, Face, FaceParameters, FaceTracker, PrecomputedLandmarks, built_in_head, scaled

HEAD = built_in_head()
CAMERA = Camera(torch.tensor([22.0]), torch.tensor([[0.1, -0.3, 0.05]]), torch.tensor([[250.0, 260.0, 0.0]]))
FRAME = np.zeros((512, 512, 3), dtype=np.uint8)


def person(seed: int) -> torch.Tensor:
    return torch.randn(1, HEAD.identities, generator=torch.Generator().manual_seed(seed))


def expression(**values: float) -> torch.Tensor:
    return torch.tensor([[values.get(name, 0.0) for name in HEAD.expression_names]])


def seen(identity: torch.Tensor, expression: torch.Tensor, noise: float = 0.0) -> Face:
    """What a detector reports, with an error of `noise` centimetres on every coordinate."""
    assert HEAD.dense is not None
    points = HEAD.dense.of(CAMERA.project(HEAD.shape(identity, expression)))[0].numpy()
    return Face(points + 22 * noise * np.random.default_rng(0).standard_normal(points.shape).astype(np.float32))


def tracker() -> FaceTracker:
    return FaceTracker(HEAD, landmarks=lambda image: [])


@pytest.mark.parametrize("seed", range(4))
def test_a_face_at_rest_does_nothing(seed: int) -> None:
    found = tracker().follow(seen(person(seed), expression(), noise=0.05))
    assert float(found.expression.abs().max()) < 0.25
    turn = (found.camera.angles - CAMERA.angles).abs()
    assert float(turn.max()) < 1.0, "degrees"


@pytest.mark.parametrize(
    "face",
    [
        {"jaw_open": 0.9},
        {"smile_left": 1.0, "smile_right": 0.8},
        {"blink_left": 1.0},
        {"pucker": 1.0},
        {"brow_down": 1.0},
    ],
)
def test_a_full_expression_is_about_one(face: dict[str, float]) -> None:
    follower = tracker()
    follower.follow(seen(person(5), expression()))
    found = follower.follow(seen(person(5), expression(**face)))
    assert float((found.expression - expression(**face)).abs().max()) < 0.3


def test_the_identity_of_the_first_face_is_held() -> None:
    follower = tracker()
    first = follower.follow(seen(person(1), expression(smile_left=0.5)))
    second = follower.follow(seen(person(2), expression()))
    assert torch.equal(first.identity, second.identity)
    given = FaceTracker(HEAD, landmarks=lambda image: [], identity=person(3))
    assert torch.equal(given.follow(seen(person(1), expression())).identity, person(3))


def test_frames_without_a_face_are_counted() -> None:
    follower = FaceTracker(HEAD, landmarks=PrecomputedLandmarks(seen(person(0), expression()).points))
    assert isinstance(follower(FRAME), FaceParameters)
    follower._landmarks = lambda image: []
    assert follower(FRAME) is None and (follower.frames, follower.missed) == (2, 1)


def test_too_few_points_are_refused() -> None:
    face = seen(person(0), expression())
    with pytest.raises(ValueError, match="face must have at least the model's 468 dense points, got 400"):
        tracker().follow(replace(face, points=face.points[:400]))


def test_a_camera_follows_a_crop() -> None:
    point = torch.tensor([[[1.0, 2.0, 3.0]]])
    there = scaled(CAMERA, 0.5, (40.0, 20.0)).project(point)
    here = CAMERA.project(point)
    expected = (here[..., :2] - torch.tensor([40.0, 20.0]) + 0.5) * 0.5 - 0.5
    torch.testing.assert_close(there[..., :2], expected)


def test_a_photograph_faces_the_camera() -> None:
    pytest.importorskip("mediapipe", reason="landmarks of a photograph need mediapipe")
    data = pytest.importorskip("skimage.data", reason="the photograph comes with scikit-image")
    found = FaceTracker()(data.astronaut())
    assert found is not None
    yaw, pitch, roll = found.camera.angles[0].tolist()
    assert abs(yaw) < 5 and abs(pitch) < 5 and abs(roll) < 5
    values = dict(zip(HEAD.expression_names, found.expression[0].tolist(), strict=True))
    assert 0.5 < values["smile_left"] < 1.2 and 0.5 < values["smile_right"] < 1.2, "she smiles"
    assert max(abs(value) for name, value in values.items() if "smile" not in name) < 0.9
