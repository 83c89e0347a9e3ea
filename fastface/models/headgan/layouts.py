"""How the public checkpoints of HeadGAN name what our modules hold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastface.checkpoints import Layout, register, shape_of
from fastface.models.headgan.discriminator import Discriminator, DiscriminatorConfig
from fastface.models.headgan.generator import Generator, GeneratorConfig


def _generator_renames() -> list[tuple[str, str]]:
    """Blocks of F are three of one kind in our module, two and one in the checkpoint."""
    renames = []
    for encoder, ours in (("flow_network.enc", "flow_network"), ("rendering_network.cond_enc", "rendering_network")):
        theirs = encoder.replace(".", r"\.")
        renames += [
            (rf"{theirs}\.0\.1\.0\.weight", f"{ours}.encoder.layers.0.conv.weight"),
            (rf"{theirs}\.0\.1\.1\.(weight|bias)", rf"{ours}.encoder.layers.0.norm.\1"),
            (rf"{theirs}\.(\d)\.0\.0\.weight", rf"{ours}.encoder.layers.\1.conv.weight"),
            (rf"{theirs}\.(\d)\.0\.1\.(weight|bias)", rf"{ours}.encoder.layers.\1.norm.\2"),
        ]
    blocks = [
        (r"flow_network\.dec_res\.(\d)", r"flow_network.blocks.\1"),
        (r"flow_network\.dec_main\.0()", r"flow_network.blocks.2"),
        (r"flow_network\.dec_main\.1()", r"flow_network.block_middle"),
        (r"rendering_network\.cond_dec\.(\d)", r"rendering_network.spade.\1"),
    ]
    for theirs, block in blocks:
        renames += [
            (theirs + r"\.norm_(\d)\.mlp_shared\.0\.(weight|bias)", block + r".norm\2.shared.\3"),
            (theirs + r"\.norm_(\d)\.mlp_(gamma|beta)\.(weight|bias)", block + r".norm\2.\3.\4"),
            (theirs + r"\.conv_(\d)\.(weight|bias)", block + r".conv\2.\3"),
        ]
    for theirs, number in (("1", "0"), ("2", "1")):
        audio = r"rendering_network\.cond_dec_audio\.(\d)"
        block = r"rendering_network.adain.\1"
        renames += [
            (rf"{audio}\.conv{theirs}\.(weight|bias)", rf"{block}.conv{number}.\2"),
            (rf"{audio}\.norm{theirs}\.fc\.(weight|bias)", rf"{block}.norm{number}.affine.\2"),
        ]
    renames += [
        (r"flow_network\.dec_(flow|mask)\.1\.(weight|bias)", r"flow_network.to_\1.\2"),
        (r"rendering_network\.conv_img\.1\.(weight|bias)", r"rendering_network.to_image.\1"),
    ]
    return renames


def _generator(state: Mapping[str, Tensor]) -> Generator:
    fine, inputs = shape_of(state, "flow_network.encoder.layers.0.conv.weight", 4)[:2]
    if inputs < 4:
        raise ValueError(f"flow_network must encode an image and a render, at least 4 channels, got {inputs}")
    face_channels = inputs - 3
    faces = shape_of(state, "rendering_network.encoder.layers.0.conv.weight", 4)[1]
    if faces % face_channels:
        raise ValueError(f"rendering_network must encode renders of {face_channels} channels each, got {faces}")
    audio = "rendering_network.adain.0.norm0.affine.weight"
    return Generator(
        GeneratorConfig(
            frames=faces // face_channels,
            face_channels=face_channels,
            audio=shape_of(state, audio, 2)[1] if audio in state else 0,
            channels=(fine, 4 * fine, 16 * fine),
            hidden=shape_of(state, "rendering_network.spade.0.norm0.shared.weight", 4)[0],
            flow="flow_network.to_flow.weight" in state,
            mask="flow_network.to_mask.weight" in state,
        )
    )


def _discriminator(state: Mapping[str, Tensor]) -> Discriminator:
    scales = 1 + max(int(name.split(".")[1]) for name in state)
    layers = max(int(name.split(".")[3]) for name in state)
    channels, inputs = shape_of(state, "scales.0.layers.0.conv.weight", 4)[:2]
    if layers < 1:
        raise ValueError(f"a discriminator must have at least 2 layers, got {layers + 1}")
    return Discriminator(DiscriminatorConfig(inputs, channels, layers, scales))


register(Layout("headgan.generator", _generator, _generator_renames()))
for _name in ("headgan.discriminator", "headgan.mouth_discriminator"):
    register(
        Layout(
            _name,
            _discriminator,
            [
                (r"discriminator_(\d)\.model(0|4)\.0\.(weight|bias)", r"scales.\1.layers.\2.conv.\3"),
                (r"discriminator_(\d)\.model([1-3])\.0\.0\.weight", r"scales.\1.layers.\2.conv.weight"),
                (r"discriminator_(\d)\.model([1-3])\.0\.1\.(weight|bias)", r"scales.\1.layers.\2.norm.\3"),
            ],
        )
    )
