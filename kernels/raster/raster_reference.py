"""The `raster` hot path in plain PyTorch: what every kernel must compute.

Orthographic: (x, y) of a vertex are pixels, the centre of the first pixel at (0, 0), y down; z grows away from the
viewer. Corners are rounded to 1/256 of a pixel, and whether a pixel's centre is inside is decided in whole numbers, so
that triangles that share an edge cover every pixel along it once. A centre that lies on an edge belongs to the triangle
whose top or left edge that is. The nearest triangle wins; of equally near ones that with the lowest index.

Drawing is split where the gradient is: `visible_triangles` has none and its shapes depend on the data, `interpolate` is
differentiable and traceable. The gradient with respect to the vertices is that of the interpolation within a triangle;
it knows nothing of the pixels that a moving silhouette gains or loses.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LIMIT", "SUBPIXELS", "interpolate", "rasterize", "visible_triangles"]

SUBPIXELS = 256
LIMIT = 2.0**20  # pixels: beyond it an edge function no longer fits into 64 bits with room to spare
_CANDIDATES = 1 << 22  # pairs of triangle and pixel looked at together; bounds the memory


def rasterize(
    vertices: Tensor,  # [B, V, 3]
    triangles: Tensor,  # [T, 3]
    attributes: Tensor,  # [T, A] or [V, A]
    size: tuple[int, int],  # H, W
    cull: str | None = None,
    per_vertex: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image ``[B, A, H, W]``, triangle ``[B, H, W]``, depth ``[B, H, W]``, skipped triangles ``[B]``."""
    triangle, skipped = visible_triangles(vertices, triangles, size, cull)
    image, depth = interpolate(vertices, triangles, attributes, triangle, per_vertex)
    return image, triangle, depth, skipped


def visible_triangles(
    vertices: Tensor, triangles: Tensor, size: tuple[int, int], cull: str | None = None
) -> tuple[Tensor, Tensor]:
    """The index of the nearest triangle at each pixel's centre, ``[B, H, W]`` int32, -1 where there is none, and the
    number of triangles skipped ``[B]`` int32.

    Skipped are triangles with an index outside [0, V), a corner that is not finite, or one beyond `LIMIT` pixels.
    """
    wide = _wide(vertices.detach())
    images = [_visible(each, triangles.long(), size, cull) for each in wide]
    return torch.stack([image for image, _ in images]), torch.stack([skipped for _, skipped in images])


def _visible(vertices: Tensor, triangles: Tensor, size: tuple[int, int], cull: str | None) -> tuple[Tensor, Tensor]:
    height, width = size
    device = vertices.device
    known = ((triangles >= 0) & (triangles < len(vertices))).all(1)
    corners = vertices[triangles.clamp(0, len(vertices) - 1)]  # [T, 3, 3]
    usable = known & corners.isfinite().all(2).all(1) & (corners[..., :2].abs() < LIMIT).all(2).all(1)
    fixed = _snap(torch.where(usable[:, None, None], corners[..., :2], 0)).long()  # [T, 3, 2]
    (x0, y0), (x1, y1), (x2, y2) = (fixed[:, i].unbind(1) for i in range(3))
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)  # positive: clockwise on the screen, y being down
    drawn = usable & (area != 0)
    if cull is not None:
        drawn &= area < 0 if cull == "back" else area > 0
    low = torch.div(fixed.amin(1) + SUBPIXELS - 1, SUBPIXELS, rounding_mode="floor").clamp(min=0)  # first centre inside
    high = torch.div(fixed.amax(1), SUBPIXELS, rounding_mode="floor")
    high = torch.minimum(high, torch.tensor([width - 1, height - 1], device=device))
    extent = (high - low + 1).clamp(min=0) * drawn[:, None]  # [T, 2]
    counts = extent[:, 0] * extent[:, 1]

    nearest = torch.full((height * width,), float("inf"), device=device, dtype=vertices.dtype)
    winner = torch.full((height * width,), -1, device=device, dtype=torch.int64)
    ends = counts.cumsum(0)
    first = 0
    while first < len(counts):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(torch.searchsorted(ends, before + _CANDIDATES, right=True)))
        chunk = torch.arange(first, last, device=device)
        index = chunk.repeat_interleave(counts[first:last])  # [N] triangles
        place = torch.arange(len(index), device=device) - (ends - counts)[index] + before
        x = low[index, 0] + place % extent[index, 0].clamp(min=1)
        y = low[index, 1] + torch.div(place, extent[index, 0].clamp(min=1), rounding_mode="floor")
        inside = _inside(fixed[index], area[index], x * SUBPIXELS, y * SUBPIXELS)
        index, x, y = index[inside], x[inside], y[inside]
        z = (_weights(_snap(corners[index][..., :2]), x, y) * corners[index][..., 2]).sum(1)
        pixel = y * width + x
        nearer = nearest.scatter_reduce(0, pixel, z, "amin")
        hit = z == nearer[pixel]
        best = torch.full_like(winner, len(counts)).scatter_reduce(0, pixel[hit], index[hit], "amin")
        winner = torch.where(nearer < nearest, best, winner)
        nearest, first = nearer, last
    return winner.view(height, width).int(), (~usable).sum().int()


def interpolate(
    vertices: Tensor,  # [B, V, 3]
    triangles: Tensor,  # [T, 3]
    attributes: Tensor,  # [T, A] or [V, A]
    triangle: Tensor,  # [B, H, W], -1 outside
    per_vertex: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attributes ``[B, A, H, W]``, 0 outside, and depth ``[B, H, W]``, inf outside, of the visible triangles."""
    batch, height, width = triangle.shape
    covered, index = triangle >= 0, triangle.clamp(min=0).long()
    corners = triangles.long()[index].clamp(0, vertices.shape[1] - 1)  # [B, H, W, 3]
    image = torch.arange(batch, device=vertices.device)[:, None, None, None]
    places = _wide(vertices)[image, corners]  # [B, H, W, 3, 3]
    # Any triangle will do where there is none: its numbers are replaced, and must not be NaN for the gradient's sake.
    spare = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], device=vertices.device, dtype=places.dtype)
    places = torch.where(covered[..., None, None], places, spare)
    x = torch.arange(width, device=vertices.device)
    y = torch.arange(height, device=vertices.device)[:, None]
    weights = _weights(_snap_through(places[..., :2]), x, y)  # [B, H, W, 3]
    depth = torch.where(covered, (weights * places[..., 2]).sum(-1), float("inf"))
    values = _wide(attributes)
    drawn = (weights[..., None] * values[corners]).sum(3) if per_vertex else values[index]  # [B, H, W, A]
    drawn = torch.where(covered[..., None], drawn, 0.0)
    return drawn.movedim(3, 1).to(attributes.dtype).contiguous(), depth


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _snap(places: Tensor) -> Tensor:
    """Pixels to whole subpixels, half up."""
    return (places * SUBPIXELS + 0.5).floor()


def _snap_through(places: Tensor) -> Tensor:
    """`_snap` with the gradient of the multiplication alone."""
    scaled = places * SUBPIXELS
    return scaled + (_snap(places) - scaled).detach()


def _inside(fixed: Tensor, area: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Whether ``[N]`` centres (in subpixels) lie in ``[N, 3, 2]`` triangles, by the top-left rule."""
    flip = torch.where(area < 0, -1, 1)
    inside = torch.ones_like(x, dtype=torch.bool)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        # Walked clockwise on the screen, y being down: a left edge goes up, a top edge goes right.
        dx, dy = (fixed[:, j, 0] - fixed[:, i, 0]) * flip, (fixed[:, j, 1] - fixed[:, i, 1]) * flip
        edge = dx * (y - fixed[:, i, 1]) - dy * (x - fixed[:, i, 0])
        inside &= (edge > 0) | ((edge == 0) & ((dy < 0) | ((dy == 0) & (dx > 0))))
    return inside


def _weights(snapped: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Barycentric coordinates ``[..., 3]`` of pixel centres x, y in ``[..., 3, 2]`` triangles (in subpixels)."""
    centre = torch.stack(torch.broadcast_tensors(x, y), -1).to(snapped.dtype) * SUBPIXELS
    to = snapped - centre.unsqueeze(-2)  # [..., 3, 2], from the centre to each corner
    a, b, c = to.unbind(-2)

    def cross(p: Tensor, q: Tensor) -> Tensor:
        return p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]

    parts = torch.stack([cross(b, c), cross(c, a), cross(a, b)], -1)
    return parts / cross(b - a, c - a).unsqueeze(-1)
