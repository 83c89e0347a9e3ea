"""The model `lifted`: one photo, lifted to layers over depth, moved by keypoints. No trained weights of its own.

`prepare` finds the face, cuts the head out, gives it depth and chooses keypoints. `render` turns the head by a motion
field over a volume (`fastface.ops.motion_field`), finds for every pixel the first depth at which the turned surface
is met, and composites the head over the picture that was behind it. See docs/lifted.md.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface import ops
from fastface.face import topology as topo
from fastface.face.landmarks import Face, Landmarks, MediaPipeLandmarks, largest_face
from fastface.models.lifted import expression as expr
from fastface.models.lifted.depth import centred_grid, farthest_points, grid, height_field
from fastface.models.lifted.matte import (
    MediaPipePerson,
    PersonMask,
    dilate,
    fill_behind,
    grab_cut,
    guided,
    push_pull,
    refine,
    smoothstep,
)
from fastface.models.lifted.motion import Motion, rotation_matrix

Array = NDArray[np.float32]
Image = NDArray[np.uint8]

MIN_FACE = 24.0  # pixels between the ears; below it the landmarks are noise
MIN_IMAGE = 32


@dataclass(frozen=True)
class LiftedConfig:
    """Sizes of the model.

    Attributes:
        size: side of the rendered crop, pixels.
        crop: side of the crop in face widths (ear to ear).
        volume: cells of the head's motion field, (depth, side).
        surface: side of the grid on which the surface is searched, and `steps` in depth.
        keypoints: head keypoints.
        expression_keypoints: keypoints of the expression field, at most 255 in all.
        expression_cells: side of the expression field.
        pivot: centre of the head's turning, in face widths below and behind the mean landmark, along the face's axes.
        sigma: reach of a head keypoint, face widths.
    """

    size: int = 512
    crop: float = 2.8
    volume: tuple[int, int] = (5, 48)
    surface: int = 128
    steps: int = 12
    keypoints: int = 40
    expression_keypoints: int = 136
    expression_cells: int = 80
    pivot: tuple[float, float] = (0.35, 0.45)
    sigma: float = 0.22

    def __post_init__(self) -> None:
        if not 64 <= self.size <= 2048:
            raise ValueError(f"size must be from 64 to 2048, got {self.size}")
        if not 1.6 <= self.crop <= 8:
            raise ValueError(f"crop must be from 1.6 to 8 face widths, got {self.crop}")


@dataclass(frozen=True)
class Source:
    """A prepared portrait. Coordinates are normalised to the crop: (x, y) in [-1, 1] at the centres of the border
    pixels.
    """

    photo: Tensor  # [H, W, 3] uint8, the whole photo
    box: tuple[int, int, int]  # x0, y0, side of the crop in the photo
    portrait: Tensor  # [S, S, 3] uint8, the crop at render size
    layer: Tensor  # [S, S, 4] uint8, the head: premultiplied colour and alpha
    plate: Tensor  # [S, S, 3] uint8, the picture without the head
    edge: Tensor  # [E] int64, pixels where layer and plate alone do not give the portrait
    residual: Tensor  # [E, 3] float32, what is missing there
    landmarks: Tensor  # [N, 3] float32
    height: Tensor  # [h, h] float32, depth of the visible surface
    keypoints: Tensor  # [K, 3] float32
    pivot: Tensor  # [3] float32
    frame: expr.FaceFrame
    expression: expr.Expression
    depth_range: tuple[float, float]  # centre and half extent of the volume along z
    points: Tensor  # [D * h * w, 3] float32, the volume's voxels, z in normalised units
    rest: Tensor  # [D * h * w] float32, logit of the body and the background
    rise: Tensor  # [h, side] float32, from the volume's cells to those of the surface, along one axis
    window: Tensor  # [h, h] float32, 1 where the head may move, 0 where everything is still
    follow: Tensor  # [h, h] float32, 1 for what turns with the head, down the neck to 0 at the collar

    @property
    def face_width(self) -> float:
        """Ear to ear, normalised."""
        return self.frame.width


class Lifted:
    """A photo that moves.

    Args:
        config: sizes.
        landmarks: the detector; MediaPipe's when None.
        person: the person mask; MediaPipe's when None and installed, else GrabCut from the landmarks alone.
        backend: of the warp op, None for the default.
    """

    def __init__(
        self,
        config: LiftedConfig | None = None,
        *,
        landmarks: Landmarks | None = None,
        person: PersonMask | None = None,
        backend: str | None = None,
    ) -> None:
        self.config = config or LiftedConfig()
        self.backend = backend
        self._landmarks = landmarks
        self._person = person

    # Preparation

    def detect(self, photo: Image) -> list[Face]:
        """All faces of a photo, largest first."""
        if self._landmarks is None:
            self._landmarks = MediaPipeLandmarks()
        return sorted(self._landmarks(photo), key=lambda face: -face.area)

    @torch.no_grad()
    def prepare(self, portrait: Tensor | NDArray[np.generic], *, face: Face | None = None) -> Source:
        """Everything that depends on the portrait alone.

        Args:
            portrait: ``[3, H, W]`` float in [0, 1], or ``[H, W, 3]`` uint8.
            face: which face; the largest one found when None.

        Raises:
            ValueError: a portrait of another shape or type, smaller than 32 pixels, without a face, or with a face
                under 24 pixels.
        """
        photo = as_image(portrait)
        if face is None:
            faces = self.detect(photo)
            if not faces:
                raise ValueError(
                    f"no face found in the portrait of {photo.shape[1]}x{photo.shape[0]} pixels, expected one"
                )
            face = faces[largest_face(faces)]
        if len(face.points) < 468:
            raise ValueError(f"landmarks must be at least 468 (MediaPipe's topology), got {len(face.points)}")
        wide = float(np.linalg.norm(face.points[topo.EAR_LEFT] - face.points[topo.EAR_RIGHT]))
        if not wide >= MIN_FACE:
            raise ValueError(f"the face must be at least {MIN_FACE:.0f} pixels wide, got {wide:.0f}")

        config, size = self.config, self.config.size
        x0, y0, side = _crop_box(face.points, wide * config.crop, photo.shape[:2])
        crop = photo[y0 : y0 + side, x0 : x0 + side]
        image = np.ascontiguousarray(_resize(crop, size))
        pixels = ((face.points - (x0, y0, 0) + (0.5, 0.5, 0)) * (size / side) - (0.5, 0.5, 0)).astype(np.float32)
        landmarks = (pixels * (2 / (size - 1)) - (1, 1, 0)).astype(np.float32)
        frame = expr.FaceFrame.of(landmarks)
        width = frame.width

        person = self._person_mask(photo, (x0, y0, side), pixels, frame)
        pivot = frame.origin + frame.directions(np.array([0, config.pivot[0], config.pivot[1]], dtype=np.float32))

        # Who moves at rest: keypoints of the head against the body and the background.
        head_zone = _head_zone(size, pixels, frame)
        outline = _outline(person * head_zone, pixels, frame)
        outline_points = (outline * (2 / (size - 1)) - 1).astype(np.float32)
        height = height_field(landmarks, outline_points, width, centred_grid(config.surface, size))
        keypoints = _head_keypoints(landmarks, outline_points, height, config.keypoints)
        still = _still_keypoints(landmarks, frame, float(height.max()))
        depth_range = (float(pivot[2]) - 0.12 * width, 0.85 * width)
        sigma2 = (config.sigma * width) ** 2
        points = _volume_points(config.volume, depth_range)
        rest = np.logaddexp.reduce(_gaussian(points, still, sigma2), axis=0)
        # At rest, on the surface: the head's share of the softmax.
        nodes = centred_grid(config.surface, size)
        flat = np.concatenate([nodes.reshape(-1, 2), height.reshape(-1, 1)], 1).astype(np.float32)
        head = np.logaddexp.reduce(_gaussian(flat, keypoints, sigma2), axis=0)
        body = np.logaddexp.reduce(_gaussian(flat, still, sigma2), axis=0)
        share = (
            (1 / (1 + np.exp(np.clip(body - head, -50, 50)))).reshape(config.surface, config.surface).astype(np.float32)
        )
        window = smoothstep(share, 0.02, 0.12)

        free = _upsample(window, size)
        matte = _head_matte(image, person, pixels, frame) * (free > 0)
        follow = _follow(matte, person, pixels, frame, config.surface)
        layer, plate = _layers(image, matte, person, free, _upsample(share, size), width * (size - 1) / 2)
        missing = (image.astype(np.float32) - _over(layer, plate)).reshape(-1, 3)
        edge = np.nonzero(missing.any(1))[0]
        return Source(
            photo=torch.from_numpy(photo),
            box=(x0, y0, side),
            portrait=torch.from_numpy(image),
            layer=torch.from_numpy(layer),
            plate=torch.from_numpy(plate),
            edge=torch.from_numpy(edge),
            residual=torch.from_numpy(missing[edge]),
            landmarks=torch.from_numpy(landmarks),
            height=torch.from_numpy(height),
            keypoints=torch.from_numpy(keypoints),
            pivot=torch.from_numpy(pivot.astype(np.float32)),
            frame=frame,
            expression=expr.prepare(
                image, landmarks, frame, pixels, config.expression_cells, config.expression_keypoints
            ),
            depth_range=depth_range,
            points=torch.from_numpy(points),
            rest=torch.from_numpy(rest.astype(np.float32)),
            rise=torch.from_numpy(_rise(nodes[0, :, 0], config.volume[1])),
            window=torch.from_numpy(window),
            follow=torch.from_numpy(follow),
        )

    def _person_mask(self, photo: Image, box: tuple[int, int, int], pixels: Array, frame: expr.FaceFrame) -> Array:
        """``[S, S]`` in [0, 1]: the person, from the mask network, or by GrabCut from the landmarks."""
        size = self.config.size
        if self._person is None:
            try:
                self._person = MediaPipePerson()
            except ImportError:
                return _person_by_colour(
                    _resize(photo[box[1] : box[1] + box[2], box[0] : box[0] + box[2]], 192), pixels, size
                )
        # The network wants to see shoulders: show it more than the crop.
        x0, y0, side = box
        more = int(0.25 * side)
        left, top = max(0, x0 - more), max(0, y0 - more // 2)
        right, bottom = min(photo.shape[1], x0 + side + more), min(photo.shape[0], y0 + side + more)
        mask = self._person(photo[top:bottom, left:right])
        mask = mask[y0 - top : y0 - top + side, x0 - left : x0 - left + side]
        return np.clip(_resize(mask, size), 0, 1)

    # Rendering

    @torch.no_grad()
    def render(self, source: Source, motion: Motion) -> Tensor:
        """Frames ``[B, 3, H, W]`` float32 in [0, 1], H = W = `config.size`."""
        return self.render_uint8(source, motion).permute(0, 3, 1, 2).float().div_(255)

    @torch.no_grad()
    def render_uint8(self, source: Source, motion: Motion) -> Tensor:
        """The same frames as ``[B, H, W, 3]`` uint8, which a video writer takes as they are."""
        if not isinstance(motion, Motion):
            raise TypeError(f"motion must be a Motion, got {type(motion).__name__}")
        if len(source.portrait) != self.config.size:
            raise ValueError(
                f"source must be prepared at size {self.config.size}, got one of size {len(source.portrait)}"
            )
        flows = self._pose(source, motion)
        frames = [self._frame(source, motion, index, flows) for index in range(motion.batch)]
        return torch.from_numpy(np.stack(frames))

    def _pose(self, source: Source, motion: Motion) -> list[Array | None]:
        """Per motion the flow ``[S, S, 2]`` in pixels of the crop, or None where the head does not move."""
        still = (motion.rotation == 0).all(1) & (motion.translation == 0).all(1) & (motion.scale == 1)
        flows: list[Array | None] = []
        for index in range(motion.batch):
            if bool(still[index]):
                flows.append(None)
                continue
            flows.append(self._pose_one(source, motion, index))
        return flows

    def _pose_one(self, source: Source, motion: Motion, index: int) -> Array:
        depth, side = self.config.volume
        width = source.face_width
        turn = rotation_matrix(motion.rotation[index : index + 1].cpu())[0]  # [3, 3]
        scale = float(motion.scale[index])
        shift = motion.translation[index].cpu().float() * width
        keypoints = source.keypoints
        driving = (keypoints - source.pivot) @ turn.T * scale + source.pivot + shift  # [K, 3]
        sigma2 = (self.config.sigma * width) ** 2
        count = keypoints.shape[0]
        logits = torch.empty(count + 1, source.points.shape[0])
        logits[0] = source.rest
        # -|p - d|² / 2σ², without |p|², which every motion shares.
        torch.addmm((-(driving**2).sum(1) / (2 * sigma2))[:, None], driving / sigma2, source.points.T, out=logits[1:])
        # The op's volume spans [-1, 1] along z; ours spans depth_range: a change of unit S for z.
        centre, half = source.depth_range
        unit = torch.tensor([1.0, 1.0, half])
        offset = torch.tensor([0.0, 0.0, centre])
        linear = (turn.T / scale) * unit[None, :] / unit[:, None]  # S⁻¹ (Rᵀ / s) S
        field = ops.motion_field(
            logits.view(1, count + 1, depth, side, side),
            ((keypoints - offset) / unit)[None],
            ((driving - offset) / unit)[None],
            linear=linear[None],
            backend=self.backend,
        )[0]  # [D, h, w, 3]
        return _surface_flow((field * unit + offset).numpy(), source, self.config)

    def _frame(self, source: Source, motion: Motion, index: int, flows: list[Array | None]) -> Image:
        values = motion.expression[index].cpu().float().numpy()
        offsets = None if motion.offsets is None else motion.offsets[index].cpu().float().numpy()
        still, plate = source.layer.numpy(), source.plate.numpy()
        layer, carried = still, None
        if expr.moves(values, offsets):
            layer, carried = expr.redraw(still, source.expression, source.frame, values, offsets, self.backend)
        flow = flows[index]
        edge = source.edge.numpy()
        # Layer and plate are estimates near the border of the head. What they miss is added back where nothing moved,
        # and fades within a pixel of motion: at rest the frame is the portrait.
        share = np.ones(len(edge), dtype=np.float32)
        if carried is not None:
            x0, y0, x1, y1 = source.expression.box
            ys, xs = np.divmod(edge, len(still))
            inside = (xs >= x0) & (xs < x1) & (ys >= y0) & (ys < y1)
            share[inside] = _resting(carried[ys[inside] - y0, xs[inside] - x0])
        if flow is not None:
            layer = _warp(layer, flow)
            share *= _resting(flow.reshape(-1, 2)[edge] - _pixels(len(flow)).reshape(-1, 2)[edge])
        out = plate.copy()
        x, y, w, h = cv2.boundingRect(cv2.extractChannel(layer, 3))
        part = slice(y, y + h), slice(x, x + w)
        if w > 0:
            out[part] = _over(layer[part], plate[part])
        flat = out.reshape(-1, 3)
        flat[edge] = np.clip(np.rint(flat[edge] + share[:, None] * source.residual.numpy()), 0, 255).astype(np.uint8)
        return out


def as_image(portrait: Tensor | NDArray[np.generic]) -> Image:
    """``[3, H, W]`` float in [0, 1] or ``[H, W, 3]`` uint8 to ``[H, W, 3]`` uint8. Raises ValueError otherwise."""
    array = portrait.detach().cpu().numpy() if isinstance(portrait, Tensor) else np.asarray(portrait)
    expected = "portrait must be [3, H, W] float in [0, 1] or [H, W, 3] uint8"
    if array.ndim != 3:
        raise ValueError(f"{expected}, got {list(array.shape)} {array.dtype}")
    if array.dtype == np.uint8 and array.shape[2] == 3:
        image = array
    elif np.issubdtype(array.dtype, np.floating) and array.shape[0] == 3:
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"{expected}, got values from {low:g} to {high:g}")
        image = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    else:
        raise ValueError(f"{expected}, got {list(array.shape)} {array.dtype}")
    if min(image.shape[:2]) < MIN_IMAGE:
        raise ValueError(
            f"the portrait must be at least {MIN_IMAGE}x{MIN_IMAGE} pixels, got {image.shape[1]}x{image.shape[0]}"
        )
    return np.array(image, order="C")


def _head_matte(image: Image, person: Array, pixels: Array, frame: expr.FaceFrame) -> Array:
    """``[S, S]``: the person's matte without collar and clothes."""
    size = image.shape[0]
    width = frame.width * (size - 1) / 2
    small = 176
    reduced = _resize(image, small)
    scale = small / size
    points = pixels[:, :2] * scale
    unit = width * scale
    labels = np.full((small, small), cv2.GC_PR_BGD, dtype=np.uint8)
    ys, xs = np.mgrid[:small, :small].astype(np.float32)
    # Upright coordinates of the face, in face widths from the chin.
    axes = frame.axes[:2, :2] / np.linalg.norm(frame.axes[:2, :2], axis=1, keepdims=True)
    chin = points[topo.CHIN]
    u = ((xs - chin[0]) * axes[0, 0] + (ys - chin[1]) * axes[0, 1]) / unit
    v = ((xs - chin[0]) * axes[1, 0] + (ys - chin[1]) * axes[1, 1]) / unit
    ears = points[[topo.EAR_RIGHT, topo.EAR_LEFT]].mean(0)
    ear = float(((ears - chin) * axes[1]).sum() / unit)  # negative: above the chin
    mask = _resize(person, small)
    above = v < ear + 0.12
    face = _face_hull(points, small)
    long_hair = _long_hair(reduced, (mask > 0.6) & (dilate(face, 0.05 * unit) == 0), u, v, ear)
    labels[(mask > 0.5) & above] = cv2.GC_PR_FGD
    labels[(mask > 0.5) & (v > 0) & (v < 0.5) & (np.abs(u) < 0.28)] = cv2.GC_PR_FGD
    labels[(mask > 0.85) & (v < ear - 0.05)] = cv2.GC_FGD
    labels[(v > 0.55) & (np.abs(u) > 0.75)] = cv2.GC_BGD
    labels[v > 0.85] = cv2.GC_BGD
    labels[long_hair & (mask > 0.5)] = cv2.GC_FGD
    labels[mask < 0.12] = cv2.GC_BGD
    labels[dilate(face, -0.03 * unit) > 0] = cv2.GC_FGD
    if not ((labels == cv2.GC_BGD) | (labels == cv2.GC_PR_BGD)).any():
        cut = np.ones((small, small), dtype=bool)
    else:
        cut = grab_cut(reduced, labels, 3)
    # Keep what hangs together with the face.
    count, parts = cv2.connectedComponents(cut.astype(np.uint8))
    if count > 2:
        inside = np.bincount(parts[face > 0], minlength=count)
        inside[0] = 0
        cut = parts == inside.argmax()
    coarse = cv2.medianBlur(cut.astype(np.uint8), 5).astype(np.float32)
    # Above the ears the person's matte decides alone: nothing there but head and hair.
    free = smoothstep(v, ear - 0.08, ear + 0.10) * (1 - cv2.blur(long_hair.astype(np.float32), (5, 5)))
    coarse = np.maximum(coarse, 1 - free)
    soft = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 1.0), (size, size), interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    soft = guided(soft, grey, max(2, round(0.03 * width)), 2e-4)
    soft = smoothstep(soft, 0.25, 0.75)
    alpha = refine(image.astype(np.float32) / 255, person, 0.045 * width)
    return np.minimum(alpha, soft)


def _face_hull(points: Array, size: int) -> Image:
    """``[size, size]``, 1 on the face without the hair; `points` ``[N, 2 or more]`` in pixels."""
    face = np.zeros((size, size), dtype=np.uint8)
    cv2.fillConvexPoly(face, cv2.convexHull(points[list(topo.FACE_OVAL), :2].round().astype(np.int32)), 1)
    return face


def _long_hair(image: Image, beside: NDArray[np.bool_], u: Array, v: Array, ear: float) -> NDArray[np.bool_]:
    """Where hair hangs below the ears, ``[h, w]``: on a side where what is there has the colour of the hair above.

    Args:
        image: ``[h, w, 3]``.
        beside: the person without the face.
        u, v: place across and down, face widths from the chin.
        ear: level of the ears on that scale.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    found = np.zeros(beside.shape, dtype=bool)
    for side in (-1, 1):
        here = beside & (side * u > 0.2) & (side * u < 1.0)
        hair, hanging = here & (v > ear - 0.35) & (v < ear), here & (v > ear + 0.08) & (v < ear + 0.45)
        if min(hair.sum(), hanging.sum()) < 0.004 * beside.size:
            continue
        spread = np.median(lab[hair], 0) - np.median(lab[hanging], 0)
        if float(np.linalg.norm(spread)) < 22:
            found |= beside & (side * u > 0.1) & (v > ear - 0.1)
    return found


def _resize(image: NDArray[Any], size: int) -> NDArray[Any]:
    how = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size, size), interpolation=how))


def _upsample(field: Array, size: int) -> Array:
    """``[h, h]`` at the centres of cells to ``[S, S]``."""
    return np.asarray(cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _crop_box(points: Array, side: float, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A square of the photo about the head: x0, y0, side. It stays inside the photo and shrinks where the photo is
    smaller.
    """
    height, width = shape[:2]
    length = int(min(round(side), height, width))
    low, high = points[:468, :2].min(0), points[:468, :2].max(0)
    centre = (low + high) / 2
    # Hair above needs more room than the neck below.
    x0 = int(np.clip(round(float(centre[0]) - length / 2), 0, width - length))
    y0 = int(np.clip(round(float(centre[1]) - 0.52 * length), 0, height - length))
    return x0, y0, length


def _head_zone(size: int, pixels: Array, frame: expr.FaceFrame) -> Array:
    """1 above the level of the ear lobes."""
    axes = frame.axes[1, :2] / np.linalg.norm(frame.axes[1, :2])
    ears = pixels[[topo.EAR_RIGHT, topo.EAR_LEFT], :2].mean(0)
    ys, xs = np.mgrid[:size, :size].astype(np.float32)
    v = (xs - ears[0]) * axes[0] + (ys - ears[1]) * axes[1]
    return (v < 0.15 * frame.width * (size - 1) / 2).astype(np.float32)


def _outline(mask: Array, pixels: Array, frame: expr.FaceFrame, rays: int = 28) -> Array:
    """``[M, 2]`` pixels: where rays from the middle of the face leave the mask, above the jaw."""
    size = mask.shape[0]
    width = frame.width * (size - 1) / 2
    centre = pixels[[topo.EAR_RIGHT, topo.EAR_LEFT], :2].mean(0)
    up = -frame.axes[1, :2] / np.linalg.norm(frame.axes[1, :2])
    across = np.array([-up[1], up[0]])
    oval = pixels[list(topo.FACE_OVAL), :2]
    steps = np.linspace(0.3, 1.5, 121) * width
    points = []
    for angle in np.linspace(-0.5 * math.pi, 0.5 * math.pi, rays):
        direction = math.cos(angle) * up + math.sin(angle) * across
        at = centre + steps[:, None] * direction
        columns = at.round().astype(int)
        valid = ((columns >= 0) & (columns < size)).all(1)
        values = np.zeros(len(steps))
        values[valid] = mask[columns[valid, 1], columns[valid, 0]]
        inside = np.nonzero(values > 0.5)[0]
        face = ((oval - centre) @ direction).max()
        reach = max(float(steps[inside[-1]]) if len(inside) else 0.0, float(face) + 0.06 * width)
        points.append(centre + reach * direction)
    return np.array(points, dtype=np.float32)


def _head_keypoints(landmarks: Array, outline: Array, height: Array, count: int) -> Array:
    """``[K, 3]``: the outline of hair and ears at the surface's depth and further back, and the face evenly."""
    shell = outline[:: max(1, len(outline) // 14)]
    depth = np.array([_sample(height, point) for point in shell], dtype=np.float32)[:, None]
    ring = np.concatenate([shell, depth], 1)
    first = (topo.CHIN, topo.FOREHEAD, topo.EAR_RIGHT, topo.EAR_LEFT, 172, 397, 1)
    chosen = farthest_points(landmarks[:468], max(8, count - len(ring)), first)
    return np.concatenate([landmarks[chosen], ring]).astype(np.float32)


def _follow(matte: Array, person: Array, pixels: Array, frame: expr.FaceFrame, cells: int) -> Array:
    """``[cells, cells]``: how much of the head's motion each part of the portrait follows.

    1 on the head and above its jaw, 0 on the body; between them it fades with ``d_head / (d_head + d_body)``, so that
    a neck of any length bends and its lower end stays in the collar.
    """
    size = matte.shape[0]
    width = frame.width * (size - 1) / 2
    layer = matte > 0.5
    down = frame.axes[1, :2] / np.linalg.norm(frame.axes[1, :2])
    low = (_pixels(size) - pixels[topo.CHIN, :2]) @ down > -0.35 * width  # from the corners of the jaw
    body = _wide((person > 0.5) & ~layer & low, 0.03 * width)  # without the fringe that the person's mask has at hair
    if not body.any():
        return np.ones((cells, cells), dtype=np.float32)
    # Hair that hangs in the air turns with the head; so do the jaw's shadow and the air into which single hairs reach.
    hanging = _wide(layer & (_next_row(~layer & (person < 0.5)) < _next_row(body)), 0.02 * width)
    head = (dilate(_face_hull(pixels, size) | hanging, 0.04 * width) > 0) & ~body | (layer & ~low)
    to_head, to_body = (cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) for mask in (head, body))
    share = 1 - low * smoothstep(to_head / np.maximum(to_head + to_body, 1e-3), 0.1, 0.9)
    share = cv2.GaussianBlur(share, (0, 0), 0.03 * width)
    return np.asarray(cv2.resize(share, (cells, cells), interpolation=cv2.INTER_AREA), dtype=np.float32)


def _wide(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """What of a mask is wider than twice the radius."""
    return np.asarray(dilate(dilate(mask.astype(np.uint8), -radius), radius) > 0)


def _next_row(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[H, W]``, the first row at or below each pixel in which the mask is true, H where there is none."""
    rows = np.where(mask, np.arange(len(mask))[:, None], len(mask))
    return np.asarray(np.minimum.accumulate(rows[::-1])[::-1])


def _still_keypoints(landmarks: Array, frame: expr.FaceFrame, back: float) -> Array:
    """``[M, 3]``: collar, shoulders and what is below, which keep their place."""
    axes = frame.axes[:2, :2] / np.linalg.norm(frame.axes[:2, :2], axis=1, keepdims=True)
    # (across, down) in face widths from the chin.
    places = [
        (0.0, 0.62), (-0.3, 0.6), (0.3, 0.6), (-0.62, 0.42), (0.62, 0.42), (-0.95, 0.36), (0.95, 0.36),
        (-1.3, 0.4), (1.3, 0.4), (-1.7, 0.5), (1.7, 0.5), (0.0, 0.95), (-0.5, 0.9), (0.5, 0.9), (-1.0, 0.8), (1.0, 0.8),
    ]  # fmt: skip
    chin = landmarks[topo.CHIN, :2]
    points = []
    for u, v in places:
        x, y = chin + frame.width * (u * axes[0] + v * axes[1])
        for z in (back - 0.25 * frame.width, back):
            points.append((x, y, z))
    return np.array(points, dtype=np.float32)


def _sample(field: Array, point: Array) -> float:
    size = field.shape[0]
    x, y = ((point + 1) / 2 * size - 0.5).round().astype(int).clip(0, size - 1)
    return float(field[y, x])


def _volume_points(volume: tuple[int, int], depth_range: tuple[float, float]) -> Array:
    depth, side = volume
    centre, half = depth_range
    flat = grid(side).reshape(1, -1, 2).repeat(depth, 0)
    z = (np.linspace(-1, 1, depth, dtype=np.float32) * half + centre)[:, None, None]
    return np.concatenate([flat, np.broadcast_to(z, (depth, side * side, 1))], -1).reshape(-1, 3).astype(np.float32)


def _rise(nodes: Array, side: int) -> Array:
    """``[h, side]``: linear interpolation from a grid of `side` nodes over [-1, 1] to the given nodes."""
    axis = np.linspace(-1, 1, side)
    return np.stack([np.interp(nodes, axis, row) for row in np.eye(side)], 1).astype(np.float32)


def _gaussian(points: Array, keypoints: Array, sigma2: float) -> Array:
    """``[K, N]``: -|p - d|² / 2σ² without |p|² / 2σ², which all motions share."""
    return np.asarray((keypoints @ points.T - 0.5 * (keypoints**2).sum(1)[:, None]) / sigma2, dtype=np.float32)


def _person_by_colour(image: Image, pixels: Array, size: int) -> Array:
    """Without a mask network: GrabCut from an ellipse about the face and a trapezoid for the shoulders."""
    small = image.shape[0]
    scale = small / size
    points = pixels[:468, :2] * scale
    width = float(np.linalg.norm(points[topo.EAR_LEFT] - points[topo.EAR_RIGHT]))
    labels = np.full((small, small), cv2.GC_BGD, dtype=np.uint8)
    centre = points.mean(0)
    head = (float(centre[0]), float(centre[1] - 0.15 * width))
    chin = points[topo.CHIN]
    cv2.ellipse(labels, (head, (2.0 * width, 2.3 * width), 0), cv2.GC_PR_BGD, -1)
    cv2.ellipse(labels, (head, (1.35 * width, 1.7 * width), 0), cv2.GC_PR_FGD, -1)
    shoulders = np.array(
        [(chin[0] - 0.3 * width, chin[1]), (chin[0] + 0.3 * width, chin[1]), (small * 2, small), (-small, small)]
    )
    cv2.fillPoly(labels, [shoulders.round().astype(np.int32)], cv2.GC_PR_FGD)
    labels[_face_hull(points, small) > 0] = cv2.GC_FGD
    mask = grab_cut(np.ascontiguousarray(image), labels, 4).astype(np.float32)
    return np.clip(cv2.resize(cv2.GaussianBlur(mask, (0, 0), 1.5), (size, size), interpolation=cv2.INTER_LINEAR), 0, 1)


def _layers(
    image: Image, matte: Array, person: Array, window: Array, share: Array, width: float
) -> tuple[Image, Image]:
    """The head layer ``[S, S, 4]`` (premultiplied) and the plate ``[S, S, 3]``.

    Where nothing can move the plate is the portrait and the layer adds nothing; where the matte is 1 the layer is the
    portrait.
    """
    colour = image.astype(np.float32) / 255
    hole = dilate((matte > 0.02).astype(np.uint8), 0.045 * width) > 0
    hole &= share > 0.06
    if hole.all():
        hole[0] = False
    behind = fill_behind(colour, hole, person, 0.25 * width)
    solid = (matte > 0.97).astype(np.float32)
    spread = push_pull(colour, dilate(solid, -1.5))
    alpha = matte[..., None]
    solved = np.clip((colour - (1 - alpha) * behind) / np.maximum(alpha, 0.05), 0, 1)
    front = spread + (solved - spread) * smoothstep(alpha, 0.3, 0.95)
    front = np.where(alpha >= 1, colour, front)
    layer = np.concatenate([front * alpha, alpha], -1)
    plate = np.where(window[..., None] > 0, behind, colour)
    return np.rint(layer * 255).astype(np.uint8), np.rint(plate * 255).astype(np.uint8)


def _surface_flow(field: Array, source: Source, config: LiftedConfig) -> Array:
    """From the motion field over the volume to the flow of what is seen.

    Along each pixel's ray, front to back, the field says which source point (x, y, z) is there; the first one at or
    behind the portrait's surface, ``z >= height(x, y)``, is what the pixel shows. Linear between depths, then two
    secant steps.

    Args:
        field: ``[D, h, w, 3]`` source points, normalised.

    Returns:
        ``[S, S, 2]`` pixels of the crop.
    """
    cells, size, steps = config.surface, config.size, config.steps
    height, rise = source.height.numpy(), source.rise.numpy()
    rays = rise @ field.transpose(0, 3, 1, 2) @ rise.T  # [D, 3, s, s]
    # In cells of the height field, which is how it is read; z stays as it is.
    scale = (size - 1) / 2 * cells / size
    rays[:, :2] = rays[:, :2] * scale + (cells - 1) / 2
    # Along a ray the field is nearly linear, so a few depths hold it, and finer steps are read between them.
    between = _rise(np.linspace(-1, 1, steps, dtype=np.float32), len(rays))  # [n, D]
    across = np.ascontiguousarray(rays[:, :2].transpose(0, 2, 3, 1)).reshape(len(rays), -1)
    at = (between @ across).reshape(steps, cells, cells, 2)
    gap = (between @ rays[:, 2].reshape(len(rays), -1)).reshape(steps, cells, cells)

    def surface(points: Array) -> Array:  # [..., s, s, 2] -> [..., s, s]
        flat = points.reshape(-1, cells, 2)
        return cv2.remap(height, flat, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(
            points.shape[:-1]
        )

    gap -= surface(at)  # negative before the surface
    hit = gap >= 0
    hit[-1], hit[0] = True, False
    last = hit.argmax(0)[None]  # [1, s, s], the first step at or behind the surface
    far, near = np.take_along_axis(at, last[..., None], 0)[0], np.take_along_axis(at, last[..., None] - 1, 0)[0]
    gap_far, gap_near = np.take_along_axis(gap, last, 0)[0], np.take_along_axis(gap, last - 1, 0)[0]
    low, high = np.zeros_like(gap_far), np.ones_like(gap_far)
    # z along the ray at both ends, to know the gap at a point between them.
    z_near, z_far = gap_near + surface(near), gap_far + surface(far)
    for step in range(3):
        t = low + (high - low) * np.clip(gap_near / np.minimum(gap_near - gap_far, -1e-6), 0, 1)
        point = near + (far - near) * t[..., None]
        if step == 2:
            break
        value = z_near + (z_far - z_near) * t - surface(point)
        front = value < 0
        low, gap_near = np.where(front, t, low), np.where(front, value, gap_near)
        high, gap_far = np.where(front, high, t), np.where(front, gap_far, value)
    shift = (point - _pixels(cells)) * source.window.numpy()[..., None]
    shift = _bend(shift, source.follow.numpy()) * np.float32(size / cells)
    flow = cv2.resize(shift.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    flow += _pixels(size)
    return np.asarray(flow, dtype=np.float32)


def _bend(shift: Array, follow: Array) -> Array:
    """``[h, h, 2]`` in cells: less of the head's `shift` where the portrait follows it less, the fixed point of
    ``q = p + follow(q) shift(p)``.

    It starts on the head, so that a chin hides the neck below it and not the other way round.
    """
    bends = (follow < 1).any(1)
    if not bends.any():
        return shift
    below = slice(max(0, int(bends.argmax() - np.abs(shift).max()) - 1), None)  # rows above read nothing that bends
    here, whole = _pixels(len(follow))[below], shift[below]
    part = whole
    for _ in range(3):
        share = cv2.remap(follow, here + part, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        part = share[..., None] * whole
    return np.concatenate([shift[: below.start], part])


@functools.cache
def _pixels(size: int) -> Array:
    """``[size, size, 2]``: every pixel's own (x, y)."""
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float32)
    grid.flags.writeable = False  # shared by all who ask
    return grid


def _resting(moved: Array) -> Array:
    """1 for a pixel that stays, fading to 0 within a pixel or two of motion; ``[N, 2]`` pixels to ``[N]``."""
    return np.asarray(np.exp(-1.5 * (moved**2).sum(1)), dtype=np.float32)


def _warp(layer: Image, flow: Array) -> Image:
    """The layer sampled at `flow`, bicubic, where any of it lands; transparent elsewhere."""
    step, margin = 4, 12
    # Single hairs may slip between the samples, not further than the margin.
    thick = cv2.dilate(cv2.extractChannel(layer, 3), np.ones((step + 1, step + 1), dtype=np.uint8))
    landed = cv2.remap(
        thick, np.ascontiguousarray(flow[::step, ::step]), None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    )
    x, y, w, h = (step * value for value in cv2.boundingRect(landed))
    part = slice(max(0, y - margin), y + h + margin), slice(max(0, x - margin), x + w + margin)
    out = np.zeros_like(layer)
    alpha = cv2.extractChannel(layer, 3)
    if not (alpha[[0, -1]].any() or alpha[:, [0, -1]].any()):
        out[part] = cv2.remap(layer, flow[part], None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return out
    # A head that the photo cuts off is mirrored there, so that hair goes on as hair, but only where it is cut off.
    mirrored = cv2.remap(layer, flow[part], None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    edge = cv2.remap(alpha, flow[part], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    x, y = flow[part][..., 0], flow[part][..., 1]
    beyond = (x < 0) | (y < 0) | (x > layer.shape[1] - 1) | (y > layer.shape[0] - 1)
    out[part] = mirrored
    out[part][beyond & (edge < 128)] = 0
    return out


def _over(layer: Image, plate: Image) -> Image:
    """``layer + (1 - alpha) plate``, rounded, uint8."""
    through = cv2.bitwise_not(cv2.extractChannel(layer, 3))
    behind = cv2.multiply(plate, cv2.merge([through] * 3), scale=1 / 255)
    return np.asarray(cv2.add(cv2.cvtColor(layer, cv2.COLOR_RGBA2RGB), behind))
