"""Thin modules over the ops."""

from fastface.nn.backend import set_backend
from fastface.nn.conv import ActivatedConv, SlicePool, UpsampledConv, activate_, merge_convs
from fastface.nn.raster import Rasterizer
from fastface.nn.spade import (
    SPADE,
    AdaIN,
    InstanceNorm,
    MergedSPADE,
    ModulatedNorm,
    UpsampledModulation,
    resize_nearest,
)
from fastface.nn.triplane import PlaneRenderer
from fastface.nn.warp import ComposeFlow, ComposeVolumes, PackMotions

__all__ = [
    "SPADE",
    "ActivatedConv",
    "AdaIN",
    "ComposeFlow",
    "ComposeVolumes",
    "InstanceNorm",
    "MergedSPADE",
    "ModulatedNorm",
    "PackMotions",
    "PlaneRenderer",
    "Rasterizer",
    "SlicePool",
    "UpsampledConv",
    "UpsampledModulation",
    "activate_",
    "merge_convs",
    "resize_nearest",
    "set_backend",
]
