"""The `spade` hot path: the reference against its definition in scalar arithmetic, and the backends of this machine
against the reference.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastface import ops
from fastface.kernels.spade import spade_reference as reference
from fastface.ops import _memory, _native, _verify
from fastface.ops._verify import inputs
from fastface.ops._verify.spade import SpadeShape

OPS = ("modulated_norm", "instance_stats")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "sliced", "channels_last")
MODULATIONS = (None, "channels", "maps", "halves")
needs_cpu = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)
BACKENDS = [pytest.param("cpu", marks=needs_cpu), "reference"]


def assert_right(case: _verify.Inputs, *peers: _verify.Inputs) -> None:
    verdict = _verify.verify(case, "cpu", peers)
    assert verdict.ok, str(verdict)


# The reference, against the definition in scalar arithmetic.


def moments(values: list[float], eps: float) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, 1 / math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values) + eps)


@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("modulation", [None, "channels", "maps"])
def test_reference_follows_the_definition(modulation: str | None, activation: str | None, stats: bool) -> None:
    shape = SpadeShape(batch=2, channels=2, height=4, width=6, scale=2)
    case = inputs(
        "modulated_norm", shape, modulation=modulation, stats=stats, activation=activation, residual=True, seed=3
    )
    (x,), kwargs = case.arguments
    result = case.truth()
    for b, c in itertools.product(range(2), range(2)):
        mean, rstd = moments(x[b, c].double().flatten().tolist(), 1e-5)
        found = reference.instance_stats(x.double())
        assert [float(value[b, c]) for value in found] == pytest.approx([mean, rstd], abs=1e-12)
        if stats:
            mean, rstd = (float(value[b, c]) for value in kwargs["stats"])
        for i, j in itertools.product(range(4), range(6)):
            gamma = beta = 0.0
            if modulation is not None:
                at = (b, c) if modulation == "channels" else (b, c, i // 2, j // 2)
                gamma, beta = float(kwargs["gamma"][at]), float(kwargs["beta"][at])
            value = (1 + gamma) * (float(x[b, c, i, j]) - mean) * rstd + beta
            if activation is not None and value < 0:
                value *= 0.2 if activation == "leaky_relu" else 0.0
            assert float(result[b, c, i, j]) == pytest.approx(value + float(kwargs["residual"][b, c, i, j]), abs=1e-12)


def test_has_gradients() -> None:
    case = inputs("modulated_norm", SpadeShape(1, 2, 4, 2, 2), activation="leaky_relu", residual=True)
    (x,), kwargs = case.arguments
    tensors = [value.double().requires_grad_() for value in (x, kwargs["gamma"], kwargs["beta"], kwargs["residual"])]

    def call(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor) -> Tensor:
        return ops.modulated_norm(x, gamma, beta, residual=residual, activation="leaky_relu")

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradcheck(ops.instance_stats, tensors[:1])


# The C++ kernels against the reference.


@needs_cpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["odd", "odd_low", SpadeShape(2, 37, 9, 18, 3)], ids=str)
def test_cpu_matches_the_reference(shape: str | SpadeShape, dtype: torch.dtype, layout: str) -> None:
    assert_right(*(inputs("instance_stats", shape, dtype=dtype, layout=layout, seed=seed) for seed in range(4)))
    for modulation, stats in itertools.product(MODULATIONS, (False, True)):
        chosen = {"modulation": modulation, "stats": stats, "residual": stats, "dtype": dtype, "layout": layout}
        assert_right(*(inputs("modulated_norm", shape, seed=seed, **chosen) for seed in range(3)))


@needs_cpu
@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 2),
    channels=st.integers(1, 40),
    size=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    scale=st.sampled_from([1, 1, 2, 3, 5, 7, 17]),
    options=st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(DTYPES),
            "layout": st.sampled_from(LAYOUTS),
            "modulation": st.sampled_from(MODULATIONS),
            "stats": st.booleans(),
            "activation": st.sampled_from([None, "relu", "leaky_relu"]),
            "residual": st.booleans(),
        }
    ),
    seed=st.integers(0, 2**31),
)
def test_cpu_at_any_size(op, batch, channels, size, scale, options, seed) -> None:
    shape = SpadeShape(batch, channels, size[0] * scale, size[1] * scale, scale)
    assert_right(*(inputs(op, shape, seed=seed + i, **options) for i in range(4)))


@needs_cpu
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "shape",
    [
        SpadeShape(1, 1, 1, 1),
        SpadeShape(2, 33, 1, 1),
        SpadeShape(1, 2048, 2, 3),
        SpadeShape(1, 1, 1024, 1024),
        SpadeShape(1, 3, 5, 9001),
        SpadeShape(1, 2, 96, 160, 32),
        SpadeShape(1, 1, 1200, 600, 600),
        SpadeShape(1, 600, 12, 20, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cpu_at_the_edges_of_its_sizes(layout: str, shape: SpadeShape, op: str) -> None:
    assert_right(*(inputs(op, shape, layout=layout, seed=seed) for seed in range(3)))


@needs_cpu
@pytest.mark.parametrize("shape", ["headgan_64", "live_portrait_128"])
def test_cpu_at_published_shapes(shape: str) -> None:
    for layout in ("contiguous", "channels_last"):
        assert_right(inputs("modulated_norm", shape, layout=layout))


@needs_cpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [1e4, -1e6])
@pytest.mark.parametrize("shape", [SpadeShape(1, 3, 300, 200), SpadeShape(2, 40, 30, 50)], ids=str)
def test_a_large_mean_costs_no_digits(shape: SpadeShape, mean: float, layout: str) -> None:
    case = inputs("instance_stats", shape, mean=mean, layout=layout)
    found, expected = case.run("cpu"), case.truth()
    assert torch.allclose(found[0].double(), expected[0], rtol=1e-7, atol=0)
    assert torch.allclose(found[1].double(), expected[1], rtol=3e-7, atol=0)
    assert_right(inputs("modulated_norm", shape, mean=mean, layout=layout))


@needs_cpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_outlier_costs_few_digits(layout: str) -> None:
    """The first element is a poor guess of the mean."""
    x = torch.randn(1, 20, 60, 90, generator=torch.Generator().manual_seed(0))
    x[..., 0, 0] = 1e6
    found = ops.instance_stats(_verify.arrange(x, layout), backend="cpu")
    for value, expected in zip(found, reference.instance_stats(x.double()), strict=True):
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=0)


@needs_cpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_constant_channel_becomes_beta(layout: str) -> None:
    x = _verify.arrange(torch.full((1, 17, 33, 21), 1234.567), layout)
    beta = torch.linspace(-1, 1, 17)[None]
    assert torch.equal(ops.modulated_norm(x, None, beta, backend="cpu"), beta[:, :, None, None].expand_as(x))
    mean, rstd = ops.instance_stats(x, backend="cpu")
    assert torch.equal(mean, x[:, :, 0, 0]) and torch.allclose(rstd, torch.tensor(1e-5).rsqrt())


@needs_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of_x, of_maps, of_residual", list(itertools.permutations(LAYOUTS)))
@pytest.mark.parametrize("scale", [1, 2])
def test_every_tensor_may_have_its_own_layout(scale, of_x, of_maps, of_residual, dtype) -> None:
    case = inputs("modulated_norm", SpadeShape(2, 19, 6, 10, scale), dtype=dtype, residual=True)
    (x,), kwargs = case.arguments
    for name, layout in (("gamma", of_maps), ("beta", of_residual), ("residual", of_residual)):
        kwargs[name] = _verify.arrange(kwargs[name], layout)
    assert_right(_verify.Inputs(case.op, ((_verify.arrange(x, of_x),), kwargs), dtype))


@needs_cpu
def test_transposed_expanded_and_stepped_views() -> None:
    base = torch.randn(2, 24, 14, 10)
    views = {
        "transposed": base.transpose(2, 3),
        "expanded": base[:, :1].expand(-1, 24, -1, -1),
        "stepped": base[:, ::3, ::2, 1::2],
        "batch last": base.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }
    for name, x in views.items():
        gamma, beta = 0.5 * torch.randn(2, *x.shape)
        case = _verify.Inputs("modulated_norm", ((x, gamma, beta), {}))
        verdict = _verify.verify(case, "cpu")
        assert verdict.ok, f"{name}: {verdict}"


@needs_cpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SpadeShape(2, 5, 13, 19), SpadeShape(1, 37, 7, 9)], ids=str)
def test_nothing_is_written_beside_the_output(shape, dtype, layout, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[Tensor] = []

    def surrounded(size, like, *, dtype=None, memory_format=torch.contiguous_format) -> Tensor:
        wanted = torch.empty(list(size), dtype=dtype or like.dtype, memory_format=memory_format)
        buffers.append(torch.full((wanted.numel() + 128,), 42.0, dtype=wanted.dtype))
        return buffers[-1][64:-64].as_strided(wanted.shape, wanted.stride(), storage_offset=64)

    expected = [inputs(op, shape, dtype=dtype, layout=layout).run("cpu") for op in OPS]
    monkeypatch.setattr(_memory, "empty", surrounded)
    found = [inputs(op, shape, dtype=dtype, layout=layout).run("cpu") for op in OPS]
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    assert len(buffers) == 3
    assert all(bool((buffer[:64] == 42).all() and (buffer[-64:] == 42).all()) for buffer in buffers)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("where", ["x", "gamma", "beta", "residual"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spreads_as_in_the_reference(value: float, where: str, layout: str, backend: str) -> None:
    for activation in (None, "relu", "leaky_relu"):
        case = inputs(
            "modulated_norm", SpadeShape(2, 18, 5, 7), layout=layout, activation=activation, residual=True, seed=1
        )
        args, kwargs = case.arguments
        target = args[0] if where == "x" else kwargs[where]
        clean = case.run(backend)
        target[1, 2, 3, 4] = value
        result, expected = case.run(backend), case.reference()
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.isinf(), expected.isinf())
        same = torch.ones_like(result, dtype=torch.bool)
        same[1, 2] = False
        assert torch.equal(result[same], clean[same]), "other channels must not change"
        if where == "x":
            stats = ops.instance_stats(*args, backend=backend), reference.instance_stats(*args)
            for found, wanted in zip(*stats, strict=True):
                assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.isinf(), wanted.isinf())


@needs_cpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_the_result(op: str, layout: str) -> None:
    shapes = (SpadeShape(1, 100, 70, 90), SpadeShape(1, 3, 200, 120, 2))
    cases = [inputs(op, shape, layout=layout, mean=100.0) for shape in shapes]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([torch.cat([t.flatten() for t in _verify._tensors(case.run("cpu"))]) for case in cases])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu
def test_given_stats_are_those_of_instance_stats() -> None:
    for layout in LAYOUTS:
        (x,), kwargs = inputs("modulated_norm", "odd", layout=layout).arguments
        stats = ops.instance_stats(x, backend="cpu")
        given_stats = ops.modulated_norm(x, stats=stats, backend="cpu", **kwargs)
        assert torch.equal(given_stats, ops.modulated_norm(x, backend="cpu", **kwargs))


# The registered ops, as PyTorch sees them.


def overload_arguments(case: _verify.Inputs) -> tuple:
    (x,), kwargs = case.arguments
    if case.op == "instance_stats":
        return x, 1e-5, ""
    stats = kwargs.get("stats", (None, None))
    return x, kwargs["gamma"], kwargs["beta"], *stats, kwargs.get("residual"), 1e-5, kwargs["activation"], 0.2, ""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, layout: str) -> None:
    case = inputs(op, "odd", layout=layout, modulation="halves", residual=True)
    torch.library.opcheck(getattr(torch.ops.fastface, op).default, overload_arguments(case))


@pytest.mark.parametrize("modulation", ["maps", "channels"])
def test_compiles_to_one_graph_without_recompiling(modulation: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(ops.modulated_norm, fullgraph=True)
    cases = [inputs("modulated_norm", "odd", modulation=modulation, residual=True, seed=seed) for seed in (0, 1)]
    (x,), kwargs = cases[0].arguments
    assert torch.equal(compiled(x, **kwargs), cases[0].run())
    with torch._dynamo.config.patch(error_on_recompile=True):
        (x,), kwargs = cases[1].arguments
        assert torch.equal(compiled(x, **kwargs), cases[1].run())


def test_stats_compile_and_export() -> None:
    (x,), _ = inputs("instance_stats", "odd").arguments

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.modulated_norm(x, stats=ops.instance_stats(x))

    expected = Module()(x)
    torch.compiler.reset()
    assert torch.equal(torch.compile(Module(), fullgraph=True)(x), expected)
    exported = torch.export.export(Module(), (x,))
    assert sum("fastface." in str(node.target) for node in exported.graph.nodes) == 2
    assert torch.equal(exported.module()(x), expected)


def test_output_keeps_dtype_and_memory_format() -> None:
    for layout, dtype in itertools.product(("contiguous", "channels_last"), DTYPES):
        out = inputs("modulated_norm", "odd", layout=layout, dtype=dtype).run()
        expected = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        assert out.dtype == dtype and out.is_contiguous(memory_format=expected)
        assert all(t.dtype == torch.float32 for t in inputs("instance_stats", "odd", layout=layout, dtype=dtype).run())


# Bad arguments: one clear message with the value and the expectation.

X = torch.zeros(2, 3, 4, 6)
PAIR = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": [[0.0]]}, TypeError, "x must be a tensor, got list"),
        ({"x": X.to_sparse()}, TypeError, "x must be a dense tensor, got layout"),
        ({"x": X[0]}, ValueError, r"x must be \[B, C, H, W\], got \[3, 4, 6\]"),
        ({"x": X[:, :, :0]}, ValueError, r"no size 0, got \[2, 3, 0, 6\]"),
        ({"x": X.int()}, TypeError, "x must be float32.*got torch.int32"),
        ({"eps": 0.0}, ValueError, "eps must be positive, got 0.0"),
        ({"eps": "1"}, TypeError, "eps must be a number, got str"),
        (
            {"gamma": torch.zeros(2, 3, 3, 6)},
            ValueError,
            r"gamma must be \[2, 3\] or .*one whole s, got \[2, 3, 3, 6\]",
        ),
        ({"gamma": torch.zeros(2, 3, 2, 6)}, ValueError, r"for one whole s, got \[2, 3, 2, 6\]"),
        ({"gamma": torch.zeros(1, 3, 4, 6)}, ValueError, r"gamma must be \[2, 3\] or .*got \[1, 3, 4, 6\]"),
        ({"beta": torch.zeros(2, 3, 4)}, ValueError, r"beta must be .*got \[2, 3, 4\]"),
        ({"gamma": X.half()}, TypeError, "gamma must be torch.float32 like x, got torch.float16"),
        ({"gamma": PAIR.int()}, TypeError, "gamma must have a floating dtype, got torch.int32"),
        ({"gamma": X, "beta": PAIR}, ValueError, r"beta must be \[2, 3, 4, 6\] like gamma, got \[2, 3\]"),
        ({"gamma": PAIR.to("meta")}, ValueError, "gamma must be on cpu like x, got meta"),
        ({"stats": PAIR}, TypeError, r"stats must be \(mean, rstd\), got Tensor"),
        ({"stats": (PAIR, PAIR[0])}, ValueError, r"stats\[1\], the rstd, must be \[B, C\] = \[2, 3\], got \[3\]"),
        ({"stats": (PAIR.long(), PAIR)}, TypeError, r"stats\[0\], the mean, must have a floating dtype"),
        ({"activation": "gelu"}, ValueError, "activation must be None, 'relu' or 'leaky_relu', got 'gelu'"),
        ({"slope": math.inf}, ValueError, "slope must be finite, got inf"),
        ({"residual": X[:, :2]}, ValueError, r"residual must be \[2, 3, 4, 6\] like x, got \[2, 2, 4, 6\]"),
        ({"residual": X.bfloat16()}, TypeError, "residual must be torch.float32 like x, got torch.bfloat16"),
        ({"backend": "gpu"}, ValueError, "backend must be one of reference, cpu, triton, cuda, got 'gpu'"),
    ],
)
def test_bad_arguments(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.modulated_norm(**{"x": X, **change})


def test_bad_arguments_of_instance_stats() -> None:
    with pytest.raises(ValueError, match=r"x must be \[B, C, H, W\], got \[2, 3\]"):
        ops.instance_stats(PAIR)
    with pytest.raises(ValueError, match="eps must be positive, got -1"):
        ops.instance_stats(X, eps=-1)
