"""The Triton kernels of `warp` without a GPU: their results under Triton's interpreter, and what the compiler makes of
them for three generations of GPUs. On a GPU: test_warp_gpu.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
OPS = ("pack_motions", "compose_flow", "compose_volumes", "motion_field")
SHARED_LIMIT = 48 * 1024  # far below what any of the devices has; the kernels need almost none


@pytest.mark.parametrize("op", OPS)
def test_in_the_interpreter(op: str) -> None:
    # One test with no op in its name belongs to each process; it is quick.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command += [str(ROOT / "tests" / "kernels" / "warp_triton_interpreted.py"), "-k", _selection(op)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment |= {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout, run.stdout


def _selection(op: str) -> str:
    unnamed = {"pack_motions": "out_is_written", "compose_flow": "split_their_channels"}
    return f"{op} or {unnamed[op]}" if op in unnamed else op


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("op", OPS)
def test_compiles_ahead_of_time_without_spills(op: str, capability: int) -> None:
    from tests.kernels import triton_aot

    calls = {name: call for name, call in triton_aot.live_portrait_calls().items() if call.op == op}
    assert calls
    for name, call in calls.items():
        tensor = call.feature if call.feature is not None else call.logits
        if tensor.dtype != torch.float32 and call.linear is not None:
            continue  # the linear part is float32 arithmetic, the same for every dtype
        report = triton_aot.compile_call(call, capability)
        assert report.spill_instructions == 0 and report.stack == 0, f"{name}: {report.stack} bytes of stack"
        assert report.shared <= SHARED_LIMIT, f"{name}: {report.shared} bytes of shared memory"
        assert report.registers <= 168, f"{name}: {report.registers} registers"
        assert ".f64" not in report.ptx, f"{name} computes in float64"
        if name.endswith("channels last"):
            assert re.search(r"LDG\.E\.(128|64)", report.sass), f"{name}: loads are not wide"
            assert re.search(r"STG\.E\.(128|64)", report.sass), f"{name}: stores are not wide"
