"""Draws docs/animate.jpg, the picture at the top of the README: `python docs/pictures.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import astronaut

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
SIDE = 288


def main() -> None:
    model = Lifted()
    source = model.prepare(astronaut())
    tiles = []
    for motion in MOTIONS:
        frame = model.render(source, Motion.of(**motion))[0].permute(1, 2, 0)  # [H, W, 3]
        picture = Image.fromarray((frame * 255).round().byte().numpy())
        tiles.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    sheet = Image.fromarray(np.concatenate(tiles, axis=1))
    sheet.save(Path(__file__).with_name("animate.jpg"), quality=88)


if __name__ == "__main__":
    main()
