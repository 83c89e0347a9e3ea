"""Networks in .safetensors files: the weights, the statistics of the poses, and in the metadata the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from fastface._files import save_safetensors
from fastface.checkpoints import Layout, loading
from fastface.models.posegan.networks import PGFace, PGFaceConfig, PoseGAN, PoseGANConfig

__all__ = ["load", "save"]

NetworkT = TypeVar("NetworkT", PoseGAN, PGFace)

_ABOUT = "fastface.posegan"  # in the metadata: which network, the version, the configuration
_VERSION = 1
_CONFIGS: dict[type, type[PoseGANConfig] | type[PGFaceConfig]] = {PoseGAN: PoseGANConfig, PGFace: PGFaceConfig}


def save(network: PoseGAN | PGFace, path: str | Path) -> None:
    """Write a network, as it is before `fastface.engine.optimize`, whole or not at all.

    Raises:
        TypeError: another network.
        ValueError: a path that does not end in .safetensors, or an optimised network.
        OSError: a file that cannot be written.
    """
    path = Path(path)
    if type(network) not in _CONFIGS:
        raise TypeError(f"network must be a PoseGAN or a PGFace, got {type(network).__name__}")
    if path.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {path}")
    if hasattr(network, "report"):
        raise ValueError("network must be as it was before optimize, got an optimised one")
    about = {"network": type(network).__name__, "version": _VERSION, "config": asdict(network.config)}
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_safetensors(tensors, path, {_ABOUT: json.dumps(about)})


def load(path: str | Path, kind: type[NetworkT]) -> NetworkT:
    """The network of that kind, `PoseGAN` or `PGFace`, that `save` wrote, in evaluation mode and on the CPU.

    Raises:
        ValueError: no such file, a file of something else or of another version, or entries that do not fit its
            configuration.
    """
    state = loading.read_state_dict(path)
    about = _about(Path(path))
    if about.get("network") != kind.__name__:
        raise ValueError(
            f"{path} must hold a {kind.__name__} of fastface, got {about.get('network', 'something else')}"
        )
    if about.get("version") != _VERSION:
        raise ValueError(f"{path} must be of version {_VERSION}, got {about.get('version')}")

    def make(_: Mapping[str, Any]) -> NetworkT:
        told = {name: tuple(value) if isinstance(value, list) else value for name, value in about["config"].items()}
        return kind(_CONFIGS[kind](**told))  # type: ignore[arg-type]  # the kind's own

    network = loading.build(Layout(kind.__name__, make, [(r"(.+)", r"\1")]), state, str(path))
    assert isinstance(network, kind)
    return network


def _about(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get(_ABOUT, "{}")
    try:
        about = json.loads(told)
    except json.JSONDecodeError as error:
        raise ValueError(f"the configuration in {path} cannot be read: {error}") from None
    return about if isinstance(about, dict) else {}
