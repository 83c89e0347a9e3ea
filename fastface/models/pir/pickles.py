"""EG3D's public pickles to .safetensors, without running what is in them.

Those files pickle live objects beside the source code that makes them, which a plain unpickle would run. Here the only
names that mean anything are those of tensors and arrays; every other one becomes an inert container, whatever it would
have been, and the networks' parameters and options are read out of the containers.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastface._files import save_safetensors
from fastface.checkpoints import load_checkpoint
from fastface.models.pir.generator import TriplaneGenerator
from fastface.models.pir.rendering import Rendering
from fastface.ops.triplane import AXES

__all__ = ["PickledNetwork", "convert_pickle", "holds_networks", "load_generator", "read_pickle"]

_RENDERING = "fastface.rendering"  # in the metadata of a .safetensors file


@dataclass(frozen=True)
class PickledNetwork:
    """One network of a pickle.

    Attributes:
        name: under which the file has it: "G_ema", "G", "D".
        class_name: of the object that it was.
        state: what its ``state_dict()`` would have been.
        options: its rendering options; empty for a network that renders nothing.
        axes: of its planes, a name of `fastface.ops.triplane.AXES`; None for a network without planes.
    """

    name: str
    class_name: str
    state: dict[str, Tensor]
    options: dict[str, Any]
    axes: str | None


class _Inert:
    """What stands for an object of any class: its state and nothing else."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Inert:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Whatever the constructor was called with is dropped."""

    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Entries of an unknown mapping are dropped, as are those of an unknown list."""

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


class _Record(dict[str, Any]):
    """What stands for the dictionary class of these files."""


def _persistent(meta: Any) -> _Inert:
    """What stands for a persistent object: the state that it was saved with, without its source code."""
    found = _Inert()
    if isinstance(meta, Mapping):
        state = meta.get("state")
        found.state = {**state, "__name__": meta.get("class_name")} if isinstance(state, Mapping) else {}
    return found


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _parameter(data: Tensor, *ignored: Any) -> Tensor:
    return data


def _bytes(text: str, code: str) -> bytes:
    """How old protocols write bytes."""
    return text.encode("latin1")


def _array(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    return np.ndarray((0,), np.int8)  # its state, which follows, says the rest


_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _Record,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Never imports: a known name, or a new inert class that remembers what it was called."""
        return _NAMES.get((module, name)) or type(name.rpartition(".")[2], (_Inert,), {})

    def persistent_load(self, key: Any) -> Any:
        raise pickle.UnpicklingError("it refers to things outside of the file")


def holds_networks(path: str | Path) -> bool:
    """Whether a pickle names what makes EG3D's networks; it is looked through, nothing in it is made."""
    try:
        with Path(path).open("rb") as file:
            arguments = (argument for _, argument, _ in pickletools.genops(file))
            return any(isinstance(each, str) and each.endswith("_reconstruct_persistent_obj") for each in arguments)
    except Exception:  # no pickle, or a broken one
        return False


def read_pickle(path: str | Path) -> dict[str, PickledNetwork]:
    """The networks of one of EG3D's pickles; nothing that is in it runs.

    Raises:
        ValueError: no such file, no pickle, or none with networks.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such checkpoint file: {path}")
    try:
        with path.open("rb") as file:
            loaded = _Unpickler(file).load()
    except Exception as error:  # bad pickles fail in many ways
        raise ValueError(f"{path} cannot be read as a pickle: {str(error)[:200] or type(error).__name__}") from None
    parts = loaded.items() if isinstance(loaded, Mapping) else [("", loaded)]
    found = {str(name): _network(str(name), part) for name, part in parts if isinstance(part, _Inert)}
    found = {name: network for name, network in found.items() if network.state}
    if not found:
        raise ValueError(f"{path} must hold networks, got {type(loaded).__name__} without any")
    return found


def _network(name: str, part: _Inert) -> PickledNetwork:
    attributes = _attributes(part)
    options = attributes.get("rendering_kwargs")
    renderer = _children(part).get("renderer")
    axes = None if renderer is None else _axes(_attributes(renderer).get("plane_axes"))
    return PickledNetwork(
        name,
        str(attributes.get("__name__") or type(part).__name__),
        dict(_entries(part)),
        {key: value for key, value in options.items() if _plain(value)} if isinstance(options, Mapping) else {},
        axes,
    )


def _attributes(part: _Inert) -> Mapping[str, Any]:
    return part.state if isinstance(part.state, Mapping) else {}


def _children(part: _Inert) -> dict[str, _Inert]:
    modules = _attributes(part).get("_modules")
    if not isinstance(modules, Mapping):
        return {}
    return {str(name): child for name, child in modules.items() if isinstance(child, _Inert)}


def _entries(part: _Inert, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """As ``nn.Module.state_dict`` lists them."""
    if depth > 64:
        raise ValueError(f"networks must not be nested deeper than 64, got {prefix}")
    attributes = _attributes(part)
    passing = attributes.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        held = attributes.get(kind)
        for name, value in held.items() if isinstance(held, Mapping) else ():
            if isinstance(value, Tensor) and name not in passing:
                yield f"{prefix}{name}", value.detach()
    for name, child in _children(part).items():
        yield from _entries(child, f"{prefix}{name}.", depth + 1)


def _axes(matrices: Any) -> str | None:
    """Which coordinates planes are read at: the first two of a point times the inverse of each 3x3 permutation."""
    if not isinstance(matrices, Tensor) or matrices.shape != (3, 3, 3):
        return None
    chosen = [tuple(int(row.argmax()) for row in matrix[:2]) for matrix in matrices]
    return next((name for name, planes in AXES.items() if [plane[:2] for plane in planes] == chosen), None)


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def convert_pickle(source: str | Path, target: str | Path, network: str = "G_ema") -> PickledNetwork:
    """Write one network of a pickle as .safetensors, its names kept and its rendering options beside them.

    Raises:
        ValueError: what `read_pickle` raises, a network that the file has not, planes on unknown axes, or a `target`
            that does not end in .safetensors.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {target}")
    networks = read_pickle(source)
    if network not in networks:
        raise ValueError(f"{source} holds {', '.join(networks)}, not {network!r}")
    found = networks[network]
    metadata = {"format": "pt"}
    if found.options:
        rendering = Rendering.of_options(found.options, axes=found.axes or "eg3d")
        metadata[_RENDERING] = json.dumps(asdict(rendering))
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in found.state.items()}
    save_safetensors(tensors, target, metadata)
    return found


def load_generator(path: str | Path) -> TriplaneGenerator:
    """EG3D's generator from a .safetensors file, with the rendering options that `convert_pickle` left in it.

    Raises:
        ValueError: what `fastface.load_checkpoint` raises.
    """
    generator = load_checkpoint(path, "eg3d.ffhq512")
    assert isinstance(generator, TriplaneGenerator)
    if Path(path).suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(_RENDERING)
        if told:
            generator.config = replace(generator.config, rendering=Rendering(**json.loads(told)))
    return generator
