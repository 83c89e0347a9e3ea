"""CUDA graphs: on a GPU what they compute, elsewhere what they say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fastface import engine
from fastface.engine._trees import map_tensors, tensors
from fastface.engine.graphs import check_alike


@dataclass(frozen=True)
class Pair:
    image: Tensor
    scale: Tensor
    name: str = "pair"


def test_a_cpu_is_told() -> None:
    with pytest.raises(ValueError, match="example must have its tensors on one CUDA device, got cpu"):
        engine.CudaGraph(nn.Identity(), torch.ones(2))
    with pytest.raises(ValueError, match="example must have its tensors on one CUDA device, got no tensors"):
        engine.CudaGraph(nn.Identity(), 3)


def test_other_arguments_are_told() -> None:
    expected = [torch.ones(2, 3), torch.ones(1)]
    check_alike([torch.zeros(2, 3), torch.zeros(1)], expected)
    with pytest.raises(ValueError, match="arguments must hold 2 tensors as recorded, got 1"):
        check_alike(expected[:1], expected)
    with pytest.raises(
        ValueError, match=r"tensor 0 .* must be \[2, 3\] float32 on cpu as recorded, got \[3, 2\] float32"
    ):
        check_alike([torch.ones(3, 2), torch.ones(1)], expected)
    with pytest.raises(ValueError, match=r"tensor 1 .* must be \[1\] float32 on cpu as recorded, got \[1\] float64"):
        check_alike([torch.ones(2, 3), torch.ones(1).double()], expected)


def test_tensors_in_any_container() -> None:
    one, two = torch.ones(2), torch.zeros(3)
    value = {"a": (one, [Pair(two, one)]), "b": 5, "c": torch.return_types.max((one, two))}
    assert [id(x) for x in tensors(value)] == [id(one), id(two), id(one), id(one), id(two)]
    doubled = map_tensors(lambda x: x.double(), value)
    assert all(x.dtype == torch.float64 for x in tensors(doubled)) and doubled["b"] == 5
    assert doubled["a"][1][0].name == "pair" and isinstance(doubled["a"][1][0], Pair)


@pytest.mark.gpu
def test_a_graph_computes_what_the_function_does() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1).cuda()

    def function(pair: Pair, shift: Tensor) -> dict[str, Tensor]:
        return {"out": conv(pair.image) * pair.scale + shift}

    def arguments(seed: int) -> tuple[Pair, Tensor]:
        torch.manual_seed(seed)
        return Pair(torch.randn(2, 3, 7, 9).cuda(), torch.randn(1).cuda()), torch.randn(1).cuda()

    graph = engine.CudaGraph(function, *arguments(1))
    results = []
    for seed in (2, 3, 1):
        given = arguments(seed)
        with torch.no_grad():
            expected = function(*given)["out"]
        found = graph(*given)["out"]
        assert torch.allclose(found, expected, atol=1e-5)
        results.append(found)
    assert results[0] is results[1], "the next call overwrites"
    with pytest.raises(ValueError, match="as recorded, got"):
        graph(arguments(1)[0], torch.ones(2).cuda())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        given = arguments(5)
        found = graph(*given)["out"].clone()
    stream.synchronize()
    with torch.no_grad():
        assert torch.allclose(found, function(*given)["out"], atol=1e-5)
