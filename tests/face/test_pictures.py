"""The two ways to draw a face: PNCC and the sketch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastface.face import PNCC, Camera, FaceParameters, LandmarkSketch, MorphableModel, built_in_head


@pytest.fixture(scope="module")
def head() -> MorphableModel:
    return built_in_head()


def parameters(head: MorphableModel, yaw: float = 0.0) -> FaceParameters:
    camera = Camera(torch.tensor([4.0]), torch.tensor([[0.0, yaw, 0.0]]), torch.tensor([[63.5, 63.5, 0.0]]))
    return FaceParameters(torch.zeros(1, head.identities), torch.zeros(1, head.expressions), camera)


def test_pncc_colours_say_where_on_the_mean_face(head) -> None:
    """Flat over a triangle, red from the person's right to left, green upwards, blue forwards; nothing behind."""
    draw = PNCC(head, (128, 128))
    image = draw(parameters(head))[0]
    covered = image.sum(0) > 0
    assert 0.1 < covered.float().mean() < 0.6 and not covered[0].any()
    rows, columns = covered.nonzero(as_tuple=True)
    middle = int(rows.float().mean()), int(columns.float().mean())
    across, down = image[:, middle[0], columns.min() : columns.max()], image[:, : rows.max() - 2, middle[1]]
    assert across[0, -4] > across[0, 4] + 0.3  # the person's left is the image's right
    assert down[1, rows.min() + 2] > down[1, -1] + 0.3
    assert image[2, middle[0], middle[1]] > image[2, middle[0], columns.min() + 2]
    drawn = {tuple(colour) for colour in image.permute(1, 2, 0)[covered].tolist()}
    assert drawn <= {tuple(colour) for colour in draw.draw.attributes.tolist()}


def test_pncc_follows_the_camera_and_keeps_its_colours(head) -> None:
    draw = PNCC(head, (128, 128))
    one, other = parameters(head), parameters(head, yaw=0.5)
    both = FaceParameters(
        one.identity.expand(2, -1),
        one.expression.expand(2, -1),
        Camera.of_vector(torch.cat([one.camera.vector, other.camera.vector])),
    )
    images = draw(both)
    assert torch.equal(images[:1], draw(one)) and torch.equal(images[1:], draw(other))
    assert (images[0] - images[1]).abs().mean() > 0.01


def test_a_sketch_has_lines_at_the_landmarks(head) -> None:
    draw, face = LandmarkSketch(head, (128, 120)), parameters(head)
    image = draw(face)
    assert image.shape == (1, 3, 128, 120) and torch.equal(image[:, 0], image[:, 2]) and 0.8 < image.max() <= 1
    points = face.camera.project(head.landmarks68.of(head.shape()))[0, :, :2].round().long()
    assert image[0, 0, points[:, 1], points[:, 0]].min() > 0.1
    assert 0.01 < (image > 0).float().mean() < 0.15
    with pytest.raises(ValueError, match=r"points must be \[B, 68, 2\] or \[B, 68, 3\], got \[1, 5, 2\]"):
        draw.draw(torch.zeros(1, 5, 2))
    with pytest.raises(ValueError, match="a sketch needs a model with the 68 landmarks"):
        LandmarkSketch(replace(head, landmarks68=None), (8, 8))
