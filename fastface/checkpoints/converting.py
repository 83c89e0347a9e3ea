"""Public checkpoints to .safetensors: told apart by their entries, checked, spectral norm folded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastface._files import save_safetensors
from fastface.checkpoints import loading

__all__ = ["Conversion", "convert", "recognise"]


@dataclass(frozen=True)
class Conversion:
    """What became of one state dict.

    Attributes:
        part: its name in the file, "" for the only one.
        layout: what it was recognised as; None for a part of no known layout beside others, which is left out.
        config: the variant that its shapes tell, as the module's configuration prints it.
        entries: in the checkpoint.
        folded: spectral norms that became plain weights.
        parameters: numbers in the result, counters and statistics included.
    """

    part: str
    layout: str | None
    config: dict[str, Any]
    entries: int
    folded: int
    parameters: int


def recognise(state: Mapping[str, Tensor], what: str = "the state dict") -> str:
    """The layout whose names a state dict has.

    Raises:
        ValueError: no layout knows most of its entries; the closest is named with what it does not know.
    """
    state = loading.fold_spectral_norm(loading.without_prefix(state))
    candidates = [loading.find(name) for name in loading.layouts()]
    known = {layout.name: sum(map(layout.knows, state)) for layout in candidates}
    most = max(known.values())
    rivals = [layout for layout in candidates if known[layout.name] == most]
    if most * 2 <= len(state):
        strange = [name for name in state if not rivals[0].knows(name)]
        raise ValueError(
            f"{what} is of no known layout ({', '.join(known)}); the closest, {rivals[0].name}, knows {most} of its "
            f"{len(state)} entries, not {', '.join(strange[:3])}"
        )
    # The small networks of one kind differ in their shapes alone.
    best = next((layout for layout in rivals if len(rivals) > 1 and _builds(layout, state)), rivals[0])
    return best.name


def convert(source: str | Path, target: str | Path, layout: str | None = None) -> list[Conversion]:
    """Write a public checkpoint as .safetensors, its names kept and its spectral norm folded; check that it loads.

    A file of several state dicts (face-vid2vid's, LivePortrait's retargeting) becomes one whose names begin with the
    part's, which `load_checkpoint` reads as it reads the original; what no layout knows (a discriminator) is left out.

    Args:
        layout: what the file is; by default its entries tell.

    Raises:
        ValueError: what `load_checkpoint` raises, or a `target` that does not end in .safetensors.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {target}")
    parts = loading.read_parts(source)
    if layout is not None and len(parts) > 1:
        part = loading.find(layout).part
        if part not in parts:
            raise ValueError(f"{source} holds {', '.join(parts)}, none of which is {part!r} of layout {layout}")
        parts = {"": parts[part]}
    done, tensors = [], {}
    kept = _known(parts, source) if layout is None else dict.fromkeys(parts, layout)
    for part, state in parts.items():
        what = _what(part, source)
        if part not in kept:
            done.append(Conversion(part, None, {}, len(state), 0, 0))
            continue
        found = loading.find(kept[part])
        module = loading.build(found, state, what)
        folded = loading.fold_spectral_norm(loading.without_prefix(state))
        config = getattr(module, "config", None)
        told = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
        count = sum(tensor.numel() for tensor in folded.values())
        norms = sum(name.endswith(("weight_orig", "weight.original")) for name in state)
        done.append(Conversion(part, found.name, told, len(state), norms, count))
        prefix = f"{part}." if len(kept) > 1 else ""
        tensors.update({prefix + name: tensor.contiguous() for name, tensor in folded.items()})
    metadata = {"format": "pt", "fastface.layouts": json.dumps(kept)}
    if len(kept) > 1:
        metadata[loading.PARTS] = ",".join(kept)
    said = {each.layout: each.config["keypoints"] for each in done if "keypoints" in each.config}
    if len(set(said.values())) > 1:
        which = ", ".join(f"{name} {count}" for name, count in said.items())
        raise ValueError(f"{source} mixes variants of different keypoints: {which}")
    save_safetensors(tensors, target, metadata)
    return done


def _what(part: str, source: str | Path) -> str:
    return f"{part} of {source}" if part else f"the checkpoint {source}"


def _known(parts: Mapping[str, Mapping[str, Tensor]], source: str | Path) -> dict[str, str]:
    """The layout of every part that has one; ValueError where none has."""
    known, fault = {}, None
    for part, state in parts.items():
        try:
            known[part] = recognise(state, _what(part, source))
        except ValueError as error:
            fault = fault or error
    if not known and fault is not None:
        raise fault
    return known


def _builds(layout: loading.Layout, state: Mapping[str, Tensor]) -> bool:
    """Whether the shapes of a state dict are those of a layout."""
    named = {layout.rename(name): tensor for name, tensor in state.items()}
    try:
        layout.build({name: tensor for name, tensor in named.items() if name is not None})
    except (KeyError, ValueError):
        return False
    return True
