"""The Triton kernels of `triplane` without a GPU: their results under Triton's interpreter, and what the compiler makes
of them for three generations of GPUs. On a GPU: test_triplane_gpu.py.
"""

from __future__ import annotations

import pytest

from tests.kernels.interpreted import run_interpreted

pytest.importorskip("triton", reason="needs triton")


def test_in_the_interpreter() -> None:
    run_interpreted("triplane_triton_interpreted.py")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_ahead_of_time_without_spills(capability: int) -> None:
    from tests.kernels import triton_aot

    compiled = set()
    for name, launch in triton_aot.launches("triplane", capability):
        report = triton_aot.compile_for(capability, *launch)
        assert report.spill_instructions == 0 and report.stack == 0, f"{name}: {report.stack} bytes of stack"
        assert report.shared <= 99 << 10, f"{name}: {report.shared} bytes of shared memory"
        assert ".f64" not in report.ptx, f"{name} computes in float64"
        assert not name.startswith("render") or "mma" in report.ptx, f"{name}: no matrix instructions"
        compiled.add(name.split(",")[0])
    assert compiled == {"render_kernel", "sample_kernel"}
