"""The hot paths: checked, registered with PyTorch, and dispatched to the best backend that can run here."""

from fastface.ops._backends import BackendUnavailable, explain
from fastface.ops.raster import RasterOutput, rasterize
from fastface.ops.spade import instance_stats, modulated_norm
from fastface.ops.triplane import PlaneDecoder, RenderOutput, render_planes, sample_planes
from fastface.ops.warp import compose_flow, compose_volumes, motion_field, pack_motions

__all__ = [
    "BackendUnavailable",
    "PlaneDecoder",
    "RasterOutput",
    "RenderOutput",
    "compose_flow",
    "compose_volumes",
    "explain",
    "instance_stats",
    "modulated_norm",
    "motion_field",
    "pack_motions",
    "rasterize",
    "render_planes",
    "sample_planes",
]
