"""The gap between lips, of models and of landmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastface.face import built_in_head, lip_gap_in_widths, lip_gap_mm

HEAD = built_in_head()
UPPER, LOWER = 13, 14


def test_the_gap_is_linear_in_the_expression() -> None:
    expression = torch.randn(5, HEAD.expressions, generator=torch.Generator().manual_seed(0))
    points = HEAD.dense.of(HEAD.shape(expression=expression))[..., 1]
    expected = 10 * (points[:, UPPER] - points[:, LOWER])  # the head is in centimetres
    gap = lip_gap_mm(HEAD)
    torch.testing.assert_close(gap.rest + expression @ gap.slopes, expected, rtol=1e-4, atol=1e-3)


def test_it_is_in_millimetres_whatever_the_unit() -> None:
    metres = replace(
        HEAD,
        mean=HEAD.mean / 100,
        identity_scale=HEAD.identity_scale / 100,
        expression_scale=HEAD.expression_scale / 100,
        unit="m",
    )
    gap, same = lip_gap_mm(HEAD), lip_gap_mm(metres)
    assert same.rest == pytest.approx(gap.rest, rel=1e-4)
    torch.testing.assert_close(same.slopes, gap.slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replace(HEAD, dense=None), "the face model must have dense points, got none"),
        (replace(HEAD, unit="foot"), "unit must be one of .*, got 'foot'"),
    ],
)
def test_models_without_one(model, message) -> None:
    with pytest.raises(ValueError, match=message):
        lip_gap_mm(model)


def test_landmarks_at_any_size() -> None:
    points = HEAD.dense.of(HEAD.mean).numpy()
    points[LOWER] = points[UPPER] - [0, 1.5, 0.3]
    width = np.linalg.norm(points[454] - points[234])
    assert lip_gap_in_widths(points) == pytest.approx(1.5 / width, rel=1e-4)  # depth does not count
    assert lip_gap_in_widths(37 * points + 5) == pytest.approx(1.5 / width, rel=1e-4)
