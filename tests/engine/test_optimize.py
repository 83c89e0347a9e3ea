"""Exact rewrites: the same numbers, nothing of the original changed; and the table of where time goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastface import engine
from fastface.models.headgan import Generator, GeneratorConfig
from fastface.nn import SPADE, merge_convs
from fastface.ops import _native
from tests.engine.helpers import randomize, worst


@torch.no_grad()
@pytest.mark.parametrize("change", [{}, {"residual": False}, {"audio": 0}, {"flow": False}], ids=str)
def test_headgan(change: dict) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(channels=(8, 32, 128), hidden=16, **change)).eval()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    optimized = engine.optimize(generator)
    image, face, faces = torch.rand(1, 3, 40, 52) * 2 - 1, torch.rand(1, 3, 40, 52), torch.rand(2, 9, 40, 52)
    audio = None if change == {"audio": 0} else torch.randn(2, 300)
    ours = optimized(optimized.encode(image, face), faces, audio)
    theirs = generator(generator.encode(image, face), faces, audio)
    assert worst(theirs.image, ours.image) < 1e-4 and worst(theirs.warped, ours.warped) < 1e-4
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert not any(isinstance(part, SPADE) for part in optimized.modules()), "every SPADE is merged"
    convs = (nn.Conv2d, engine.WinogradConv2d)
    count = [sum(isinstance(p, convs) for p in module.modules()) for module in (generator, optimized)]
    assert any(isinstance(p, engine.WinogradConv2d) for p in optimized.modules()) == (not _native.reason_missing("cpu"))
    blocks = 4 if change == {"flow": False} else 8
    heads = blocks == 8  # of flow and mask, which read the same map
    assert count[0] - count[1] == 3 * blocks + heads, "per block two modulations and one shared convolution less"


@torch.no_grad()
@pytest.mark.parametrize("spelling", ["hook", "parametrization"])
def test_spectral_and_batch_norm_are_folded(spelling: str) -> None:
    torch.manual_seed(0)
    wrap = nn.utils.spectral_norm if spelling == "hook" else nn.utils.parametrizations.spectral_norm
    model = randomize(
        nn.Sequential(
            wrap(nn.Conv2d(3, 8, 3, padding=1)),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)),
        )
    )
    with torch.enable_grad():
        model(torch.randn(4, 3, 8, 8))  # a training step moves the vectors
    model.eval()
    optimized = engine.optimize(model)
    x = torch.randn(2, 3, 9, 7)
    assert worst(model(x), optimized(x)) < 1e-5
    assert not any(isinstance(part, nn.BatchNorm2d) for part in optimized.modules())
    assert type(optimized[0].conv) is nn.Conv2d and isinstance(optimized[0].conv.weight, nn.Parameter)
    names = {"0.conv.weight", "0.conv.bias", "3.0.weight", "3.0.bias"}
    assert {name for name, _ in optimized.named_parameters()} == names
    assert [rewrite.name for rewrite in optimized.report.rewrites] == [
        "spectral norm folded",
        "batch norm folded",
        "activation behind its convolution",
        "batch norm folded",
    ] or optimized.report.rewrites[1].where == "3.0"


def test_only_what_is_alike_is_merged() -> None:
    a, b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
    x = torch.randn(1, 3, 5, 5)
    assert torch.allclose(merge_convs(a, b)(x), torch.cat([a(x), b(x)], 1), atol=1e-6)
    for other in (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1, bias=False)):
        with pytest.raises(ValueError, match="convolutions must differ in their outputs alone"):
            merge_convs(a, other)


def test_layer_times() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    rows = engine.layer_times(model, lambda: model(torch.randn(2, 3, 6, 6)), repeats=3)
    assert [row.kind for row in rows] == ["Conv2d", "ReLU", "Flatten", "Linear"]
    assert [row.calls for row in rows] == [1, 1, 1, 1] and rows[0].output == (2, 8, 6, 6)
    assert rows[0].gmac == pytest.approx(2 * 8 * 36 * 27 / 1e9) and rows[3].gmac == pytest.approx(2 * 5 * 288 / 1e9)
    assert all(row.milliseconds > 0 for row in rows)
    text = engine.table(rows, total=100.0)
    assert text.count("\n") == 7 and "| outside of layers |" in text and "| all | | | 0.00 | 100.0 | |" in text
