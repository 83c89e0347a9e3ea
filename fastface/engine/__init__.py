"""Makes a model fast without changing what it computes: exact rewrites, and where its time goes."""

from fastface.engine.fft_conv import FFTConv3d
from fastface.engine.fold import fold_batch_norm, fold_batch_norm_before, fold_pointwise, fold_spectral_norm
from fastface.engine.graphs import CudaGraph
from fastface.engine.optimize import optimize
from fastface.engine.polyphase import PolyphaseConv
from fastface.engine.precision import LayerProbe, ProbeReport, probe, reduce_convs
from fastface.engine.profile import LayerTime, layer_times, table
from fastface.engine.report import Cost, OptimizeReport, Rewrite, Step
from fastface.engine.winograd import WinogradConv2d, WinogradConv3d

__all__ = [
    "Cost",
    "CudaGraph",
    "FFTConv3d",
    "LayerProbe",
    "LayerTime",
    "OptimizeReport",
    "PolyphaseConv",
    "ProbeReport",
    "Rewrite",
    "Step",
    "WinogradConv2d",
    "WinogradConv3d",
    "fold_batch_norm",
    "fold_batch_norm_before",
    "fold_pointwise",
    "fold_spectral_norm",
    "layer_times",
    "optimize",
    "probe",
    "reduce_convs",
    "table",
]
