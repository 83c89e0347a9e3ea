"""The Triton kernels of `warp` without a GPU: their results under Triton's interpreter, and what the compiler makes of
them for three generations of GPUs. On a GPU: test_warp_gpu.py.
"""

from __future__ import annotations

import re

import pytest

from tests.kernels.interpreted import run_interpreted

pytest.importorskip("triton")
OPS = ("pack_motions", "compose_flow", "compose_volumes", "motion_field")
SHARED_LIMIT = 48 * 1024  # far below what any of the devices has; the kernels need almost none


@pytest.mark.parametrize("op", OPS)
def test_in_the_interpreter(op: str) -> None:
    # One test with no op in its name belongs to each process; it is quick.
    run_interpreted("warp_triton_interpreted.py", _selection(op))


def _selection(op: str) -> str:
    unnamed = {"pack_motions": "out_is_written", "compose_flow": "split_their_channels"}
    return f"{op} or {unnamed[op]}" if op in unnamed else op


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("op", OPS)
def test_compiles_ahead_of_time_without_spills(op: str, capability: int) -> None:
    from tests.kernels import triton_aot

    launches = [launch for launch in triton_aot.launches("warp", capability) if launch[0].startswith(op)]
    assert launches
    for name, launch in launches:
        if "float16, linear" in name:
            continue  # the linear part is float32 arithmetic, the same for every dtype
        report = triton_aot.compile_for(capability, *launch)
        assert report.spill_instructions == 0 and report.stack == 0, f"{name}: {report.stack} bytes of stack"
        assert report.shared <= SHARED_LIMIT, f"{name}: {report.shared} bytes of shared memory"
        assert report.registers <= 168, f"{name}: {report.registers} registers"
        assert ".f64" not in report.ptx, f"{name} computes in float64"
        if name.endswith("channels last"):
            assert re.search(r"LDG\.E\.(128|64)", report.sass), f"{name}: loads are not wide"
            assert re.search(r"STG\.E\.(128|64)", report.sass), f"{name}: stores are not wide"
