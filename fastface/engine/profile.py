"""Where a model's time goes, layer by layer."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastface.engine._tiled_conv import TiledConv
from fastface.engine.convs import FoldedConv2d
from fastface.engine.polyphase import PolyphaseConv

__all__ = ["LayerTime", "layer_times", "table"]


@dataclass
class LayerTime:
    """One leaf module: how often it ran per call, its share of multiply-adds (convolutions and linear layers), and the
    median milliseconds of all its runs in one call.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    calls: int = 0
    gmac: float = 0.0
    milliseconds: float = 0.0
    _samples: list[float] = field(default_factory=list, repr=False)


def layer_times(module: nn.Module, call: Callable[[], Any], *, repeats: int = 5) -> list[LayerTime]:
    """Time every leaf of `module` while `call` runs it, in the order in which the leaves first run.

    Work outside leaf modules (warps, pixel shuffles, additions) is in no row; the difference to the whole is it. On a
    GPU each leaf is waited for, so the rows are slower in sum than the model is.
    """
    rows: dict[str, LayerTime] = {}
    names = {part: name for name, part in module.named_modules() if not any(part.children())}
    started: dict[nn.Module, float] = {}
    sums: dict[str, float] = {}

    def before(part: nn.Module, _: Any) -> None:
        _wait()
        started[part] = time.perf_counter()

    def after(part: nn.Module, _: Any, output: Any) -> None:
        _wait()
        spent = (time.perf_counter() - started[part]) * 1e3
        name = names[part]
        row = rows.setdefault(name, LayerTime(name, type(part).__name__, tuple(getattr(output, "shape", ()))))
        sums[name] = sums.get(name, 0.0) + spent
        row.calls += 1
        row.gmac += _multiply_adds(part, output) / 1e9

    hooks = [part.register_forward_pre_hook(before) for part in names]
    hooks += [part.register_forward_hook(after) for part in names]
    try:
        with torch.inference_mode():
            call()  # warm up
            rows.clear()
            for _ in range(repeats):
                sums.clear()
                call()
                for name, spent in sums.items():
                    rows[name]._samples.append(spent)
    finally:
        for hook in hooks:
            hook.remove()
    for row in rows.values():
        row.calls, row.gmac = row.calls // repeats, row.gmac / repeats
        row.milliseconds = statistics.median(row._samples)
    return list(rows.values())


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _multiply_adds(part: nn.Module, output: Any) -> float:
    """Of the definition, so that the rates of ways to compute it compare."""
    if not isinstance(output, Tensor):
        return 0.0
    if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, TiledConv)):
        return output.numel() * part.weight[0].numel()
    if isinstance(part, (PolyphaseConv, FoldedConv2d)):
        return output.numel() * part.in_channels * math.prod(part.kernel_size)
    if isinstance(part, nn.Linear):
        return output.numel() * part.in_features
    return 0.0


def table(rows: list[LayerTime], total: float | None = None) -> str:
    """The rows as a Markdown table, slowest first; `total` milliseconds of the whole call show what no row has."""
    lines = ["| layer | kind | output | GMAC | ms | GMAC/s |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda each: -each.milliseconds):
        shape = "x".join(map(str, row.output[1:]))
        rate = f"{row.gmac / row.milliseconds * 1e3:.0f}" if row.gmac and row.milliseconds else ""
        gmac = f"{row.gmac:.2f}" if row.gmac else ""
        lines.append(f"| {row.name} | {row.kind} | {shape} | {gmac} | {row.milliseconds:.1f} | {rate} |")
    inside = sum(row.milliseconds for row in rows)
    work = sum(row.gmac for row in rows)
    if total is not None:
        lines.append(f"| outside of layers | | | | {total - inside:.1f} | |")
    lines.append(f"| all | | | {work:.2f} | {inside if total is None else total:.1f} | |")
    return "\n".join(lines)
