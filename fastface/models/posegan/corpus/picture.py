"""A clip to look at: curves under the waveform, and the mouth that they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastface import ops
from fastface._files import replacing
from fastface.audio.sound import SAMPLE_RATE
from fastface.face.camera import Camera
from fastface.face.loaders import built_in_head
from fastface.models.posegan.corpus.format import Clip

_INSTALL = "drawing a clip needs matplotlib: pip install 'fastface-kernels[demo]'"
_CURVES = ("jaw_open", "pucker", "funnel", "stretch_left", "lips_press")
_SIDE, _COLUMNS, _ROWS = 150, 12, 4
_HEIGHT, _CENTRE = 9.0, (0.0, -4.2, 0.0)  # cm around the mouth that a tile shows


def draw_clip(clip: Clip, path: Path) -> None:
    """Write a picture of a clip: its sound with the closures, the opening and some modes, the pose, and the mouth in
    frames at equal distances.

    Raises:
        ValueError: a clip of another face than the built-in head.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    head = built_in_head()
    if clip.expression.shape[1] != head.expressions:
        raise ValueError(f"expression must be [T, {head.expressions}], got {list(clip.expression.shape)}")
    figure = Figure(figsize=(18, 14), layout="constrained")
    sound, mouth, pose, faces = figure.subplots(4, 1, height_ratios=(1, 1.4, 1, 3))
    time = np.arange(len(clip.pose)) / clip.fps
    sound.plot(np.arange(len(clip.samples)) / SAMPLE_RATE, clip.samples, lw=0.4, color="grey")
    if clip.closed is not None:
        for at in time[clip.closed]:
            for axes in (sound, mouth):
                axes.axvspan(at - 0.5 / clip.fps, at + 0.5 / clip.fps, color="tab:red", alpha=0.2)
    if clip.opening is not None:
        mouth.plot(time, clip.opening, "k", lw=2, label="opening")
    for name in _CURVES:
        mouth.plot(time, clip.expression[:, head.expression_names.index(name)], label=name)
    mouth.legend(ncols=6, loc="upper right")
    for name, values in zip(("pitch", "yaw", "roll"), np.degrees(clip.pose[:, :3]).T, strict=True):
        pose.plot(time, values, label=f"{name}, degrees")
    pose.legend(ncols=3, loc="upper right")
    for axes in (sound, mouth, pose):
        axes.set_xlim(0, clip.seconds)
    shown = np.linspace(0, len(clip.pose) - 1, min(len(clip.pose), _COLUMNS * _ROWS)).astype(int)
    faces.imshow(_tiles(clip, shown))
    faces.set_axis_off()
    faces.set_title("frames " + " ".join(map(str, shown)), fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80)


def _tiles(clip: Clip, frames: NDArray[np.intp]) -> NDArray[np.float32]:
    """The mouth in those frames, ``[rows · side, columns · side, 3]``, a red bar where the lips must meet."""
    head = built_in_head()
    tiles = np.ones((_ROWS * _COLUMNS, _SIDE, _SIDE, 3), dtype=np.float32)
    middle = (_SIDE - 1) / 2
    camera = Camera(torch.tensor([_SIDE / _HEIGHT]), torch.zeros(1, 3), torch.tensor([[middle, middle, 0.0]]))
    for tile, frame in enumerate(frames):
        shape = head.shape(expression=torch.from_numpy(clip.expression[frame : frame + 1])) - torch.tensor(_CENTRE)
        corners = shape[0, head.triangles.long()]  # [T, 3, 3]
        normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        light = torch.nn.functional.normalize(normal, dim=1) @ torch.tensor([-0.3, 0.5, 0.81])
        skin = (0.25 + 0.75 * light.clamp(min=0))[:, None] * torch.tensor([0.87, 0.78, 0.73])
        drawn = ops.rasterize(camera.project(shape), head.triangles, skin, (_SIDE, _SIDE))
        tiles[tile] = torch.where(drawn.triangle[:, None] < 0, 1.0, drawn.image)[0].permute(1, 2, 0).clamp(0, 1).numpy()
        if clip.closed is not None and clip.closed[frame]:
            tiles[tile, :6] = (0.8, 0.1, 0.1)  # a bar
    rows = tiles.reshape(_ROWS, _COLUMNS, _SIDE, _SIDE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(rows.reshape(_ROWS * _SIDE, _COLUMNS * _SIDE, 3))
