"""The hot paths: checked, registered with PyTorch, and dispatched to the best backend that can run here."""

from fastface.ops._backends import BackendUnavailable, explain
from fastface.ops.warp import compose_flow, compose_volumes, motion_field, pack_motions

__all__ = ["BackendUnavailable", "compose_flow", "compose_volumes", "explain", "motion_field", "pack_motions"]
