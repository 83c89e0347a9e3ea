"""Where LivePortrait's public weights lie, and the networks made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastface.checkpoints import load_checkpoint, loading

__all__ = ["BASE", "RETARGETING", "find_checkpoints", "load_networks"]

BASE = ("appearance_feature_extractor", "motion_extractor", "warping_module", "spade_generator")
RETARGETING = "stitching_retargeting_module"  # one file for three networks
_SMALL = ("stitching", "retarget_lip", "retarget_eye")
_ENDINGS = (".safetensors", ".pth", ".pt")
# Where the files are in the public archives, below whatever folder is named.
_HUMAN = ("liveportrait/base_models", "base_models", "")
_ANIMALS = (
    "liveportrait_animals/base_models_v1.1",
    "liveportrait_animals/base_models",
    "base_models_v1.1",
    "base_models",
    "",
)
_SHARED = ("liveportrait/retargeting_models", "retargeting_models", "../liveportrait/retargeting_models", "")


def find_checkpoints(folder: str | Path, *, animals: bool = False) -> dict[str, Path]:
    """The files of a folder by their part: `BASE`, and `RETARGETING` where it is there.

    The folder is that of the public archive, the part of it that holds ``base_models`` and ``retargeting_models``, or
    one with all files in it. The weights for animals come with the human retargeting networks.

    Raises:
        ValueError: no such folder, or base files missing; one line that lists them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no such folder of weights: {folder}")
    places = {name: (_ANIMALS if animals else _HUMAN) for name in BASE} | {RETARGETING: _SHARED}
    found = {name: path for name, where in places.items() if (path := _find(folder, where, name)) is not None}
    missing = [name for name in BASE if name not in found]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(BASE)} weight files are missing in {folder}: {', '.join(missing)} "
            f"(as {', '.join(_ENDINGS[:2])}, in base_models or the folder itself)"
        )
    return found


def _find(folder: Path, where: tuple[str, ...], name: str) -> Path | None:
    candidates = (folder / place / f"{name}{ending}" for place in where for ending in _ENDINGS)
    return next((path for path in candidates if path.is_file()), None)


def load_networks(paths: Mapping[str, str | Path]) -> dict[str, nn.Module]:
    """The networks of some files by part, as `find_checkpoints` names them; the retargeting file gives three.

    Raises:
        ValueError: unknown or missing parts, files that cannot be read or do not fit their layouts, or networks of
            different variants, which do not fit one another.
    """
    unknown = sorted(set(paths) - {*BASE, RETARGETING})
    if unknown:
        raise ValueError(f"parts must be among {', '.join((*BASE, RETARGETING))}, got {', '.join(unknown)}")
    missing = [name for name in BASE if name not in paths]
    if missing:
        raise ValueError(f"{len(missing)} of {len(BASE)} weight files are missing: {', '.join(missing)}")
    networks = {name: load_checkpoint(paths[name], f"live_portrait.{name}") for name in BASE}
    if RETARGETING in paths:
        networks |= _retargeting(Path(paths[RETARGETING]))
    _check_one_variant(networks)
    return networks


def _check_one_variant(networks: Mapping[str, Any]) -> None:
    """Refuse networks that disagree about what they hand to one another."""
    appearance, motion, warping, generator = (networks[name].config for name in BASE)
    small = {name: networks[name].layers[-1].out_features // 3 for name in _SMALL if name in networks}
    for what, said in {
        "keypoints": {"motion_extractor": motion.keypoints, "warping_module": warping.keypoints} | small,
        "feature volumes (channels, depth)": {
            "appearance_feature_extractor": (appearance.channels, appearance.depth),
            "warping_module": (warping.channels, warping.depth),
        },
        "warped features": {"warping_module": warping.features, "spade_generator": generator.features},
    }.items():
        if len(set(said.values())) > 1:
            told = ", ".join(f"{name} {value}" for name, value in said.items())
            raise ValueError(f"the weights mix variants of different {what}: {told}")


def _retargeting(path: Path) -> dict[str, nn.Module]:
    """Stitching, lips and eyes, of one file."""
    states = loading.read_parts(path)
    wanted = {name: loading.find(f"live_portrait.{name}") for name in _SMALL}
    missing = [layout.part for layout in wanted.values() if layout.part not in states]
    if missing:
        parts = ", ".join(layout.part for layout in wanted.values())
        raise ValueError(f"{path} must hold {parts}; {', '.join(missing)} missing")
    return {
        name: loading.build(layout, states[layout.part], f"{layout.part} of {path}") for name, layout in wanted.items()
    }
