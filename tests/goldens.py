"""Reads the goldens: stored numbers, and inputs made from their recipes (see goldens/README.md)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "goldens"


def seeded_input(name: str, shape: list[int], seed: int, kind: str) -> np.ndarray:
    """A test input from its name: `normal`, `unit` (uniform [0, 1]) or `signed` (uniform [-0.5, 0.5]), float32."""
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(f"input:{name}".encode())]))
    if kind == "normal":
        values = rng.standard_normal(shape)
    else:
        low, high = {"unit": (0.0, 1.0), "signed": (-0.5, 0.5)}[kind]
        values = rng.uniform(low, high, shape)
    return values.astype(np.float32)


def load(file: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The recipe and the arrays of a golden file."""
    with np.load(FOLDER / file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(str(arrays.pop("recipe"))), arrays


def make_input(recipe: dict[str, Any]) -> torch.Tensor:
    """One input of a recipe; asserts that the random stream is the one that made the goldens."""
    values = seeded_input(recipe["name"], recipe["shape"], recipe["seed"], recipe["kind"]) * recipe.get("scale", 1.0)
    assert abs(float(values.mean(dtype=np.float64)) - recipe["mean"]) < 1e-6, f"{recipe['name']}: another random stream"
    return torch.from_numpy(values.astype(np.float32))


def difference(result: torch.Tensor, arrays: dict[str, np.ndarray], name: str) -> float:
    """The largest absolute difference to the stored part of golden `name`."""
    assert list(result.shape) == arrays[f"{name}.shape"].tolist()
    stored = result.detach().float().cpu().contiguous().numpy().ravel()[:: int(arrays[f"{name}.stride"])]
    return float(np.abs(stored.astype(np.float64) - arrays[name]).max())
