"""The neutral head: the measured face, refined, and around it cranium, neck, eyes, mouth and ears by formulas.

Centimetres, x to the person's left, y up, z out of the face. Vertices 0..467 are MediaPipe's landmarks. The skin, each
eyeball and each ear is a closed surface of its own, with counter-clockwise triangles seen from outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastface.face.synthetic.measure import read_face
from fastface.face.synthetic.surface import Array, Index, boundary, extend, fan, laplacian, smoothstep, strip, subdivide

_OVAL_TOP, _LID, _INNER_LIP = 10, {-1: 33, 1: 263}, 13  # one landmark on each boundary of the face
_EYE_RADIUS = 1.22
_ROWS, _NECK_END = 18, -16.0  # rows of vertices behind the face, and the height where they end


@dataclass(frozen=True)
class HeadMesh:
    """The neutral head and which of its vertices are what."""

    vertices: Array  # [V, 3]
    triangles: Index  # [T, 3]
    skin: slice
    eyes: dict[int, slice]  # by side: -1 the person's right, 1 the left


def build_mesh() -> HeadMesh:
    """The neutral head."""
    points, triangles = _refine(*read_face())
    lids = {side: boundary(triangles, start) for side, start in _LID.items()}
    mouth, oval = boundary(triangles, _INNER_LIP), boundary(triangles, _OVAL_TOP)
    skin = _Builder(points, triangles)
    _add_head(skin, oval)
    centres = {side: _eye_centre(points[lid]) for side, lid in lids.items()}
    for side, lid in lids.items():
        _add_socket(skin, lid, centres[side])
    _add_mouth(skin, mouth)
    parts = [(skin.vertices, skin.triangles)]
    parts += [_eyeball(centres[side]) for side in (-1, 1)]
    parts += [_ear(side) for side in (-1, 1)]
    counts = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
    return HeadMesh(
        vertices=np.concatenate([vertices for vertices, _ in parts]),
        triangles=np.concatenate([part + first for (_, part), first in zip(parts, counts, strict=False)]),
        skin=slice(0, int(counts[1])),
        eyes={-1: slice(int(counts[1]), int(counts[2])), 1: slice(int(counts[2]), int(counts[3]))},
    )


class _Builder:
    """A mesh that grows by loops of vertices from its boundaries."""

    def __init__(self, vertices: Array, triangles: Index) -> None:
        self.vertices, self.triangles = vertices, triangles

    @classmethod
    def tube(cls, rings: list[Array], first: Array, last: Array) -> _Builder:
        """A closed surface from the vertex `first` through rings to `last`; rings clockwise seen from `first`."""
        builder = cls(np.empty((0, 3)), np.empty((0, 3), dtype=np.int64))
        loop = builder._add(rings[0])
        builder.close(loop[::-1], first)
        for ring in rings[1:]:
            loop = builder.grow(loop, ring)
        builder.close(loop, last)
        return builder

    def grow(self, loop: Index, ring: Array) -> Index:
        """A strip from the boundary `loop` to new vertices `ring`; returns the new boundary."""
        inner = self._add(ring)
        self.triangles = np.concatenate([self.triangles, strip(loop, inner)])
        return inner

    def close(self, loop: Index, apex: Array) -> None:
        """A fan from the boundary `loop` to one new vertex."""
        self.triangles = np.concatenate([self.triangles, fan(loop, int(self._add(apex[None])[0]))])

    def _add(self, vertices: Array) -> Index:
        first = len(self.vertices)
        self.vertices = np.concatenate([self.vertices, vertices])
        return np.arange(first, first + len(vertices))


def _refine(points: Array, triangles: Index) -> tuple[Array, Index]:
    """Split every triangle in four, the new vertices on a smooth surface through the old ones."""
    count = len(points)
    triangles, edges = subdivide(triangles, count)
    points = np.concatenate([points, points[edges].mean(1)])
    free = np.arange(len(points)) >= count
    return extend(laplacian(triangles, len(points)), points, free), triangles


def _spline(knots: list[tuple[float, ...]], t: Array) -> Array:
    from scipy.interpolate import CubicSpline

    return np.asarray(CubicSpline(np.linspace(0, 1, len(knots)), np.array(knots))(t))


def _guide(t: Array) -> Array:
    """Roughly where 36 columns of vertices cross the rows `t` in [0, 1] from the face oval to the neck's end,
    ``[rows, 36, 3]``, beginning above the forehead, to the person's right.
    """
    top = _spline(
        [(0, 8.3, 4.5), (0, 12.6, 0.6), (0, 13.6, -5.2), (0, 10.5, -11.2), (0, 4.2, -13.9), (0, -2.2, -12.6),
         (0, -7, -11), (0, -11.5, -11.2), (0, _NECK_END, -12.3)], t
    )  # fmt: skip
    bottom = _spline(
        [(0, -8.4, 3.3), (0, -9.2, 2.5), (0, -9.7, 1.5), (0, -10.2, 0.6), (0, -11.0, -0.1), (0, -12.1, -0.5),
         (0, -13.4, -0.7), (0, -14.6, -0.8), (0, _NECK_END, -0.8)], t
    )  # fmt: skip
    side = _spline(
        [(6.9, 0.9, -1.9), (7.2, 1.4, -3.8), (7.3, 1.6, -6.0), (6.9, 0.4, -7.9), (6.2, -2.2, -8.6), (5.6, -5.6, -8.0),
         (5.5, -9.0, -7.2), (5.7, -12.5, -6.8), (6.4, _NECK_END, -6.6)], t
    )  # fmt: skip
    theta = (np.arange(36) * (2 * np.pi / 36))[:, None]
    middle, half, side = (top + bottom)[:, None] / 2, (top - bottom)[:, None] / 2, side[:, None]
    return (
        middle
        + np.cos(theta) * half
        + np.sin(theta) ** 2 * (side - middle) * [0, 1, 1]
        - np.sin(theta) * side * [1, 0, 0]
    )


def _add_head(skin: _Builder, oval: Index) -> None:
    """From the face oval over cranium and jaw to the neck: columns of vertices, relaxed on the surface of `_solid`."""
    t = np.linspace(0, 1, _ROWS + 1)
    guide = _guide(t)
    guide += (1 - smoothstep(t, 0, 0.45))[:, None, None] * (skin.vertices[oval[::2]] - guide[0])
    rows = guide[1:].copy()
    for _ in range(12):
        padded = np.concatenate([guide[:1], rows, guide[-1:]])
        along = (padded[:-2] + padded[2:]) / 2 - rows
        across = (np.roll(rows, 1, 1) + np.roll(rows, -1, 1)) / 2 - rows
        rows[:-1] += (0.5 * along + 0.1 * across)[:-1]
        rows = _on_solid(rows)
        rows[-1, :, 1] = _NECK_END
    # What the face stands off the solid fades out behind it.
    rows += (1 - smoothstep(t[1:], 0, 0.4))[:, None, None] * (guide[0] - _on_solid(guide[0]))
    loop = oval
    for row in rows:
        loop = skin.grow(loop, row)
    skin.close(loop, skin.vertices[loop].mean(0))


def _solid(p: Array) -> Array:
    """The signed distance (roughly) to the head behind the face: cranium, jaw and neck, blended."""

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
        q = p - np.array(centre)
        near = np.linalg.norm(q / np.array(radii), axis=-1)
        slope = np.linalg.norm(q / np.array(radii) ** 2, axis=-1)
        return near * (near - 1) / np.maximum(slope, 1e-9)

    cranium = ellipsoid((0, 4.2, -4.4), (7.3, 9.4, 9.8))
    jaw = ellipsoid((0, -3.4, -2.9), (5.9, 5.4, 6.6))
    y, axis = p[..., 1], -5.4 + 0.1 * (p[..., 1] + 4)
    neck = np.hypot(p[..., 0], (p[..., 2] - axis) * 0.95) - (5.2 + 0.035 * np.clip(-9 - y, 0, None) ** 2)
    neck = np.maximum(neck, y + 1)  # the neck ends inside the head
    return _blend(_blend(cranium, jaw, 2.5), neck, 2.0)


def _blend(a: Array, b: Array, width: float) -> Array:
    """The union of two distance fields, rounded over `width`."""
    h = np.clip(width - np.abs(a - b), 0, None) / width
    return np.minimum(a, b) - h * h * width / 4


def _on_solid(p: Array) -> Array:
    """Points carried to the surface of `_solid` by Newton steps along its gradient."""
    for _ in range(4):
        step = 1e-4
        gradient = np.stack([_solid(p + step * e) - _solid(p - step * e) for e in np.eye(3)], -1) / (2 * step)
        p = p - (_solid(p) / np.maximum((gradient**2).sum(-1), 0.25))[..., None] * gradient
    return p


def _eye_centre(lid: Array) -> Array:
    """Where an eyeball just stays behind the edge of its lids, ``[N, 3]``."""
    x, y = (lid[:, :2].min(0) + lid[:, :2].max(0)) / 2
    across = (lid[:, 0] - x) ** 2 + (lid[:, 1] - y) ** 2
    central = across < 0.75**2
    depth = lid[central, 2] - np.sqrt((_EYE_RADIUS + 0.04) ** 2 - across[central])
    return np.array([x, y, depth.min()])


def _add_socket(skin: _Builder, lid: Index, centre: Array) -> None:
    """Behind the lids' edge, their thickness and a pocket around the eyeball."""
    edge = skin.vertices[lid]
    towards = (edge - centre) / np.linalg.norm(edge - centre, axis=1, keepdims=True)
    loop = skin.grow(lid, centre + 0.97 * _EYE_RADIUS * towards)
    loop = skin.grow(loop, centre + (edge - centre) * [0.9, 1.6, 0] + [0, 0, -0.9])
    skin.close(loop, centre - [0, 0, 1.6])


def _add_mouth(skin: _Builder, lip: Index) -> None:
    """Behind the lips, their inner sides and the cavity; `lip` begins at the middle of the upper one."""
    edge = skin.vertices[lip]
    centre = edge.mean(0)
    apart = np.cos(np.arange(len(lip)) * (2 * np.pi / len(lip)))[:, None] * [0.0, 1.0, 0.0]  # 1 above, -1 below
    loop = skin.grow(lip, edge * [0.98, 1, 1] + 0.16 * apart - [0, 0, 0.45])
    loop = skin.grow(loop, edge * [0.95, 1, 1] + 0.7 * apart - [0, 0, 1.0])
    loop = skin.grow(loop, centre + (edge - centre) * [0.8, 1, 0.6] + 1.1 * apart - [0, 0, 3.2])
    skin.close(loop, centre - [0, 0, 4.2])


def _eyeball(centre: Array) -> tuple[Array, Index]:
    """A sphere with its poles in front and behind."""
    around = np.arange(12) * (2 * np.pi / 12)
    rings = [
        np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.full(12, np.cos(polar))], 1)
        for polar in np.pi * np.arange(1, 8) / 8
    ]
    ball = _Builder.tube(rings, np.array([0.0, 0, 1]), np.array([0.0, 0, -1]))
    return centre + _EYE_RADIUS * ball.vertices, ball.triangles


def _ear(side: int) -> tuple[Array, Index]:
    """An ear: helix, hollow and back, standing off the head."""
    phi = np.arange(14) * (2 * np.pi / 14)
    outline = np.stack([1.75 * np.sin(phi) * (1 + 0.22 * np.cos(phi)), 3.15 * np.cos(phi), 0 * phi], 1)
    up = np.array([0.0, 0.0, 1.0])
    # How far out and how high each ring is, from the hollow over the helix to the back.
    profile = [(0.42, -0.28), (0.68, 0.12), (0.8, 0.1), (0.93, 0.42), (1.02, 0.3), (0.98, 0.0), (0.6, -0.55)]
    rings = [(outline * scale + height * up)[::-1] for scale, height in profile]
    ear = _Builder.tube(rings, -0.45 * up, -0.7 * up)
    # The plane of the ear: x backwards, y up, z outwards; leaning back, its rear edge away from the head.
    lean, off = np.radians(14), np.radians(28)
    back = np.array([np.sin(off), 0, -np.cos(off)])
    out = np.array([np.cos(off), 0, np.sin(off)])
    above = np.array([0, np.cos(lean), -np.sin(lean)])
    vertices = np.array([7.3, 1.2, -3.3]) + ear.vertices @ np.stack([back, above, out])
    return (vertices, ear.triangles) if side > 0 else (vertices * [-1, 1, 1], ear.triangles[:, ::-1])
