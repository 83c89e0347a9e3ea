"""EG3D's public pickles to .safetensors, without running what is in them.

Those files pickle live objects beside the source code that makes them, which a plain unpickle would run. Here the only
names that mean anything are those of tensors and arrays; every other one becomes an inert container, whatever it would
have been, and the networks' parameters and options are read out of the containers.
"""

from __future__ import annotations

import io
import json
import logging
import math
import pickletools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastface._files import save_safetensors
from fastface._unpickling import ArrayUnpickler, Function, Refused, Sealed, sizes
from fastface.checkpoints import load_checkpoint
from fastface.checkpoints.loading import build, find
from fastface.models.pir.generator import GeneratorConfig, TriplaneGenerator
from fastface.models.pir.rendering import ImportanceRenderer, Rendering
from fastface.ops.triplane import AXES

__all__ = ["PickledNetwork", "convert_pickle", "holds_networks", "load_generator", "read_pickle"]

_LAYOUT = "eg3d.ffhq512"
_CONFIG = "fastface.eg3d"  # in the metadata of a .safetensors file: what shapes do not tell of a `GeneratorConfig`
# Options that would change the picture and that no published weights change.
_PUBLISHED = {"decoder_lr_mul": 1, "sr_antialias": True, "superresolution_noise_mode": "none"}
_DOUBLINGS = {f"SuperresolutionHybrid{kind}": int(kind[0] == "8") + 1 for kind in ("2X", "4X", "8X", "8XDC")}
_log = logging.getLogger("fastface")


@dataclass(frozen=True)
class PickledNetwork:
    """One network of a pickle.

    Attributes:
        name: under which the file has it: "G_ema", "G", "D".
        class_name: of the object that it was.
        state: what its ``state_dict()`` would have been.
        options: its rendering options; empty for a network that renders nothing.
        axes: of its planes, a name of `fastface.ops.triplane.AXES`; None for unknown ones and for a network without
            planes.
        rays: side of the map that it renders; None where it does not tell.
        note: what had to be assumed; empty for nothing.
    """

    name: str
    class_name: str
    state: dict[str, Tensor]
    options: dict[str, Any]
    axes: str | None
    rays: Any
    note: str


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


class _Record(Sealed, dict[str, Any]):
    """What stands for the dictionary class of these files."""


class _Held(Sealed):
    """A tensor, or the flat one of a storage, out of a pickle's reach."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _persistent(meta: Any) -> _Inert:
    """What stands for a persistent object: the state that it was saved with, without its source code."""
    found = _Inert()
    if isinstance(meta, Mapping):
        state = meta.get("state")
        found.state = {**state, "__name__": meta.get("class_name")} if isinstance(state, Mapping) else {}
    return found


class _StorageUnpickler(ArrayUnpickler):
    """Reads what precedes the numbers of a storage: the name of its class, within the tuple of a persistent id."""

    def unknown(self, module: str, name: str) -> Any:
        return name if name in _STORAGES else super().unknown(module, name)

    def persistent_load(self, key: Any) -> Any:
        return key


_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before it wrote archives; storages are still pickled so
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


def _storage(data: Any) -> _Held:
    """Five pickles (magic number, version, machine, storage, its key), a count, and as many numbers.

    Not by torch.load, whose unpickler hashes keys of any depth.
    """
    file = io.BytesIO(data)
    magic, _, _, (_, kind, *_), _ = (_StorageUnpickler(file).load() for _ in range(5))
    dtype = _STORAGES[kind]
    (count,), numbers = struct.unpack("<q", file.read(8)), bytearray(file.read())
    if magic != _MAGIC or len(numbers) != count * dtype.itemsize:
        raise Refused(f"a storage must hold the {count} numbers that it says, got {len(numbers)} bytes")
    return _Held(torch.frombuffer(numbers, dtype=dtype) if count else torch.empty(0, dtype=dtype))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    """A part of a storage, all of which is there."""
    if not isinstance(storage, _Held):
        raise Refused(f"its tensors must have a storage, got {type(storage).__name__}")
    size, stride, (offset,) = sizes("the size", size), sizes("the stride", stride), sizes("the offset", [offset])
    held, count = storage.tensor.numel(), math.prod(size)
    last = offset + sum((many - 1) * step for many, step in zip(size, stride, strict=True))
    if count > held or (count and last >= held):
        raise Refused(f"a tensor must lie in its storage of {held} numbers")
    return _Held(storage.tensor.as_strided(size, stride, offset))


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Unpickler(ArrayUnpickler):
    """Reads tensors too; any other name is a new inert class that remembers what it was called."""

    known: ClassVar = {
        **ArrayUnpickler.known,
        ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
        ("torch._utils", "_rebuild_parameter"): Function(_parameter),
        ("torch.storage", "_load_from_bytes"): Function(_storage),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(_persistent),
        ("dnnlib.util", "EasyDict"): _Record,
    }

    def unknown(self, module: str, name: str) -> Any:
        return type(name.rpartition(".")[2], (_Inert,), {})


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
        loaded = _Unpickler.load_file(path)
        parts = loaded.items() if isinstance(loaded, Mapping) else [("", loaded)]
        found = {str(name): _network(str(name), part) for name, part in parts if isinstance(part, _Inert)}
    except Exception as error:  # bad pickles fail in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a pickle: {reason}") from None
    found = {name: network for name, network in found.items() if network.state}
    if not found:
        raise ValueError(f"{path} must hold networks, got {type(loaded).__name__} without any")
    return found


def _network(name: str, part: _Inert) -> PickledNetwork:
    attributes = _attributes(part)
    options = attributes.get("rendering_kwargs")
    axes, note = _axes_of(_children(part).get("renderer"))
    return PickledNetwork(
        name,
        _class_name(part),
        dict(_entries(part)),
        {key: value for key, value in options.items() if _plain(value)} if isinstance(options, Mapping) else {},
        axes,
        attributes.get("neural_rendering_resolution"),
        note,
    )


def _class_name(part: _Inert) -> str:
    return str(_attributes(part).get("__name__") or type(part).__name__)


def _axes_of(renderer: _Inert | None) -> tuple[str | None, str]:
    """A renderer's axes, and what had to be assumed. EG3D has published weights for one choice of axes alone."""
    if renderer is None:
        return None, ""
    told = _attributes(renderer).get("plane_axes")
    if told is None and _class_name(renderer) == ImportanceRenderer.__name__:
        return "eg3d", "its renderer names no axes of planes: taken for those of EG3D's published weights"
    return _axes(told), ""


def _attributes(part: _Inert) -> Mapping[str, Any]:
    return part.state if isinstance(part.state, Mapping) else {}


def _children(part: _Inert) -> dict[str, _Inert]:
    modules = _attributes(part).get("_modules")
    if not isinstance(modules, Mapping):
        return {}
    return {str(name): child for name, child in modules.items() if isinstance(child, _Inert)}


def _entries(part: _Inert, prefix: str = "", met: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """As ``nn.Module.state_dict`` lists them."""
    met = set() if met is None else met
    if id(part) in met:  # a loop, or parts of parts that multiply without end
        raise ValueError(f"each part of a network must be in one place, got {prefix} again")
    met.add(id(part))
    attributes = _attributes(part)
    passing = attributes.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        held = attributes.get(kind)
        for name, value in held.items() if isinstance(held, Mapping) else ():
            if isinstance(value, _Held) and name not in passing:
                yield f"{prefix}{name}", value.tensor
    for name, child in _children(part).items():
        yield from _entries(child, f"{prefix}{name}.", met)


def _axes(matrices: Any) -> str | None:
    """Which coordinates planes are read at: the first two of a point times the inverse of each 3x3 permutation."""
    if not isinstance(matrices, _Held) or matrices.tensor.shape != (3, 3, 3):
        return None
    columns = matrices.tensor.argmax(2)
    if not torch.equal(F.one_hot(columns, 3).to(matrices.tensor.dtype), matrices.tensor):
        return None
    return next((name for name, planes in AXES.items() if [list(plane) for plane in planes] == columns.tolist()), None)


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def convert_pickle(source: str | Path, target: str | Path, network: str = "G_ema") -> PickledNetwork:
    """Write one generator of a pickle as .safetensors, its names kept and its rendering options beside them.

    What has to be assumed is logged as a warning: a renderer without axes has those of EG3D's published weights.

    Raises:
        ValueError: what `read_pickle` raises, a network that the file has not or that is no generator of EG3D,
            rendering options that are missing or no such, planes on unknown axes, another super-resolution, or a
            `target` that does not end in .safetensors.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {target}")
    networks = read_pickle(source)
    if network not in networks:
        raise ValueError(f"{source} holds {', '.join(networks)}, not {network!r}")
    found, what = networks[network], f"network {network} of {source}"
    generator = build(find(_LAYOUT), found.state, what)
    assert isinstance(generator, TriplaneGenerator)
    if not found.options:
        raise ValueError(f"{what} must have rendering options, got none")
    if found.axes is None:
        raise ValueError(f"{what} must have planes on the axes of one of {', '.join(AXES)}, got others or none")
    try:
        told = _told(found, generator.config)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if found.note:
        _log.warning("%s: %s", what, found.note)
    metadata = {"format": "pt", _CONFIG: json.dumps(told)}
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in found.state.items()}
    save_safetensors(tensors, target, metadata)
    return found


def _told(network: PickledNetwork, config: GeneratorConfig) -> dict[str, Any]:
    """What the pickle tells of the configuration, checked."""
    options = network.options
    kind = str(options.get("superresolution_module")).rpartition(".")[2]
    if config.image and _DOUBLINGS.get(kind) != config.image_doublings:
        raise ValueError(f"superresolution_module must be EG3D's to {config.image}x{config.image}, got {kind}")
    for name, value in _PUBLISHED.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}, as in all published weights, got {options[name]!r}")
    told: dict[str, Any] = {
        "rendering": Rendering.of_options(options, axes=str(network.axes)),
        "rays": config.rays if network.rays is None else network.rays,
        "condition_scale": 0.0 if options.get("c_gen_conditioning_zero") else options.get("c_scale", 1.0),
    }
    asked = asdict(replace(config, **told))
    return {name: asked[name] for name in told}


def load_generator(path: str | Path) -> TriplaneGenerator:
    """EG3D's generator from a .safetensors file, with the options of rendering that `convert_pickle` left in it.

    Raises:
        ValueError: what `fastface.load_checkpoint` raises.
    """
    generator = load_checkpoint(path, _LAYOUT)
    assert isinstance(generator, TriplaneGenerator)
    if Path(path).suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get(_CONFIG, "{}"))
        if told:
            told["rendering"] = Rendering(**told["rendering"])
            generator.config = replace(generator.config, **told)
    return generator
