"""Morphable models of the 3D face: a mean mesh, and what identity and expression add to it.

``shape = mean + Σ identity_basis_i · identity_scale_i · p_i + Σ expression_basis_j · expression_scale_j · e_j``, so a
coefficient counts in its mode's own scale: standard deviations of an identity, 1 for a full expression.
Source: Blanz and Vetter, SIGGRAPH 1999; HeadGAN (ICCV 2021), equation (1).

Model space: x to the person's left, y up, z out of the face, in the model's unit. Triangles run counter-clockwise seen
from outside. `fastface.face.camera` says how this becomes an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_MILLIMETRES = {"um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1e3}


@dataclass(frozen=True)
class SurfacePoints:
    """Points on a mesh, each the weighted mean of three of its vertices.

    Attributes:
        vertices: ``[N, 3]`` int64.
        weights: ``[N, 3]`` float32; barycentric, so each row sums to 1.
    """

    vertices: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        if self.vertices.dim() != 2 or self.vertices.shape[1] != 3 or self.vertices.dtype != torch.int64:
            raise ValueError(f"vertices must be [N, 3] int64, got {_describe(self.vertices)}")
        if self.weights.shape != self.vertices.shape:
            raise ValueError(f"weights must be {list(self.vertices.shape)}, got {list(self.weights.shape)}")
        if not torch.allclose(self.weights.sum(1), self.weights.new_ones(()), atol=1e-3):
            raise ValueError(f"each row of weights must sum to 1, got {self.weights.sum(1).aminmax()}")

    @classmethod
    def at(cls, vertices: Sequence[int] | Tensor) -> SurfacePoints:
        """The vertices themselves, by index."""
        index = torch.as_tensor(vertices, dtype=torch.int64)
        return cls(index[:, None].expand(-1, 3).contiguous(), torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(index), 1))

    def __len__(self) -> int:
        return len(self.vertices)

    def of(self, values: Tensor) -> Tensor:
        """The points of a shape, ``[..., V, 3]`` to ``[..., N, 3]``."""
        corners = values[..., self.vertices.flatten(), :].unflatten(-2, (-1, 3))  # [..., N, 3, 3]
        return (corners * self.weights[:, :, None]).sum(-2)

    def to(self, device: torch.device | str) -> SurfacePoints:
        return SurfacePoints(self.vertices.to(device), self.weights.to(device))


@dataclass(frozen=True)
class MorphableModel:
    """A morphable model, as tensors.

    Attributes:
        mean: ``[V, 3]`` float32.
        identity_basis, expression_basis: ``[V, 3, I]`` and ``[V, 3, E]``; I or E may be 0.
        identity_scale, expression_scale: ``[I]`` and ``[E]``, what a coefficient of 1 is worth.
        triangles: ``[T, 3]`` int32.
        unit: of length, such as "mm".
        licence: under which the model may be used; it is kept in every file.
        landmarks68: the 68 points of Multi-PIE, where known.
        dense: points in the order of a dense detector, where known: MediaPipe's 468.
        identity_names, expression_names: one a mode, or empty.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, indices beyond the mesh.
    """

    mean: Tensor
    identity_basis: Tensor
    identity_scale: Tensor
    expression_basis: Tensor
    expression_scale: Tensor
    triangles: Tensor
    unit: str
    licence: str
    landmarks68: SurfacePoints | None = None
    dense: SurfacePoints | None = None
    identity_names: tuple[str, ...] = ()
    expression_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mean.dim() != 2 or self.mean.shape[1] != 3:
            raise ValueError(f"mean must be [V, 3], got {list(self.mean.shape)}")
        vertices = len(self.mean)
        for kind in ("identity", "expression"):
            basis, scale = getattr(self, f"{kind}_basis"), getattr(self, f"{kind}_scale")
            if basis.dim() != 3 or basis.shape[:2] != (vertices, 3):
                raise ValueError(f"{kind}_basis must be [{vertices}, 3, modes], got {list(basis.shape)}")
            if scale.shape != basis.shape[2:]:
                raise ValueError(f"{kind}_scale must be [{basis.shape[2]}], got {list(scale.shape)}")
            names = getattr(self, f"{kind}_names")
            if names and len(names) != basis.shape[2]:
                raise ValueError(f"{kind}_names must be {basis.shape[2]} names, got {len(names)}")
        for name, tensor in self.tensors():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"{name} must be finite")
        check_indices("triangles", self.triangles, vertices)
        for name, points, count in (("landmarks68", self.landmarks68, 68), ("dense", self.dense, None)):
            if points is not None:
                check_indices(name, points.vertices, vertices)
                if count is not None and len(points) != count:
                    raise ValueError(f"{name} must be {count} points, got {len(points)}")

    @property
    def millimetres(self) -> float:
        """In one `unit`. Raises ValueError for a unit of no known length."""
        if self.unit not in _MILLIMETRES:
            known = ", ".join(_MILLIMETRES)
            raise ValueError(f"the face model's unit must be one of {known}, got {self.unit!r}")
        return _MILLIMETRES[self.unit]

    @property
    def identities(self) -> int:
        """The number of identity coefficients."""
        return int(self.identity_basis.shape[2])

    @property
    def expressions(self) -> int:
        """The number of expression coefficients."""
        return int(self.expression_basis.shape[2])

    @cached_property
    def content_hash(self) -> str:
        """The SHA-256 of every tensor: coefficients mean something only on the basis that has the same one."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors():
            digest.update(f"{name} {list(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def shape(self, identity: Tensor | None = None, expression: Tensor | None = None) -> Tensor:
        """The mesh ``[B, V, 3]`` of coefficients ``[B, I]`` and ``[B, E]``; None is zero, and a batch of 1 serves all.

        Raises ValueError for other shapes.
        """
        shape = self.mean[None]
        for name, values, basis, scale in (
            ("identity", identity, self.identity_basis, self.identity_scale),
            ("expression", expression, self.expression_basis, self.expression_scale),
        ):
            if values is not None:
                check_coefficients(name, values, len(scale))
                shape = shape + ((values * scale) @ basis.flatten(0, 1).T).unflatten(1, (-1, 3))
        return shape

    def to(self, device: torch.device | str) -> MorphableModel:
        """The same model on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if hasattr(getattr(self, f.name), "to")}
        return replace(self, **moved)

    def cropped(self, vertices: int | Tensor) -> MorphableModel:
        """The part of the mesh on some vertices: the first so many, or those of an index ``[N]``.

        Triangles and landmarks that need any other vertex go, all 68 or all dense ones where one is missing. Modes are
        not orthogonal on a part even where they were on the whole; `orthonormal` makes them so.
        """
        kept = torch.arange(vertices) if isinstance(vertices, int) else vertices
        check_indices("vertices", kept, len(self.mean))
        renamed = torch.full((len(self.mean),), -1, dtype=torch.int64)
        renamed[kept] = torch.arange(len(kept))
        triangles = renamed[self.triangles.long()]

        def rename(points: SurfacePoints | None) -> SurfacePoints | None:
            if points is None or bool((renamed[points.vertices] < 0).any()):
                return None
            return SurfacePoints(renamed[points.vertices], points.weights)

        return replace(
            self,
            mean=self.mean[kept],
            identity_basis=self.identity_basis[kept],
            expression_basis=self.expression_basis[kept],
            triangles=triangles[(triangles >= 0).all(1)].int(),
            landmarks68=rename(self.landmarks68),
            dense=rename(self.dense),
        )

    def orthonormal(self, identities: int | None = None, expressions: int | None = None) -> MorphableModel:
        """Orthonormal bases that span the same shapes, and the strongest modes of them only where counts are given.

        Coefficients of unit variance keep the covariance of the shapes: with ``B = U S Vᵀ`` for the scaled basis B, the
        new basis is U and its scale S. 53 expressions become HeadGAN's 28 with ``expressions=28``.
        """
        parts: dict[str, Any] = {}
        for kind, count in (("identity", identities), ("expression", expressions)):
            basis, scale = getattr(self, f"{kind}_basis"), getattr(self, f"{kind}_scale")
            if count is not None and not 0 <= count <= len(scale):
                raise ValueError(f"{kind} modes must be at most {len(scale)}, got {count}")
            u, s, _ = torch.linalg.svd((basis * scale).flatten(0, 1).double(), full_matrices=False)
            parts[f"{kind}_basis"] = u[:, :count].float().unflatten(0, (-1, 3)).contiguous()
            parts[f"{kind}_scale"] = s[:count].float()
            parts[f"{kind}_names"] = ()
        return replace(self, **parts)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, those of landmarks as `landmarks68.vertices` and so on."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value
            elif isinstance(value, SurfacePoints):
                yield f"{field.name}.vertices", value.vertices
                yield f"{field.name}.weights", value.weights


def pncc_colors(model: MorphableModel) -> Tensor:
    """The colour ``[T, 3]`` in [0, 1] of each triangle: where its centre lies in the mean face.

    ``(x̄ - min) / (max - min)`` for each axis, min and max over the vertices of the triangles: the projected normalised
    coordinate code (Zhu et al., CVPR 2016) as HeadGAN, section 4.1, draws it.
    """
    corners = model.mean[model.triangles.long()]  # [T, 3 corners, 3]
    low, high = corners.amin((0, 1)), corners.amax((0, 1))
    return (corners.mean(1) - low) / (high - low)


def check_coefficients(name: str, values: Tensor, count: int, batch: int | None = None) -> None:
    """Raises ValueError for anything but ``[B, count]``, and for a B other than 1 or `batch`."""
    if values.dim() != 2 or values.shape[1] != count or batch not in (None, len(values)) and len(values) != 1:
        expected = "B" if batch is None else f"1 or {batch}"
        raise ValueError(f"{name} must be [{expected}, {count}], got {list(values.shape)}")


def check_indices(name: str, index: Tensor, count: int) -> None:
    """Raises ValueError for anything but whole numbers in [0, count)."""
    if index.is_floating_point() or index.numel() and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise ValueError(f"{name} must be indices of {count} vertices, got {_describe(index)}")


def _describe(tensor: Tensor) -> str:
    bounds = f" in [{tensor.min().item()}, {tensor.max().item()}]" if tensor.numel() else ""
    return f"{list(tensor.shape)} {tensor.dtype}{bounds}"
