"""The built-in head: a closed surface, modes that are what they are called, and a script that makes it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastface.face import built_in_head
from fastface.face.loaders import BUILT_IN
from fastface.face.synthetic import measure
from fastface.face.synthetic.measure import read_face

HEAD = built_in_head()
MEAN = HEAD.mean
assert HEAD.dense is not None and HEAD.landmarks68 is not None
POINTS = HEAD.dense.of(MEAN)


def edges(triangles: torch.Tensor) -> torch.Tensor:
    return torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).long()


def components(triangles: torch.Tensor) -> torch.Tensor:
    """The lowest vertex that each vertex is connected to."""
    label = torch.arange(len(MEAN))
    a, b = edges(triangles).T
    while True:
        lower = label.scatter_reduce(0, a, label[b], "amin").scatter_reduce(0, b, label[a], "amin")
        if torch.equal(lower, label):
            return label
        label = lower


def expression(**values: float) -> torch.Tensor:
    """The displacement of the landmarks ``[468, 3]``."""
    coefficients = torch.zeros(1, HEAD.expressions)
    for name, value in values.items():
        coefficients[0, HEAD.expression_names.index(name)] = value
    assert HEAD.dense is not None
    return HEAD.dense.of(HEAD.shape(expression=coefficients))[0] - POINTS


def test_it_is_what_the_documentation_says() -> None:
    assert HEAD.identities == 46 and HEAD.expressions == 28 and HEAD.unit == "cm"
    assert len(HEAD.dense.vertices) == 468 and "MediaPipe" in HEAD.licence and "Apache-2.0" in HEAD.licence  # type: ignore[union-attr]  # asserted above
    assert BUILT_IN.stat().st_size < 1_500_000


def test_every_part_is_closed_and_faces_outward() -> None:
    pairs = edges(HEAD.triangles)
    codes = pairs[:, 0] * len(MEAN) + pairs[:, 1]
    assert len(codes.unique()) == len(codes), "no edge runs twice in one direction"
    back = pairs[:, 1] * len(MEAN) + pairs[:, 0]
    assert torch.equal(codes.sort().values, back.sort().values), "every edge has its other side"
    label = components(HEAD.triangles)
    assert len(label.unique()) == 5, "the skin, two eyeballs, two ears"
    corners = MEAN[HEAD.triangles.long()]
    volumes = torch.linalg.det(corners) / 6
    for part in label.unique():
        assert float(volumes[label[HEAD.triangles[:, 0].long()] == part].sum()) > 0


def test_it_is_symmetric() -> None:
    distance = torch.cdist(MEAN * torch.tensor([-1.0, 1.0, 1.0]), MEAN).min(1).values
    assert float(distance.max()) < 0.05


def test_landmarks_lie_where_they_should() -> None:
    points = HEAD.landmarks68.of(MEAN)  # type: ignore[union-attr]  # asserted above
    x, y, z = points.T
    assert int(y.argmin()) == 8, "the chin is lowest"
    assert int(z.argmax()) == 30, "the tip of the nose is foremost"
    assert torch.all(x[:16] < x[1:17]), "the jaw runs from the person's right to the left"
    for right, left in ((0, 16), (17, 26), (31, 35), (36, 45), (39, 42), (48, 54), (60, 64)):
        torch.testing.assert_close(points[right], points[left] * torch.tensor([-1.0, 1.0, 1.0]), rtol=0, atol=1e-3)
    assert float((points[62] - points[66]).norm()) < 0.1, "the mouth is closed"
    assert float(y[17:27].min()) > float(y[36:48].max()) > float(y[31:36].max()) > float(y[48:].max())


def test_expressions_are_what_they_are_called() -> None:
    opened = POINTS + expression(jaw_open=1)
    assert 2 < float(opened[13, 1] - opened[14, 1]) < 5, "the lips part by a few centimetres"
    assert float(expression(jaw_open=1)[[1, 33, 263, 10]].abs().max()) < 1e-3
    for side, corner, other in (("left", 291, 61), ("right", 61, 291)):
        smile = expression(**{f"smile_{side}": 1.0})
        assert float(smile[corner, 1]) > 0.5 and float(smile[other].norm()) < 0.05
        closing = POINTS + expression(**{f"blink_{side}": 1.0})
        upper, lower = (386, 374) if side == "left" else (159, 145)
        assert (
            float((closing[upper] - closing[lower]).norm()) < 0.12 < 0.5 < float((POINTS[upper] - POINTS[lower]).norm())
        )
    assert float((expression(pucker=1)[[61]] * torch.tensor([1.0, 0, 0])).sum()) > 0.5, "the corners move in"
    assert float(expression(brow_up_left=1)[334, 1]) > 0.4 and float(expression(brow_down=1)[107, 1]) < -0.2
    assert float(expression(cheek_puff=1)[425, 0]) > 0.3


def test_modes_are_mirror_images() -> None:
    left, right = (HEAD.expression_names.index(f"smile_{side}") for side in ("left", "right"))
    mirror = torch.cdist(POINTS * torch.tensor([-1.0, 1.0, 1.0]), POINTS).argmin(1)
    basis = HEAD.expression_basis[:468] * HEAD.expression_scale
    mirrored = basis[mirror, :, left] * torch.tensor([-1.0, 1.0, 1.0])
    assert float((mirrored - basis[..., right]).norm() / basis[..., right].norm()) < 0.15


def test_identities_do_not_move_or_scale_the_head() -> None:
    basis = (HEAD.identity_basis * HEAD.identity_scale)[:468]  # [468, 3, I]
    tangents = [torch.eye(3)[i].expand(468, 3) for i in range(3)]
    tangents += [torch.linalg.cross(torch.eye(3)[i].expand(468, 3), POINTS) for i in range(3)] + [POINTS]
    for tangent in tangents:
        overlap = torch.einsum("nc,nci->i", tangent, basis) / tangent.norm()
        assert float((overlap / basis.flatten(0, 1).norm(dim=0)).abs().max()) < 2e-3


def test_fitting_is_well_conditioned() -> None:
    basis = torch.cat([HEAD.identity_basis * HEAD.identity_scale, HEAD.expression_basis * HEAD.expression_scale], 2)
    seen = basis[:468].flatten(0, 1)
    values = torch.linalg.svdvals(seen / seen.norm(dim=0))
    assert float(values[0] / values[-1]) < 100


def test_the_script_makes_it_again() -> None:
    pytest.importorskip("scipy", reason="building the head needs scipy")
    from fastface.face.synthetic import build_head

    built = build_head()
    assert torch.equal(built.triangles, HEAD.triangles)
    assert built.identity_names == HEAD.identity_names and built.expression_names == HEAD.expression_names
    torch.testing.assert_close(built.mean, MEAN, rtol=0, atol=1e-4)
    for kind in ("identity", "expression"):
        torch.testing.assert_close(getattr(built, f"{kind}_scale"), getattr(HEAD, f"{kind}_scale"), rtol=1e-4, atol=0)
        # float16 keeps eleven bits of values up to 1
        torch.testing.assert_close(getattr(built, f"{kind}_basis"), getattr(HEAD, f"{kind}_basis"), rtol=0, atol=6e-4)


def test_its_face_is_the_measured_one() -> None:
    points, triangles = read_face()
    assert points.shape == (468, 3) and triangles.shape == (852, 3)
    torch.testing.assert_close(POINTS, torch.from_numpy(points).float(), rtol=0, atol=1e-5)
    assert abs(float((POINTS[33] - POINTS[263]).norm()) - 8.9) < 1e-3
    assert torch.equal(POINTS[[33, 61, 234]] * torch.tensor([-1.0, 1.0, 1.0]), POINTS[[263, 291, 454]])


def test_the_face_can_be_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("mediapipe", "scipy", "skimage"):
        pytest.importorskip(package, reason=f"measuring the face needs {package}")
    points, triangles = read_face()
    monkeypatch.setattr(measure, "FACE_POINTS", tmp_path / "face_points.txt")
    measure.write_face()
    again, triangles_again = read_face()
    assert set(map(frozenset, triangles.tolist())) == set(map(frozenset, triangles_again.tolist()))
    assert np.abs(points - again).max() < 0.02, "0.2 mm, as other processors round otherwise"
