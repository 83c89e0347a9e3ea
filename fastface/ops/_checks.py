"""What every op checks of its arguments before it launches anything."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastface.ops import _native

KERNEL_DTYPES = tuple(_native.DTYPES)


def dense(name: str, value: Any) -> None:
    """Raises TypeError for anything but a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")


def op_dtype(name: str, tensor: Tensor) -> None:
    """Raises TypeError for a dtype that ops do not take."""
    if tensor.dtype not in KERNEL_DTYPES and tensor.dtype != torch.float64:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")


def same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name} must be {other.dtype} like {other_name}, got {tensor.dtype}")


def floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {tensor.dtype}")


def same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on {other.device} like {other_name}, got {tensor.device}")


def number(name: str, value: Any) -> None:
    """Raises TypeError for no number, ValueError for one that is not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def positive(name: str, value: Any) -> None:
    """Raises TypeError for no number, ValueError for one that is not finite and positive."""
    number(name, value)
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def refuse_kernel(device_type: str, *tensors: Tensor | None) -> str | None:
    """What no kernel of a device type takes."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != device_type:
            return f"the tensors are on {tensor.device}, it needs {device_type}"
        if tensor.dtype not in KERNEL_DTYPES:
            return f"dtype {tensor.dtype} (supported: float32, float16, bfloat16; float64 runs on the reference)"
    return None


def writable(name: str, out: Tensor, **inputs: Tensor | None) -> None:
    """Raises ValueError for an `out` whose elements share memory with one another or with an input's."""
    extent = 1
    for stride, size in sorted((abs(stride), size) for size, stride in zip(out.shape, out.stride(), strict=True)):
        if size > 1:
            if stride < extent:
                raise ValueError(
                    f"{name} must not overlap itself, got strides {list(out.stride())} for {list(out.shape)}"
                )
            extent += (size - 1) * stride
    if torch.compiler.is_compiling():
        return  # a traced tensor has no memory yet
    for other_name, other in inputs.items():
        if other is not None and _overlap(out, other):
            raise ValueError(f"{name} must not overlap {other_name}, but both are views of the same memory")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two views may share an element.

    Views of one buffer are apart where their spans are: in the whole buffer, or, for slices of channels side by side,
    within the period at which both repeat.
    """
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    periods = {stride * t.element_size() for t in (a, b) for stride in t.stride() if stride > 0}
    for period in (1 << 62, *periods):
        (start_a, extent_a), (start_b, extent_b) = _span(a, period), _span(b, period)
        if (start_b - start_a) % period >= extent_a and (start_a - start_b) % period >= extent_b:
            return False
    return True


def _span(tensor: Tensor, period: int) -> tuple[int, int]:
    """First byte and extent in bytes, of what repeats with `period`."""
    size = tensor.element_size()
    steps = [(n - 1) * s * size for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s * size % period]
    return int(tensor.storage_offset()) * size, size + sum(steps)
