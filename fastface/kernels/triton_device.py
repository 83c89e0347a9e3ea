"""What the Triton kernels of every hot path ask of their device."""

from __future__ import annotations

import functools

import torch
import triton

__all__ = ["INTERPRETED", "capability", "processors", "refuse_device"]


@triton.jit
def _nothing():
    pass


# Under TRITON_INTERPRET=1 a jitted function is not compiled but run by Triton's interpreter, on CPU tensors.
INTERPRETED = not isinstance(_nothing, triton.runtime.JITFunction)


@functools.cache
def capability(index: int) -> int:
    """The compute capability of a GPU, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@functools.cache
def processors(index: int) -> int:
    """How many multiprocessors a GPU has."""
    return torch.cuda.get_device_properties(index).multi_processor_count


def refuse_device(device: torch.device) -> str | None:
    """Why no Triton kernel runs on a device, or None."""
    if INTERPRETED:
        return None
    if torch.version.hip is not None:
        return "it has been written for NVIDIA GPUs"
    if capability(device.index) < 80:
        return f"compute capability {capability(device.index) / 10}, it needs 8.0 or newer"
    return None
