"""Expressions: controls to landmark offsets, and the face redrawn by them in the portrait's own view.

Lips and lids are cuts. The face is two sheets, the upper one down to the upper edge of the lower lip (teeth included)
and the lower one from there; each has its own keypoints and its own flow (two depths of one motion field). Where
neither sheet reaches, the inside of the mouth shows. An upper lid is skin drawn down over an eyeball that stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface import ops
from fastface.face import topology as topo
from fastface.models.lifted.depth import farthest_points, grid
from fastface.models.lifted.matte import push_pull, smoothstep
from fastface.models.lifted.motion import EXPRESSIONS

Array = NDArray[np.float32]
Image = NDArray[np.uint8]

_LIP_POINTS = tuple({*topo.LIPS_INNER_UPPER, *topo.LIPS_INNER_LOWER, *topo.LIPS_OUTER_UPPER, *topo.LIPS_OUTER_LOWER})
_OFF = -1.0e4  # logit of a keypoint that is not on a sheet
_DARKER = 10.0  # of 255: the shading of skin stays below it, a lash or a brow is far above
_GRAIN = 0.07  # of an eye's length: pores and brush strokes are finer, folds are coarser
_TEETH = 0.045  # of a face width, painted below the upper lip: 6 mm of the incisors' 10
_FLESH = np.array([0.8, 1.0, 1.1], dtype=np.float32)  # exponents of the light on teeth: it comes off lips and gums
_LINE = np.array([0.35, 0.55, 0.55], dtype=np.float32)  # of its light, what the line between closed lips lacks
_COVER = 0.85  # of a closed lid is drawn skin; the rest keeps a trace of the portrait's own folds


@dataclass(frozen=True)
class FaceFrame:
    """The face's own axes: `local = (p - origin) @ axes.T / width`, x to the person's left, y down the face, z into
    the head.
    """

    origin: Array  # [3]
    axes: Array  # [3, 3], rows
    width: float

    @classmethod
    def of(cls, landmarks: Array) -> FaceFrame:
        across = landmarks[topo.EYE_OUTER_LEFT] - landmarks[topo.EYE_OUTER_RIGHT]
        across = across / np.linalg.norm(across)
        ears = landmarks[topo.EAR_LEFT] - landmarks[topo.EAR_RIGHT]
        x = across + ears / np.linalg.norm(ears)
        x /= np.linalg.norm(x)
        y = landmarks[topo.CHIN] - landmarks[topo.FOREHEAD]
        y = y - (y @ x) * x
        y /= np.linalg.norm(y)
        axes = np.stack([x, y, np.cross(x, y)]).astype(np.float32)
        return cls(landmarks[:468].mean(0).astype(np.float32), axes, float(np.linalg.norm(ears)))

    def to_local(self, points: Array) -> Array:
        return np.asarray((points - self.origin) @ self.axes.T / self.width, dtype=np.float32)

    def directions(self, local: Array) -> Array:
        """Offsets along the face's axes in face widths to offsets in the coordinates of the landmarks."""
        return np.asarray(local @ self.axes * np.float32(self.width), dtype=np.float32)


def offset_basis(landmarks: Array, frame: FaceFrame) -> Array:
    """What each control does to each landmark: ``[E, 468, 3]`` in face widths along the face's axes. Lids and gaze
    are not here.

    A face width is about 140 mm; the amounts are what a face does at most: a chin falls by 30 mm, corners of a mouth
    move by 6 to 10 mm, brows rise by 8 mm. Reaches and shares were set by eye.
    """
    local = frame.to_local(landmarks[:468])
    u, v = local[:, 0], local[:, 1]
    basis = np.zeros((len(EXPRESSIONS), 468, 3), dtype=np.float32)
    corner_right, corner_left = local[78], local[308]
    middle, half = (corner_right + corner_left) / 2, abs(float(corner_left[0] - corner_right[0])) / 2
    across = (u - middle[0]) / half  # -1 and 1 at the corners of the mouth
    chin = float(local[topo.CHIN, 1])
    below = _below_mouth(local)

    # The jaw turns about a hinge at the ears, 0.36 behind the mean landmark: a point swings down as far as it lies in
    # front of it. The lower lip goes with it, least at the corners of the mouth (0.30); the cheeks stretch between.
    hinge = np.clip((0.36 - local[:, 2]) / (0.36 - local[topo.CHIN, 2]), 0, 1)
    fall = hinge * smoothstep((v - middle[1]) / (chin - middle[1]), -0.6, 0.75)
    lip = np.clip(1 - np.abs(across) ** 3, 0, 1)
    lower = below & (np.abs(across) < 1)
    low_lip = smoothstep((v - middle[1]) / (chin - middle[1]), 0.15, 0.6)  # 0 on the lip, 1 on the chin
    fall = np.where(lower, low_lip * np.maximum(fall, 0.8) + (1 - low_lip) * (0.30 + 0.62 * lip), fall)
    upper = ~below & (np.abs(across) < 1.0) & (v > local[2, 1])  # under the nose
    fall = np.where(upper, 0.30 * (1 - lip) - 0.04 * lip, fall)
    fall[list(topo.MOUTH_CORNERS)] = 0.30
    index = EXPRESSIONS.index("jaw_open")
    basis[index, :, 1] = 0.22 * fall
    basis[index, :, 2] = 0.07 * np.clip(fall, 0, None)
    pinch = np.exp(-((np.abs(across) - 1) ** 2) / 0.5 - ((v - middle[1]) / 0.14) ** 2)
    basis[index, :, 0] = -0.025 * np.sign(across) * pinch  # an open mouth is narrower

    # Above the lips the reach is short, so that the nose keeps its shape; beside them the cheeks follow.
    above = 0.085 + 0.14 * smoothstep(np.abs(across), 0.55, 1.25)
    reach = np.where(v < middle[1], above, 0.15)
    near = np.exp(-(((v - middle[1]) / reach) ** 2)) * np.exp(-(np.clip(np.abs(across) - 1, 0, None) ** 2) / 0.35)
    side = np.clip(across, -1, 1)
    index = EXPRESSIONS.index("smile")
    basis[index, :, 0] = 0.045 * side * near
    basis[index, :, 1] = (-0.048 * side**2 + 0.010 * (1 - side**2)) * near
    basis[index, :, 2] = 0.02 * side**2 * near

    index = EXPRESSIONS.index("pucker")
    basis[index, :, 0] = -0.075 * side * near
    basis[index, :, 2] = -0.03 * (1 - side**2) * near

    brows = local[list(topo.BROW_RIGHT_UPPER + topo.BROW_LEFT_UPPER + topo.BROW_RIGHT_LOWER + topo.BROW_LEFT_LOWER)]
    distance = (
        (((local[:, None, :2] - brows[None, :, :2]) / np.array([0.10, 0.07], dtype=np.float32)) ** 2).sum(-1).min(1)
    )
    basis[EXPRESSIONS.index("brow_raise"), :, 1] = -0.055 * np.exp(-distance)
    return basis


def _below_mouth(local: Array) -> NDArray[np.bool_]:
    """Which landmarks belong to the lower sheet: on or below the upper edge of the lower lip."""
    edge = local[list(topo.LIPS_INNER_LOWER)]
    below = local[:, 1] > np.interp(local[:, 0], edge[:, 0], edge[:, 1])
    below[list(topo.LIPS_INNER_LOWER[1:-1] + topo.LIPS_OUTER_LOWER[1:-1])] = True
    below[list(topo.LIPS_INNER_UPPER[1:-1] + topo.LIPS_OUTER_UPPER[1:-1])] = False
    return np.asarray(below)


@dataclass(frozen=True)
class Eye:
    """One eye, in its own rectangle of the portrait, rotated so that its corners are level."""

    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the crop
    down: Array  # [2], the unit vector from brow to lid
    along: Array  # [h, w], height of each pixel along `down`
    crease: Array  # [h, w], where the skin begins to be drawn
    upper: Array  # [h, w], the edge of the upper lid
    lower: Array  # [h, w], the edge of the lower lid
    lash: float  # height of the lash line in pixels, which is carried and not stretched
    skin: Array  # [h, w, 3], the lid when closed: the skin about the eye, drawn over it
    cover: Array  # [h, w], the share of that skin when closed, fading out to the corners, where the lashes end
    iris: Array  # [h, w, 2], displacement per unit of gaze, already faded at the lids


@dataclass(frozen=True)
class Expression:
    """What the expression stage needs of one portrait; made by `prepare`."""

    keypoints: Array  # [K, 3] in coordinates of the box
    per_unit: float  # pixels per unit of these
    weights: Array  # [K, 468], keypoint offsets from landmark offsets
    basis: Array  # [E, 468, 3]
    box: tuple[int, int, int, int]  # the square of the crop that an expression may change
    cells: int  # h = w of the flow
    base: Tensor  # [K + 1, 2 * h * w], the part of the logits that does not move
    points: Tensor  # [3, 2 * h * w]: x, y, 1 of both sheets
    sigma2: Tensor  # [K]
    window: Array  # [S, S] of the box, 0 at its border
    turn: Array  # [2, 2], lays the corners of the mouth level
    level: Array  # [S, S], height of each pixel of the box along the level mouth's vertical
    column: NDArray[np.int32]  # [S, S], place along its horizontal, counted in pixels from `left`
    left: float
    columns: int
    lips: Array  # [2, 11, 2], pixels of the box: inner edges of the upper and the lower lip
    lip_rows: NDArray[np.int64]  # [2, 11], their keypoints
    inside: Array  # [S, S], 1 where the portrait shows the inside of the mouth
    mouth_part: tuple[slice, slice]  # rows and columns of the box in which a mouth may open
    face_width: float  # pixels
    open_already: bool  # whether the portrait shows its own teeth
    colours: Array  # [3, 3] cavity, teeth, tongue
    eyes: tuple[Eye, Eye]  # right, left


def prepare(image: Image, landmarks: Array, frame: FaceFrame, pixels: Array, cells: int, count: int) -> Expression:
    """Choose the expression keypoints and precompute the sheets.

    Args:
        image: ``[S, S, 3]`` the portrait's crop.
        landmarks: ``[N, 3]`` normalised; `pixels` the same in pixels of the crop.
        cells: side of the flow's grid.
        count: keypoints.
    """
    size = image.shape[0]
    width = frame.width * (size - 1) / 2  # face width in pixels
    # The face and, below it, the throat, which the jaw pulls along.
    box = _square(pixels[:468, :2].mean(0) + (0, 0.12 * width), 0.95 * width, size)
    x0, y0, x1, y1 = box
    side = x1 - x0
    basis = offset_basis(landmarks, frame)

    local = frame.to_local(landmarks[:468])
    chosen = farthest_points(local[:, :2], count - len(_SHELLS) * len(_SHELL), topo.EXPRESSION_CORE)
    identity = np.eye(468, dtype=np.float32)
    # Below the jaw the skin of the neck follows the chin, less and less.
    rows, places = [identity[chosen]], [pixels[chosen]]
    centre = pixels[[topo.EAR_RIGHT, topo.EAR_LEFT]].mean(0)
    for reach, share in _SHELLS:
        places.append(centre + (pixels[list(_SHELL)] - centre) * np.float32(reach))
        rows.append(identity[list(_SHELL)] * np.float32(share))
    keypoints = np.concatenate(places).astype(np.float32)
    # The op's grid includes its ends: let -1 and 1 be the centres of the first and last cell, so that `cv2.resize`
    # enlarges it.
    per_unit = (cells - 1) / 2 * side / cells  # pixels
    keypoints = (keypoints - np.array([x0, y0, 0], dtype=np.float32) - (side - 1) / 2) / np.float32(per_unit)
    keypoints[:, 2] = 0
    weights = np.concatenate(rows).astype(np.float32)

    below = _below_mouth(local)
    edge = local[[78, 308], 0]
    middle = (local[:, 0] > edge[0]) & (local[:, 0] < edge[1])
    sheet = np.zeros((len(keypoints), 2), dtype=np.float32)  # upper, lower
    for row, index in enumerate(chosen):
        if middle[index]:
            sheet[row, 0 if below[index] else 1] = _OFF
    unit = width / per_unit  # face width in coordinates of the box
    # Lips are finely sampled and must not blur into each other or into the cheeks; the rest is coarse and smooth.
    lips = np.isin(chosen + [-1] * (len(keypoints) - len(chosen)), _LIP_POINTS)
    sigma2 = np.where(lips, 0.032 * unit, 0.065 * unit).astype(np.float32) ** 2
    points = grid(cells).reshape(-1, 2)
    # logit_k = -|p - d_k|² / 2σ_k², less what does not depend on where the keypoint is now.
    base = np.empty((len(keypoints) + 1, 2, cells * cells), dtype=np.float32)
    base[0] = -((0.28 * unit) ** 2) / (2 * (0.065 * unit) ** 2)  # still where no keypoint is within 0.28
    base[1:] = (sheet + np.where(lips, 1.2, 0)[:, None])[:, :, None]  # lips prevail over the skin about them
    base[1:] -= ((points**2).sum(1)[None] / (2 * sigma2)[:, None])[:, None]

    at = grid(side).astype(np.float32)
    window = smoothstep(1 - np.abs(at).max(-1), 0.02, 0.22)  # no seam at the box's border
    here = np.stack(np.meshgrid(np.arange(x0, x1), np.arange(y0, y1)), -1).astype(np.float32)
    lips = np.stack([pixels[list(edge), :2] for edge in (topo.LIPS_INNER_UPPER, topo.LIPS_INNER_LOWER)]) - (x0, y0)
    turn = _level(lips[0, 0], lips[0, -1])
    level = (here - (x0, y0)) @ turn.T
    left = float(np.floor(level[..., 0].min()))
    column = np.rint(level[..., 0] - left).astype(np.int32)
    open_already = float((lips[1, 3:8] - lips[0, 3:8])[:, 1].mean()) > 0.03 * width  # 4 mm: teeth are in sight
    inside = np.zeros((side, side), dtype=np.uint8)
    if open_already:
        _fill(inside, np.concatenate([lips[0], lips[1, ::-1]]))
        inside = cv2.dilate(inside, np.ones((3, 3), dtype=np.uint8))
    # Downwards twice the chin's fall, for a driving mouth that opens wider than the control.
    low = np.maximum(lips.min((0, 1)) - (0.15 * width, 0.15 * width), 0).astype(int)
    high = np.minimum(lips.max((0, 1)) + (0.15 * width, 0.45 * width), side).astype(int)
    place_of = {index: row for row, index in enumerate(chosen)}
    return Expression(
        keypoints=keypoints,
        per_unit=float(per_unit),
        weights=weights,
        basis=basis,
        box=box,
        cells=cells,
        base=torch.from_numpy(base.reshape(len(keypoints) + 1, -1)),
        points=torch.from_numpy(
            np.tile(np.concatenate([points.T, np.ones((1, cells * cells), dtype=np.float32)]), (1, 2))
        ),
        sigma2=torch.from_numpy(sigma2),
        window=window,
        turn=turn,
        level=np.ascontiguousarray(level[..., 1], dtype=np.float32),
        column=column,
        left=left,
        columns=int(column.max()) + 1,
        lips=lips.astype(np.float32),
        lip_rows=np.array([[place_of[i] for i in edge] for edge in (topo.LIPS_INNER_UPPER, topo.LIPS_INNER_LOWER)]),
        inside=inside.astype(np.float32) / 255,
        mouth_part=(slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))),
        open_already=open_already,
        face_width=width,
        colours=_mouth_colours(image, pixels),
        eyes=(
            _eye(
                image, pixels, topo.EYE_RIGHT_UPPER, topo.EYE_RIGHT_LOWER, topo.BROW_RIGHT_LOWER, topo.IRIS_RIGHT, size
            ),
            _eye(image, pixels, topo.EYE_LEFT_UPPER, topo.EYE_LEFT_LOWER, topo.BROW_LEFT_LOWER, topo.IRIS_LEFT, size),
        ),
    )


_SHELL = (288, 397, 379, 400, 152, 176, 150, 172, 58)
_SHELLS = ((1.15, 0.72), (1.35, 0.42), (1.6, 0.18))  # how far out, and the share of the jaw's offset


def _square(centre: Array, half: float, size: int) -> tuple[int, int, int, int]:
    side = min(size, 2 * round(half))
    x0 = int(np.clip(round(float(centre[0]) - side / 2), 0, size - side))
    y0 = int(np.clip(round(float(centre[1]) - side / 2), 0, size - side))
    return x0, y0, x0 + side, y0 + side


def _level(right: Array, left: Array) -> Array:
    """The rotation that lays the line between two points level."""
    direction = (left - right) / max(1e-6, float(np.linalg.norm(left - right)))
    return np.array([[direction[0], direction[1]], [-direction[1], direction[0]]], dtype=np.float32)


def _mouth_colours(image: Image, pixels: Array) -> Array:
    """Cavity, teeth and tongue under the portrait's own light, as bright and as coloured as its skin.

    The colours are those under white light that shows skin at 235. Flesh keeps half of its own hue under a cast, teeth
    mirror nearly all of it.
    """
    size = image.shape[0]
    places = pixels[[50, 280, 101, 330, 4, 151], :2].round().astype(int).clip(0, size - 1)
    skin = np.median(image[places[:, 1], places[:, 0]].astype(np.float32), 0)
    light = float(skin.max()) / 235
    cast = skin / max(1.0, float(skin.max()))
    teeth = 190 * light * (0.2 + 0.8 * cast)
    tongue = np.array([150, 78, 74], dtype=np.float32) * light * 0.7 * (0.5 + 0.5 * cast)
    cavity = np.array([44, 18, 16], dtype=np.float32) * light * (0.4 + 0.6 * cast)
    return np.stack([cavity, teeth, tongue]).astype(np.float32)


def _eye(
    image: Image,
    pixels: Array,
    upper: tuple[int, ...],
    lower: tuple[int, ...],
    brow: tuple[int, ...],
    iris: tuple[int, ...],
    size: int,
) -> Eye:
    right, left = pixels[upper[0], :2], pixels[upper[-1], :2]
    turn = _level(right, left)
    length = float(np.linalg.norm(left - right))
    centre = (right + left) / 2
    # Up to the brow, down to the cheek.
    x0, y0 = np.maximum(np.floor(centre - (0.85 * length, 0.95 * length)), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(centre + (0.85 * length, 0.75 * length)), size).astype(int)
    here = np.stack(np.meshgrid(np.arange(x0, x1), np.arange(y0, y1)), -1).astype(np.float32)
    level = (here - right) @ turn.T

    def curve(indices: tuple[int, ...]) -> Array:
        points = (pixels[list(indices), :2] - right) @ turn.T
        return np.interp(level[..., 0], points[:, 0], points[:, 1]).astype(np.float32)

    top, bottom = curve(upper), curve(lower)
    opening = np.maximum(bottom - top, 0)
    # The lash line belongs to the lid: cut a little below the edge that the detector marks.
    from_corner = np.minimum(level[..., 0], length - level[..., 0])
    taper = smoothstep(from_corner / length, 0.0, 0.2)
    edge = top + (0.06 * opening + 0.012 * length) * taper
    crease = top - np.maximum(0.75 * (top - curve(brow)), 0.25 * length)  # short of the brow, which must not stretch
    shift = np.zeros((*opening.shape, 2), dtype=np.float32)
    if len(pixels) >= 478:
        ring = pixels[list(iris), :2]
        radius = float(np.linalg.norm(ring[1:] - ring[0], axis=1).mean())
        distance = np.linalg.norm(here - ring[0], axis=-1)
        fade = smoothstep(np.minimum(level[..., 1] - edge, bottom - level[..., 1]) / max(radius, 1.0), -0.1, 0.35)
        fade *= 1 - smoothstep(distance / max(radius, 1.0), 1.0, 2.4)
        # On an eyeball of twice the iris' radius: 22 degrees to the side, 10 up.
        shift[..., 0] = 0.75 * radius * fade
        shift[..., 1] = -0.35 * radius * fade
    return Eye(
        box=(int(x0), int(y0), int(x1), int(y1)),
        down=turn[1].copy(),
        along=level[..., 1],
        crease=crease,
        upper=edge,
        lower=bottom,
        lash=0.10 * length,  # 3 mm
        skin=_lid_skin(image[y0:y1, x0:x1], level, top, bottom, crease, length),
        cover=_COVER * smoothstep(from_corner / length, 0.0, 0.3),
        iris=shift,
    )


def _lid_skin(image: Image, level: Array, top: Array, bottom: Array, crease: Array, length: float) -> Array:
    """``[h, w, 3]``: a closed lid over the whole rectangle: the shading of the skin about the eye, which goes on over
    it without an edge, and the grain of the cheek.
    """
    colour = image.astype(np.float32)
    across, y = level[..., 0] / length, level[..., 1]
    rim = 0.13 * length  # the wet rim, lower lashes and the shadow they throw
    # Above the eye the lid itself begins at once; its lashes are told by their colour.
    eye = (y > top - 0.5 * rim) & (y < bottom + rim) & (np.abs(across - 0.5) < 0.62)
    skin = around = (~eye).astype(np.float32)
    # Brow, lashes and hair are darker than the mean about them; each pass takes more of them out of it.
    for _ in range(3):
        darker = np.maximum(_mean(colour, skin, 0.3 * length) - colour, 0).mean(-1)
        skin = around * np.exp(-0.5 * (darker / _DARKER) ** 2)
    coarse = _mean(colour, skin, _GRAIN * length)
    shade = push_pull(coarse, skin)
    t = np.clip((y - crease) / np.maximum(bottom - crease, 1), 0, 1)
    bulge = 1 + 0.05 * np.sin(np.pi * t) - 0.06 * t**4  # a lid is round: lit in the middle, turned down at the lashes
    rows, columns = np.indices(y.shape, dtype=np.float32)
    mirrored = rows + 2 * np.maximum(bottom.max() + rim - y, 0)
    fine = (colour - coarse) * skin[..., None]
    grain = cv2.remap(fine, columns, mirrored, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(shade * bulge[..., None] + grain, dtype=np.float32)


def _mean(image: Array, weight: Array, sigma: float) -> Array:
    """The Gaussian mean of ``[h, w, 3]`` under weights ``[h, w]``."""
    total = cv2.GaussianBlur(image * weight[..., None], (0, 0), sigma)
    return np.asarray(total / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-3)[..., None], dtype=np.float32)


def _lids(eye: Eye, closing: float) -> tuple[Array, Array, Array]:
    """For each pixel of an eye's rectangle: how far to look up for the skin, the share of eyeball, the share of
    drawn skin.

    Between crease and lash line the skin stretches; the lash line is carried along as it is. Stretched skin would
    smear the shadows of the open lid, so a closing lid turns into the skin of `_lid_skin`.
    """
    opening = np.maximum(eye.lower - eye.upper, 0)
    edge = eye.upper + closing * 0.97 * opening  # a trace of the lower rim stays in sight
    start, stop = eye.upper - eye.lash, edge - eye.lash
    reach = np.maximum(start - eye.crease, 1.0)
    t = np.clip((eye.along - eye.crease) / np.maximum(stop - eye.crease, 1.0), 0, 1)  # from crease to lash line
    slope = np.minimum((stop - eye.crease) / reach, 1.75)  # no kink at the crease, and monotone as it is below 2
    skin = eye.crease + reach * (slope * t + (1 - slope) * t * t)
    up = np.where((eye.along > eye.crease) & (eye.along < stop), eye.along - skin, 0.0)
    up = np.where(eye.along >= stop, edge - eye.upper, up)
    ball = np.clip(eye.along - edge + 0.5, 0, 1)
    drawn = eye.cover * smoothstep((edge - eye.upper) / eye.lash, 0.1, 1.0)
    # Feathered from the crease, so that no upper border shows, and off again over the lash line.
    drawn *= smoothstep(t, 0.05, 0.5) * (1 - smoothstep(eye.along - stop, 0.0, 0.75 * eye.lash))
    return up.astype(np.float32), ball.astype(np.float32), drawn.astype(np.float32)


def landmark_offsets(expression: Expression, values: Array, offsets: Array | None) -> Array:
    """``[468, 3]`` in face widths along the face's axes."""
    total = np.tensordot(values.astype(np.float32), expression.basis, 1)
    return np.asarray(total if offsets is None else total + offsets, dtype=np.float32)


def moves(values: Array, offsets: Array | None) -> bool:
    """Whether there is any expression to draw."""
    return bool(np.any(values != 0)) or (offsets is not None and bool(np.any(offsets != 0)))


def redraw(
    layer: Image, expression: Expression, frame: FaceFrame, values: Array, offsets: Array | None, backend: str | None
) -> tuple[Image, Array | None]:
    """The head layer with its expression, ``[S, S, 4]`` uint8 in the portrait's own view, and how far each pixel of
    the expression's box was carried, ``[h, w, 2]`` pixels, None where nothing was.

    Args:
        layer: ``[S, S, 4]`` premultiplied uint8 at rest.
        values: ``[E]``; `offsets` ``[468, 3]`` or None.
    """
    x0, y0, x1, y1 = expression.box
    out = layer.copy()
    local = landmark_offsets(expression, values, offsets)
    pixels = frame.directions(expression.weights @ local) * np.float32((layer.shape[0] - 1) / 2)  # [K, 3]
    carried: Array | None = None  # [S, S, 2] of the box, where the sheets have carried a pixel
    if np.abs(pixels[:, :2]).max() > 0.02:
        sheets = _sheets(expression, pixels, backend)  # [2, h, w, 2]
        part = _extent(sheets, x1 - x0)
        if part is not None:
            carried = np.zeros((y1 - y0, x1 - x0, 2), dtype=np.float32)
            carried[part] = _draw_sheets(out[y0:y1, x0:x1], layer[y0:y1, x0:x1], expression, sheets, pixels, part)
    gaze = float(values[EXPRESSIONS.index("gaze_x")]), float(values[EXPRESSIONS.index("gaze_y")])
    for eye, name in zip(expression.eyes, ("blink_right", "blink_left"), strict=True):
        closing = float(values[EXPRESSIONS.index(name)])
        if closing != 0 or gaze != (0.0, 0.0):
            _draw_eye(out, layer, eye, closing, gaze, carried, expression.box)
    return out, carried


Part = tuple[slice, slice]  # rows, columns


def _pixel_grid(part: Part) -> Array:
    rows, columns = part
    return np.stack(
        np.meshgrid(np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop)), -1, dtype=np.float32
    )


def _sheets(expression: Expression, pixels: Array, backend: str | None) -> Array:
    """The displacement, in pixels, of the upper and the lower sheet: ``[2, h, w, 2]``."""
    source = torch.from_numpy(expression.keypoints)
    moved = pixels / np.float32(expression.per_unit)
    moved[:, 2] = 0
    driving = torch.from_numpy(expression.keypoints + moved)
    count, cells = len(expression.base), expression.cells
    place = driving[:, :2]
    sigma2 = expression.sigma2[:, None]
    rows = torch.cat([place / sigma2, -(place**2).sum(1, keepdim=True) / (2 * sigma2)], 1)  # [K, 3]
    logits = torch.empty(count, 2 * cells * cells)
    logits[0] = expression.base[0]
    torch.addmm(expression.base[1:], rows, expression.points, out=logits[1:])
    flow = ops.motion_field(logits.view(1, count, 2, cells, cells), source[None], driving[None], backend=backend)[0]
    return np.asarray((flow.numpy()[..., :2] - grid(cells)) * np.float32(expression.per_unit), dtype=np.float32)


def _extent(sheets: Array, side: int) -> Part | None:
    """The rectangle of the box in which the sheets move by more than a fiftieth of a pixel."""
    cells = sheets.shape[1]
    moving = (np.abs(sheets) > 0.02).any((0, 3))
    rows, columns = np.nonzero(moving.any(1))[0], np.nonzero(moving.any(0))[0]
    if len(rows) == 0:
        return None

    def reach(found: NDArray[np.int64]) -> slice:
        low, high = (found[0] - 1) * side // cells, -(-(found[-1] + 2) * side // cells)
        return slice(max(0, int(low)), min(side, int(high)))

    return reach(rows), reach(columns)


def _draw_sheets(out: Image, picture: Image, expression: Expression, sheets: Array, pixels: Array, part: Part) -> Array:
    """Redraw one rectangle of the box by both sheets, in place; where they carried its pixels, ``[h, w, 2]``."""
    side = expression.window.shape[0]
    here, window = _pixel_grid(part), expression.window[part][..., None]
    mouth = _mouth(expression, sheets, pixels)
    of_lower = _share_of_lower(expression, mouth, part)

    def enlarge(sheet: Array) -> Array:
        return np.asarray(cv2.resize(sheet, (side, side), interpolation=cv2.INTER_LINEAR)[part], dtype=np.float32)

    upper, lower = enlarge(sheets[0]), enlarge(sheets[1])
    shift = (upper + of_lower * (lower - upper)) * window
    out[part] = cv2.remap(picture, here + shift, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    lips = _about_lips(expression, mouth, part)
    if lips is not None:
        at = _shifted(lips, -part[0].start, -part[1].start)
        _draw_lips(out, picture, expression, mouth, upper[at] * window[at], lower[at] * window[at], lips)
        _draw_inside(out, picture, expression, mouth, lips)
    return np.asarray(shift, dtype=np.float32)


def _about_lips(expression: Expression, mouth: _Mouth, part: Part) -> Part | None:
    """What of a rectangle is between the driven lips or next to their inner edges."""
    rows, columns = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(part, expression.mouth_part, strict=True)
    )
    column, level = expression.column[rows, columns], expression.level[rows, columns]
    next_to = 3 + 0.03 * expression.face_width  # pixels
    near = (level > mouth.upper[column] - next_to) & (level < mouth.lower[column] + next_to)
    near &= np.abs(mouth.across[column]) < 1
    if not near.any():
        return None
    x, y, w, h = cv2.boundingRect(near.view(np.uint8))
    return _shifted((slice(y, y + h), slice(x, x + w)), rows.start, columns.start)


def _shifted(part: Part, down: int, right: int) -> Part:
    rows, columns = part
    return slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)


def _share_of_lower(expression: Expression, mouth: _Mouth, part: Part) -> Array:
    """``[h, w, 1]``: 0 on the upper sheet, 1 on the lower one."""
    column, level = expression.column[part], expression.level[part]
    return np.asarray(np.clip(0.5 + (level - mouth.middle[column]) * mouth.sharpness[column], 0, 1)[..., None])


def _draw_lips(
    out: Image, picture: Image, expression: Expression, mouth: _Mouth, upper: Array, lower: Array, part: Part
) -> None:
    """Draw the lips again, each sheet up to the inner edge of its lip and no further. In place.

    A flow that goes over from one sheet to the other passes through all that the portrait shows between its lips: teeth
    would stay in sight where they close. So here it is the two pictures that are blended, and beyond its edge a lip
    goes on as it is there.
    """
    column, level, unit = expression.column[part], expression.level[part], expression.face_width
    closed = 1 - mouth.open_share
    if expression.open_already:
        margin = 0.018 * unit * closed  # the edge is marked on the teeth as often as on the lip
        edges = mouth.rest_upper - margin, mouth.rest + margin
    else:
        edges = 2 * ((mouth.rest_upper + mouth.rest) / 2,)
    drawn = []
    for shift, edge, side in zip((upper, lower), edges, (1, -1), strict=True):
        at = _pixel_grid(part) + shift
        index = np.rint(at @ expression.turn[0] - expression.left).astype(np.int32).clip(0, expression.columns - 1)
        beyond = np.maximum(side * (at @ expression.turn[1] - edge[index]), 0)
        at -= side * beyond[..., None] * expression.turn[1]
        drawn.append(cv2.remap(picture, at, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(np.float32))
    lips = drawn[0] + _share_of_lower(expression, mouth, part) * (drawn[1] - drawn[0])
    across = np.abs(mouth.across[column])
    if expression.open_already:
        # Where the portrait shows no line between closed lips, their shadow.
        line = np.exp(-(((level - mouth.middle[column]) / (0.007 * unit)) ** 2)) * (1 - smoothstep(across, 0.6, 1.0))
        lips[..., :3] *= 1 - closed * line[..., None] * _LINE
    share = (1 - smoothstep(across, 0.88, 1.0))[..., None]
    place = out[part]
    place[:] = np.rint(place + share * (lips - place)).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Mouth:
    """A mouth as it is driven; curves by the column of the level mouth, ``[columns]``, heights on its vertical."""

    upper: Array  # the upper lip's edge
    lower: Array  # the lower lip's edge
    middle: Array  # where one sheet gives way to the other
    sharpness: Array  # 1 / pixels: how fast it does
    across: Array  # -1 and 1 at the corners
    rest_upper: Array  # both edges at rest
    rest: Array
    open_share: float  # of a mouth that the portrait shows open, how far it still is; 0 where it is closed
    width_share: float  # its width over that at rest


def _mouth(expression: Expression, sheets: Array, pixels: Array) -> _Mouth:
    """Where the sheets carry the edges of the lips.

    A sheet says where a driven pixel comes from, ``p -> p + shift(p)``; the edge of its lip is where that is the edge
    at rest, which a few fixed-point steps from the keypoints find.
    """
    cells = sheets.shape[1]
    scale = cells / expression.window.shape[0]
    edges = []
    for sheet, edge, rows in zip(sheets, expression.lips, expression.lip_rows, strict=True):
        place = edge + pixels[rows, :2]
        for _ in range(3):
            at = ((place + 0.5) * scale - 0.5)[None].astype(np.float32)
            shift = cv2.remap(sheet, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
            place = 0.5 * place + 0.5 * (edge - shift)
        edges.append(place)
    for end in (0, -1):
        edges[0][end] = edges[1][end] = (edges[0][end] + edges[1][end]) / 2
    upper, lower = (edge @ expression.turn.T for edge in edges)
    crossed = np.minimum(lower[:, 1] - upper[:, 1], 0)[:, None] / 2 * np.array([0, 1], dtype=np.float32)
    upper, lower = upper + crossed, lower - crossed
    columns = np.arange(expression.columns, dtype=np.float32) + expression.left

    def curve(edge: Array) -> Array:
        edge = _rounded(edge)
        order = np.argsort(edge[:, 0], kind="stable")
        return np.interp(columns, edge[order, 0], edge[order, 1]).astype(np.float32)

    top, bottom = curve(upper), curve(lower)
    start, stop = float(upper[0, 0]), float(upper[-1, 0])
    half = max(1.0, (stop - start) / 2)
    across = ((columns - (start + stop) / 2) / half).astype(np.float32)
    # Lips part within a pixel or so; beyond the corners both sheets are one skin and give way over a wide band.
    beyond = np.clip(np.abs(across) - 0.94, 0, None) * half
    width = 1.5 + np.minimum(2.5 * beyond, 0.12 * expression.face_width)
    rest_upper, rest = (curve(edge @ expression.turn.T) for edge in expression.lips)
    now, before = (bottom - top).sum(), (rest - rest_upper).sum()
    return _Mouth(
        upper=top,
        lower=bottom,
        middle=(top + bottom) / 2,
        sharpness=(1 / width).astype(np.float32),
        across=across,
        rest_upper=rest_upper,
        rest=rest,
        open_share=float(np.clip(now / before, 0, 1)) if expression.open_already else 0.0,
        width_share=float(np.clip((stop - start) / np.ptp(expression.lips[0] @ expression.turn[0]), 0, 1)),
    )


def _rounded(edge: Array) -> Array:
    """Cut the corners of an open polygon, ``[N, 2]``, twice (Chaikin)."""
    for _ in range(2):
        near, far = 0.75 * edge[:-1] + 0.25 * edge[1:], 0.25 * edge[:-1] + 0.75 * edge[1:]
        edge = np.concatenate([edge[:1], np.stack([near, far], 1).reshape(-1, 2), edge[-1:]])
    return edge


def _fill(mask: NDArray[np.uint8], outline: Array) -> None:
    """Fill a closed outline, ``[N, 2]`` pixels, with soft edges. In place."""
    bits = 4
    cv2.fillPoly(mask, [np.rint(outline * (1 << bits)).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=bits)


def _draw_inside(out: Image, picture: Image, expression: Expression, mouth: _Mouth, part: Part) -> None:
    """Between the driven lips put what is inside: what the portrait shows there, which the skull holds in place,
    else paint. In place.
    """
    column, level = expression.column[part], expression.level[part]
    across = np.clip(np.abs(mouth.across), 0, 1)
    # The opening narrows to its corners in a curve; what the portrait shows open keeps its own.
    half = (mouth.lower - mouth.upper) / 2 * (1 - (1 - mouth.open_share) * across**6)
    soft = 0.002 * expression.face_width + 0.5  # pixels
    parted = smoothstep(2 * half / (0.012 * expression.face_width), 0.3, 1.3)
    mask = parted[column] * smoothstep(half[column] - np.abs(level - mouth.middle[column]), -soft, soft)
    if not mask.any():
        return
    own = expression.open_already
    inner = _own_inside(picture, expression, mouth, part) if own else _painted_inside(expression, mouth, part)
    place = out[part]
    place[..., :3] = np.rint(place[..., :3] + mask[..., None] * (inner - place[..., :3])).astype(np.uint8)


def _cavity(expression: Expression, mouth: _Mouth, part: Part) -> Array:
    """``[h, w, 3]``: darkness with a tongue."""
    column, level, unit = expression.column[part], expression.level[part], expression.face_width
    below_upper, above_lower = level - mouth.upper[column], mouth.lower[column] - level  # pixels
    shade = _shade(mouth)[column]
    cavity, _, tongue = expression.colours
    swell = (1 - smoothstep(above_lower / unit, 0.0, 0.10)) * shade * smoothstep(below_upper / unit, 0.05, 0.16)
    dark = cavity * (0.5 + 0.5 * shade[..., None])
    return np.asarray(dark + (tongue - dark) * (0.7 * swell)[..., None])


def _shade(mouth: _Mouth) -> Array:
    """``[columns]``: the light inside, 1 in the middle of the mouth."""
    return 1 - smoothstep(np.clip(np.abs(mouth.across), 0, 1), 0.2, 0.95)


def _painted_inside(expression: Expression, mouth: _Mouth, part: Part) -> Array:
    """``[h, w, 3]``: a mouth that the portrait does not show."""
    column, level, unit = expression.column[part], expression.level[part], expression.face_width
    across, shade = np.clip(np.abs(mouth.across), 0, 1)[column], _shade(mouth)[column]
    inner, length = _cavity(expression, mouth, part), _TEETH * unit
    # The upper teeth are part of the skull: they hang from where the lips met, whatever the lips do.
    end = length * (1.0 - 0.4 * across**2)
    row = 1 - smoothstep(level - mouth.rest[column], end - 0.012 * unit, end + 0.012 * unit)
    row *= 1 - smoothstep(across, 0.45, 0.85)
    # The lip shades the teeth; a faint rhythm stands for the single ones.
    light = (0.5 + 0.4 * smoothstep((level - mouth.upper[column]) / length, 0.0, 0.7)) * (0.6 + 0.4 * shade)
    single = 1 - 0.10 * np.abs(np.sin(np.pi * across * 4.5)) ** 12
    return np.asarray(inner + (expression.colours[1] - inner) * (row * single)[..., None] * light[..., None] ** _FLESH)


def _own_inside(picture: Image, expression: Expression, mouth: _Mouth, part: Part) -> Array:
    """``[h, w, 3]``: the inside of the mouth as the portrait shows it, a cavity beyond."""
    column, level = expression.column[part], expression.level[part]
    inner = _cavity(expression, mouth, part)
    # A raised lip shows more of the teeth: stretch them up to it, so that no dark comes between.
    top, rest_top, bottom = mouth.upper[column], mouth.rest_upper[column], mouth.rest[column]
    raised = np.minimum(top, rest_top)
    share = np.clip((bottom - level) / np.maximum(bottom - raised, 1.0), 0, None)
    up = (share * np.maximum(bottom - rest_top, 0) - (bottom - level)) * ((level < bottom) & (raised < rest_top))
    at = _pixel_grid(part) - up[..., None] * expression.turn[1]
    teeth = cv2.remap(picture, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[..., :3]
    shown = cv2.remap(expression.inside, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[..., None]
    light = 0.4 + 0.6 * mouth.width_share * np.sqrt(mouth.open_share)  # the smaller the opening, the less falls in
    return np.asarray(inner + (teeth - inner) * shown * light**_FLESH)


def _draw_eye(
    out: Image,
    layer: Image,
    eye: Eye,
    closing: float,
    gaze: tuple[float, float],
    carried: Array | None,
    box: tuple[int, int, int, int],
) -> None:
    """Draw one eye with its lid. In place; what the sheets did there is done again."""
    x0, y0, x1, y1 = eye.box
    here = np.stack(np.meshgrid(np.arange(x0, x1), np.arange(y0, y1)), -1).astype(np.float32)
    at = here
    if carried is not None:  # the sheets' displacement at this eye, from the box of the expression
        at = here + cv2.remap(
            carried, here - np.array(box[:2], dtype=np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )
    in_eye = at - np.array([x0, y0], dtype=np.float32)

    def carry(field: Array) -> Array:
        if carried is None:
            return field
        return np.asarray(cv2.remap(field, in_eye, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))

    up, ball, drawn = np.split(carry(np.dstack(_lids(eye, float(np.clip(closing, -0.3, 1.0))))), 3, axis=-1)
    lid = cv2.remap(layer, at - up * eye.down, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(
        np.float32
    )
    lid[..., :3] += drawn * (carry(eye.skin) - lid[..., :3])
    look = eye.iris * np.array(gaze, dtype=np.float32)
    globe = cv2.remap(layer, at - look, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    out[y0:y1, x0:x1] = np.rint(lid * (1 - ball) + globe * ball).astype(np.uint8)
