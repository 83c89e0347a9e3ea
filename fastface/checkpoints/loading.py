"""Reads weight files without running what is in them, and fills our modules from other people's names.

A `Layout` says how one public checkpoint names its entries. The models register theirs, next to the modules that they
fill.
"""

from __future__ import annotations

import difflib
import importlib
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

__all__ = [
    "Layout",
    "fold_spectral_norm",
    "layouts",
    "load_checkpoint",
    "read_parts",
    "read_state_dict",
    "register",
    "shape_of",
]

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How the entries of a public checkpoint are called.

    Attributes:
        name: the family, a dot, the part.
        build: makes the module for a state dict, whose shapes tell the configuration.
        renames: (pattern, replacement) pairs of `re.fullmatch`; the first that matches turns a name of the checkpoint
            into one of ours.
        convert: makes our state dict of the renamed one, where that takes more than names.
        ignored: patterns of entries that have no effect here, such as counters.
        part: the key under which a file of several state dicts holds this one.
    """

    name: str
    build: Callable[[Mapping[str, Tensor]], nn.Module]
    renames: Sequence[tuple[str, str]]
    convert: Callable[[StateDict], StateDict] = lambda state: state
    ignored: Sequence[str] = ()
    part: str = ""

    def rename(self, name: str) -> str | None:
        """Our name of an entry, or None for one that does not belong to this layout."""
        for pattern, replacement in self.renames:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(replacement)
        return None

    def knows(self, name: str) -> bool:
        """Whether an entry belongs to this layout."""
        return self.rename(name) is not None or any(re.fullmatch(pattern, name) for pattern in self.ignored)


_layouts: dict[str, Layout] = {}
_FAMILIES = {  # of layouts, by the first part of their names: which model reads them
    "eg3d": "pir",
    "face_vid2vid": "style_mapping",
    "faceformer": "pir",
    "headgan": "headgan",
    "live_portrait": "live_portrait",
}


def register(layout: Layout) -> Layout:
    """Make a layout known to `load_checkpoint`."""
    _layouts[layout.name] = layout
    return layout


def load_checkpoint(source: str | Path | Mapping[str, Tensor], layout: str) -> nn.Module:
    """The module that a public checkpoint describes, in evaluation mode, its spectral norm folded.

    Args:
        source: a .safetensors file, a file of `torch.save` (read with ``weights_only=True``), or a state dict. Of a
            file of several state dicts, the one that the layout names is taken.
        layout: for example "headgan.generator"; `layouts` lists all.

    Raises:
        ValueError: an unknown layout, a file that cannot be read or wants to run code, or entries that do not fit the
            layout: how many are missing, unexpected or of another shape, with examples.
        TypeError: a `source` of another type, or entries that are not names and tensors.
    """
    found = find(layout)
    what = f"the checkpoint {source}" if isinstance(source, (str, Path)) else "the state dict"
    state = read_state_dict(source, found.part) if isinstance(source, (str, Path)) else _checked(source)
    return build(found, state, what)


def build(found: Layout, state: Mapping[str, Tensor], what: str) -> nn.Module:
    """The module of a layout, filled from a state dict with the checkpoint's names; `what` names it in errors."""
    layout = found.name
    state = fold_spectral_norm(without_prefix(state))
    known, unexpected = {}, []
    for name, tensor in state.items():
        ours = found.rename(name)
        if ours is not None:
            known[ours] = tensor
        elif not found.knows(name):
            unexpected.append(name)
    if not known:
        raise ValueError(f"{what} has no entry of layout {layout}: {_examples(unexpected)}")
    try:
        module = found.build(known)
    except KeyError as error:
        raise ValueError(f"{what} does not fit layout {layout}: {error.args[0]} is missing") from None
    except Exception as error:  # whatever the shapes of another model lead to
        raise ValueError(f"{what} does not fit layout {layout}: {_first_line(error)}") from error
    known = found.convert(known)
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in known]
    unexpected += [name for name in known if name not in wanted]
    misshapen = [
        f"{name} {list(known[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in known and known[name].shape != tensor.shape
    ]
    faults = [
        f"{len(names)} {kind} ({_examples(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise ValueError(f"{what} does not fit layout {layout} of {len(wanted)} entries: {'; '.join(faults)}")
    module.load_state_dict(known)
    return module.eval()


def layouts() -> list[str]:
    """The names of all layouts."""
    for model in _FAMILIES.values():
        importlib.import_module(f"fastface.models.{model}")
    return sorted(_layouts)


def find(name: str) -> Layout:
    """A layout by its name; ValueError with the known ones, and the closest, where there is none."""
    family = str(name).partition(".")[0]
    if family in _FAMILIES:
        importlib.import_module(f"fastface.models.{_FAMILIES[family]}")
    if name not in _layouts:
        known = layouts()
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        nearest = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"layout must be one of {', '.join(known)}, got {name!r}{nearest}")
    return _layouts[name]


def shape_of(state: Mapping[str, Tensor], name: str, rank: int) -> torch.Size:
    """The shape of an entry, for what builds a module from shapes; ValueError where it cannot be one."""
    shape = state[name].shape
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"{name} must have {rank} dimensions with no size 0, got {list(shape)}")
    return shape


def _checked(source: object) -> StateDict:
    """A copy of a caller's state dict."""
    if not isinstance(source, Mapping):
        raise TypeError(f"source must be a path or a state dict, got {type(source).__name__}")
    for name, tensor in source.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"the state dict must map names to tensors, got {name!r}: {type(tensor).__name__}")
    return dict(source)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _examples(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def read_state_dict(path: str | Path, part: str = "") -> StateDict:
    """The tensors of a .safetensors file or of a `torch.save` file, on the CPU; code in a pickle is never run.

    Args:
        part: which of several state dicts in the file; a file with only one needs none.

    Raises:
        ValueError: no such file, a truncated or foreign file, a pickle that wants more than tensors, no tensors, or
            several state dicts of which none is the `part`.
    """
    parts = read_parts(path)
    if part in parts:
        return parts[part]
    if len(parts) > 1:
        asked = f"none is {part!r}" if part else "pass one of them"
        raise ValueError(f"{path} holds several state dicts ({', '.join(parts)}): {asked}")
    return next(iter(parts.values()))


def read_parts(path: str | Path) -> dict[str, StateDict]:
    """The state dicts of a file by name: "" alone, or those of a training state or of a converted file of several.

    Raises:
        ValueError: as `read_state_dict`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such checkpoint file: {path}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read says so below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bad files fail in many ways, none of which says which file it was
        raise ValueError(f"the checkpoint {path} {_reason(path, error)}") from None
    return _parts_of(loaded, path)


PARTS = "fastface.parts"  # in the metadata of a .safetensors file: whose names stand before a dot


def _read_safetensors(path: Path) -> dict[str, StateDict]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        names = (file.metadata() or {}).get(PARTS, "")
    if not names:
        return {"": state}
    parts: dict[str, StateDict] = {part: {} for part in names.split(",")}
    for name, tensor in state.items():
        part, _, inner = name.partition(".")
        parts[part][inner] = tensor
    return parts


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in a few words."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return f"is refused: it holds more than tensors and asks for {wanted[1]}"
    if path.suffix == ".safetensors" or zipfile.is_zipfile(path):
        return f"cannot be read: {_first_line(error)}"
    return "is truncated, or no file of torch.save"


def _parts_of(loaded: object, path: Path) -> dict[str, StateDict]:
    """A state dict, or those inside a dict of training state."""
    if _is_state_dict(loaded):
        return {"": dict(loaded)}
    if isinstance(loaded, Mapping):
        inner = {str(key): dict(value) for key, value in loaded.items() if _is_state_dict(value)}
        if inner:
            return inner
    raise ValueError(f"{path} must hold a state dict, got {'an empty ' * (loaded == {})}{type(loaded).__name__}")


def _is_state_dict(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def without_prefix(state: Mapping[str, Tensor]) -> StateDict:
    """Without the ``module.`` that DataParallel puts before every name."""
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state)


def fold_spectral_norm(state: Mapping[str, Tensor]) -> StateDict:
    """Replace ``weight_orig, weight_u, weight_v`` by ``weight = weight_orig / (u . W v)`` with the stored u and v.

    Source: arXiv 1802.05957, equation (12). Both spellings of PyTorch are read, the hook's and the parametrization's.
    """
    folded: StateDict = {}
    for name, tensor in state.items():
        hook = re.fullmatch(r"(.*)weight_orig", name)
        parametrized = re.fullmatch(r"(.*)parametrizations\.weight\.original", name)
        if hook:
            stem, u, v = hook[1], f"{hook[1]}weight_u", f"{hook[1]}weight_v"
        elif parametrized:
            stem = parametrized[1]
            u, v = (f"{stem}parametrizations.weight.0.{each}" for each in ("_u", "_v"))
        else:
            if not re.search(r"(weight_[uv]|parametrizations\.weight\.0\._[uv])$", name):
                folded[name] = tensor
            continue
        if u not in state or v not in state:
            raise ValueError(f"{name} needs {u} and {v} for its spectral norm, which the checkpoint does not have")
        sizes = tensor.shape[:1], (math.prod(tensor.shape[1:]),)
        if tensor.dim() < 2 or (state[u].shape, state[v].shape) != sizes:
            shapes = ", ".join(str(list(each.shape)) for each in (tensor, state[u], state[v]))
            raise ValueError(f"{name}, {u} and {v} must be [K, ...], [K] and [N] with K N numbers, got {shapes}")
        matrix = tensor.double().flatten(1)
        sigma = state[u].double() @ (matrix @ state[v].double())
        folded[f"{stem}weight"] = (tensor.double() / sigma).to(tensor.dtype)
    return folded
