"""Makes a model fast without changing what it computes: exact rewrites, and where its time goes."""

from fastface.engine.optimize import optimize
from fastface.engine.profile import LayerTime, layer_times, table

__all__ = ["LayerTime", "layer_times", "optimize", "table"]
