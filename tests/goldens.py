"""Reads the goldens: stored numbers, and inputs made from their recipes (see goldens/README.md)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "goldens"


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def seeded_input(name: str, shape: list[int], seed: int, kind: str) -> np.ndarray:
    """A test input from its name: `normal`, `unit` (uniform [0, 1]) or `signed` (uniform [-0.5, 0.5]), float32."""
    rng = _stream(seed, f"input:{name}")
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


def _seeded_array(name: str, shape: list[int], seed: int, gain: float) -> np.ndarray:
    rng, leaf = _stream(seed, name), name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape)
    if leaf == "running_mean":
        return 0.1 * rng.standard_normal(shape)
    if leaf == "num_batches_tracked":
        return np.zeros(shape)
    if leaf == "beta" or leaf.endswith("bias"):
        return gain * 0.05 * rng.standard_normal(shape)
    if len(shape) == 1 and leaf in ("weight", "gamma"):
        return rng.uniform(0.5, 1.5, shape)
    fan_in = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    return gain * rng.standard_normal(shape) / np.sqrt(fan_in)


def seeded_state_dict(layout: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """Weights for every entry of a stored layout, each from its own name (see goldens/README.md)."""
    described = json.loads((FOLDER / f"{layout}.json").read_text())
    state: dict[str, np.ndarray] = {}
    for name, shape, dtype in described["entries"]:
        if name in described["constants"]:
            value = np.resize(np.asarray(described["constants"][name], dtype=np.float64), shape)
        elif name.endswith(("weight_u", "weight_v")):
            continue
        else:
            value = _seeded_array(name, shape, seed, described["gains"].get(name, 1.0))
        state[name] = value.astype(np.int64 if dtype.startswith("int") else np.float32)
    for name, shape, _ in described["entries"]:
        if name.endswith("weight_u"):  # ten power iterations: converged to a few percent, on purpose
            stem = name.removesuffix("weight_u")
            weight = state[f"{stem}weight_orig"].astype(np.float64)
            weight = weight.reshape(weight.shape[0], -1)
            u = _stream(seed, name).standard_normal(shape)
            for _ in range(10):
                v = weight.T @ u
                v /= np.linalg.norm(v)
                u = weight @ v
                u /= np.linalg.norm(u)
            state[name], state[f"{stem}weight_v"] = u.astype(np.float32), v.astype(np.float32)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}


def check_weights(state: dict[str, torch.Tensor], recipe: dict[str, Any]) -> None:
    """Asserts that the weights are those that made the goldens, to the last bits of their power iterations."""
    check = recipe["weights_check"]
    assert len(state) == check["entries"]
    total = sum(float(value.double().sum()) for value in state.values())
    assert abs(total - check["sum"]) < 1e-6 * check["abs_sum"]


def make_input(recipe: dict[str, Any]) -> torch.Tensor:
    """One input of a recipe; asserts that the random stream is the one that made the goldens."""
    values = seeded_input(recipe["name"], recipe["shape"], recipe["seed"], recipe["kind"]) * recipe.get("scale", 1.0)
    assert abs(float(values.mean(dtype=np.float64)) - recipe["mean"]) < 1e-6, f"{recipe['name']}: another random stream"
    return torch.from_numpy(values.astype(np.float32))


def make_inputs(recipe: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every input of a recipe, by name."""
    return {name: make_input(each) for name, each in recipe["inputs"].items()}


def difference(result: torch.Tensor, arrays: dict[str, np.ndarray], name: str) -> float:
    """The largest absolute difference to the stored part of golden `name`."""
    assert list(result.shape) == arrays[f"{name}.shape"].tolist()
    stored = result.detach().float().cpu().contiguous().numpy().ravel()[:: int(arrays[f"{name}.stride"])]
    return float(np.abs(stored.astype(np.float64) - arrays[name].ravel()).max())
