"""How LivePortrait's public checkpoints name what our modules hold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastface.checkpoints import Layout, register, shape_of
from fastface.models.live_portrait.networks import KeypointMLP, MotionConfig, MotionExtractor
from fastface.models.style_mapping.layouts import (
    appearance_of,
    appearance_renames,
    decoder_of,
    decoder_renames,
    warping_of,
    warping_renames,
)

_HEADS = {
    "kp": "keypoints",
    "scale": "scale",
    "pitch": "pitch",
    "yaw": "yaw",
    "roll": "roll",
    "t": "translation",
    "exp": "expression",
}


def _motion(state: Mapping[str, Tensor]) -> MotionExtractor:
    stem = shape_of(state, "downsample_layers.0.0.weight", 4)[0]
    widths = [stem, *(shape_of(state, f"downsample_layers.{i}.1.weight", 4)[0] for i in (1, 2, 3))]
    depths = [len({name.split(".")[2] for name in state if name.startswith(f"stages.{i}.")}) for i in range(4)]
    return MotionExtractor(
        MotionConfig(
            keypoints=shape_of(state, "keypoints.weight", 2)[0] // 3,
            depths=(depths[0], depths[1], depths[2], depths[3]),
            channels=(widths[0], widths[1], widths[2], widths[3]),
            bins=shape_of(state, "yaw.weight", 2)[0],
        )
    )


def _mlp(state: Mapping[str, Tensor]) -> KeypointMLP:
    """Linear layers are 0, 2, 4, ... of the checkpoint's sequence, 0, 1, 2, ... of ours."""
    shapes = [shape_of(state, f"layers.{i}.weight", 2) for i in range(len(state) // 2)]
    return KeypointMLP(shapes[0][1], tuple(shape[0] for shape in shapes[:-1]), shapes[-1][0])


register(Layout("live_portrait.appearance_feature_extractor", appearance_of, appearance_renames()))
register(Layout("live_portrait.warping_module", warping_of, warping_renames()))
register(Layout("live_portrait.spade_generator", decoder_of, decoder_renames()))
register(
    Layout(
        "live_portrait.motion_extractor",
        _motion,
        [
            *((rf"detector\.fc_{theirs}\.(weight|bias)", rf"{ours}.\1") for theirs, ours in _HEADS.items()),
            (r"detector\.((?:downsample_layers|stages|norm)\..*)", r"\1"),
        ],
    )
)
for _name in ("stitching", "retarget_lip", "retarget_eye"):
    register(
        Layout(
            f"live_portrait.{_name}",
            _mlp,
            [(rf"mlp\.{2 * i}\.(weight|bias)", rf"layers.{i}.\1") for i in range(12)],
        )
    )
