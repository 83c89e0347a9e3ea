"""Heads without weights: what is drawn, how a photo colours a head, and that planes come to look like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastface import ops
from fastface.face import Camera, PrecomputedLandmarks, built_in_head
from fastface.models.pir import (
    ColouredMesh,
    FitConfig,
    FittedHead,
    Rendering,
    Views,
    camera_rays,
    diagonal_fov,
    draw_views,
    fit_head,
    head_cameras,
    held_out_cameras,
    holds_fitted_head,
    portrait_mesh,
    read_mesh,
    shaded_mesh,
    training_cameras,
)
from fastface.models.pir.fitting import _subdivided
from fastface.ops.triplane import PlaneDecoder

FAST = FitConfig(
    steps=400, rays=256, plane=24, channels=8, hidden=16,
    rendering=Rendering(near=2.35, far=3.05, coarse=12, fine=6, box=0.75, white_back=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def clay() -> ColouredMesh:
    model = built_in_head()
    return shaded_mesh(model.mean, model.triangles.long()).placed()


@pytest.fixture(scope="module")
def painted(clay) -> ColouredMesh:
    """In colours of all kinds, so that no one colour comes near."""
    return ColouredMesh(clay.vertices, clay.triangles, (0.5 + 10 * clay.vertices).clamp(0, 1))


@pytest.fixture(scope="module")
def views(painted) -> Views:
    return draw_views(painted, training_cameras(16), 32)


def random_head(size: int = 7) -> FittedHead:
    torch.manual_seed(0)
    decoder = PlaneDecoder(torch.randn(6, 4), torch.randn(6), torch.randn(4, 6), torch.randn(4))
    return FittedHead(torch.randn(1, 3, 4, size, size), decoder, FAST.rendering)


def test_pictures_are_in_perspective() -> None:
    """Two tilted walls, one behind the other, against the points where the pixels' rays meet them."""
    torch.manual_seed(0)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    normals = torch.tensor([[0.5, 0.2, 1.0], [-0.8, 0.3, 1.0]])
    walls = [torch.cat([corners, -(corners @ normal[:2])[:, None]], 1) for normal in normals]
    vertices = torch.cat(walls)
    colours = 0.5 + vertices / 4
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    mesh = ColouredMesh(vertices, torch.cat([faces, faces + 4]), colours)
    pose = head_cameras(17.0, 9.0)
    picture = draw_views(mesh, pose, 23).pictures[0]
    origins, directions = camera_rays(pose, diagonal_fov(), 23)
    depth = (-(origins @ normals.T) / (directions @ normals.T))[0]  # where n · p = 0
    wanted = (0.5 + (origins[0] + depth.amin(1, keepdim=True) * directions[0]) / 4).T.unflatten(1, (23, 23))
    same = (depth[:, 0] - depth[:, 1]).abs().unflatten(0, (23, 23)) > 0.02  # not on the edge where they cross
    assert same.float().mean() > 0.8 and (picture[3] == 1).all()
    assert (picture[:3] - wanted)[:, same].abs().max() < 2e-3


def test_pictures_are_white_around_a_head(clay) -> None:
    pictures = draw_views(clay, head_cameras(torch.tensor([0.0, 90.0]), 10.0), 33).pictures
    border = torch.ones(33, 33, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert pictures.shape == (2, 4, 33, 33) and (pictures[:, 3, border] == 0).all() and pictures[:, 3].mean() > 0.2
    assert (pictures[:, :3].movedim(1, -1)[pictures[:, 3] == 0] == 1).all()


def silhouette_psnr(views: Views) -> float:
    """What the best picture in one colour for all that is covered would have."""
    truth, coverage = views.pictures.split([3, 1], 1)
    colour = (coverage * (truth - 1 + coverage)).sum((0, 2, 3)) / coverage.square().sum()
    flat = 1 + coverage * (colour[:, None, None] - 1)
    return float(-10 * (flat - truth).square().mean((1, 2, 3)).log10().mean())


def test_held_out_cameras_are_away_from_the_others() -> None:
    def angle(one: Tensor, other: Tensor) -> Tensor:
        places = (torch.nn.functional.normalize(poses[:, :3, 3], dim=1) for poses in (one, other))
        return torch.rad2deg(torch.acos((next(places) @ next(places).T).clamp(-1, 1)))

    for count, trained in ((8, 96), (3, 8), (1, 200), (13, 96)):
        training = training_cameras(trained)
        held_out = held_out_cameras(count, training)
        assert held_out.shape == (count, 4, 4) and angle(held_out, training).min() > 5
        others = angle(held_out, held_out) + 360 * torch.eye(count)
        assert others.min() > 360 / count / 3, "all round"
    dense = held_out_cameras(60, training_cameras(1000))
    assert torch.isfinite(dense).all() and angle(dense, training_cameras(1000)).min() > 0.3


def test_planes_come_to_look_like_the_head(painted, views) -> None:
    held_out = draw_views(painted, held_out_cameras(3, views.cam2world), 32)
    steps: list[tuple[float, float]] = []
    before: list[float] = []

    def watch(done: float, loss: float, head: FittedHead) -> None:
        if not steps:
            before.append(head.psnr(held_out))
        steps.append((done, loss))

    threads = torch.get_num_threads()
    head = fit_head(views, FAST, watch)
    assert torch.get_num_threads() == threads
    assert head.planes.shape == (1, 3, 8, 24, 24) and not head.planes.requires_grad
    assert len(steps) == 400 and steps[-1][0] == 1 and steps[-1][1] < steps[0][1] / 2
    assert before[0] < 12 and head.psnr(held_out) > silhouette_psnr(held_out) + 3


def test_the_seed_decides(views) -> None:
    def fitted(seed: int) -> Tensor:
        return fit_head(views, FitConfig(steps=3, rays=64, plane=8, seed=seed)).planes

    assert torch.equal(fitted(1), fitted(1)) and not torch.equal(fitted(1), fitted(2))


def test_the_time_is_kept(views) -> None:
    done: list[float] = []
    fit_head(views, FitConfig(steps=10**6, seconds=0.3, rays=32, plane=8), lambda share, *_: done.append(share))
    assert done[-1] == 1 and done == sorted(done) and len(done) < 10**4


def test_psnr() -> None:
    head = random_head()
    poses = head_cameras(torch.tensor([0.0, 50.0]))
    seen = head.render(poses, 9)
    assert seen.shape == (2, 3, 9, 9) and seen.min() >= 0 and seen.max() <= 1
    off = seen + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert (
        abs(head.psnr(Views(poses, torch.cat([off, torch.ones_like(off[:, :1])], 1))) - 30) < 1e-3
    )  # the mean of 20 and 40 dB
    half = torch.zeros(2, 1, 9, 9)
    half[..., 4:] = 1
    mixed = torch.where(half > 0, seen + 0.1, seen + 0.5)
    assert abs(head.psnr(Views(poses, torch.cat([mixed, half], 1)), covered=True) - 20) < 1e-3


def test_a_file_gives_back_the_same_head(tmp_path: Path) -> None:
    head, path = random_head(), tmp_path / "new" / "head.safetensors"
    head.save(path)
    again = FittedHead.load(path)
    assert holds_fitted_head(path) and again.rendering == head.rendering
    assert torch.equal(again.planes, head.planes)
    assert all(torch.equal(one, other) for one, other in zip(again.decoder, head.decoder, strict=True))
    assert torch.equal(again.render(head_cameras(30.0), 8), head.render(head_cameras(30.0), 8))
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_other_files_are_no_heads(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"planes": torch.zeros(3)}, tmp_path / "other.safetensors")
    broken = random_head()
    broken.planes[0, 1, 2, 3, 4] = float("nan")
    broken.save(tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="must be finite: .*nan.safetensors"):
        FittedHead.load(tmp_path / "nan.safetensors")
    save_file(
        {"planes": torch.zeros(3)}, tmp_path / "part.safetensors", {"about": '{"format": "fastface.fitted_head/1"}'}
    )
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("other", "text"):
        assert not holds_fitted_head(tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match="expected a head that was fitted"):
            FittedHead.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="cannot read a fitted head"):
        FittedHead.load(tmp_path / "part.safetensors")


def test_a_photo_colours_the_head_on_both_sides() -> None:
    """A symmetric head in known colours, photographed from its left: the right gets them by its mirror image."""
    model = built_in_head()
    triangles = model.triangles.long()
    size = (model.mean - model.mean.mean(0)) / 12
    colours = torch.stack([0.5 + 0.4 * size[:, 1], 0.2 + size[:, 0].abs(), 0.5 - 0.3 * size[:, 1]], 1).clamp(0, 1)
    camera = Camera(torch.tensor([12.0]), torch.tensor([[0.0, 0.6, 0.0]]), torch.tensor([[160.0, 150.0, 0.0]]))
    drawn = ops.rasterize(camera.project(model.shape()), triangles, colours, (320, 320), per="vertex").image[0]
    photo = (drawn * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    assert model.dense is not None
    points = model.dense.of(camera.project(model.shape()))[0].numpy()
    mesh = portrait_mesh(photo, PrecomputedLandmarks(points))
    assert len(mesh.triangles) == 16 * len(triangles)
    found = mesh.colours[: len(colours)]  # subdivision keeps the vertices in front
    face = model.dense.vertices.flatten().unique()
    error = (found - colours)[face].abs().mean(1)
    assert error.median() < 0.02 and error.quantile(0.9) < 0.08
    assert mesh.colours.min() >= 0 and mesh.colours.max() <= 1
    with pytest.raises(ValueError, match="no face found"):
        portrait_mesh(photo, PrecomputedLandmarks())


def test_subdivision_keeps_the_surface() -> None:
    model = built_in_head()
    triangles = model.triangles.long()
    vertices, finer = _subdivided(model.mean, triangles)

    def areas(points: Tensor, corners: Tensor) -> Tensor:
        a, b, c = points[corners].unbind(1)
        return torch.linalg.cross(b - a, c - a)  # its direction too: nothing is turned round

    assert len(finer) == 4 * len(triangles)
    assert torch.allclose(areas(vertices, finer).unflatten(0, (-1, 4)).sum(1), areas(model.mean, triangles), atol=1e-4)
    edges = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]).sort(1).values.unique(dim=0)
    assert len(vertices) == len(model.mean) + len(edges), "neighbours share the middles of their edges"


def test_meshes_of_files(tmp_path: Path) -> None:
    points = ["v 0 0 0", "v 1 0 0", "v 0 1 0", "v 0 0 2"]
    faces = ["f 1 3 2", "f 1 2 4", "f 1 4 3", "f 2 3 4"]
    colours = np.random.default_rng(0).random((4, 3)).round(3)
    coloured = [f"{point} {r} {g} {b}" for point, (r, g, b) in zip(points, colours, strict=True)]
    (tmp_path / "plain.obj").write_text("\n".join(points + faces))
    (tmp_path / "coloured.obj").write_text("\n".join(coloured + faces))
    plain, painted = read_mesh(tmp_path / "plain.obj"), read_mesh(tmp_path / "coloured.obj")
    assert torch.equal(plain.vertices, painted.vertices) and torch.equal(plain.triangles, painted.triangles)
    assert torch.allclose(painted.colours, torch.from_numpy(colours).float())
    assert (plain.colours[:, 0] > plain.colours[:, 2]).all(), "skin is warm"
    placed = plain.placed()
    low, high = placed.vertices.aminmax(dim=0)
    assert torch.allclose(low, -high) and torch.isclose(placed.vertices.norm(dim=1).max(), torch.tensor(0.3))


def test_bad_meshes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0")
    (tmp_path / "beyond.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4")
    for name, wanted in (("points.obj", "3 vertices"), ("beyond.obj", "3 vertices"), ("none.obj", "no such mesh")):
        with pytest.raises(ValueError, match=wanted):
            read_mesh(tmp_path / name)
    triangle = torch.tensor([[0, 1, 2]])
    for vertices, colours, wanted in (
        (torch.zeros(3, 3), torch.zeros(3, 3), "not all in one place"),
        (torch.eye(3) / 0, torch.zeros(3, 3), "finite"),
        (torch.eye(3), torch.zeros(3, 4), r"\[V, 3\]"),
    ):
        with pytest.raises(ValueError, match=wanted):
            ColouredMesh(vertices, triangle, colours)
    with pytest.raises(ValueError, match=r"triangles must be \[T, 3\]"):
        ColouredMesh(torch.eye(3), triangle[:0], torch.eye(3))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rays": 0}, {"plane": 10}, {"seconds": 0.0}])
def test_bad_sizes_of_a_fit_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        FitConfig(**wrong)


def test_views_that_show_nothing_are_refused(views) -> None:
    with pytest.raises(ValueError, match="must show something"):
        Views(views.cam2world, torch.zeros_like(views.pictures))
    with pytest.raises(ValueError, match=r"pictures \[N, 4, S, S\], got"):
        Views(views.cam2world, views.pictures[1:])


def test_a_fit_uses_the_reference_whatever_is_asked_for(views, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFACE_BACKEND", "cpu")
    fit_head(views, FitConfig(steps=1, rays=8, plane=4))
