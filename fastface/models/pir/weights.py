"""A whole system in one .safetensors file: its networks are parts, what their shapes do not tell is metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from fastface._files import save_safetensors
from fastface.checkpoints import Layout, loading
from fastface.models.pir.audio import AudioEncoder, AudioToExpression, DecoderConfig, ExpressionDecoder
from fastface.models.pir.generator import GeneratorConfig, TriplaneGenerator
from fastface.models.pir.inpainting import InpaintingConfig, InpaintingGenerator
from fastface.models.pir.rendering import Rendering
from fastface.models.pir.synthesis import SynthesisConfig

__all__ = ["load_networks", "save_networks"]

_CONFIGS = "fastface.pir"  # in the metadata: the configuration of every part
_ENCODER = (  # what makes one wav2vec 2.0 another network
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation",
    "do_stable_layer_norm", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups",
)  # fmt: skip


def save_networks(
    path: str | Path,
    generator: TriplaneGenerator,
    inpainter: InpaintingGenerator,
    audio: AudioToExpression | None = None,
) -> None:
    """Write the networks of a `PIR`, as they are before `fastface.engine.optimize`, whole or not at all.

    Raises:
        ValueError: a path that does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {path}")
    parts: dict[str, nn.Module] = {"generator": generator, "inpainter": inpainter}
    configs: dict[str, Any] = {"generator": asdict(generator.config), "inpainter": asdict(inpainter.config)}
    if audio is not None:
        parts["decoder"], configs["decoder"] = audio.decoder, asdict(audio.decoder.config)
        if audio.encoder is not None:
            config: Any = audio.encoder.model.config
            parts["audio_encoder"] = audio.encoder
            configs["audio_encoder"] = {name: getattr(config, name) for name in _ENCODER}
    tensors = {
        f"{part}.{name}": tensor.contiguous()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    metadata = {"format": "pt", loading.PARTS: ",".join(parts), _CONFIGS: json.dumps(configs)}
    save_safetensors(tensors, path, metadata)


def load_networks(path: str | Path) -> tuple[TriplaneGenerator, InpaintingGenerator, AudioToExpression | None]:
    """What `save_networks` wrote, in evaluation mode; None for a system without a decoder of sound.

    Raises:
        ValueError: no such file, a file of something else, or entries that do not fit its configurations.
        ImportError: a part that hears, without transformers.
    """
    parts = loading.read_parts(path)
    configs = _configs(Path(path))
    if not {"generator", "inpainter"} <= parts.keys() & configs.keys():
        found = ", ".join(name or "one state dict" for name in parts)
        raise ValueError(
            f"{path} must hold a generator and an inpainter of PIR as save_networks writes them, got {found}"
        )

    def load(part: str, make: Callable[[Mapping[str, Any]], nn.Module]) -> Any:
        if part not in parts or part not in configs:
            return None
        layout = Layout(f"pir.{part}", lambda state: make(configs[part]), [(r"(.+)", r"\1")])
        return loading.build(layout, parts[part], f"{part} of {path}")

    generator, inpainter = load("generator", _generator), load("inpainter", _inpainter)
    decoder = load("decoder", lambda told: ExpressionDecoder(DecoderConfig(**told)))
    if decoder is None:
        return generator, inpainter, None
    encoder = load("audio_encoder", lambda told: AudioEncoder.large(**{name: told[name] for name in _ENCODER}))
    return generator, inpainter, AudioToExpression(encoder, decoder)


def _configs(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get(_CONFIGS, "{}")
    try:
        configs = json.loads(told)
    except json.JSONDecodeError as error:
        raise ValueError(f"the configurations in {path} cannot be read: {error}") from None
    return configs if isinstance(configs, dict) else {}


def _generator(told: Mapping[str, Any]) -> TriplaneGenerator:
    first, second = told["image_channels"]
    nested = {
        "synthesis": SynthesisConfig(**told["synthesis"]),
        "rendering": Rendering(**told["rendering"]),
        "image_channels": (first, second),
    }
    return TriplaneGenerator(GeneratorConfig(**{**told, **nested}))


def _inpainter(told: Mapping[str, Any]) -> InpaintingGenerator:
    return InpaintingGenerator(InpaintingConfig(**told))
