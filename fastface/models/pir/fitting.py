"""Tri-planes without weights: planes and a decoder fitted to pictures of a head, by gradients through the reference.

    photo -> the built-in head, fitted and coloured -> pictures from all sides -> planes, decoder
    loss = mean |colours - truth|² + 0.1 mean |opacity - truth| + 0.2 mean density outside of the ball
           + 0.03 (mean |∂planes/∂x|² + mean |∂planes/∂y|²)

The head stands in the middle of the world, y up and looking along +z, in a ball of radius 0.3; cameras are EG3D's, at
a distance of 2.7. Planes grow while they are fitted, coarse to fine, so that smooth shapes come first. Sources:
EG3D (arXiv 2112.07945), section 4 for planes and rendering; NeRF (arXiv 2003.08934), section 5 for the fit by rays;
K-Planes (arXiv 2301.10241), section 3.2 for the smoothness of planes.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastface import ops
from fastface._files import save_safetensors
from fastface.face import FaceTracker, Landmarks, MediaPipeLandmarks, built_in_head, largest_face, load_face_model
from fastface.face.loaders import read_obj
from fastface.models.pir.cameras import camera_rays, diagonal_fov, orbit
from fastface.models.pir.rendering import Rendering
from fastface.ops.triplane import PlaneDecoder

__all__ = [
    "ColouredMesh",
    "FitConfig",
    "FittedHead",
    "Views",
    "draw_views",
    "fit_head",
    "head_cameras",
    "held_out_cameras",
    "holds_fitted_head",
    "portrait_mesh",
    "read_mesh",
    "shaded_mesh",
    "training_cameras",
]

Image = NDArray[np.uint8]

_FORMAT = "fastface.fitted_head/1"
_RADIUS = 0.3  # of the ball about the head; the cameras see as much
_SKIN = (0.87, 0.78, 0.73)
_LIGHT = (-0.35, 0.5, 0.8)
_SAMPLES = 3  # across a pixel of a drawn picture
_NEAR_HEAD = 0.6  # of the rays start within a few pixels of the head: there is most to learn
_OPACITY, _EMPTINESS, _SMOOTHNESS = 0.1, 0.2, 0.03
_GROWTH = ((0.0, 4), (0.05, 2), (0.2, 1))  # from this share of the fit on, planes are that much smaller


@dataclass(frozen=True)
class ColouredMesh:
    """A mesh in world space.

    Attributes:
        vertices: ``[V, 3]``, y up, facing +z.
        triangles: ``[T, 3]`` indices.
        colours: ``[V, 3]`` in [0, 1].

    Raises:
        ValueError: no triangles, shapes that do not fit together, or vertices that are not finite or all in one place.
    """

    vertices: Tensor
    triangles: Tensor
    colours: Tensor

    def __post_init__(self) -> None:
        if self.triangles.dim() != 2 or self.triangles.shape[1] != 3 or not len(self.triangles):
            raise ValueError(f"triangles must be [T, 3] with T >= 1, got {list(self.triangles.shape)}")
        if self.vertices.dim() != 2 or self.vertices.shape[1] != 3 or self.colours.shape != self.vertices.shape:
            raise ValueError(
                f"vertices and colours must be [V, 3], got {list(self.vertices.shape)} and {list(self.colours.shape)}"
            )
        if not torch.isfinite(self.vertices).all() or not (self.vertices != self.vertices[0]).any():
            raise ValueError("vertices must be finite and not all in one place")

    def placed(self) -> ColouredMesh:
        """In the middle of the world, at the size that `head_cameras` see as a whole."""
        low, high = self.vertices.aminmax(dim=0)
        centred = self.vertices - (low + high) / 2
        return ColouredMesh(centred * (_RADIUS / centred.norm(dim=1).max()), self.triangles, self.colours)


def shaded_mesh(vertices: Tensor, triangles: Tensor) -> ColouredMesh:
    """A mesh without colours, as clay under a soft light from above."""
    light = F.normalize(vertices.new_tensor(_LIGHT), dim=0)
    brightness = 0.55 + 0.4 * (_normals(vertices, triangles) @ light)
    return ColouredMesh(vertices, triangles, brightness[:, None] * vertices.new_tensor(_SKIN))


def read_mesh(path: str | Path) -> ColouredMesh:
    """A mesh from any Wavefront .obj, in the colours of its vertices (``v x y z r g b``) or shaded; or the shaded mean
    of a morphable model, see `fastface.face.load_face_model`.

    Raises:
        ValueError: no such file, or not such a mesh; one line.
    """
    path = Path(path)
    if path.suffix.lower() != ".obj":
        model = load_face_model(path)
        return shaded_mesh(model.mean, model.triangles.long())
    if not path.is_file():
        raise ValueError(f"no such mesh: {path}")
    points, corners = read_obj(path)
    vertices, triangles = torch.from_numpy(points).float(), torch.from_numpy(corners)
    if not len(triangles) or not 0 <= int(triangles.min()) <= int(triangles.max()) < len(vertices):
        raise ValueError(f"the mesh must have triangles of its {len(vertices)} vertices: {path}")
    rows = [line.split()[4:7] for line in path.read_text(errors="replace").splitlines() if line.startswith("v ")]
    if all(len(row) == 3 for row in rows):
        return ColouredMesh(vertices, triangles, torch.tensor([[float(x) for x in row] for row in rows]).clamp(0, 1))
    return shaded_mesh(vertices, triangles)


def portrait_mesh(photo: Image, landmarks: Landmarks | None = None) -> ColouredMesh:
    """The built-in head, fitted to the face of a photo and coloured by it.

    What the photo hides takes the colour of its mirror image; what neither shows, such as the back of the head, a
    smooth continuation of the colours around.

    Args:
        photo: ``[H, W, 3]`` uint8 RGB; the largest face is taken.
        landmarks: the detector; MediaPipe's by default.

    Raises:
        ValueError: no face.
        ImportError: MediaPipe is not installed.
    """
    landmarks = landmarks or MediaPipeLandmarks()
    faces = landmarks(photo)
    if not faces:
        raise ValueError("no face found in the portrait, expected one")
    model = built_in_head()
    found = FaceTracker(model, landmarks).follow(faces[largest_face(faces)])
    triangles = model.triangles.long()
    shape = model.shape(found.identity, found.expression)
    pixels = found.camera.project(shape)
    depth = ops.rasterize(pixels, triangles, model.mean, (photo.shape[0], photo.shape[1]), per="vertex").depth
    # What a vertex needs to be painted, here and on the other side: where it is in the photo, and how it faces it.
    own = torch.cat([pixels[0], -_normals(pixels[0], triangles)[:, 2:]], 1)
    other = own[torch.cdist(model.mean * model.mean.new_tensor([-1.0, 1.0, 1.0]), model.mean).argmin(1)]
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    base = _painted(image, depth, own, other, torch.zeros(len(own), 4))
    values = torch.cat([shape[0], own, other, _continued(base, triangles)], 1)
    for _ in range(2):  # the photo is finer than the mesh
        values, triangles = _subdivided(values, triangles)
    vertices, own, other, below = values.split([3, 4, 4, 4], 1)
    return ColouredMesh(vertices, triangles, _painted(image, depth, own, other, below)[:, :3])


def _painted(image: Tensor, depth: Tensor, own: Tensor, other: Tensor, below: Tensor) -> Tensor:
    """Colours and coverage ``[V, 4]`` of the photo laid over `below`, the vertices' own over those of their mirrors."""
    size = torch.tensor([image.shape[3], image.shape[2]])
    tolerance = 0.01 * (own[:, 2].max() - own[:, 2].min())
    for place in (other, own):
        points = place[:, :2]
        colour = F.grid_sample(image, ((2 * points + 1) / size - 1)[None, None], align_corners=False)[0, :, 0].T
        x, y = points.round().long().clamp(min=0).minimum(size - 1).T
        visible = (place[:, 2] <= depth[0, y, x] + tolerance) & ((points >= 0) & (points <= size - 1)).all(1)
        weight = visible * ((place[:, 3] - 0.15) / 0.35).clamp(0, 1)
        below = torch.lerp(below, F.pad(colour, (0, 1), value=1.0), weight[:, None])
    return below


def _continued(painted: Tensor, triangles: Tensor) -> Tensor:
    """Colours ``[V, 4]``, opaque everywhere: where `painted` is not, averages of neighbours."""
    start = torch.cat([triangles, triangles.roll(1, 1)]).flatten()
    end = torch.cat([triangles.roll(1, 1), triangles]).flatten()
    count = torch.zeros(len(painted)).index_add_(0, start, torch.ones(len(start))).clamp(min=1)[:, None]
    below = (painted.sum(0) / painted[:, 3].sum().clamp(min=1e-6)).expand_as(painted)
    for _ in range(500):  # more than the mesh is vertices around
        around = torch.zeros_like(painted).index_add_(0, start, below[end]) / count
        below = painted + (1 - painted[:, 3:]) * around
    return below


def _subdivided(values: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Every triangle in four, by the middles of its edges; values ``[V, A]`` are interpolated."""
    edges = torch.stack([triangles, triangles.roll(-1, 1)], 2).sort(2).values.flatten(0, 1)
    edges, index = edges.unique(dim=0, return_inverse=True)
    a, b, c = triangles.unbind(1)
    ab, bc, ca = (len(values) + index.unflatten(0, (-1, 3))).unbind(1)
    parts = torch.stack([a, ab, ca, b, bc, ab, c, ca, bc, ab, bc, ca], 1)
    return torch.cat([values, values[edges].mean(1)]), parts.reshape(-1, 3)


def _normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Of vertices ``[V, 3]``: means of those of their triangles by area."""
    a, b, c = vertices[triangles].unbind(1)
    facing = torch.linalg.cross(b - a, c - a)
    summed = torch.zeros_like(vertices)
    for corner in triangles.unbind(1):
        summed.index_add_(0, corner, facing)
    return F.normalize(summed, dim=1)


def head_cameras(yaw: Tensor | float, pitch: Tensor | float = 0.0) -> Tensor:
    """Poses ``[B, 4, 4]`` that look at the middle of a fitted head; angles as of `cameras.orbit`."""
    return orbit(yaw, pitch, pivot=(0.0, 0.0, 0.0))


def training_cameras(count: int) -> Tensor:
    """Poses ``[count, 4, 4]`` spread evenly over all yaws, and over pitches of -30 to 45 degrees."""
    return head_cameras(torch.arange(count) * 137.508 % 360, torch.linspace(-30, 45, count))


def held_out_cameras(count: int, training: Tensor, apart: float = 5.0) -> Tensor:
    """Poses ``[count, 4, 4]`` all round, now from above, now from below, away from those of `training` ``[N, 4, 4]``.

    Each is turned aside, as little as it takes, until it is `apart` degrees from every camera of `training`; where
    these are too dense for that, as far from them as it can be.
    """
    places = F.normalize(training[:, :3, 3], dim=1)
    reach = int(180 / count)
    aside = torch.tensor(sorted(range(-reach, reach + 1), key=abs), dtype=torch.float32)
    chosen = []
    for index in range(count):
        poses = head_cameras(index * 360 / count + 5 + aside, (0.0, 20.0, -15.0, 10.0)[index % 4])
        angles = (F.normalize(poses[:, :3, 3], dim=1) @ places.T).clamp(-1, 1).acos().rad2deg().amin(1)
        chosen.append(poses[angles.clamp(max=apart).argmax()])
    return torch.stack(chosen)


@dataclass(frozen=True)
class Views:
    """Cameras ``[N, 4, 4]``, and what they see ``[N, 4, S, S]``: colours over white, and how much is covered.

    Raises ValueError for other shapes, and where nothing is covered.
    """

    cam2world: Tensor
    pictures: Tensor

    def __post_init__(self) -> None:
        count, side = len(self.cam2world), self.pictures.shape[-1]
        if self.cam2world.shape != (count, 4, 4) or self.pictures.shape != (count, 4, side, side):
            raise ValueError(
                f"cam2world must be [N, 4, 4] and pictures [N, 4, S, S], "
                f"got {list(self.cam2world.shape)} and {list(self.pictures.shape)}"
            )
        if not self.pictures[:, 3].any():
            raise ValueError("pictures must show something, got nothing covered")


def draw_views(mesh: ColouredMesh, cam2world: Tensor, size: int) -> Views:
    """Square pictures of a mesh in perspective, with EG3D's field of view.

    Colours over depth and its inverse are linear on the screen, so the orthographic op draws them exactly.
    """
    side = size * _SAMPLES
    pictures = []
    for pose in cam2world:
        seen = (mesh.vertices - pose[:3, 3]) @ pose[:3, :3] @ diagonal_fov()[0].T
        inverse = 1 / seen[:, 2:]
        vertices = torch.cat([seen[:, :2] * inverse * side - 0.5, -inverse], 1)
        values = torch.cat([mesh.colours, torch.ones_like(inverse)], 1) * inverse
        drawn = ops.rasterize(vertices[None], mesh.triangles, values, (side, side), per="vertex")
        covered = (drawn.triangle >= 0)[:, None]
        colours = torch.where(covered, drawn.image[:, :3] / drawn.image[:, 3:], 1.0)
        pictures.append(F.avg_pool2d(torch.cat([colours, covered.float()], 1), _SAMPLES))
    return Views(cam2world, torch.cat(pictures))


@dataclass(frozen=True)
class FittedHead:
    """Planes ``[1, 3, C, S, S]`` and a decoder of three colours, and how they are rendered."""

    planes: Tensor
    decoder: PlaneDecoder
    rendering: Rendering

    @torch.no_grad()
    def render(self, cam2world: Tensor, size: int, *, backend: str | None = None) -> Tensor:
        """Pictures ``[N, 3, size, size]`` in [0, 1] of cameras ``[N, 4, 4]``, see `head_cameras`."""
        pictures = []
        for pose in cam2world:
            origins, directions = camera_rays(pose[None], diagonal_fov().to(pose), size)
            seen = self.rendering.render(self.planes, origins, directions, self.decoder, backend=backend)
            pictures.append(seen.features.mT.unflatten(2, (size, size)).add(1).div(2).clamp(0, 1))
        return torch.cat(pictures)

    def psnr(self, views: Views, *, covered: bool = False) -> float:
        """Peak signal-to-noise ratio in dB, the mean over the views: of whole pictures, or of what is `covered`."""
        truth, coverage = views.pictures.split([3, 1], 1)
        errors = (self.render(views.cam2world, truth.shape[-1]) - truth).square().mean(1)
        weight = coverage[:, 0] if covered else torch.ones_like(errors)
        return float(-10 * ((errors * weight).sum((1, 2)) / weight.sum((1, 2))).log10().mean())

    def to(self, device: torch.device | str) -> FittedHead:
        """The same head on another device."""
        return FittedHead(
            self.planes.to(device), PlaneDecoder(*(each.to(device) for each in self.decoder)), self.rendering
        )

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, whole or not at all. Raises OSError where that fails."""
        about = {"format": _FORMAT, "rendering": asdict(self.rendering)}
        tensors = {"planes": self.planes, **self.decoder._asdict()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_safetensors(tensors, Path(path), {"about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> FittedHead:
        """The inverse of `save`. Raises ValueError for any other file, OSError for none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not holds_fitted_head(path):
            raise ValueError(f"expected a head that was fitted by fastface, a .safetensors file, got {path}")
        try:
            tensors = load_file(path)
            decoder = PlaneDecoder(*(tensors[name] for name in PlaneDecoder._fields))
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError(f"planes and decoder of a fitted head must be finite: {path}")
            return cls(tensors["planes"], decoder, Rendering(**_about(path)["rendering"]))
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read a fitted head from {path}: {error}") from error


def holds_fitted_head(path: str | Path) -> bool:
    """Whether a file says so of itself."""
    return _about(path).get("format") == _FORMAT


def _about(path: str | Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except (SafetensorError, json.JSONDecodeError):
        return {}
    return about if isinstance(about, dict) else {}


@dataclass(frozen=True)
class FitConfig:
    """How planes are fitted.

    Attributes:
        steps: of Adam; the learning rate falls over them to a thirtieth.
        seconds: when the fit ends at the latest; the learning rate keeps pace. None makes a fit depend on its seed
            alone.
        rays: of a step.
        plane: side of the planes at the end, a multiple of 4.
        channels, hidden: of a plane and of the decoder.
        rendering: of the fit and of the fitted head.
    """

    steps: int = 2000
    seconds: float | None = None
    rays: int = 1024
    plane: int = 128
    channels: int = 16
    hidden: int = 32
    seed: int = 0
    rendering: Rendering = field(
        default_factory=lambda: Rendering(near=2.35, far=3.05, coarse=16, fine=16, box=0.75, white_back=True)
    )

    def __post_init__(self) -> None:
        if min(self.steps, self.rays, self.channels, self.hidden) < 1:
            raise ValueError(f"sizes must be positive, got {self}")
        if self.plane < 4 or self.plane % 4:
            raise ValueError(f"plane must be a multiple of 4, got {self.plane}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Arrays this small spend their time in the meetings of threads, and a sum in one thread is always the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def fit_head(
    views: Views, config: FitConfig | None = None, watch: Callable[[float, float, FittedHead], object] | None = None
) -> FittedHead:
    """Planes and a decoder that look as the views do, on the CPU.

    Args:
        views: of `training_cameras`; whatever is to be measured must not be among them.
        watch: called after each step with the share of the fit that is done, the loss, and the head so far.
    """
    config = config or FitConfig()
    random = torch.Generator().manual_seed(config.seed)
    rays = _Rays(views)
    side = config.plane // _GROWTH[0][1]
    planes = (0.1 * torch.randn(1, 3, config.channels, side, side, generator=random)).requires_grad_()
    decoder = _start(config, random)
    optimizer = _adam(planes, decoder)
    started, step, done = time.perf_counter(), 0, 0.0
    while done < 1:
        side = config.plane // next(part for share, part in reversed(_GROWTH) if done >= share)
        if planes.shape[-1] != side:
            planes = F.interpolate(planes.detach()[0], (side, side), mode="bilinear")[None].requires_grad_()
            optimizer = _adam(planes, decoder)
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * 0.03**done
        head = FittedHead(planes, decoder, config.rendering)
        loss = _loss(head, *rays.drawn(config.rays, random), random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        done = step / config.steps
        if config.seconds is not None:
            done = max(done, (time.perf_counter() - started) / config.seconds)
        if watch is not None:
            watch(min(done, 1.0), float(loss.detach()), head)
    return FittedHead(planes.detach(), PlaneDecoder(*(each.detach() for each in decoder)), config.rendering)


def _start(config: FitConfig, random: torch.Generator) -> PlaneDecoder:
    """A decoder to whom space is nearly empty."""
    w1, w2 = (
        (torch.randn(outputs, inputs, generator=random) / inputs**0.5).requires_grad_()
        for outputs, inputs in ((config.hidden, config.channels), (4, config.hidden))
    )
    b2 = torch.tensor([-2.0, 0.0, 0.0, 0.0], requires_grad=True)
    return PlaneDecoder(w1, torch.zeros(config.hidden, requires_grad=True), w2, b2)


def _adam(planes: Tensor, decoder: PlaneDecoder) -> torch.optim.Adam:
    groups = [{"params": [planes], "scale": 0.03}, {"params": list(decoder), "scale": 0.005}]
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)


class _Rays:
    """The rays of all views, and what they should see."""

    def __init__(self, views: Views) -> None:
        origins, directions = camera_rays(views.cam2world, diagonal_fov(), views.pictures.shape[-1])
        self._rays = torch.cat([origins, directions], 2).flatten(0, 1)
        self._truth = views.pictures.flatten(2).mT.flatten(0, 1)
        self._near = (F.max_pool2d(views.pictures[:, 3:], 7, 1, 3).flatten() > 0).nonzero()[:, 0]

    def drawn(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Origins and directions ``[1, count, 3]`` and truth ``[1, count, 4]`` of rays chosen at random."""
        near = round(_NEAR_HEAD * count)
        chosen = torch.cat(
            [
                self._near[torch.randint(len(self._near), (near,), generator=random)],
                torch.randint(len(self._rays), (count - near,), generator=random),
            ]
        )
        rays = self._rays[chosen][None]
        return rays[..., :3], rays[..., 3:], self._truth[chosen][None]


def _loss(head: FittedHead, origins: Tensor, directions: Tensor, truth: Tensor, random: torch.Generator) -> Tensor:
    shape, rendering = origins.shape[:2], head.rendering
    jitter, u = (torch.rand(*shape, count, generator=random) for count in (rendering.coarse, rendering.fine))
    seen = rendering.render(head.planes, origins, directions, head.decoder, jitter=jitter, u=u, backend="reference")
    colours = seen.features.add(1).div(2) - truth[..., :3]
    return (
        colours.square().mean()
        + _OPACITY * (seen.opacity - truth[..., 3]).abs().mean()
        + _EMPTINESS * _density_outside(head, random).mean()
        + _SMOOTHNESS * sum(head.planes.diff(dim=axis).square().mean() for axis in (-2, -1))
    )


def _density_outside(head: FittedHead, random: torch.Generator, count: int = 512) -> Tensor:
    """At points around the ball that holds the head: few cameras see them, and more will come by later."""
    direction = F.normalize(torch.randn(1, count, 3, generator=random), dim=2)
    points = direction * (_RADIUS + 0.25 * torch.rand(1, count, 1, generator=random))
    rendering, (w1, b1, w2, b2) = head.rendering, head.decoder
    features = ops.sample_planes(
        head.planes, points, box=rendering.box, axes=rendering.axes, reduce=rendering.reduce, backend="reference"
    )
    return F.softplus(F.linear(F.softplus(F.linear(features, w1, b1)), w2[:1], b2[:1]) - 1)
