"""CUDA graphs: the kernels of a call recorded once and launched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastface.engine._trees import map_tensors, tensors

__all__ = ["CudaGraph"]


class CudaGraph:
    """``function(*example)`` recorded on its device; calls copy their arguments in and launch the recording.

    The function must do the same work for every argument of these shapes and never wait for the device. What a call
    returns is overwritten by the next: clone what shall last.

    Args:
        function: a module or another callable, run without gradients.
        example: its arguments, tensors alone or in tuples, lists, dictionaries and dataclasses; what is no tensor is
            fixed by the recording.
        warmup: calls before the recording, in which libraries choose their algorithms.

    Raises:
        RuntimeError: PyTorch sees no CUDA device.
        ValueError: an example without tensors, or with tensors on another device than one CUDA device.
    """

    def __init__(self, function: Callable[..., Any], *example: Any, warmup: int = 3) -> None:
        devices = {x.device for x in tensors(example)}
        if len(devices) != 1 or next(iter(devices)).type != "cuda":
            found = ", ".join(sorted(map(str, devices))) or "no tensors"
            raise ValueError(f"example must have its tensors on one CUDA device, got {found}")
        if not torch.cuda.is_available():
            raise RuntimeError("CudaGraph needs a CUDA device, PyTorch sees none")
        self.device = next(iter(devices))
        self._inputs = map_tensors(lambda x: x.detach().clone(memory_format=torch.preserve_format), example)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.no_grad():
            # Recording forbids what a first call may do, such as allocating workspaces; the current stream may have
            # work in flight on the arguments.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(warmup):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self._graph):
                self._outputs = function(*self._inputs)

    def __call__(self, *arguments: Any) -> Any:
        """The function's result for `arguments`.

        Raises:
            ValueError: tensors of another number, shape, dtype or device than the example's.
        """
        given, expected = list(tensors(arguments)), list(tensors(self._inputs))
        check_alike(given, expected)
        with torch.cuda.device(self.device), torch.no_grad():
            for target, source in zip(expected, given, strict=True):
                target.copy_(source, non_blocking=True)
            self._graph.replay()
        return self._outputs


def check_alike(given: list[Tensor], expected: list[Tensor]) -> None:
    """Raise ValueError for the first tensor that is not like the recorded one."""
    if len(given) != len(expected):
        raise ValueError(f"arguments must hold {len(expected)} tensors as recorded, got {len(given)}")
    for index, (one, other) in enumerate(zip(given, expected, strict=True)):
        kinds = [f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}" for x in (other, one)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"tensor {index} of the arguments must be {kinds[0]} as recorded, got {kinds[1]}")
