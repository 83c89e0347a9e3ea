"""How LivePortrait's public checkpoints name what our modules hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def _mlp(what: str, fits: Callable[[int, int], bool]) -> Callable[[Mapping[str, Tensor]], KeypointMLP]:
    """Linear layers are 0, 2, 4, ... of the checkpoint's sequence, 0, 1, 2, ... of ours."""

    def build(state: Mapping[str, Tensor]) -> KeypointMLP:
        count = len({name.split(".")[1] for name in state})
        shapes = [shape_of(state, f"layers.{i}.weight", 2) for i in range(count)]
        inputs, outputs = shapes[0][1], shapes[-1][0]
        if not fits(inputs, outputs):
            raise ValueError(f"of K keypoints {what}, got {inputs} to {outputs}")
        return KeypointMLP(inputs, tuple(shape[0] for shape in shapes[:-1]), outputs)

    return build


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
for _name, _part, _what, _fits in (
    ("stitching", "retarget_shoulder", "it takes 6 K numbers to 3 K + 2", lambda n, m: n == 2 * (m - 2)),
    ("retarget_lip", "retarget_mouth", "it takes 3 K + 2 numbers to 3 K", lambda n, m: n == m + 2),
    ("retarget_eye", "retarget_eye", "it takes 3 K + 3 numbers to 3 K", lambda n, m: n == m + 3),
):
    register(
        Layout(
            f"live_portrait.{_name}",
            _mlp(_what, _fits),
            [(rf"mlp\.{2 * i}\.(weight|bias)", rf"layers.{i}.\1") for i in range(12)],
            part=_part,
        )
    )
