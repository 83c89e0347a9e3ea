"""Thin modules over the ops."""

from fastface.nn.raster import Rasterizer
from fastface.nn.spade import SPADE, AdaIN, InstanceNorm, MergedSPADE, merge_convs, resize_nearest
from fastface.nn.triplane import PlaneRenderer
from fastface.nn.warp import ComposeFlow, ComposeVolumes, PackMotions

__all__ = [
    "SPADE",
    "AdaIN",
    "ComposeFlow",
    "ComposeVolumes",
    "InstanceNorm",
    "MergedSPADE",
    "PackMotions",
    "PlaneRenderer",
    "Rasterizer",
    "merge_convs",
    "resize_nearest",
]
