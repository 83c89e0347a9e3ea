"""Where the time of HeadGAN's generator goes on this CPU, and what Winograd's algorithm gains: `python -m
benchmarks.layers` prints the tables of docs/headgan.md, in milliseconds (medians, contenders take turns).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from fastface import engine
from fastface.models.headgan import Generator

CONVS = ((512, 512, 64), (256, 256, 128), (128, 128, 128), (256, 64, 256), (32, 32, 256))  # in, out, side


def medians(calls: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first is for warming up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times[1:]) for name, times in samples.items()}


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    models = {"plain": Generator().eval().requires_grad_(False)}
    models["optimized"] = engine.optimize(models["plain"])
    image, face = torch.rand(1, 3, 256, 256) * 2 - 1, torch.rand(1, 3, 256, 256)
    faces, audio = torch.rand(1, 9, 256, 256), torch.randn(1, 300)
    references = {name: model.encode(image, face) for name, model in models.items()}
    calls = {name: lambda name=name: models[name](references[name], faces, audio) for name in models}
    whole = medians(calls, repeats=3)
    for name, model in models.items():
        print(f"\n{name}\n\n{engine.table(engine.layer_times(model, calls[name], repeats=3), total=whole[name])}")
    print("\n| 3x3 convolution | PyTorch, channels_last | Winograd | ratio |\n|---|---|---|---|")
    for inputs, outputs, side in CONVS:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
        winograd, x = engine.WinogradConv2d(conv), torch.randn(1, inputs, side, side)
        x, conv = (each.to(memory_format=torch.channels_last) for each in (x, conv))
        took = medians({"conv": lambda c=conv, x=x: c(x), "winograd": lambda w=winograd, x=x: w(x)})
        ratio = took["conv"] / took["winograd"]
        size = f"{inputs} to {outputs} at {side}x{side}"
        print(f"| {size} | {took['conv']:.1f} | {took['winograd']:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
