"""How the public checkpoints of the face-vid2vid family name what our modules hold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastface.checkpoints import Layout, register, shape_of
from fastface.models.style_mapping.generator import (
    AppearanceConfig,
    AppearanceEncoder,
    DecoderConfig,
    IntermediateGenerator,
    ResidualDecoder,
    SPADEDecoder,
)
from fastface.models.style_mapping.keypoints import KeypointConfig, KeypointDetector
from fastface.models.style_mapping.pose import PoseConfig, PoseExpressionNetwork
from fastface.models.style_mapping.warping import WarpingConfig, WarpingNetwork

__all__ = ["appearance_of", "appearance_renames", "decoder_of", "decoder_renames", "warping_of", "warping_renames"]

_ENTRY = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def appearance_renames(prefix: str = "") -> list[tuple[str, str]]:
    """From the checkpoint's names to those of `AppearanceEncoder` behind `prefix`."""
    return [
        (rf"first\.(conv|norm)\.{_ENTRY}", rf"{prefix}first.\1.\2"),
        (rf"down_blocks\.(\d+)\.(conv|norm)\.{_ENTRY}", rf"{prefix}down_blocks.\1.\2.\3"),
        (rf"second\.{_ENTRY}", rf"{prefix}second.\1"),
        (rf"resblocks_3d\.3dr(\d+)\.(conv1|conv2|norm1|norm2)\.{_ENTRY}", rf"{prefix}blocks.\1.\2.\3"),
    ]


def warping_renames(prefix: str = "") -> list[tuple[str, str]]:
    """From the checkpoint's names to those of `WarpingNetwork` behind `prefix`."""
    motion, ours = r"dense_motion_network\.", f"{prefix}dense_motion."
    return [
        (
            rf"{motion}hourglass\.encoder\.down_blocks\.(\d+)\.(conv|norm)\.{_ENTRY}",
            rf"{ours}hourglass.encoder.\1.\2.\3",
        ),
        (rf"{motion}hourglass\.decoder\.up_blocks\.(\d+)\.(conv|norm)\.{_ENTRY}", rf"{ours}hourglass.decoder.\1.\2.\3"),
        (rf"{motion}hourglass\.decoder\.(conv|norm)\.{_ENTRY}", rf"{ours}hourglass.\1.\2"),
        (rf"{motion}norm\.{_ENTRY}", rf"{ours}compress_norm.\1"),
        (rf"{motion}(mask|compress|occlusion)\.{_ENTRY}", rf"{ours}\1.\2"),
        (rf"third\.(conv|norm)\.{_ENTRY}", rf"{prefix}third.\1.\2"),
        (rf"fourth\.{_ENTRY}", rf"{prefix}fourth.\1"),
    ]


def decoder_renames(theirs: str = "", prefix: str = "") -> list[tuple[str, str]]:
    """From the checkpoint's names behind `theirs`, a pattern, to those of `SPADEDecoder` behind `prefix`."""
    renames = [(rf"{theirs}fc\.{_ENTRY}", rf"{prefix}fc.\1")]
    for block, ours in ((r"G_middle_(\d+)", r"middle.\1"), (r"(up_[01])", r"\1")):
        renames += [
            (rf"{theirs}{block}\.(conv_[01s])\.{_ENTRY}", rf"{prefix}{ours}.\2.\3"),
            (rf"{theirs}{block}\.(norm_[01s])\.mlp_shared\.0\.{_ENTRY}", rf"{prefix}{ours}.\2.shared.\3"),
            (rf"{theirs}{block}\.(norm_[01s])\.mlp_(gamma|beta)\.{_ENTRY}", rf"{prefix}{ours}.\2.\3.\4"),
        ]
    return [*renames, (rf"{theirs}conv_img(?:\.0)?\.{_ENTRY}", rf"{prefix}to_image.\1")]


def _count(state: Mapping[str, Tensor], start: str) -> int:
    """Of the numbered parts behind `start`."""
    return len({name[len(start) :].partition(".")[0] for name in state if name.startswith(start)})


def appearance_of(state: Mapping[str, Tensor], prefix: str = "") -> AppearanceEncoder:
    """The encoder whose shapes a renamed state dict has."""
    block, _, kernel, _ = shape_of(state, f"{prefix}first.conv.weight", 4)
    volume = shape_of(state, f"{prefix}second.weight", 4)[0]
    channels = shape_of(state, f"{prefix}blocks.0.conv1.weight", 5)[0]
    downs, blocks = _count(state, f"{prefix}down_blocks."), _count(state, f"{prefix}blocks.")
    return AppearanceEncoder(AppearanceConfig(block, downs, channels, volume // channels, blocks, kernel))


def warping_of(state: Mapping[str, Tensor], prefix: str = "") -> WarpingNetwork:
    """The warping network whose shapes a renamed state dict has."""
    motion = f"{prefix}dense_motion."
    compressed, channels = shape_of(state, f"{motion}compress.weight", 5)[:2]
    features, folded = shape_of(state, f"{prefix}third.conv.weight", 4)[:2]
    blocks = _count(state, f"{motion}hourglass.encoder.")
    widest = shape_of(state, f"{motion}hourglass.encoder.{blocks - 1}.conv.weight", 5)[0]
    return WarpingNetwork(
        WarpingConfig(
            keypoints=shape_of(state, f"{motion}mask.weight", 5)[0] - 1,
            channels=channels,
            depth=folded // channels,
            compressed=compressed,
            block=shape_of(state, f"{motion}hourglass.decoder.{blocks - 1}.conv.weight", 5)[0],
            widest=widest,
            blocks=blocks,
            features=features,
        )
    )


def decoder_of(state: Mapping[str, Tensor], prefix: str = "") -> SPADEDecoder:
    """The SPADE decoder whose shapes a renamed state dict has."""
    wide, features = shape_of(state, f"{prefix}fc.weight", 4)[:2]
    middle = shape_of(state, f"{prefix}up_0.conv_1.weight", 4)[0]
    colours, narrow = shape_of(state, f"{prefix}to_image.weight", 4)[:2]
    upscale = {3: 1, 12: 2, 48: 4}.get(colours)
    if upscale is None:
        raise ValueError(f"{prefix}to_image.weight must have 3, 12 or 48 outputs, got {colours}")
    hidden = shape_of(state, f"{prefix}up_0.norm_0.shared.weight", 4)[0]
    blocks = _count(state, f"{prefix}middle.")
    return SPADEDecoder(DecoderConfig(features, (wide, middle, narrow), blocks, hidden, upscale))


def _generator(state: Mapping[str, Tensor]) -> IntermediateGenerator:
    """SPADE's decoder or, in the oldest weights, the residual one."""
    encoder, warping = appearance_of(state, "encoder."), warping_of(state, "warping.")
    if "decoder.fc.weight" in state:
        return IntermediateGenerator(encoder, warping, decoder_of(state, "decoder."))
    features = shape_of(state, "decoder.blocks.0.conv1.weight", 4)[0]
    decoder = ResidualDecoder(features, _count(state, "decoder.blocks."), _count(state, "decoder.up_blocks."))
    return IntermediateGenerator(encoder, warping, decoder)


def _keypoints(state: Mapping[str, Tensor]) -> KeypointDetector:
    widest = shape_of(state, "lift.weight", 4)
    ups = _count(state, "decoder.")
    widths = [shape_of(state, f"decoder.{i}.conv.weight", 5)[0] for i in range(ups)]
    shrink = 1
    if "shrink.weight" in state:  # 2 round(2 (s - 1)) + 1 pixels wide
        shrink = (shape_of(state, "shrink.weight", 4)[-1] - 1) // 4 + 1
    return KeypointDetector(
        KeypointConfig(
            keypoints=shape_of(state, "to_heatmaps.weight", 5)[0],
            channels=(widest[1], *widths),
            depth=widest[0] // widest[1],
            shrink=shrink,
        )
    )


def _pose(state: Mapping[str, Tensor]) -> PoseExpressionNetwork:
    widths = [shape_of(state, f"widen.{i}.weight", 4)[0] for i in range(4)]
    counts = [_count(state, f"stages.{i}.") - (i > 0) for i in range(4)]
    return PoseExpressionNetwork(
        PoseConfig(
            keypoints=shape_of(state, "expression.weight", 2)[0] // 3,
            stem=shape_of(state, "stem.weight", 4)[0],
            channels=(widths[0], widths[1], widths[2], widths[3]),
            blocks=(counts[0], counts[1], counts[2], counts[3]),
            bins=shape_of(state, "yaw.weight", 2)[0],
        )
    )


def _pose_renames() -> list[tuple[str, str]]:
    renames = [(rf"conv1\.{_ENTRY}", r"stem.\1"), (rf"norm1\.{_ENTRY}", r"stem_norm.\1")]
    for stage in range(4):
        renames += [
            (rf"conv{stage + 2}\.{_ENTRY}", rf"widen.{stage}.\1"),
            (rf"norm{stage + 2}\.{_ENTRY}", rf"widen_norm.{stage}.\1"),
        ]
    # Odd blocks are lists of bottlenecks, even ones the strided bottleneck before the next list.
    blocks = [(rf"block1\.b1_{i}", f"stages.0.{i}") for i in range(10)]
    for stage in (1, 2, 3):
        blocks.append((rf"block{2 * stage}", f"stages.{stage}.0"))
        number = 2 * stage + 1
        blocks += [(rf"block{number}\.b{number}_{i}", f"stages.{stage}.{i + 1}") for i in range(10)]
    for theirs, ours in blocks:
        renames += [
            (rf"{theirs}\.(conv[123]|norm[123]|skip)\.{_ENTRY}", rf"{ours}.\1.\2"),
            (rf"{theirs}\.norm4\.{_ENTRY}", rf"{ours}.skip_norm.\1"),
        ]
    # The layer called roll gives the yaw, and the other way about.
    for theirs, ours in (
        ("pitch", "pitch"),
        ("roll", "yaw"),
        ("yaw", "roll"),
        ("t", "translation"),
        ("exp", "expression"),
    ):
        renames.append((rf"fc_{theirs}\.{_ENTRY}", rf"{ours}.\1"))
    return renames


def _residual_renames() -> list[tuple[str, str]]:
    return [
        (rf"resblocks_2d\.2dr(\d+)\.(conv1|conv2|norm1|norm2)\.{_ENTRY}", r"decoder.blocks.\1.\2.\3"),
        (rf"up_blocks\.(\d+)\.(conv|norm)\.{_ENTRY}", r"decoder.up_blocks.\1.\2.\3"),
        (rf"final\.{_ENTRY}", r"decoder.to_image.\1"),
    ]


register(
    Layout(
        "face_vid2vid.generator",
        _generator,
        [
            *appearance_renames("encoder."),
            *warping_renames("warping."),
            *decoder_renames(r"decoder\.", "decoder."),
            *_residual_renames(),
        ],
        part="generator",
    )
)
register(
    Layout(
        "face_vid2vid.kp_detector",
        _keypoints,
        [
            (r"down\.weight", "shrink.weight"),
            (rf"predictor\.down_blocks\.down(\d+)\.(conv|norm)\.{_ENTRY}", r"encoder.\1.\2.\3"),
            (rf"predictor\.conv\.{_ENTRY}", r"lift.\1"),
            (rf"predictor\.up_blocks\.up(\d+)\.(conv|norm)\.{_ENTRY}", r"decoder.\1.\2.\3"),
            (rf"kp\.{_ENTRY}", r"to_heatmaps.\1"),
        ],
        part="kp_detector",
    )
)
register(Layout("face_vid2vid.he_estimator", _pose, _pose_renames(), part="he_estimator"))
