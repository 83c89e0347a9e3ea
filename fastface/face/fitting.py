"""Fitting a morphable model to the dense 3D points of a face: HeadGAN's Algorithm 1, and what makes it exact.

Points are aligned to the shape by a similarity without reflection; the pseudo-inverse of the modes, computed once,
gives all coefficients in one matrix-vector product; an affine camera of least squares from the shape to the points
gives scale, rotation and translation. As printed, the algorithm aligns to the mean face once, so whatever of the
modes looks like motion goes into the pose and the coefficients come out wrong. Two things mend that: the
pseudo-inverse holds the seven tangents of a similarity next to the modes, and the alignment is repeated against the
shape found so far; without noise the coefficients then converge to the true ones.
Source: Doukas et al., ICCV 2021, appendix A; [U_id U_exp] side by side, and the shape as the homogeneous side of the
camera's equations, which its listing has the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastface.face.camera import Camera, rotation_vector
from fastface.face.model import MorphableModel, SurfacePoints, check_coefficients

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FaceParameters:
    """What a fit finds: coefficients ``[B, I]`` and ``[B, E]`` of the model, and the cameras."""

    identity: Tensor
    expression: Tensor
    camera: Camera

    @property
    def vector(self) -> Tensor:
        """``[B, E+7]``: expression and camera, all that a frame has to carry (35 numbers for 28 expressions)."""
        return torch.cat([self.expression, self.camera.vector], 1)

    @classmethod
    def of_vector(cls, vector: Tensor, identity: Tensor) -> FaceParameters:
        """The inverse of `vector`, with an identity ``[B, I]`` or ``[1, I]``.

        Raises ValueError for a vector that is not ``[B, E+7]``.
        """
        if vector.dim() != 2 or vector.shape[1] < 7:
            raise ValueError(f"vector must be [B, expressions + 7], got {list(vector.shape)}")
        check_coefficients("identity", identity, identity.shape[-1], len(vector))
        expression, camera = vector.split([vector.shape[1] - 7, 7], 1)
        return cls(identity.expand(len(vector), -1), expression, Camera.of_vector(camera))


class FaceFitter:
    """Fits a model to points.

    Args:
        model: the morphable model.
        points: what the points are on the model: the dense points by default, else the 68.
        iterations: alignments. Each takes the error on clean points down about tenfold, 4 to 1e-4.
        noise: the standard deviation of a coordinate of the points, as a share of their root mean square distance
            from their middle. 0 is the plain pseudo-inverse; above 0 coefficients are drawn to zero as their normal
            `prior` demands (ridge regression), which keeps weakly seen modes quiet: 0.02 suits detectors.
        prior: (identity, expression), the standard deviations that `noise` expects of the coefficients.
        bounds: (identity, expression), the largest magnitude of a coefficient; solved by SciPy's `lsq_linear`, a few
            milliseconds a face.

    Raises:
        ValueError: no points in the model, too few of them, or an argument out of range.
        ImportError: `bounds` without SciPy.
    """

    def __init__(
        self,
        model: MorphableModel,
        points: SurfacePoints | None = None,
        *,
        iterations: int = 6,
        noise: float = 0.0,
        prior: tuple[float, float] = (1.0, 1.0),
        bounds: tuple[float, float] | None = None,
    ) -> None:
        if points is None:
            points = model.dense if model.dense is not None else model.landmarks68
        if points is None:
            raise ValueError("the model has neither dense points nor 68 landmarks: pass points")
        modes = model.identities + model.expressions
        if 3 * len(points) < modes + 7:
            raise ValueError(
                f"{modes} coefficients and a pose need at least {-(-(modes + 7) // 3)} points, got {len(points)}"
            )
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if not noise >= 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        if not min(prior) > 0:
            raise ValueError(f"prior must be positive, got {prior}")
        if bounds is not None and not min(bounds) > 0:
            raise ValueError(f"bounds must be positive, got {bounds}")
        self.model, self.points = model, points
        self._iterations = iterations
        self._mean = points.of(model.mean).double().cpu().numpy()  # [N, 3]
        identity, expression = (
            points.of((basis * scale).movedim(2, 0)).double().cpu().numpy()  # [modes, N, 3]
            for basis, scale in (
                (model.identity_basis, model.identity_scale),
                (model.expression_basis, model.expression_scale),
            )
        )

        def each(values: tuple[float, float]) -> Array:
            """A value for every identity and one for every expression, ``[modes]``."""
            return np.repeat(values, (len(identity), len(expression)))

        size = np.sqrt(((self._mean - self._mean.mean(0)) ** 2).sum(1).mean())
        weight, limit = noise * size / each(prior), each(bounds) if bounds else None
        count = len(identity)
        self._identity = identity
        self._all = _Solver(np.concatenate([identity, expression]), self._mean, weight, limit)
        self._expression = _Solver(expression, self._mean, weight[count:], None if limit is None else limit[count:])

    def fit(self, points: Tensor, identity: Tensor | None = None) -> FaceParameters:
        """Coefficients and cameras of points ``[B, N, 3]`` in image space (x right, y down, z away; pixels).

        Args:
            identity: ``[B, I]`` or ``[1, I]``, held as it is: the reference's, say. Fitted when None.

        Raises:
            ValueError: points of another shape, of no face, not finite, or all in one place.
        """
        given = self._checked(points)
        bases, solver = [self._mean], self._all
        if identity is not None:
            check_coefficients("identity", identity, self.model.identities, len(points))
            held = identity.double().cpu().numpy()
            bases = [self._mean + np.einsum("k,kni->ni", person, self._identity) for person in held]
            solver = self._expression
        turned = given * [1, -1, -1]  # into the directions of model space
        found = [solver.fit(face, base, self._iterations) for face, base in zip(turned, cycle(bases), strict=False)]
        coefficients = torch.from_numpy(np.stack([each for each, _ in found])).to(self.model.mean)
        camera = _cameras([shape for _, shape in found], given, coefficients)
        if identity is None:
            identity, coefficients = coefficients.split([self.model.identities, self.model.expressions], 1)
        identity = identity.to(coefficients).expand(len(points), -1)
        return FaceParameters(identity, coefficients, camera)

    def _checked(self, points: Tensor) -> Array:
        expected = [len(self.points), 3]
        if points.dim() != 3 or list(points.shape[1:]) != expected:
            raise ValueError(f"points must be [B, {expected[0]}, 3], got {list(points.shape)}")
        if not len(points):
            raise ValueError("points must be of at least one face, got none")
        given = points.double().cpu().numpy()
        finite = np.isfinite(given)
        if not finite.all():
            raise ValueError(f"points must be finite, got {int((~finite).sum())} values that are not")
        if not np.ptp(given, 1).any(1).all():
            raise ValueError("points must not all lie in one place")
        return given


class _Solver:
    """Least squares for modes ``[n, N, 3]`` and, next to them, the tangents of a similarity of `mean`.

    What an iteration needs of the points x is linear in them: the right side of the equations for any rotation of x,
    and the product of any shape with x, which gives the rotation. So the points are read once, and an iteration works
    on nine numbers a mode, in one thread.
    """

    def __init__(self, modes: Array, mean: Array, weight: Array, limit: Array | None) -> None:
        count, size = len(modes), mean.size
        centred, axes = mean - mean.mean(0), np.eye(3)[:, None]
        moves, turns = np.broadcast_to(axes, (3, *mean.shape)), np.cross(axes, centred)
        system = np.concatenate([modes, moves, turns, centred[None]]).reshape(-1, size).T  # [3N, n+7]
        system = np.concatenate([system, np.eye(count, system.shape[1]) * weight[:, None]])  # the prior below
        if limit is None:
            reader = np.linalg.pinv(system)[:count, :size]
        else:
            try:
                from scipy.optimize import lsq_linear
            except ImportError as error:
                raise ImportError("bounds need SciPy: pip install 'fastface-kernels[face-models]'") from error
            self._bounded = lsq_linear
            self._limit = np.concatenate([limit, np.full(7, np.inf)])
            orthogonal, self._reduced = np.linalg.qr(system)
            reader = orthogonal[:size].T
        self._free = limit is None
        self._modes, self._reader = modes, reader.reshape(-1, *mean.shape)  # [n, N, 3] and [m, N, 3], m = n or n + 7
        self._reader_rows, self._modes_rows = _rows(self._reader), _rows(modes)
        self._reader_sum, self._modes_mean = self._reader.sum(1), modes.mean(1)
        self._mean, self._still = mean, self._read(mean)

    def fit(self, points: Array, base: Array, iterations: int) -> tuple[Array, Array]:
        """Coefficients ``[n]`` and the shape ``[N, 3]`` of points in any pose; `base` is the shape without them."""
        x = points - points.mean(0)
        columns = x.T.astype(np.float32, order="C")  # [3, N]
        read, seen = _products(self._reader_rows, columns), None
        still = self._still if base is self._mean else self._read(base)
        base_seen, base_middle, size = np.einsum("ni,nj->ij", base, x), base.mean(0), (x * x).sum()
        coefficients = np.zeros(len(self._modes))
        for iteration in range(iterations):
            # `similarity` from x to the shape so far, then the equations for x moved by it.
            shape_seen = base_seen
            if iteration > 0:
                seen = _products(self._modes_rows, columns) if seen is None else seen
                shape_seen = base_seen + np.einsum("kij,k->ij", seen, coefficients)
            u, values, vt = np.linalg.svd(shape_seen)
            sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
            turn = (u * sign) @ vt * ((values * sign).sum() / size)
            middle = base_middle + coefficients @ self._modes_mean
            coefficients = self._solve(np.einsum("mij,ij->m", read, turn) + self._reader_sum @ middle - still)
        return coefficients, base + np.einsum("kni,k->ni", self._modes, coefficients)

    def _read(self, shape: Array) -> Array:
        return np.asarray(np.einsum("mni,ni->m", self._reader, shape))

    def _solve(self, right: Array) -> Array:
        if self._free:
            return right
        return self._bounded(self._reduced, right, (-self._limit, self._limit)).x[: len(self._modes)]


def _rows(modes: Array) -> NDArray[np.float32]:
    """``[n, N, 3]`` as ``[3n, N]``, for `_products`."""
    return modes.transpose(0, 2, 1).reshape(-1, modes.shape[1]).astype(np.float32)


def _products(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> Array:
    """``modeᵀ x`` for every mode, ``[n, 3, 3]``: in float32, as the points are; by einsum, as BLAS starts threads."""
    return np.einsum("kn,jn->kj", rows, columns).reshape(-1, 3, 3).astype(np.float64)


def similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale ``[B]``, rotation ``[B, 3, 3]`` and shift ``[B, 3]`` with ``target ≈ s R source + t`` in the least-squares
    sense, for points ``[B, N, 3]``; never a reflection (Umeyama 1991).
    """
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    a, b = source - source_mean, target - target_mean
    u, values, vt = torch.linalg.svd(b.mT @ a)
    sign = torch.ones_like(values)
    sign[:, 2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[:, None]) @ vt
    scale = (values * sign).sum(1) / a.square().sum((1, 2))
    shift = target_mean - scale[:, None, None] * source_mean @ rotation.mT
    return scale, rotation, shift[:, 0]


def align(source: Tensor, target: Tensor) -> Tensor:
    """`source` ``[B, N, 3]`` moved onto `target` by the `similarity` between them (Procrustes)."""
    scale, rotation, shift = similarity(source, target)
    return scale[:, None, None] * source @ rotation.mT + shift[:, None]


def affine_camera(shape: Tensor, points: Tensor) -> Camera:
    """The camera of the affine map of least squares from a shape ``[B, N, 3]`` to its image ``[B, N, 3]``.

    ``P = argmin |P [shape; 1] - points|²``; with r1, r2 the first rows of P, the scale is their mean length and the
    rotation the one nearest to (r1/|r1|, r2/|r2|, r1×r2). Depths of the points take no part in either.
    """
    shapes = shape.expand(len(points), -1, -1).double().cpu().numpy()
    return _cameras(shapes, points.double().cpu().numpy(), points)


def _cameras(shapes: Iterable[Array], points: Array, like: Tensor) -> Camera:
    """The cameras of several faces, on the device of `like` and in its dtype."""
    found = [_affine_camera(*pair) for pair in zip(shapes, points, strict=True)]
    scale, rotation, translation = (torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))
    return Camera(scale.to(like), rotation_vector(rotation).to(like), translation.to(like))


def _affine_camera(shape: Array, points: Array) -> tuple[Array, Array, Array]:
    """Scale, rotation ``[3, 3]`` and translation ``[3]`` of one face ``[N, 3]``."""
    middle, image_middle = shape.mean(0), points.mean(0)
    a = shape - middle
    squares, products = (np.einsum("ni,nj->ij", a, b) for b in (a, points - image_middle))
    linear = products.T @ np.linalg.pinv(squares)
    rows = linear[:2] * [[1], [-1]]  # the image's y runs down
    lengths = np.sqrt((rows * rows).sum(1))
    (a1, a2, a3), (b1, b2, b3) = rows / lengths[:, None]
    u, _, vt = np.linalg.svd([[a1, a2, a3], [b1, b2, b3], [a2 * b3 - a3 * b2, a3 * b1 - a1 * b3, a1 * b2 - a2 * b1]])
    scale, rotation = lengths.mean(), u @ vt
    return scale, rotation, image_middle - scale * (rotation @ middle) * [1, -1, -1]


def transfer_dense(model: MorphableModel, reference: MorphableModel) -> MorphableModel:
    """`model` with the dense points of `reference`: each at the vertex nearest to it, the 68 landmarks laid over each
    other by a similarity first.

    Raises:
        ValueError: 68 landmarks missing in either, or dense points in `reference`.
    """
    if model.landmarks68 is None or reference.landmarks68 is None or reference.dense is None:
        raise ValueError("transfer_dense needs landmarks68 in both models and dense points in the reference")
    source, target = reference.landmarks68.of(reference.mean), model.landmarks68.of(model.mean)
    scale, rotation, shift = (part[0] for part in similarity(source[None], target[None]))
    points = scale * reference.dense.of(reference.mean) @ rotation.T + shift
    return replace(model, dense=SurfacePoints.at(torch.cdist(points, model.mean).argmin(1)))
