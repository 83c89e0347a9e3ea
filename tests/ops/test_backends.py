"""The choice of backend: what runs, what refuses and says why, what each environment variable does."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastface
from fastface import ops
from fastface.ops import BackendUnavailable, _backends, _native, _verify
from fastface.ops.warp import registry

needs_cpu = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)


def make(op: str = "compose_flow", **options) -> _verify.Inputs:
    return _verify.inputs(op, "tiny", **options)


def call_of(case: _verify.Inputs):
    args, kwargs = case.arguments
    return registry.build(case.op, *args, **kwargs)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_try_load", lambda name: f"the {name} extension was not built: a test says so")
    _backends._log_once.cache_clear()


@needs_cpu
def test_cpu_tensors_run_on_the_cpu_kernels() -> None:
    assert registry.choose(call_of(make())) == ("cpu", "")


def test_float64_runs_on_the_reference_without_a_complaint(caplog: pytest.LogCaptureFixture) -> None:
    case = make(dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "fastface"):
        assert torch.equal(case.run(), case.reference())
    assert registry.choose(call_of(case)) == ("reference", "")
    assert not caplog.records


@pytest.mark.usefixtures("without_native")
def test_a_fall_back_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    case = make()
    with caplog.at_level(logging.WARNING, "fastface"):
        for _ in range(3):
            assert torch.equal(case.run(), case.reference())
    assert [record.message for record in caplog.records] == [
        "compose_flow falls back to the reference on cpu. cpu: the cpu extension was not built: a test says so"
    ]


@pytest.mark.usefixtures("without_native")
def test_strict_raises_instead_of_falling_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFACE_STRICT", "1")
    with pytest.raises(BackendUnavailable, match="FASTFACE_STRICT=1 is set. cpu: the cpu extension was not built"):
        make().run()
    assert torch.equal(make().run("reference"), make().reference())


@pytest.mark.usefixtures("without_native")
def test_a_chosen_backend_raises_instead_of_falling_back() -> None:
    with pytest.raises(BackendUnavailable, match="backend 'cpu' cannot run this call: the cpu extension was not built"):
        make().run("cpu")


def test_cuda_refuses_cpu_tensors_and_says_so() -> None:
    with pytest.raises(
        BackendUnavailable, match="backend 'cuda' cannot run this call: the tensors are on cpu, it needs cuda"
    ):
        make().run("cuda")


def test_the_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFACE_BACKEND", "reference")
    assert torch.equal(make().run(), make().reference())
    monkeypatch.setenv("FASTFACE_BACKEND", "cuda")
    with pytest.raises(BackendUnavailable, match="backend 'cuda' cannot run"):
        make().run()
    assert torch.equal(make().run("reference"), make().reference()), "the argument goes before the environment"
    monkeypatch.setenv("FASTFACE_BACKEND", "gpu")
    with pytest.raises(ValueError, match="FASTFACE_BACKEND must be one of reference, cpu, triton, cuda, got 'gpu'"):
        make().run()


def test_gradients_run_on_the_reference_and_kernels_refuse_them() -> None:
    case = make()
    args, kwargs = case.arguments
    feature = args[0].clone().requires_grad_()
    ops.compose_flow(feature, *args[1:], **kwargs).sum().backward()
    assert feature.grad is not None and feature.grad.abs().sum() > 0
    with pytest.raises(
        BackendUnavailable, match="'cpu' has no gradient and an input requires grad: use backend='reference'"
    ):
        ops.compose_flow(feature, *args[1:], **kwargs, backend="cpu")
    with torch.no_grad():
        assert torch.equal(ops.compose_flow(feature, *args[1:], **kwargs), case.run())


def test_the_measured_table_orders_gpu_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "Test GPU": {
            "compose_flow": {"single": ["cuda", "triton"], "any": ["triton"]},
            "pack_motions": {"any": ["triton"]},
        }
    }
    monkeypatch.setattr(_backends, "_measured", lambda: table)
    monkeypatch.setattr(_backends, "device_class", lambda index: "Test GPU")
    device = torch.device("cuda", 0)
    assert _backends.preference("compose_flow", device, "single")[0] == ("cuda", "triton")
    assert _backends.preference("compose_flow", device, "batch")[0] == ("triton",)
    assert _backends.preference("pack_motions", device, "single")[0] == ("triton",)
    order, note = _backends.preference("motion_field", device, "single")
    assert order == () and "no kernel has been measured on 'Test GPU' for motion_field" in note


def test_the_shipped_table_rests_on_rows() -> None:
    """A kernel is a default on a GPU only where a committed row shows it correct and faster there."""
    table = json.loads((Path(_backends.__file__).parent / "_measured.json").read_text())
    data = Path(__file__).parents[2] / "benchmarks" / "data"
    rows = "".join(path.read_text() for path in data.glob("*.csv"))
    for device, by_op in table.items():
        for op, classes in by_op.items():
            for backend in {name for order in classes.values() for name in order}:
                assert device in rows and f",{op},{backend}," in rows, (device, op, backend)


def test_explain_prints_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    args, kwargs = make().arguments
    text = fastface.explain("compose_flow", *args, **kwargs)
    assert capsys.readouterr().out == text + "\n"
    assert "cuda      no: the tensors are on cpu, it needs cuda" in text
    assert "reference usable" in text
    assert "would run: " in text
    text = fastface.explain("compose_flow", *args, **kwargs, backend="cuda")
    assert "would raise: compose_flow: backend 'cuda' cannot run this call" in text
    with pytest.raises(ValueError, match="op must be one of .*compose_flow.*, got 'compose'"):
        fastface.explain("compose", *args)
    with pytest.raises(TypeError, match="compose_flow: missing a required argument: 'kp_driving'"):
        fastface.explain("compose_flow", *args[:3])


def test_explain_knows_of_gradients() -> None:
    args, kwargs = make().arguments
    feature = args[0].clone().requires_grad_()
    text = fastface.explain("compose_flow", feature, *args[1:], **kwargs)
    assert "would run: reference\n  note: an input requires grad" in text
    text = fastface.explain("compose_flow", feature, *args[1:], **kwargs, backend="cpu")
    assert "would raise: backend 'cpu' has no gradient" in text
    with torch.no_grad():
        assert "requires grad" not in fastface.explain("compose_flow", feature, *args[1:], **kwargs)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


@needs_cpu
def test_cpu_tier_is_chosen_by_the_environment() -> None:
    code = "import torch; from fastface.ops import _native; m = _native.load('cpu'); print(m.tier(), *m.tiers())"
    tier, *supported = run_python(code).stdout.split()
    assert tier == supported[-1] and supported[0] == "baseline"
    for wanted in supported:
        assert run_python(code, FASTFACE_CPU_TIER=wanted).stdout.split()[0] == wanted
    refused = run_python(code, FASTFACE_CPU_TIER="sse9")
    assert refused.returncode != 0 and "FASTFACE_CPU_TIER" in refused.stderr and "sse9" in refused.stderr
