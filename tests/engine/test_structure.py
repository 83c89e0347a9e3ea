"""Rewrites found by what a module's forward does, on modules that nobody told of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import engine
from fastface.engine.structure import rewrite_structure
from fastface.nn import ActivatedConv, SlicePool, UpsampledConv
from tests.engine.helpers import randomize, relative, seeded


class Block(nn.Module):
    """Convolution, norm, activation; `where` says what else."""

    def __init__(self, where: str = "", axes: int = 2) -> None:
        super().__init__()
        self.where = where
        self.conv = (nn.Conv2d if axes == 2 else nn.Conv3d)(4, 4, 3, padding=1)
        self.norm = (nn.BatchNorm2d if axes == 2 else nn.BatchNorm3d)(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "upsample":
            x = F.interpolate(x, scale_factor=2)
        if self.where == "upsample volume":
            x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
        y = self.conv(x)
        x = F.leaky_relu(self.norm(y), 0.1)
        if self.where == "used twice":
            x = x + y
        return F.avg_pool3d(x, (1, 2, 2)) if self.where == "upsample volume" else x


class Modulated(nn.Module):
    """Somebody else's SPADE behind its shared convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp_gamma = nn.Conv2d(4, 5, 3, padding=1)
        self.mlp_beta = nn.Conv2d(4, 3, 3, padding=1)
        self.other = nn.Conv2d(4, 3, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mlp_gamma(hidden)[:, :3] * self.other(hidden) + self.mlp_beta(hidden)


class Dynamic(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Optional(Modulated):
    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(hidden)
        return out if mask is None else out * mask


class Outside(Modulated):
    """The second convolution is somebody else's as well."""

    def alone(self, hidden: Tensor) -> Tensor:
        return self.mlp_beta(hidden)


def rewritten(module: nn.Module) -> tuple[nn.Module, list[str]]:
    result, steps = rewrite_structure(copy.deepcopy(module))
    return result, [step.name for step in steps]


IMAGE, VOLUME = (2, 4, 7, 9), (2, 4, 3, 4, 6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "size", "found"),
    [
        (lambda: Block(), IMAGE, ["batch norm folded", "activation behind its convolution"]),
        (
            lambda: Block("upsample"),
            IMAGE,
            ["batch norm folded", "upsampling joined with its convolution", "activation behind its convolution"],
        ),
        (
            lambda: Block("upsample volume", axes=3),
            VOLUME,
            [
                "batch norm folded",
                "upsampling joined with its convolution",
                "activation behind its convolution",
                "pooling slice by slice",
            ],
        ),
        (lambda: Modulated(), IMAGE, ["convolutions of one input merged"]),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), IMAGE, ["batch norm folded"]),
        (
            lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()),
            IMAGE,
            ["upsampling joined with its convolution", "activation behind its convolution"],
        ),
        (lambda: Block("used twice"), IMAGE, []),
        (lambda: nn.Sequential(nn.Upsample(scale_factor=1.5), nn.Conv2d(4, 3, 3, padding=1)), IMAGE, []),
        (lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 3, 3)), IMAGE, []),
        (lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3)), IMAGE, []),  # its border is cut off
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), IMAGE, []),
        (lambda: Dynamic(), IMAGE, []),
        (lambda: Optional(), IMAGE, []),
        (lambda: Outside(), IMAGE, []),
    ],
)
def test_what_is_found(make, size: tuple[int, ...], found: list[str]) -> None:
    torch.manual_seed(0)
    module = randomize(nn.ModuleDict({"part": make()})).double()
    result, names = rewritten(module)
    assert names == found
    x = seeded(1, *size)
    assert relative(module["part"](x), result["part"](x)) < 1e-12
    assert relative(module["part"](x).float(), result.float()["part"](x.float())) < 1e-4


@torch.no_grad()
def test_a_sequence_stays_one() -> None:
    torch.manual_seed(0)
    relu = nn.ReLU()
    module = nn.Sequential(nn.Conv2d(4, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    result, names = rewritten(module)
    assert type(result) is nn.Sequential and names == ["activation behind its convolution"]
    assert relative(module(seeded(3, *IMAGE).float()), result(seeded(3, *IMAGE).float())) < 1e-6


@torch.no_grad()
def test_shared_and_hooked_parts_are_left_alone() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 4, 3, padding=1), randomize(nn.BatchNorm2d(4))
    module = nn.ModuleList([nn.Sequential(conv, norm), nn.Sequential(conv, nn.ReLU())]).eval()
    assert rewritten(module)[1] == []
    watched = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    watched[0].register_forward_hook(lambda *_: None)
    assert rewritten(watched)[1] == []


class Reading(Block):
    """Uses a parameter of its convolution beside calling it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.conv.weight.mean()


class Overwriting(Modulated):
    """Writes over what two convolutions read, between them."""

    def forward(self, hidden: Tensor) -> Tensor:
        gamma = self.mlp_gamma(hidden)[:, :3]
        hidden = hidden.mul_(2)
        return gamma + self.mlp_beta(hidden)


class OverwritingAnother(Modulated):
    """The same by another name of the map."""

    def forward(self, hidden: Tensor) -> Tensor:
        gamma = self.mlp_gamma(hidden)[:, :3]
        hidden[:, :1] += 1
        return gamma + self.mlp_beta(hidden)


class OverwritingBeforeUpsampled(Block):
    def forward(self, x: Tensor) -> Tensor:
        upsampled = F.interpolate(x, scale_factor=2)
        F.relu_(x)
        return self.conv(upsampled)


@pytest.mark.parametrize("make", [Reading, Overwriting, OverwritingAnother, OverwritingBeforeUpsampled])
def test_what_else_touches_them_counts(make: type[nn.Module]) -> None:
    module, x = randomize(make()).double(), seeded(0, 2, 4, 6, 10)
    fast, steps = rewrite_structure(copy.deepcopy(module))
    with torch.no_grad():
        assert relative(fast(x.clone()), module(x.clone())) < 1e-5
    assert not [step.name for step in steps if step.name != "activation behind its convolution"]


def test_what_takes_their_place() -> None:
    result, _ = rewritten(randomize(Block("upsample volume", axes=3)))
    assert isinstance(result.conv, ActivatedConv) and isinstance(result.conv.conv, UpsampledConv)
    assert any(isinstance(part, SlicePool) for part in result.modules())
    assert result.where == "upsample volume", "attributes go over"
    merged, _ = rewritten(Modulated().eval())
    assert {name for name, _ in merged.named_children()} == {"other", "mlp_gamma_mlp_beta"}
    with pytest.raises(ValueError, match="activation must be 'relu' or 'leaky_relu', got 'gelu'"):
        ActivatedConv(nn.Conv2d(1, 1, 1), "gelu")


@torch.no_grad()
@pytest.mark.parametrize("size", [(2, 3, 5, 8, 6), (1, 3, 1, 5, 7)], ids=str)
def test_pooling_of_slices(size: tuple[int, ...]) -> None:
    x = seeded(2, *size)
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        given = x.contiguous(memory_format=memory_format)
        found = SlicePool(2)(given)
        assert relative(F.avg_pool3d(x, (1, 2, 2)), found) < 1e-12
        assert size[2] == 1 or found.is_contiguous(memory_format=memory_format)
    assert SlicePool(2)(x.bfloat16().contiguous(memory_format=torch.channels_last_3d)).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"polyphase": False}, {"winograd": False, "fft": False}], ids=str)
def test_optimize_uses_it(options: dict) -> None:
    """A foreign network of blocks, wide enough for Winograd's algorithm, in float32."""
    torch.manual_seed(0)
    module = randomize(
        nn.Sequential(
            nn.Conv2d(3, 36, 3, padding=1), nn.BatchNorm2d(36), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(36, 40, 3, padding=1), nn.BatchNorm2d(40), nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=4), nn.Conv2d(40, 34, 3, padding=1),
        )
    )  # fmt: skip
    x = torch.randn(2, 3, 7, 9)
    optimized = engine.optimize(module, example=(x,), **options)
    assert relative(module(x), optimized(x)) < 1e-4
    assert relative(optimized(x), engine.optimize(optimized)(x)) < 1e-4, "again changes nothing"
    compiled = torch.compile(optimized, fullgraph=True, backend="aot_eager")
    assert relative(optimized(x), compiled(x)) < 1e-5


def test_a_forward_that_asks_for_types_is_left_alone() -> None:
    """Under a trace the argument is no tensor, and the other branch would be taken."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return y if isinstance(x, torch.Tensor) else -y

    torch.manual_seed(0)
    module, x = Asks().eval(), torch.randn(1, 3, 8, 8)
    assert torch.allclose(engine.optimize(module)(x), module(x), atol=1e-6)
