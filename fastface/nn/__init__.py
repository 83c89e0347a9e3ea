"""Thin modules over the ops, one file per hot path: they hold options, the ops do the work."""

from fastface.nn.warp import ComposeFlow, ComposeVolumes, PackMotions

__all__ = ["ComposeFlow", "ComposeVolumes", "PackMotions"]
