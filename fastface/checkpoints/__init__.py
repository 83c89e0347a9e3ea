"""Public checkpoint layouts, read into our modules."""

from fastface.checkpoints.loading import (
    Layout,
    fold_spectral_norm,
    layouts,
    load_checkpoint,
    read_state_dict,
    register,
    shape_of,
)

__all__ = ["Layout", "fold_spectral_norm", "layouts", "load_checkpoint", "read_state_dict", "register", "shape_of"]
