"""What is counted, and what the report says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastface import engine
from fastface.engine.report import Cost, Step, count, total
from fastface.ops import _native


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.linear = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu_(self.conv(x)).mean((2, 3)))


def test_flops_and_bytes_by_part() -> None:
    module, x = Two(), torch.randn(2, 3, 6, 7)
    costs = count(module, lambda: module(x))
    pixels = 2 * 6 * 7
    assert costs["conv"] == Cost(2 * pixels * 8 * 27, 4 * (x.numel() + 8 * 27 + 8 * pixels))
    assert costs["linear"].flops == 2 * 2 * 8 * 5
    assert costs[""] == Cost(0, 4 * (2 * 8 * pixels + 8 * pixels + 2 * 8)), "the ReLU reads and writes, then the mean"
    assert total(costs).flops == costs["conv"].flops + costs["linear"].flops
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_views_move_nothing() -> None:
    module = nn.Identity()
    x = torch.randn(2, 6, 4, 4)
    assert total(count(module, lambda: x.chunk(2, 1)[0].transpose(2, 3).split([1, 2], 1)[1][:, :, ::2])) == Cost()


def test_steps_are_summed_by_their_parts() -> None:
    report = engine.OptimizeReport()
    before = {"a.x": Cost(1, 10), "a.y": Cost(2, 20), "b": Cost(4, 40), "ab": Cost(8, 80)}
    report.add([Step("s", ("a", "b"), ("c.*.d",))], before, {"c.0.d": Cost(5, 50), "c.0.e": Cost(9, 90)})
    report.add([Step("t", ("",), ("",)).within("a")], before, None)
    report.add([Step("u", ("$", "x$"), ("y",)).within("a")], before | {"a": Cost(16, 0), "a.x.z": Cost(32, 0)}, None)
    assert report.rewrites[2] == engine.Rewrite("u", "a.y", Cost(17, 10), None)
    assert report.rewrites[0] == engine.Rewrite("s", "c.*.d", Cost(7, 70), Cost(5, 50))
    assert report.rewrites[1] == engine.Rewrite("t", "a", Cost(3, 30), None)


@torch.no_grad()
def test_the_report_of_optimize() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(48, 64, 3, padding=1), nn.BatchNorm2d(64)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(F.interpolate(x, scale_factor=4.0))))

    module = nn.Sequential(Block(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    x = torch.randn(1, 48, 20, 20)
    plain = 2 * 80 * 80 * 64 * 9 * (48 + 64)
    direct = engine.optimize(module, example=(x,), winograd=False).report
    assert direct.before.flops == plain
    # 25 of 144 products, and a row and a column more for those phases that one convolution computes together.
    exact, spare = plain - 2 * 48 * 64 * 400 * (144 - 25), (21 / 20) ** 2
    assert exact < direct.after.flops < exact * spare
    names = [rewrite.name for rewrite in direct.rewrites]
    assert names == [
        "batch norm folded",
        "upsampling joined with its convolution",
        "activation behind its convolution",
        "polyphase",
    ]
    polyphase = direct.rewrites[-1]
    assert direct.rewrites[2].where == "0.conv, 0"
    assert polyphase.where == "0.conv" and polyphase.before.flops == 2 * 6400 * 9 * 48 * 64
    assert direct.after.bytes < direct.before.bytes
    fast = engine.optimize(module, example=(x,)).report
    if _native.reason_missing("cpu") is None:
        assert fast.rewrites[-1].name == "Winograd" and fast.rewrites[-1].where == "1"
        assert fast.rewrites[-1].after.flops == 2 * 20 * 20 * 36 * 64 * 64, "36 products a tile of 4x4"
    text = str(fast)
    assert text.count("\n") == len(fast.rewrites) + 2 and f"| {plain / 1e9:.2f} |" in text.splitlines()[-1]


def test_without_an_example_there_are_names_alone() -> None:
    report = engine.optimize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).report
    assert report.before is None and report.rewrites == [engine.Rewrite("batch norm folded", "0")]
    assert str(report).splitlines()[2] == "| batch norm folded | 0 |  |  |  |  |"


@pytest.mark.skipif(_native.reason_missing("cpu") is not None, reason="needs the cpu extension")
def test_multiplications_of_fourier() -> None:
    conv = nn.Conv3d(32, 6, 7, padding=3).requires_grad_(False)
    module, x = engine.FFTConv3d(conv), torch.randn(1, 32, 4, 20, 33)
    tiles, frequencies = 2 * 3 * 4, 22 * 12
    assert total(count(module, lambda: module(x))).flops == 2 * tiles * frequencies * 7 * 4 * 32 * 6
