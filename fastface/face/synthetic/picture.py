"""A sheet of pictures of a head: views, people, expressions, and its colours as HeadGAN draws them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from fastface import ops
from fastface.face.camera import Camera
from fastface.face.model import MorphableModel, pncc_colors

_SIDE, _SAMPLES = 200, 2  # pixels of a tile; samples across a pixel
_LIGHT = torch.nn.functional.normalize(torch.tensor([-0.35, 0.5, 0.8]), dim=0)
_SKIN = torch.tensor([0.87, 0.78, 0.73])
_EXPRESSIONS = (
    {"smile_left": 1, "smile_right": 1}, {"jaw_open": 0.8}, {"pucker": 1}, {"blink_left": 1, "blink_right": 1},
    {"brow_up_left": 1, "brow_up_right": 1, "eyes_wide": 1}, {"cheek_puff": 1, "brow_down": 1},
)  # fmt: skip


def draw_sheet(model: MorphableModel, path: str | Path) -> None:
    """Write the picture, four rows of six tiles."""
    from PIL import Image

    neutral = model.shape()
    people = model.shape(1.3 * torch.randn(6, model.identities, generator=torch.Generator().manual_seed(4)))
    weights = torch.tensor([[face.get(name, 0.0) for name in model.expression_names] for face in _EXPRESSIONS])
    faces = model.shape(expression=weights)
    views = (0, 30, 60, 90, 135, 180)
    rows = [
        [draw_head(model, neutral, yaw=yaw) for yaw in views],
        [draw_head(model, person[None], yaw=20) for person in people],
        [draw_head(model, face[None], yaw=-12, height=19.0, centre=(0.0, -1.0, 0.0)) for face in faces],
        [draw_head(model, neutral, yaw=yaw, colors=pncc_colors(model)) for yaw in views],
    ]
    sheet = torch.cat([torch.cat(row, 2) for row in rows], 1)
    Image.fromarray((sheet.permute(1, 2, 0) * 255).round().byte().numpy()).save(path, quality=85)


def draw_head(
    model: MorphableModel,
    shape: Tensor,
    *,
    yaw: float = 0.0,
    height: float = 33.0,
    centre: tuple[float, float, float] = (0.0, -1.2, -3.0),
    side: int = _SIDE,
    colors: Tensor | None = None,
) -> Tensor:
    """A picture ``[3, side, side]`` in [0, 1] of a shape ``[1, V, 3]``, on white.

    Args:
        model: whose shape it is.
        shape: the mesh.
        yaw: degrees.
        height: of what is seen, about `centre`, in the model's unit: all of the built-in head by default.
        centre: the point in the middle of the picture.
        side: pixels.
        colors: of triangles, ``[T, 3]``; skin under a light by default.
    """
    side *= _SAMPLES
    rotation = torch.tensor([[0.0, math.radians(yaw), 0.0]])
    middle = torch.tensor([[(side - 1) / 2, (side - 1) / 2, 0.0]])
    camera = Camera(torch.tensor([side / height]), rotation, middle)
    vertices = camera.project(shape - shape.new_tensor(centre))
    drawn = ops.rasterize(
        vertices, model.triangles, _shade(vertices, model.triangles) if colors is None else colors, (side, side)
    )
    image = torch.where(drawn.triangle[:, None] < 0, 1.0, drawn.image)
    return torch.nn.functional.avg_pool2d(image, _SAMPLES)[0].clamp(0, 1)


def _shade(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Skin under one light, ``[V, 3]``, by the normals of vertices ``[1, V, 3]`` in the image."""
    corners = triangles.long()
    a, b, c = (vertices[0] * torch.tensor([1.0, -1.0, -1.0]))[corners].unbind(1)
    normals = torch.zeros_like(vertices[0])
    for corner in corners.T:
        normals.index_add_(0, corner, torch.linalg.cross(b - a, c - a))
    light = (torch.nn.functional.normalize(normals, dim=1) @ _LIGHT).clamp(min=0)
    return (0.25 + 0.75 * light)[:, None] * _SKIN
