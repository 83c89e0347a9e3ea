"""The camera's convention, its rotations, and the adaptation of a driver's cameras."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastface.face import Camera, CameraAdapter, adapt_cameras, rotation_matrix, rotation_vector


def camera(*rotation: float) -> Camera:
    return Camera(torch.tensor([10.0]), torch.tensor([rotation]), torch.tensor([[100.0, 50.0, 0.0]]))


def track(frames: int, seed: int) -> Camera:
    g = torch.Generator().manual_seed(seed)
    scale = 20 + 3 * torch.rand(frames, generator=g)
    return Camera(scale, 0.3 * torch.randn(frames, 3, generator=g), 9 * torch.randn(frames, 3, generator=g) + 60)


def test_a_frontal_face_is_upright_with_its_nose_nearest() -> None:
    above, nose, left = torch.tensor([[[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]]).unbind(1)
    front = camera(0.0, 0.0, 0.0)
    assert front.project(above[:, None])[0, 0].tolist() == [100, 40, 0]
    assert front.project(nose[:, None])[0, 0].tolist() == [100, 50, -10]
    assert front.project(left[:, None])[0, 0].tolist() == [110, 50, 0], "the person's left is the image's right"


@pytest.mark.parametrize(
    ("rotation", "angles"),
    [((0.0, 0.3, 0.0), (0.3, 0, 0)), ((-0.2, 0.0, 0.0), (0, 0.2, 0)), ((0.0, 0.0, -0.4), (0, 0, 0.4))],
)
def test_angles_are_what_the_viewer_sees(rotation: tuple[float, ...], angles: tuple[float, ...]) -> None:
    turned = camera(*rotation)
    torch.testing.assert_close(torch.deg2rad(turned.angles[0]), torch.tensor(angles), atol=1e-6, rtol=0)
    nose, chin = (
        turned.project(torch.tensor([[p]]))[0, 0] - turned.translation[0] for p in ([0.0, 0, 1], [0.0, -1, 0])
    )
    yaw, pitch, roll = angles
    assert math.copysign(1, float(nose[0])) == 1 if yaw else abs(float(nose[0])) < 1e-4
    assert float(nose[1]) < -1 if pitch else abs(float(nose[1])) < 1e-4, "a raised chin lifts the nose in the image"
    assert float(chin[0]) < -1 if roll else abs(float(chin[0])) < 1e-4, "clockwise carries the chin to the left"


@given(st.floats(0, math.pi), st.integers(0, 1000))
def test_rotations_survive_the_way_to_a_matrix_and_back(angle: float, seed: int) -> None:
    axis = torch.nn.functional.normalize(
        torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)).double(), dim=1
    )
    vector = angle * axis
    matrix = rotation_matrix(vector)
    torch.testing.assert_close(matrix, torch.linalg.matrix_exp(cross_matrix(vector)), rtol=0, atol=1e-9)
    torch.testing.assert_close(rotation_matrix(rotation_vector(matrix)), matrix, rtol=0, atol=1e-9)
    assert float(rotation_vector(matrix).norm(dim=1).max()) <= math.pi + 1e-9


def cross_matrix(vector: torch.Tensor) -> torch.Tensor:
    return torch.linalg.cross(
        vector[:, None].expand(-1, 3, 3), torch.eye(3, dtype=vector.dtype).expand(len(vector), 3, 3)
    ).mT


def test_seven_numbers() -> None:
    cameras = track(4, 0)
    assert cameras.vector.shape == (4, 7)
    back = Camera.of_vector(cameras.vector)
    assert all(torch.equal(getattr(back, n), getattr(cameras, n)) for n in ("scale", "rotation", "translation"))
    with pytest.raises(ValueError, match=r"vector must be \[B, 7\], got \[4, 6\]"):
        Camera.of_vector(cameras.vector[:, :6])
    with pytest.raises(ValueError, match=r"rotation must be \[4, 3\], got \[2, 3\]"):
        Camera(cameras.scale, cameras.rotation[:2], cameras.translation)


@pytest.mark.parametrize("frames", [1, 3, 14, 40])
def test_adapted_cameras_have_the_reference_size_and_place(frames: int) -> None:
    driving, reference = track(frames, 1), track(2, 2)
    adapted = adapt_cameras(driving, reference, window=7)
    expected = driving.scale * reference.scale.mean() / driving.scale.mean()
    smooth = torch.stack([expected[max(0, t - 3) : t + 4].mean() for t in range(frames)])
    torch.testing.assert_close(adapted.scale, smooth)
    torch.testing.assert_close(adapted.translation.mean(0), reference.translation.mean(0))
    torch.testing.assert_close(
        adapted.translation - adapted.translation[0], driving.translation - driving.translation[0]
    )
    assert torch.equal(adapted.rotation, driving.rotation)


def test_spread_can_be_matched() -> None:
    driving, reference = track(50, 3), track(9, 4)
    adapted = adapt_cameras(driving, reference, match_spread=True)
    torch.testing.assert_close(adapted.translation.std(0, correction=0), reference.translation.std(0, correction=0))


@pytest.mark.parametrize("match_spread", [False, True])
def test_the_running_form_ends_where_the_offline_form_is(match_spread: bool) -> None:
    driving, reference = track(30, 5), track(5, 6)
    live = CameraAdapter(reference, window=1, match_spread=match_spread)
    vectors = [live(Camera.of_vector(row[None])).vector for row in driving.vector]
    offline = adapt_cameras(driving, reference, window=1, match_spread=match_spread)
    torch.testing.assert_close(vectors[-1], offline.vector[-1:], rtol=1e-4, atol=1e-4)


def test_the_running_form_smooths_over_what_it_has_seen() -> None:
    driving, reference = track(6, 7), track(1, 8)
    live = CameraAdapter(reference, window=3)
    scales = torch.cat([live(Camera.of_vector(row[None])).scale for row in driving.vector])
    ratio = torch.stack([reference.scale[0] / driving.scale[: t + 1].mean() * driving.scale[t] for t in range(6)])
    torch.testing.assert_close(scales[-1], ratio[-3:].mean())
    torch.testing.assert_close(scales[0], reference.scale[0])


def test_wrong_adaptations_are_refused() -> None:
    with pytest.raises(ValueError, match="window must be odd and positive, got 4"):
        adapt_cameras(track(3, 0), track(1, 0), window=4)
    with pytest.raises(ValueError, match="reference must have at least 2 frames, got 1"):
        CameraAdapter(track(1, 0), match_spread=True)
    with pytest.raises(ValueError, match="driving must be one frame, got 3"):
        CameraAdapter(track(1, 0))(track(3, 0))
