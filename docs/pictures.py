"""Draws docs/animate.jpg, the picture at the top of the README, and docs/headgan.jpg: `python docs/pictures.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import astronaut
from torch import Tensor

from fastface.models.headgan import HeadGAN, HeadGANMotion
from fastface.models.headgan.edits import express, turn
from fastface.models.lifted import Lifted, Motion

# The portrait itself, then what the model makes of it.
MOTIONS = (
    {},
    {"yaw": -15},
    {"yaw": 15, "smile": 0.3},
    {"pitch": 9, "blink_left": 1, "blink_right": 1},
    {"roll": 12, "jaw_open": 0.3},
    {"yaw": 8, "jaw_open": 0.8, "brow_raise": 0.6},
)
# Turns and expressions of the 3D face, above the frames that come of them.
FACES = (
    ({}, {}),
    ({"yaw": -18}, {}),
    ({"yaw": 18}, {"smile_left": 0.5, "smile_right": 0.5}),
    ({"pitch": 10}, {"brow_up_left": 0.8, "brow_up_right": 0.8}),
    ({"roll": -12}, {"jaw_open": 0.5}),
    ({"yaw": 10}, {"pucker": 0.8, "blink_left": 0.9, "blink_right": 0.9}),
)
SIDE = 288


def tile(frame: Tensor) -> np.ndarray:
    """``[1, 3, H, W]`` in [0, 1] to ``[SIDE, SIDE, 3]``."""
    picture = Image.fromarray((frame[0].permute(1, 2, 0) * 255).round().byte().numpy())
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def save(rows: list[list[np.ndarray]], name: str) -> None:
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(sheet).save(Path(__file__).with_name(name), quality=88)


def main() -> None:
    model = Lifted()
    source = model.prepare(astronaut())
    save([[tile(model.render(source, Motion.of(**motion))) for motion in MOTIONS]], "animate.jpg")

    system = HeadGAN(size=512)
    portrait = system.prepare(astronaut())
    faces, frames = [], []
    for angles, expression in FACES:
        moved = turn(express(portrait.parameters, system.model, expression), system.model, **angles)
        motion = HeadGANMotion.of(moved)
        faces.append(tile(system.draw(portrait, motion)))
        frames.append(tile(system.render(portrait, motion)))
    save([faces, frames], "headgan.jpg")


if __name__ == "__main__":
    main()
