"""Allocates what ops return: in one place, so that tests can poison it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def memory_format(like: Tensor) -> torch.memory_format:
    """channels_last where `like` has it and is not contiguous as well, else contiguous."""
    last = _LAST.get(like.dim())
    if last is not None and not like.is_contiguous() and like.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def empty(
    shape: Sequence[int],
    like: Tensor,
    *,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """An output on the device of `like`, in its dtype unless another is given."""
    return torch.empty(list(shape), dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)
