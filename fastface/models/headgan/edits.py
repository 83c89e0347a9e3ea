"""Changes to the parameters of a face: turned, brought to the front, with another expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fastface.face import Camera, FaceParameters, MorphableModel, rotation_matrix, rotation_vector
from fastface.face.camera import FLIP
from fastface.models import lifted

__all__ = ["express", "frontal", "turn"]


def turn(
    parameters: FaceParameters, model: MorphableModel, *, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0
) -> FaceParameters:
    """The same face turned further, about the neck: degrees as in `fastface.models.lifted.Motion.rotation`."""
    flip = parameters.expression.new_tensor(FLIP)
    added = flip[:, None] * lifted.rotation_matrix(torch.tensor([[yaw, pitch, roll]])) * flip
    return _with_rotation(parameters, model, added @ rotation_matrix(parameters.camera.rotation))


def frontal(parameters: FaceParameters, model: MorphableModel) -> FaceParameters:
    """The same face looking straight ahead."""
    straight = torch.eye(3).expand(len(parameters.camera), 3, 3)
    return _with_rotation(parameters, model, straight)


def express(parameters: FaceParameters, model: MorphableModel, changes: Mapping[str, float]) -> FaceParameters:
    """The same face with expression coefficients changed by so much, each by its name or its index.

    Raises:
        ValueError: a name or an index that the model does not have.
    """
    expression = parameters.expression.clone()
    for key, value in changes.items():
        if key in model.expression_names:
            index = model.expression_names.index(key)
        elif key.isdecimal() and int(key) < model.expressions:
            index = int(key)
        else:
            names = ", ".join(f"{i} {name}" for i, name in enumerate(model.expression_names))
            raise ValueError(f"expression must be from 0 to {model.expressions - 1} ({names}), got {key!r}")
        expression[:, index] += value
    return replace(parameters, expression=expression)


def _with_rotation(parameters: FaceParameters, model: MorphableModel, rotation: Tensor) -> FaceParameters:
    """The rotation replaced, the middle of the neck where it was."""
    camera, pivot = parameters.camera, _neck(model)
    turned = Camera(camera.scale, rotation_vector(rotation), camera.translation)
    shift = camera.project(pivot)[:, 0] - turned.project(pivot)[:, 0]
    return replace(parameters, camera=replace(turned, translation=camera.translation + shift))


def _neck(model: MorphableModel) -> Tensor:
    """A point in the neck ``[1, 1, 3]``, below and behind the middle of the face by shares of its width."""
    assert model.dense is not None
    face = model.dense.of(model.mean)
    width = face[:, 0].max() - face[:, 0].min()
    return (face.mean(0) + width * torch.tensor([0.0, -0.35, -0.45]))[None, None]
