"""How the public checkpoints of EG3D and FaceFormer name what our modules hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fastface.checkpoints import Layout, register, shape_of
from fastface.models.pir.audio import DecoderConfig, ExpressionDecoder
from fastface.models.pir.generator import GeneratorConfig, TriplaneGenerator
from fastface.models.pir.rendering import PlaneNetwork, Rendering
from fastface.models.pir.synthesis import SynthesisConfig

_SYNTHESIS = r"backbone\.synthesis\.b"
_HALVES = (128, 256)  # sides of EG3D's images whose super-resolution has one block that doubles; of others both do
_BLOCK_LAYERS = {"conv0": "layer0", "conv1": "layer1"}


def _block_renames(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Of one synthesis block; a layer's convolution is a module of ours, transposed where it doubles the map."""
    renames = [
        (rf"{theirs}\.const", f"{ours}.const"),
        (rf"{theirs}\.torgb\.(weight|bias|affine\.weight|affine\.bias)", rf"{ours}.to_rgb.\1"),
    ]
    for layer, our_layer in _BLOCK_LAYERS.items():
        renames += [
            (rf"{theirs}\.{layer}\.weight", f"{ours}.{our_layer}.modulated.conv.weight"),
            (rf"{theirs}\.{layer}\.(bias|noise_strength|affine\.weight|affine\.bias)", rf"{ours}.{our_layer}.\1"),
            (rf"{theirs}\.{layer}\.noise_const", f"{ours}.{our_layer}.noise"),
        ]
    return renames


def _generator_renames() -> list[tuple[str, str]]:
    renames = [
        (r"backbone\.mapping\.w_avg", "mapping.average"),
        (r"backbone\.mapping\.embed\.(weight|bias)", r"mapping.embed.\1"),
        (r"backbone\.mapping\.fc(\d+)\.(weight|bias)", r"mapping.layers.\1.\2"),
        (r"decoder\.(net\.[02]\.(?:weight|bias))", r"decoder.\1"),
    ]
    for power in range(2, 12):
        renames += _block_renames(f"{_SYNTHESIS}{2**power}", f"synthesis.blocks.{power - 2}")
    for block in range(2):
        renames += _block_renames(rf"superresolution\.block{block}", f"superresolution.blocks.{block}")
    return renames


def _generator(state: Mapping[str, Tensor]) -> TriplaneGenerator:
    blocks = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("synthesis.blocks."))
    widths = [shape_of(state, f"synthesis.blocks.{i}.layer1.modulated.conv.weight", 4)[0] for i in range(blocks)]
    size = 2 ** (blocks + 1)
    style, inputs = shape_of(state, "mapping.layers.0.weight", 2)
    condition = shape_of(state, "mapping.embed.weight", 2)[1] if "mapping.embed.weight" in state else 0
    hidden, channels = shape_of(state, "decoder.net.0.weight", 2)
    fine = "superresolution.blocks.{}.layer1.modulated.conv.weight"
    image = _image(state)
    image_channels = (256, 128)
    if image:
        image_channels = (shape_of(state, fine.format(0), 4)[0], shape_of(state, fine.format(1), 4)[0])
    return TriplaneGenerator(
        GeneratorConfig(
            latent=inputs - (style if condition else 0),
            condition=condition,
            layers=len({name.split(".")[2] for name in state if name.startswith("mapping.layers.")}),
            synthesis=SynthesisConfig(
                outputs=shape_of(state, "synthesis.blocks.0.to_rgb.weight", 4)[0],
                size=size,
                style=style,
                base=widths[-1] * size,
                most=max(widths),
            ),
            channels=channels,
            hidden=hidden,
            image=image,
            image_channels=image_channels,
            image_doublings=_doublings(image),
            rendering=Rendering.eg3d(),
        )
    )


def _image(state: Mapping[str, Tensor]) -> int:
    """Side of the image; 0 for none."""
    last = "superresolution.blocks.1.layer1."
    return shape_of(state, f"{last}noise", 2)[0] if f"{last}modulated.conv.weight" in state else 0


def _doublings(image: int) -> int:
    """Shapes do not tell; EG3D chooses by the image's side."""
    return 1 if image in _HALVES else 2


def _convert_generator(state: dict[str, Tensor]) -> dict[str, Tensor]:
    same_size = "superresolution.blocks.0.layer0.modulated.conv.weight" if _doublings(_image(state)) == 1 else ""
    converted = {}
    for name, tensor in state.items():
        if name.endswith("layer0.modulated.conv.weight") and name != same_size:
            tensor = tensor.transpose(0, 1)  # of a transposed convolution
        elif name.endswith("to_rgb.weight"):
            tensor = tensor.flatten(1)
        converted[name] = tensor
    return converted


def _plane_network(state: Mapping[str, Tensor]) -> PlaneNetwork:
    hidden, channels = shape_of(state, "net.0.weight", 2)
    return PlaneNetwork(channels, hidden, shape_of(state, "net.2.weight", 2)[0] - 1)


register(
    Layout(
        "eg3d.ffhq512",
        _generator,
        _generator_renames(),
        convert=_convert_generator,
        ignored=[r"(backbone|superresolution)\..*resample_filter"],
    )
)
register(Layout("eg3d.decoder", _plane_network, [(r"(net\.[02]\.(?:weight|bias))", r"\1")]))


def _decoder_renames() -> list[tuple[str, str]]:
    block = r"transformer_decoder\.layers\.(\d+)\."
    return [
        (r"audio_feature_map\.(weight|bias)", r"audio_map.\1"),
        (r"vertice_map\.(weight|bias)", r"encode.\1"),
        (r"vertice_map_r\.(weight|bias)", r"decode.\1"),
        (r"obj_vector\.weight", "style.weight"),
        (r"PPE\.pe", "positions"),
        (block + r"self_attn\.in_proj_(weight|bias)", r"blocks.\1.attention.\2"),
        (block + r"self_attn\.out_proj\.(weight|bias)", r"blocks.\1.attention_out.\2"),
        (block + r"multihead_attn\.in_proj_(weight|bias)", r"blocks.\1.alignment.\2"),
        (block + r"multihead_attn\.out_proj\.(weight|bias)", r"blocks.\1.alignment_out.\2"),
        (block + r"linear([12])\.(weight|bias)", r"blocks.\1.linear\2.\3"),
        (block + r"norm([123])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    ]


def _period(positions: Tensor) -> int:
    """After how many rows the table of a checkpoint repeats: the shortest of the divisors of its length."""
    rows = positions[0]
    lengths = (length for length in range(1, len(rows) + 1) if len(rows) % length == 0)
    return next(length for length in lengths if bool((rows.unflatten(0, (-1, length)) == rows[:length]).all()))


def _expression_decoder(
    what: str, fits: Callable[[int, int], bool]
) -> Callable[[Mapping[str, Tensor]], ExpressionDecoder]:
    def build(state: Mapping[str, Tensor]) -> ExpressionDecoder:
        outputs, features = shape_of(state, "decode.weight", 2)
        if not fits(outputs, features):
            raise ValueError(f"{what}, got {outputs} from {features} features")
        shape_of(state, "positions", 3)
        return ExpressionDecoder(
            DecoderConfig(
                outputs=outputs,
                features=features,
                audio=shape_of(state, "audio_map.weight", 2)[1],
                style=shape_of(state, "style.weight", 2)[1],
                hidden=shape_of(state, "blocks.0.linear1.weight", 2)[0],
                blocks=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
                period=_period(state["positions"]),
            )
        )

    return build


def _convert_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "positions": state["positions"][0, : _period(state["positions"])]}


for _name, _what, _fits in (
    ("decoder_pir", "expressions are fewer numbers than features", lambda outputs, features: outputs <= features),
    (
        "vocaset",
        "the coordinates of a mesh are more numbers than features",
        lambda outputs, features: outputs > features,
    ),
):
    register(
        Layout(
            f"faceformer.{_name}",
            _expression_decoder(_what, _fits),
            _decoder_renames(),
            convert=_convert_decoder,
            ignored=[r"audio_encoder\..*"],
        )
    )
