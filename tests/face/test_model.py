"""Morphable models: the equation, cropping, orthonormal bases, colours, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastface.face import SurfacePoints, pncc_colors
from tests.face.models import random_model


@given(st.integers(0, 4), st.integers(0, 6), st.integers(1, 3))
def test_a_shape_is_the_sum_of_its_modes(identities: int, expressions: int, batch: int) -> None:
    model = random_model(identities=identities, expressions=expressions)
    identity, expression = torch.randn(batch, identities), torch.randn(1, expressions)
    expected = model.mean.repeat(batch, 1, 1).double()
    for b in range(batch):
        for i in range(identities):
            expected[b] += model.identity_basis[..., i] * model.identity_scale[i] * identity[b, i]
        for e in range(expressions):
            expected[b] += model.expression_basis[..., e] * model.expression_scale[e] * expression[0, e]
    torch.testing.assert_close(model.shape(identity, expression).double(), expected, rtol=1e-5, atol=1e-4)


def test_no_coefficients_are_the_mean() -> None:
    model = random_model()
    assert torch.equal(model.shape()[0], model.mean)


def test_points_on_triangles_move_with_their_corners() -> None:
    model = random_model()
    weights = torch.rand(9, 3)
    weights = weights / weights.sum(1, keepdim=True)
    points = SurfacePoints(model.triangles[:9].long(), weights)
    expected = [sum(w * model.mean[v] for w, v in zip(weights[n], points.vertices[n], strict=True)) for n in range(9)]
    torch.testing.assert_close(points.of(model.mean), torch.stack(expected))
    assert points.of(model.shape()[None]).shape == (1, 1, 9, 3)


def test_a_crop_keeps_shapes_and_whole_triangles() -> None:
    model = random_model()
    crop = model.cropped(40)
    identity = torch.randn(2, model.identities)
    assert torch.equal(crop.shape(identity), model.shape(identity)[:, :40])
    assert len(crop.triangles) == int((model.triangles < 40).all(1).sum()) > 0
    assert crop.dense is None, "a dense point was lost, so all are"
    order = torch.randperm(len(model.mean))
    shuffled = model.cropped(order)
    assert shuffled.dense is not None and model.dense is not None
    torch.testing.assert_close(shuffled.dense.of(shuffled.mean), model.dense.of(model.mean))


def test_orthonormal_bases_keep_the_covariance_of_shapes() -> None:
    model = random_model(identities=6)
    straight = model.orthonormal()
    flat = straight.identity_basis.flatten(0, 1)
    torch.testing.assert_close(flat.T @ flat, torch.eye(6), rtol=0, atol=1e-5)

    def covariance(m: object) -> torch.Tensor:
        scaled = (m.identity_basis * m.identity_scale).flatten(0, 1)  # type: ignore[attr-defined]  # a model
        return scaled @ scaled.T

    torch.testing.assert_close(covariance(straight), covariance(model), rtol=1e-4, atol=1e-4)
    assert torch.equal(straight.identity_scale, straight.identity_scale.sort(descending=True).values)
    assert model.orthonormal(identities=2, expressions=3).shape(torch.ones(1, 2), torch.ones(1, 3)).isfinite().all()


def test_the_hash_is_of_the_content() -> None:
    assert random_model().content_hash == random_model().content_hash
    model = random_model()
    changed = model.mean.clone()
    changed[3, 1] += 1e-3
    assert replace(model, mean=changed).content_hash != model.content_hash
    assert replace(model, dense=None).content_hash != model.content_hash


def test_colours_are_normalised_centres() -> None:
    model = random_model()
    colors = pncc_colors(model)
    used = model.mean[model.triangles.long().unique()]
    low, high = used.min(0).values, used.max(0).values
    centre = model.mean[model.triangles[7].long()].mean(0)
    torch.testing.assert_close(colors[7], (centre - low) / (high - low))
    assert colors.shape == (len(model.triangles), 3) and 0 <= float(colors.min()) <= float(colors.max()) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": torch.zeros(60, 2)}, r"mean must be \[V, 3\], got \[60, 2\]"),
        ({"identity_basis": torch.zeros(59, 3, 5)}, r"identity_basis must be \[60, 3, modes\], got \[59, 3, 5\]"),
        ({"expression_scale": torch.ones(3)}, r"expression_scale must be \[4\], got \[3\]"),
        ({"expression_names": ("smile",)}, "expression_names must be 4 names, got 1"),
        ({"triangles": torch.tensor([[0, 1, 60]])}, r"triangles must be indices of 60 vertices, got .* in \[0, 60\]"),
        ({"mean": torch.full((60, 3), torch.nan)}, "mean must be finite"),
        ({"landmarks68": SurfacePoints.at([1, 2])}, "landmarks68 must be 68 points, got 2"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(random_model(), **change)  # type: ignore[arg-type]  # wrong on purpose


def test_wrong_coefficients_and_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"identity must be \[B, 5\], got \[5\]"):
        random_model().shape(torch.zeros(5))
    with pytest.raises(ValueError, match=r"weights must sum to 1"):
        SurfacePoints(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3))
    with pytest.raises(ValueError, match="identity modes must be at most 5, got 6"):
        random_model().orthonormal(identities=6)
