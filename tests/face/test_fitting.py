"""Fitting: known parameters come back from clean points, nearly from noisy ones, and bad points are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastface.face import (
    Camera,
    FaceFitter,
    FaceParameters,
    SurfacePoints,
    built_in_head,
    rotation_matrix,
    transfer_dense,
)
from fastface.face.fitting import affine_camera, align, similarity
from tests.face.models import random_model

HEAD = built_in_head()
POINTS = HEAD.dense
assert POINTS is not None


def sample(batch: int, seed: int = 0) -> FaceParameters:
    g = torch.Generator().manual_seed(seed)
    scale = 8 + 40 * torch.rand(batch, generator=g)
    turns, places = 0.5 * torch.randn(batch, 3, generator=g), 300 * torch.randn(batch, 3, generator=g)
    return FaceParameters(
        torch.randn(batch, HEAD.identities, generator=g),
        0.8 * torch.rand(batch, HEAD.expressions, generator=g),
        Camera(scale, turns, places),
    )


def draw(face: FaceParameters, points: SurfacePoints = POINTS) -> torch.Tensor:
    return face.camera.project(points.of(HEAD.shape(face.identity, face.expression)))


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).norm() / true.norm())


def noisy(points: torch.Tensor, share: float) -> torch.Tensor:
    size = (points - points.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
    noise = torch.randn(points.shape, generator=torch.Generator().manual_seed(9))
    return points + share * size[:, None, None] * noise


def test_clean_points_give_the_parameters_back() -> None:
    true = sample(8)
    found = FaceFitter(HEAD).fit(draw(true))
    assert error(found.identity, true.identity) < 1e-4
    assert error(found.expression, true.expression) < 1e-4
    assert error(found.camera.vector, true.camera.vector) < 1e-4


def test_a_held_identity_stays_and_its_expression_comes_back() -> None:
    true = sample(5)
    one = FaceParameters(true.identity[:1], true.expression, true.camera)
    found = FaceFitter(HEAD).fit(draw(one), identity=one.identity)
    assert torch.equal(found.identity, one.identity.expand(5, -1))
    assert error(found.expression, true.expression) < 1e-4
    assert error(found.camera.vector, true.camera.vector) < 1e-4


def test_points_may_lie_inside_triangles() -> None:
    g = torch.Generator().manual_seed(3)
    weights = torch.rand(1000, 3, generator=g)
    face = HEAD.triangles[(HEAD.triangles < 1700).all(1)].long()
    some = SurfacePoints(face[torch.randperm(len(face), generator=g)[:1000]], weights / weights.sum(1, keepdim=True))
    true = sample(2)
    found = FaceFitter(HEAD, some, iterations=8).fit(draw(true, some))
    assert error(found.expression, true.expression) < 1e-3


def test_one_alignment_to_the_mean_is_biased_and_each_more_helps() -> None:
    """Algorithm 1 as printed against what `FaceFitter` does."""
    true = sample(8)
    points = draw(true)
    modes = torch.cat([HEAD.identity_basis * HEAD.identity_scale, HEAD.expression_basis * HEAD.expression_scale], 2)[
        POINTS.vertices[:, 0]
    ].flatten(0, 1)  # [3N, I + E]
    mean = POINTS.of(HEAD.mean)
    turned = points * torch.tensor([1.0, -1.0, -1.0])
    printed = (align(turned, mean[None]) - mean).flatten(1) @ torch.linalg.pinv(modes).T
    as_printed = error(printed[:, HEAD.identities :], true.expression)
    errors = [error(FaceFitter(HEAD, iterations=n).fit(points).expression, true.expression) for n in (1, 2, 3, 4)]
    assert as_printed > errors[0] > 3 * errors[1] > 9 * errors[2] > 27 * errors[3]


def test_noise_is_met_gracefully() -> None:
    true = sample(8)
    points = noisy(draw(true), 0.01)
    for noise in (0.0, 0.01):
        found = FaceFitter(HEAD, noise=noise).fit(points)
        size = (draw(true) - draw(true).mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
        shape_error = (draw(found) - draw(true)).square().sum(2).mean(1).sqrt() / size
        assert float(shape_error.max()) < 0.006, "74 coefficients of 1404 coordinates see little of the noise"
        turn = rotation_matrix(found.camera.rotation).mT @ rotation_matrix(true.camera.rotation)
        assert float(turn.diagonal(dim1=1, dim2=2).sum(1).min()) > 1 + 2 * 0.99995, "within half a degree"


def test_a_prior_quiets_what_noise_excites() -> None:
    true = sample(8)
    points = noisy(draw(true), 0.05)
    plain, prior = (FaceFitter(HEAD, noise=noise).fit(points) for noise in (0.0, 0.05))
    assert error(prior.identity, true.identity) < error(plain.identity, true.identity)
    assert float(prior.identity.square().mean()) < float(plain.identity.square().mean())


def test_a_prior_says_whether_a_face_is_a_person_or_an_expression() -> None:
    points = draw(replace(sample(8), expression=torch.zeros(8, HEAD.expressions)))
    free, tight = (FaceFitter(HEAD, noise=0.05, prior=(1.0, std)).fit(points) for std in (1.0, 0.1))
    assert float(tight.expression.abs().max()) < 0.5 * float(free.expression.abs().max())


def test_a_model_without_modes_gives_a_camera() -> None:
    rigid = replace(
        HEAD,
        identity_basis=HEAD.identity_basis[..., :0],
        identity_scale=HEAD.identity_scale[:0],
        identity_names=(),
        expression_basis=HEAD.expression_basis[..., :0],
        expression_scale=HEAD.expression_scale[:0],
        expression_names=(),
    )
    camera = sample(3).camera
    found = FaceFitter(rigid).fit(camera.project(POINTS.of(HEAD.mean)[None]))
    assert found.identity.shape == found.expression.shape == (3, 0)
    torch.testing.assert_close(found.camera.vector[:, :6], camera.vector[:, :6], rtol=1e-4, atol=1e-4)


def test_a_batch_is_its_faces() -> None:
    true = sample(5)
    fitter = FaceFitter(HEAD, iterations=2, noise=0.01)
    for identity in (None, true.identity, true.identity[:1]):
        together = fitter.fit(draw(true), identity)
        for index, points in enumerate(draw(true)):
            held = None if identity is None else identity[index % len(identity)][None]
            alone = fitter.fit(points[None], held)
            torch.testing.assert_close(alone.expression[0], together.expression[index], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(alone.identity[0], together.identity[index], rtol=1e-5, atol=1e-5)


def test_ridge_is_the_minimum_of_its_objective() -> None:
    """Any step away from the solution makes |U p + T q - r|² + λ |p|² larger."""
    model = random_model()
    fitter = FaceFitter(model, iterations=1, noise=0.1)
    assert model.dense is not None
    mean = model.dense.of(model.mean)
    modes = torch.cat([model.identity_basis * model.identity_scale, model.expression_basis * model.expression_scale], 2)
    u = modes[:57].flatten(0, 1).double()
    centred = (mean - mean.mean(0)).double()
    eye = torch.eye(3, dtype=torch.float64)
    tangents = [eye[i].expand(57, 3) for i in range(3)] + [
        torch.linalg.cross(eye[i].expand(57, 3), centred) for i in range(3)
    ]
    t = torch.stack([*tangents, centred], 2).flatten(0, 1)
    points = (mean + torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))) * torch.tensor([1.0, -1, -1])
    found = fitter.fit(points[None])
    p = torch.cat([found.identity, found.expression], 1)[0].double()
    right = (align(points[None] * torch.tensor([1.0, -1, -1]), mean[None])[0] - mean).flatten().double()
    weight = (0.1**2) * float(centred.square().sum(1).mean())

    def objective(p: torch.Tensor) -> float:
        rest = right - u @ p
        q = torch.linalg.lstsq(t, rest[:, None]).solution
        return float((rest - (t @ q)[:, 0]).square().sum() + weight * p.square().sum())

    best = objective(p)
    for i in range(len(p)):
        step = torch.zeros_like(p)
        step[i] = 0.01
        assert min(objective(p + step), objective(p - step)) > best


def test_bounds_hold_and_change_nothing_where_they_do_not_bind() -> None:
    pytest.importorskip("scipy", reason="bounded fits need scipy")
    true = sample(2)
    points = draw(true)
    free = FaceFitter(HEAD).fit(points)
    wide = FaceFitter(HEAD, bounds=(9.0, 9.0)).fit(points)
    torch.testing.assert_close(wide.identity, free.identity, rtol=1e-3, atol=1e-3)
    tight = FaceFitter(HEAD, bounds=(0.8, 0.5)).fit(points)
    assert float(tight.identity.abs().max()) <= 0.8 + 1e-5 and float(tight.expression.abs().max()) <= 0.5 + 1e-5
    assert float(tight.identity.abs().max()) > 0.79


def test_a_similarity_is_never_a_reflection() -> None:
    g = torch.Generator().manual_seed(0)
    source = torch.randn(3, 20, 3, generator=g)
    mirrored = source * torch.tensor([-1.0, 1.0, 1.0])
    _, rotation, _ = similarity(source, mirrored)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(3))
    turn = rotation_matrix(torch.randn(3, 3, generator=g))
    moved = 2.5 * source @ turn.mT + torch.tensor([3.0, -4.0, 5.0])
    scale, rotation, shift = similarity(source, moved)
    torch.testing.assert_close(scale, torch.full((3,), 2.5))
    torch.testing.assert_close(rotation, turn, rtol=0, atol=1e-5)
    torch.testing.assert_close(shift, torch.tensor([3.0, -4.0, 5.0]).expand(3, 3), rtol=1e-4, atol=1e-4)


def test_the_camera_ignores_a_wrong_scale_of_depth() -> None:
    true = sample(4)
    shape = POINTS.of(HEAD.shape(true.identity, true.expression))
    points = true.camera.project(shape)
    flat = affine_camera(shape, points * torch.tensor([1.0, 1.0, 0.6]))
    torch.testing.assert_close(flat.vector[:, :6], true.camera.vector[:, :6], rtol=1e-3, atol=1e-3)


def test_a_frame_is_35_numbers() -> None:
    true = sample(3)
    assert true.vector.shape == (3, 35)
    back = FaceParameters.of_vector(true.vector, true.identity[:1])
    assert torch.equal(back.vector, true.vector) and torch.equal(back.identity, true.identity[:1].expand(3, -1))
    with pytest.raises(ValueError, match=r"vector must be \[B, expressions \+ 7\], got \[35\]"):
        FaceParameters.of_vector(true.vector[0], true.identity)


def test_dense_points_carry_over_to_another_model() -> None:
    """To the same head, turned, scaled and in another order of vertices."""
    order = torch.randperm(len(HEAD.mean), generator=torch.Generator().manual_seed(0))
    other = HEAD.cropped(order)
    turn = rotation_matrix(torch.tensor([[0.2, 0.5, -0.3]]))[0]
    moved = type(other)(
        **{
            **{f: getattr(other, f) for f in other.__dataclass_fields__},
            "mean": 10 * other.mean @ turn.T + 3,
            "dense": None,
        }
    )
    dense = transfer_dense(moved, HEAD).dense
    assert dense is not None
    assert torch.equal(order[dense.vertices[:, 0]], POINTS.vertices[:, 0])
    with pytest.raises(ValueError, match="transfer_dense needs landmarks68"):
        transfer_dense(moved, moved)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(1, 478, 3), r"points must be \[B, 468, 3\], got \[1, 478, 3\]"),
        (torch.zeros(468, 3), r"points must be \[B, 468, 3\], got \[468, 3\]"),
        (torch.full((1, 468, 3), torch.nan), "points must be finite, got 1404 values that are not"),
        (torch.ones(1, 468, 3), "points must not all lie in one place"),
        (torch.zeros(0, 468, 3), "points must be of at least one face, got none"),
    ],
)
def test_bad_points_are_refused(points: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaceFitter(HEAD, iterations=1).fit(points)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        FaceFitter(HEAD, iterations=0)
    with pytest.raises(ValueError, match="noise must be at least 0, got nan"):
        FaceFitter(HEAD, noise=float("nan"))
    with pytest.raises(ValueError, match=r"prior must be positive, got \(1.0, 0.0\)"):
        FaceFitter(HEAD, prior=(1.0, 0.0))
    with pytest.raises(ValueError, match="74 coefficients and a pose need at least 27 points, got 20"):
        FaceFitter(HEAD, SurfacePoints.at(range(20)))
    with pytest.raises(ValueError, match=r"identity must be \[1 or 3, 46\], got \[2, 46\]"):
        FaceFitter(HEAD).fit(draw(sample(3)), identity=torch.zeros(2, 46))


def test_a_photograph_is_fitted() -> None:
    pytest.importorskip("mediapipe", reason="landmarks of a photograph need mediapipe")
    data = pytest.importorskip("skimage.data", reason="the photograph comes with scikit-image")
    from fastface.face import MediaPipeLandmarks, largest_face

    faces = MediaPipeLandmarks()(data.astronaut())
    points = torch.from_numpy(faces[largest_face(faces)].points[None, :468])
    found = FaceFitter(HEAD, noise=0.02).fit(points)
    size = (points - points.mean(1)).square().sum(2).mean().sqrt()
    assert float((draw(found) - points)[..., :2].square().sum(2).mean().sqrt() / size) < 0.05
    yaw, pitch, roll = found.camera.angles[0].tolist()
    assert abs(yaw) < 10 and abs(pitch) < 15 and abs(roll) < 10, "she looks into the camera"
    smiles = [found.expression[0, HEAD.expression_names.index(f"smile_{side}")] for side in ("left", "right")]
    assert min(smiles) > 0.5, "and smiles"
