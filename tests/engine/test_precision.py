"""16-bit convolutions, and the probe that says where they fail."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import engine
from tests.engine.helpers import randomize, worst


class Deep(nn.Module):
    """Volumes and images, a norm, a linear layer and a dictionary for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(3, 34, 3, padding=1)
        self.mask = nn.Conv3d(34, 5, 7, padding=3)
        self.image = nn.Conv2d(20, 40, 3, padding=1)
        self.norm = nn.BatchNorm2d(40)
        self.doubled = nn.ConvTranspose2d(40, 40, 3, stride=2)
        self.head = nn.Linear(40, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.avg_pool3d(F.relu(self.volume(x)), (1, 2, 2))
        x = self.mask(x).flatten(1, 2)
        x = self.doubled(self.norm(self.image(F.interpolate(x, scale_factor=2.0))))
        return {"map": x, "head": self.head(x.mean((2, 3)))}


def make() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return randomize(Deep()), torch.randn(2, 3, 4, 10, 14)


@torch.no_grad()
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reduced(dtype: torch.dtype, optimized: bool) -> None:
    module, x = make()
    given = engine.optimize(module) if optimized else module
    before = {name: value.clone() for name, value in given.state_dict().items()}
    reduced = engine.reduce_convs(given, dtype)
    expected, found = module(x), reduced(x)
    step = torch.finfo(dtype).eps
    for name, value in expected.items():
        assert found[name].dtype == torch.float32 and 0 < worst(value, found[name]) < 8 * step, name
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
    convs = [part for part in reduced.modules() if isinstance(part, kinds)]
    assert convs and all(part.weight.dtype == dtype for part in convs)
    assert not any(isinstance(p, (engine.WinogradConv2d, engine.FFTConv3d)) for p in reduced.modules())
    again = torch.compile(reduced, fullgraph=True, backend="aot_eager")(x)
    assert worst(found["map"], again["map"]) < 4 * step


@torch.no_grad()
def test_what_is_kept_stays_float32() -> None:
    module, x = make()
    reduced = engine.reduce_convs(module, keep=["volume", "ma*", "image", "norm", "doubled", "head"])
    assert worst(module(x)["map"], reduced(x)["map"]) < 1e-5
    some = engine.reduce_convs(module, keep=["mask"])
    assert some.get_submodule("mask.slices").weight.dtype == torch.float32
    assert 1e-5 < worst(module(x)["map"], some(x)["map"]) < 0.05
    with pytest.raises(ValueError, match="keep must name layers of the module, got 'nothing'"):
        engine.reduce_convs(module, keep=["nothing"])
    with pytest.raises(ValueError, match=r"dtype must be torch.bfloat16 or torch.float16, got torch.float64"):
        engine.reduce_convs(module, torch.float64)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)) * 1e-3)


def chain(factor: float) -> Chain:
    module = Chain()
    for conv, scale in zip((module.first, module.second, module.third), (1.0, factor, 1.0), strict=True):
        nn.init.zeros_(conv.weight)
        for channel in range(4):
            conv.weight.data[channel, channel] = scale
    return module


def test_the_probe_names_the_layer_that_overflows() -> None:
    x = torch.full((1, 4, 3, 3), 300.0)
    report = engine.probe(chain(400.0), x, dtype=torch.float16)
    told = "layer second overflows float16 (largest 1.2e+05 > 65504): keep it in float32 with keep=['second'] or "
    assert report.first == "second" and report.advice == str(report) == told + "use bfloat16"
    assert [layer.name for layer in report.layers] == ["first", "second", "third", "the output"]
    kept = engine.probe(chain(400.0), x, dtype=torch.float16, keep=["second"])
    assert kept.first is None and "float16 holds everything" in kept.advice
    wide = engine.probe(chain(400.0), x, dtype=torch.bfloat16)
    assert wide.first is None and max(layer.error for layer in wide.layers) < 0.01


def test_the_probe_sees_what_later_layers_write_over() -> None:
    class Clipped(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return self.third(F.hardtanh_(self.second(self.first(x))))

    module = Clipped()
    module.load_state_dict(chain(400.0).state_dict())
    report = engine.probe(module, torch.full((1, 4, 3, 3), 300.0))
    assert report.first == "second" and report.layers[1].largest == 120_000


def test_the_probe_on_what_is_broken_already() -> None:
    report = engine.probe(chain(float("inf")), torch.ones(1, 4, 3, 3))
    assert report.first == "second" and "gives NaN or infinity in float32 already" in report.advice


def test_the_probe_on_sums_that_overflow_inside() -> None:
    """A weight that float16 cannot hold, in a layer whose outputs it could."""
    module = chain(1e6)
    report = engine.probe(module, torch.full((1, 4, 3, 3), 1e-2))
    assert report.first == "second" and "gives NaN or infinity in float16 (largest in float32 1.0e+04)" in report.advice
