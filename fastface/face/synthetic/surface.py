"""Triangle meshes as arrays: boundaries, strips between loops, subdivision, and smooth fields over a surface."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def smoothstep(values: Array, start: float = 0.0, stop: float = 1.0) -> Array:
    """From 0 at `start` to 1 at `stop`, level at both."""
    t = np.clip((values - start) / (stop - start), 0, 1)
    return t * t * (3 - 2 * t)


def half_edges(triangles: Index) -> Index:
    """``[3T, 2]``: the edges of every triangle in its own direction."""
    return np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])


def boundary(triangles: Index, start: int) -> Index:
    """The boundary loop through `start`, in the direction of its triangles."""
    edges = {(int(a), int(b)) for a, b in half_edges(triangles)}
    after = {a: b for a, b in edges if (b, a) not in edges}
    loop = [start]
    while after[loop[-1]] != start:
        loop.append(after[loop[-1]])
    return np.array(loop)


def strip(outer: Index, inner: Index) -> Index:
    """Triangles from a boundary loop to a new loop; the new loop is the boundary then, in the same direction.

    `inner` has as many vertices as `outer`, or half as many.
    """
    inner_next = np.roll(inner, -1)
    if len(outer) == len(inner):
        outer_next = np.roll(outer, -1)
        quads = [(outer_next, outer, inner), (outer_next, inner, inner_next)]
    else:
        here, middle, there = outer[::2], outer[1::2], np.roll(outer[::2], -1)
        quads = [(middle, here, inner), (middle, inner, inner_next), (there, middle, inner_next)]
    return np.concatenate([np.stack(corners, 1) for corners in quads])


def fan(loop: Index, apex: int) -> Index:
    """Triangles that close a boundary loop at one vertex."""
    return np.stack([np.roll(loop, -1), loop, np.full_like(loop, apex)], 1)


def subdivide(triangles: Index, count: int) -> tuple[Index, Index]:
    """Each triangle into four. Returns the triangles ``[4T, 3]`` and the edges ``[E, 2]`` whose middles are the new
    vertices `count`, `count` + 1, ...
    """
    edges, where = np.unique(np.sort(half_edges(triangles), axis=1), axis=0, return_inverse=True)
    ab, bc, ca = where.reshape(3, -1) + count
    a, b, c = triangles.T
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([np.stack(part, 1) for part in parts]), edges


def laplacian(triangles: Index, count: int) -> Any:
    """The sparse ``[V, V]`` matrix "a vertex minus the mean of its neighbours"; along a boundary, of its neighbours on
    that boundary.
    """
    from scipy import sparse

    edges = half_edges(triangles)
    ones = sparse.coo_matrix((np.ones(len(edges)), edges.T), (count, count)).tocsr()
    inside = ones.multiply(ones.T)
    rim = ones + ones.T - 2 * inside  # the edges with one triangle
    on_rim = np.asarray(rim.sum(1)).ravel() > 0
    weights = sparse.diags((~on_rim).astype(float)) @ inside + rim
    return sparse.identity(count) - sparse.diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights


def extend(operator: Any, values: Array, free: NDArray[np.bool_]) -> Array:
    """The smoothest continuation of `values` ``[V, d]`` from the other vertices to the `free` ones ``[V]``: the
    minimum of ``|L x|²`` for the Laplacian L.
    """
    from scipy.sparse.linalg import spsolve

    unknown, known = operator[:, free], operator[:, ~free]
    solved = spsolve((unknown.T @ unknown).tocsc(), -(unknown.T @ (known @ values[~free])))
    result = values.copy()
    result[free] = solved.reshape(-1, values.shape[1])
    return result
