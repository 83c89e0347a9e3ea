"""Small models for tests: random modes on a bumpy ellipsoid."""

from __future__ import annotations

import torch

from fastface.face import MorphableModel, SurfacePoints


def random_model(vertices: int = 60, identities: int = 5, expressions: int = 4, seed: int = 0) -> MorphableModel:
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(vertices, 3, generator=g) * torch.tensor([7.0, 9.0, 8.0])
    return MorphableModel(
        mean=mean,
        identity_basis=torch.randn(vertices, 3, identities, generator=g),
        identity_scale=torch.rand(identities, generator=g) + 0.2,
        expression_basis=torch.randn(vertices, 3, expressions, generator=g),
        expression_scale=torch.rand(expressions, generator=g) + 0.2,
        triangles=torch.randint(vertices, (2 * vertices, 3), generator=g).int(),
        unit="cm",
        licence="none: random",
        landmarks68=SurfacePoints.at(torch.randint(vertices, (68,), generator=g)),
        dense=SurfacePoints.at(torch.arange(vertices - 3)),
        identity_names=tuple(f"identity {i}" for i in range(identities)),
    )
