"""Makes a model fast without changing what it computes: exact rewrites, and where its time goes."""

from fastface.engine.optimize import optimize
from fastface.engine.profile import LayerTime, layer_times, table
from fastface.engine.winograd import WinogradConv2d

__all__ = ["LayerTime", "WinogradConv2d", "layer_times", "optimize", "table"]
