"""Public checkpoint layouts, read into our modules."""

from fastface.checkpoints.converting import Conversion, convert, recognise
from fastface.checkpoints.loading import (
    Layout,
    fold_spectral_norm,
    layouts,
    load_checkpoint,
    read_parts,
    read_state_dict,
    register,
    shape_of,
)

__all__ = [
    "Conversion",
    "Layout",
    "convert",
    "fold_spectral_norm",
    "layouts",
    "load_checkpoint",
    "read_parts",
    "read_state_dict",
    "recognise",
    "register",
    "shape_of",
]
