"""The Triton kernels of `spade` without a GPU: their results under Triton's interpreter, and what the compiler makes of
them for three generations of GPUs. On a GPU: test_spade_gpu.py.
"""

from __future__ import annotations

import re

import pytest

from tests.kernels.interpreted import run_interpreted

pytest.importorskip("triton", reason="needs triton")


def test_in_the_interpreter() -> None:
    run_interpreted("spade_triton_interpreted.py")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_ahead_of_time_without_spills(capability: int) -> None:
    from tests.kernels import triton_aot

    compiled = set()
    for name, launch in triton_aot.launches("spade", capability):
        report = triton_aot.compile_for(capability, *launch)
        assert report.spill_instructions == 0 and report.stack == 0, f"{name}: {report.stack} bytes of stack"
        assert report.shared <= 8192, f"{name}: {report.shared} bytes of shared memory"
        assert ".f64" not in report.ptx, f"{name} computes in float64"
        kernel = name.split(",")[0]
        compiled.add(kernel)
        if kernel != "merge_kernel" and not re.search(r"sliced|90x90|1x1", name):
            assert re.search(r"LDG\.E\.128", report.sass), f"{name}: loads are not wide"
            assert kernel != "norm_kernel" or re.search(r"STG\.E\.128", report.sass), f"{name}: stores are not wide"
    assert compiled == {"norm_kernel", "partial_kernel", "merge_kernel"}
