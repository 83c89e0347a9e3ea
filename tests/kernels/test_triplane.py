"""The `triplane` hot path: the reference against its definition and the goldens, and the backends of this machine
against the reference.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastface
from fastface import nn, ops
from fastface.kernels.triplane import triplane_reference as reference
from fastface.ops import _memory, _native, _verify, triplane
from fastface.ops._backends import BackendUnavailable
from fastface.ops._verify import inputs
from fastface.ops._verify.triplane import TriplaneShape
from tests import goldens

OPS = ("sample_planes", "render_planes")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "sliced", "channels_last")
SMALL = TriplaneShape(2, 5, 13, 9, 37, 11, 7, 17, 6)
needs_cpu = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)
BACKENDS = [pytest.param("cpu", marks=needs_cpu), "reference"]


def assert_right(case: _verify.Inputs, *peers: _verify.Inputs) -> None:
    verdict = _verify.verify(case, "cpu", peers)
    assert verdict.ok, str(verdict)


def tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


# The reference, against the definition in scalar arithmetic.


def at_pixel(plane: Tensor, x: float, y: float) -> list[float]:
    """Bilinear, pixels centred, zero outside."""
    channels, height, width = plane.shape
    px, py = (x + 1) * width / 2 - 0.5, (y + 1) * height / 2 - 0.5
    left, top = math.floor(px), math.floor(py)
    value = [0.0] * channels
    for i, j in itertools.product((left, left + 1), (top, top + 1)):
        if 0 <= i < width and 0 <= j < height:
            weight = (1 - abs(px - i)) * (1 - abs(py - j))
            value = [v + weight * float(plane[c, j, i]) for c, v in enumerate(value)]
    return value


@pytest.mark.parametrize("axes", list(reference.AXES))
def test_reference_samples_as_defined(axes: str) -> None:
    generator = torch.Generator().manual_seed(1)
    planes = torch.randn(1, 3, 2, 4, 5, generator=generator).double()
    points = (2.2 * (torch.rand(1, 30, 3, generator=generator) - 0.5)).double()
    found = reference.sample_planes(planes, points, 1.6, axes, None)
    for n, (k, chosen) in itertools.product(range(30), enumerate(reference.AXES[axes])):
        x, y = (float(points[0, n, i]) * 2 / 1.6 for i in chosen[:2])
        assert found[0, k, n].tolist() == pytest.approx(at_pixel(planes[0, k], x, y), abs=1e-12)
    assert torch.equal(reference.sample_planes(planes, points, 1.6, axes, "mean"), found.mean(1))


@pytest.mark.parametrize("white_back", [False, True])
def test_reference_composites_as_defined(white_back: bool) -> None:
    case = inputs("render_planes", TriplaneShape(1, 3, 6, 6, 4, 6, 0, 5, 2), white_back=white_back)
    (planes, origins, directions, decoder), kwargs = case.arguments
    features, depth, opacity = case.truth()
    w1, b1, w2, b2 = (each.double() for each in decoder)
    for r in range(4):
        near, far = (float(kwargs[name][0, r]) for name in ("near", "far"))
        z = [near + (k + float(kwargs["jitter"][0, r, k])) * (far - near) / 5 for k in range(6)]
        points = torch.stack([origins[0, r].double() + t * directions[0, r].double() for t in z])
        sampled = reference.sample_planes(planes.double(), points[None])[0]
        raw = torch.log1p(torch.exp(sampled @ w1.T + b1)) @ w2.T + b2
        colour = 1.002 / (1 + torch.exp(-raw[:, 1:])) - 0.001
        through, total, middle, seen = 1.0, torch.zeros(2).double(), 0.0, 0.0
        for i in range(5):
            density = math.log1p(math.exp((float(raw[i, 0]) + float(raw[i + 1, 0])) / 2 - 1))
            alpha = 1 - math.exp(-density * (z[i + 1] - z[i]))
            weight, through = alpha * through, through * (1 - alpha)
            total += weight * (colour[i] + colour[i + 1]) / 2
            middle, seen = middle + weight * (z[i] + z[i + 1]) / 2, seen + weight
        total = total + (1 - seen if white_back else 0)
        assert features[0, r].tolist() == pytest.approx((2 * total - 1).tolist(), abs=1e-9)
        assert [float(depth[0, r]), float(opacity[0, r])] == pytest.approx([middle / seen, seen], abs=1e-9)


def test_has_gradients() -> None:
    case = inputs("render_planes", TriplaneShape(1, 2, 4, 4, 3, 5, 4, 3, 2))
    (planes, origins, directions, decoder), kwargs = case.arguments
    wide = [each.double().requires_grad_() for each in (planes, *decoder)]
    # Fine depths follow the density without a gradient, so they are left out here.
    kwargs = {**kwargs, "fine": 0, "u": None}

    def call(planes: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.render_planes(planes, origins, directions, ops.PlaneDecoder(*weights), **kwargs))

    assert torch.autograd.gradcheck(call, wide)
    assert torch.autograd.gradcheck(lambda each: ops.sample_planes(each, origins), wide[:1])


@needs_cpu
def test_a_gradient_takes_the_reference_and_a_chosen_kernel_says_so() -> None:
    args, kwargs = inputs("render_planes", SMALL).arguments
    named = dict(zip(("planes", "origins", "directions", "decoder"), args, strict=True)) | kwargs
    for name in ("planes", "origins", "directions", "near", "far", "jitter"):
        leaf = named[name].clone().requires_grad_()
        ops.render_planes(**{**named, name: leaf}).features.square().mean().backward()
        assert leaf.grad is not None and leaf.grad.abs().max() > 0, name
        with pytest.raises(BackendUnavailable, match="grad"):
            ops.render_planes(**{**named, name: leaf}, backend="cpu")
    chosen = named["u"].clone().requires_grad_()  # fine depths are chosen without a gradient
    with pytest.raises(BackendUnavailable, match="grad"):
        ops.render_planes(**{**named, "u": chosen}, backend="cpu")


def test_autocast_leaves_the_precision() -> None:
    args, kwargs = inputs("render_planes", SMALL).arguments
    for backend in ("reference", "cpu"):
        plain = ops.render_planes(*args, backend=backend, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            cast = ops.render_planes(*args, backend=backend, **kwargs)
        for one, other in zip(plain, cast, strict=True):
            assert torch.equal(one, other), backend


def test_many_samples() -> None:
    for seed in range(3):
        case = inputs("render_planes", TriplaneShape(1, 8, 32, 32, 400, 128, 128, 16, 5), seed=seed)
        verdict = _verify.verify(case, "cpu")
        assert verdict.ok, str(verdict)


def test_explains_only_calls_that_run() -> None:
    args, kwargs = inputs("render_planes", SMALL).arguments
    for wrong, message in (
        ({"origins": args[1][:, :1]}, "directions must be"),
        ({"jitter": torch.zeros(2)}, "jitter must be"),
        ({"reduce": "max"}, "reduce must be"),
        ({"white_back": "no"}, "white_back must be a bool"),
        ({"axes": ["eg3d"]}, "axes must be one of"),
    ):
        named = dict(zip(("planes", "origins", "directions", "decoder"), args, strict=True)) | kwargs | wrong
        with pytest.raises((TypeError, ValueError), match=message):
            fastface.explain("render_planes", **named)


# The published renderer.


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Any], dict[str, Any], Tensor, ops.PlaneDecoder]:
    recipe, arrays = goldens.load("eg3d.decoder.npz")
    planes = {name: recipe["inputs"]["planes"][name] for name in ("name", "shape", "seed", "kind")}
    state = goldens.seeded_state_dict("eg3d.decoder", recipe["weights_seed"])
    decoder = ops.PlaneDecoder(
        state["net.0.weight"] / 32**0.5, state["net.0.bias"], state["net.2.weight"] / 64**0.5, state["net.2.bias"]
    )
    return recipe, arrays, torch.from_numpy(goldens.seeded_input(**planes)), decoder


def camera_rays(camera: Any, intrinsics: Any, size: int) -> tuple[Tensor, Tensor]:
    """Rays through pixel centres, row by row: x right, y down, z forward; intrinsics in units of the image."""
    camera, intrinsics = torch.from_numpy(camera), torch.from_numpy(intrinsics)
    steps = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1).reshape(-1, 3)
    directions = F.normalize(pixels @ (camera[:, :3, :3] @ intrinsics.inverse()).mT, dim=-1)
    return camera[:, None, :3, 3].expand_as(directions), directions


def golden_case(golden: Any, name: str) -> tuple[_verify.Inputs, list[Any]]:
    recipe, arrays, planes, decoder = golden
    note = recipe["notes"][name]
    told = note["options"]
    wide = name in ("white", "disparity", "auto")
    camera = arrays["in.wide.cam2world" if wide else "in.cam2world"]
    intrinsics = {"auto": "in.auto.intrinsics"}.get(name, "in.wide.intrinsics" if wide else "in.intrinsics")
    if intrinsics not in arrays:
        intrinsics = "in.auto.intrinsics"
    rays = camera_rays(camera, arrays[intrinsics], note["rays"])
    coarse, fine = told["depth_resolution"], told["depth_resolution_importance"]
    options = {
        "near": told["ray_start"],
        "far": told["ray_end"],
        "coarse": coarse,
        "fine": fine,
        "box": float(told["box_warp"]),
        "axes": "eg3d",
        "reduce": "mean",
        "white_back": told.get("white_back", False),
        "disparity": told["disparity_space_sampling"],
        "jitter": torch.from_numpy(arrays[f"in.{name}.jitter"])[..., 0],
        "u": torch.from_numpy(arrays[f"in.{name}.u"])[None] if fine else None,
    }
    expected = [torch.from_numpy(arrays[f"{name}.{part}"]) for part in ("features", "depth", "weight_sum")]
    return _verify.Inputs("render_planes", ((planes, *rays, decoder), options)), expected


@pytest.mark.parametrize("name", ["render", "coarse", "white", "disparity", "auto"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_renders_as_published(backend: str, name: str, golden: Any) -> None:
    case, (features, depth, opacity) = golden_case(golden, name)
    found = case.run(backend)
    torch.testing.assert_close(found.features, features, rtol=0, atol=3e-5)
    torch.testing.assert_close(found.opacity, opacity[..., 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.depth, depth[..., 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_as_published(backend: str, golden: Any) -> None:
    _, arrays, planes, decoder = golden
    points = torch.from_numpy(arrays["in.coordinates"])
    found = ops.sample_planes(planes, points, axes="eg3d", reduce=None, backend=backend)
    torch.testing.assert_close(found, torch.from_numpy(arrays["plane_features"]), rtol=0, atol=2e-5)
    mean = ops.sample_planes(planes, points, axes="eg3d", reduce="mean", backend=backend)
    raw = F.linear(F.softplus(F.linear(mean, decoder.w1, decoder.b1)), decoder.w2, decoder.b2)
    torch.testing.assert_close(raw[..., :1], torch.from_numpy(arrays["decoded.sigma"]), rtol=0, atol=1e-4)


# The C++ kernels against the reference.


@needs_cpu
@pytest.mark.parametrize("op", OPS)
def test_selftest_cases(op: str) -> None:
    for shape, options in _verify.selftest(op):
        assert_right(*(inputs(op, shape, seed=seed, **options) for seed in range(3)))


@needs_cpu
@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    size=st.tuples(st.integers(1, 12), st.integers(1, 15)),
    rays=st.integers(1, 21),
    samples=st.tuples(st.integers(4, 60), st.integers(0, 60)),
    decoder=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    depth=st.integers(0, 4),
    options=st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(DTYPES),
            "layout": st.sampled_from(LAYOUTS),
            "axes": st.sampled_from(list(reference.AXES)),
            "reduce": st.sampled_from(["sum", "mean", None]),
            "random": st.booleans(),
            "white_back": st.booleans(),
            "disparity": st.booleans(),
        }
    ),
    seed=st.integers(0, 2**31),
)
def test_cpu_at_any_size(op, batch, channels, size, rays, samples, decoder, depth, options, seed) -> None:
    shape = TriplaneShape(batch, channels, *size, rays, *samples, *decoder, depth)
    assert_right(*(inputs(op, shape, seed=seed + i, **options) for i in range(4)))


@needs_cpu
def test_cpu_at_the_published_shape() -> None:
    """Few of the rays; more would only take longer."""
    for dtype in DTYPES:
        for fine in (48, 96):
            assert_right(inputs("render_planes", TriplaneShape(1, 32, 256, 256, 256, fine, fine), dtype=dtype))


@needs_cpu
@pytest.mark.parametrize("op", OPS)
def test_transposed_expanded_and_stepped_planes(op: str) -> None:
    args, kwargs = inputs(op, TriplaneShape(2, 6, 10, 12, 9, 6, 5, 8, 3)).arguments
    views = {
        "transposed": args[0].transpose(3, 4),
        "expanded": args[0][:1].expand(2, -1, -1, -1, -1),
        "one plane": args[0][:, :1].expand(-1, 3, -1, -1, -1),
        "stepped": args[0][..., ::2, 1::3],
        "batch last": args[0].permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3),
    }
    for name, planes in views.items():
        verdict = _verify.verify(_verify.Inputs(op, ((planes, *args[1:]), kwargs)), "cpu")
        assert verdict.ok, f"{name}: {verdict}"


@needs_cpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_written_beside_the_output(dtype, layout, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[Tensor] = []

    def surrounded(shape, like, *, dtype=None, memory_format=torch.contiguous_format) -> Tensor:
        wanted = torch.empty(list(shape), dtype=dtype or like.dtype)
        buffers.append(torch.full((wanted.numel() + 128,), 42.0, dtype=wanted.dtype))
        return buffers[-1][64:-64].view(wanted.shape)

    shapes = (SMALL, TriplaneShape(1, 17, 6, 5, 21, 7, 5, 9, 19))
    cases = [inputs(op, shape, dtype=dtype, layout=layout) for op in OPS for shape in shapes]
    expected = [tensors(case.run("cpu")) for case in cases]
    monkeypatch.setattr(_memory, "empty", surrounded)
    found = [tensors(case.run("cpu")) for case in cases]
    assert all(
        torch.equal(a, b) for one, two in zip(found, expected, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert len(buffers) == 8
    assert all(bool((buffer[:64] == 42).all() and (buffer[-64:] == 42).all()) for buffer in buffers)


@needs_cpu
@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_the_result(op: str) -> None:
    case = inputs(op, TriplaneShape(2, 12, 20, 20, 300, 12, 12, 16, 8))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(tensors(case.run("cpu")))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


_ON_A_TIER = """
from fastface.ops import _verify, render_planes
from fastface.ops._verify import inputs
for op in ("sample_planes", "render_planes"):
    for shape, options in _verify.selftest(op):
        peers = [inputs(op, shape, seed=seed, **options) for seed in (1, 2)]
        verdict = _verify.verify(inputs(op, shape, **options), "cpu", peers)
        assert verdict.ok, f"{op} {shape} {options}: {verdict}"

# Dense, and near beyond far: opacities of minus infinity, and what comes of them, where the reference has them.
args, kwargs = inputs("render_planes", "odd").arguments
dense = args[3]._replace(w1=args[3].w1 * 1e6, b1=args[3].b1 * 1e6)
backwards = kwargs | {"near": kwargs["far"], "far": kwargs["near"]}
found, expected = (render_planes(*args[:3], dense, **backwards, backend=each) for each in ("cpu", "reference"))
assert expected.opacity.isnan().any()
assert all((a.isnan() == b.isnan()).all() for a, b in zip(found, expected, strict=True))
"""


@needs_cpu
def test_every_tier_of_the_processor() -> None:
    """The tier is read once, so each takes a process of its own; the best one is what the other tests run."""
    for tier in _native.load("cpu").tiers()[:-1]:
        environment = os.environ | {"FASTFACE_CPU_TIER": tier, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", _ON_A_TIER]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{tier}: {run.stderr[-2000:]}"


# The edges of what a ray may meet; `run` is a backend's, so that other tests run them on other backends.


def rays_of(case: _verify.Inputs, **changes: Any) -> _verify.Inputs:
    """The case with other arguments, by name."""
    args, kwargs = case.arguments
    named = dict(zip(("planes", "origins", "directions", "decoder"), args, strict=True)) | kwargs | changes
    return _verify.Inputs(
        case.op, (tuple(named.pop(n) for n in ("planes", "origins", "directions", "decoder")), named), case.dtype
    )


def with_limits(case: _verify.Inputs) -> _verify.Inputs:
    """The case with near and far as the reference takes them, a tensor each."""
    call = triplane.registry.build(case.op, *case.arguments[0], **case.arguments[1])
    return rays_of(case, near=call.near, far=call.far)


def without_density(case: _verify.Inputs) -> _verify.Inputs:
    decoder = case.arguments[0][3]
    w2, b2 = decoder.w2.clone(), decoder.b2.clone()
    w2[0], b2[0] = 0, -300
    return rays_of(case, decoder=decoder._replace(w2=w2, b2=b2))


def edges() -> dict[str, _verify.Inputs]:
    """Cases that are held against the reference by the common rule."""
    case = inputs("render_planes", SMALL)
    (_, origins, directions, _), options = case.arguments
    inside = 0.3 * torch.randn(origins.shape, generator=torch.Generator().manual_seed(5))
    away = -directions
    half = torch.where((torch.arange(37) % 2 == 0)[None, :, None], directions, away)
    swapped = {"near": options["far"], "far": options["near"]}
    return {
        "rays that miss": rays_of(case, directions=away),
        "some rays that miss, auto": rays_of(case, directions=half, near="auto", far="auto"),
        "all rays miss, auto": rays_of(case, directions=away, near="auto", far="auto"),
        "camera inside the box": rays_of(case, origins=inside, near=0.0, far=1.5),
        "camera inside the box, auto": rays_of(case, origins=inside, near="auto", far="auto"),
        "near beyond far": rays_of(case, **swapped),
        "near beyond far, no fine pass": rays_of(case, **swapped, fine=0, u=None),
        "near is far": rays_of(case, far=options["near"]),
        "no fine samples": rays_of(case, fine=0, u=None),
        "fewest samples": rays_of(case, coarse=4, fine=1, jitter=None, u=None),
        "two samples": rays_of(case, coarse=2, fine=0, jitter=None, u=None),
        "unsorted jitter": rays_of(case, jitter=5 * options["jitter"] - 2),
        "no u": rays_of(case, u=None),
        "no jitter": rays_of(case, jitter=None),
        "descending u": rays_of(case, u=options["u"].sort(descending=True).values),
        "equal u": rays_of(case, u=torch.full_like(options["u"], 0.5)),
        "u at the ends": rays_of(case, u=(options["u"] > 0.5).float() * (1 - 2**-24)),
        "one ray": inputs("render_planes", TriplaneShape(1, 5, 13, 9, 1, 11, 7, 17, 6)),
        "far outside": rays_of(case, origins=1e6 * origins),
        "axis aligned, auto": rays_of(
            case, directions=torch.tensor([0.0, 0.0, -1.0]).expand_as(directions), near="auto", far="auto"
        ),
        "opaque": rays_of(case, decoder=case.arguments[0][3]._replace(b2=case.arguments[0][3].b2 + 60)),
    }


@needs_cpu
@pytest.mark.parametrize("name", list(edges()))
def test_edges(name: str) -> None:
    case = edges()[name]
    result = case.run("cpu")
    assert all(bool(each.isfinite().all()) for each in result)
    case = with_limits(case)
    assert all(torch.equal(a, b) for a, b in zip(result, case.run("cpu"), strict=True))
    assert_right(case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("white_back", [False, True])
def test_no_density_anywhere(white_back: bool, backend: str) -> None:
    """Nothing is seen: the background, and the depth of the last sample."""
    case = rays_of(without_density(inputs("render_planes", SMALL)), white_back=white_back)
    features, depth, opacity = case.run(backend)
    assert (opacity == 0).all() and (features == (1 if white_back else -1)).all()
    torch.testing.assert_close(depth, case.reference().depth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rays_outside_the_planes_see_the_biases(backend: str) -> None:
    """Zeros outside are features like others: the decoder still gives them a density."""
    case = inputs("render_planes", SMALL)
    seen = rays_of(case, origins=case.arguments[0][1] + 9).run(backend)
    decoder = case.arguments[0][3]
    raw = F.softplus(decoder.b1) @ decoder.w2.T + decoder.b2
    colour = 2 * (torch.sigmoid(raw[1:]) * 1.002 - 0.001) * seen.opacity[..., None] - 1
    torch.testing.assert_close(seen.features, colour, rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_nan_planes_show_where_they_are_seen(op: str, backend: str) -> None:
    for value in (math.nan, math.inf):
        case = inputs(op, SMALL)
        planes = case.arguments[0][0]
        clean = tensors(case.run(backend))
        planes[1, 0, 2] = value
        for found, before, expected in zip(tensors(case.run(backend)), clean, tensors(case.reference()), strict=True):
            assert torch.equal(found.isnan(), expected.isnan())
            assert torch.equal(found[0], before[0]), "the other image must not change"
            if math.isnan(value):
                assert found[1].isnan().any()


@pytest.mark.parametrize("shape", [SMALL, "trigrid"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_in_what_makes_a_ray_stays_in_it(backend: str, shape: str) -> None:
    for name in ("origins", "directions", "near", "far", "jitter"):
        case = inputs("render_planes", shape)
        args, kwargs = case.arguments
        clean = case.run(backend)
        target = kwargs[name] if name in kwargs else args[("planes", "origins", "directions").index(name)]
        target[-1, 3] = math.nan
        for found, before in zip(case.run(backend), clean, strict=True):
            assert found[-1, 3].isnan().all()
            found[-1, 3] = before[-1, 3]
            assert torch.equal(found, before), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_deterministic_depths_are_the_middles(backend: str) -> None:
    case = inputs("render_planes", SMALL, random=False)
    rays = case.arguments[0][1].shape[:2]
    u = ((torch.arange(7) + 0.5) / 7).expand(*rays, 7)
    given_numbers = rays_of(case, jitter=torch.full((*rays, 11), 0.5), u=u)
    for one, other in zip(case.run(backend), given_numbers.run(backend), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# The registered ops, as PyTorch sees them.


def overload_arguments(case: _verify.Inputs) -> tuple[Any, ...]:
    args, given_options = case.arguments
    if case.op == "sample_planes":
        return *args, 1.0, given_options["axes"], given_options["reduce"], ""
    planes, origins, directions, decoder = args
    names = ("near", "far", "jitter", "u", "coarse", "fine")
    tail = (1.0, *(given_options[name] for name in ("axes", "reduce", "white_back", "disparity")), "")
    return planes, origins, directions, *decoder, *(given_options[name] for name in names), *tail


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, layout: str) -> None:
    case = inputs(op, SMALL, layout=layout)
    torch.library.opcheck(getattr(torch.ops.fastface, op).default, overload_arguments(case))


def test_compiles_to_one_graph_without_recompiling() -> None:
    torch.compiler.reset()
    for op in OPS:
        compiled = torch.compile(getattr(ops, op), fullgraph=True)
        for seed in (0, 1):
            case = inputs(op, SMALL, seed=seed)
            args, kwargs = case.arguments
            with torch._dynamo.config.patch(error_on_recompile=seed == 1):
                found = tensors(compiled(*args, **kwargs))
            assert all(torch.equal(a, b) for a, b in zip(found, tensors(case.run()), strict=True))


def test_exports_as_one_node() -> None:
    case = inputs("render_planes", SMALL)
    (planes, origins, directions, decoder), _ = case.arguments
    module = nn.PlaneRenderer(decoder, near=2.2, far=3.3, coarse=11, fine=7)
    exported = torch.export.export(module, (planes, origins, directions))
    assert sum("fastface." in str(node.target) for node in exported.graph.nodes) == 1
    found = exported.module()(planes, origins, directions)
    expected = ops.render_planes(planes, origins, directions, decoder, near=2.2, far=3.3, coarse=11, fine=7)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Bad arguments: one clear message with the value and the expectation.

PLANES, POINTS = torch.zeros(2, 3, 4, 5, 6), torch.zeros(2, 7, 3)
DECODER = ops.PlaneDecoder(torch.zeros(8, 4), torch.zeros(8), torch.zeros(3, 8), torch.zeros(3))
SAMPLE = {"planes": PLANES, "points": POINTS}
RENDER = {"planes": PLANES, "origins": POINTS, "directions": POINTS, "decoder": DECODER, "near": 1.0, "far": 2.0}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"planes": PLANES[0]}, ValueError, r"planes must be \[B, 3, C, H, W\] or .*got \[3, 4, 5, 6\]"),
        ({"planes": PLANES[:, :2]}, ValueError, r"got \[2, 2, 4, 5, 6\]"),
        ({"planes": PLANES.int()}, TypeError, "planes must be float32.*got torch.int32"),
        ({"points": POINTS[..., :2]}, ValueError, r"points must be \[2, N, 3\].*got \[2, 7, 2\]"),
        ({"points": POINTS[:, :0]}, ValueError, r"at least one point, got \[2, 0, 3\]"),
        ({"points": POINTS.long()}, TypeError, "points must have a floating dtype, got torch.int64"),
        ({"box": 0.0}, ValueError, "box must be positive, got 0.0"),
        ({"axes": "zyx"}, ValueError, "axes must be one of xy_xz_yz, xy_xz_zy, eg3d, got 'zyx'"),
        ({"reduce": "max"}, ValueError, "reduce must be 'sum', 'mean' or None, got 'max'"),
    ],
)
def test_bad_arguments_of_sample_planes(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.sample_planes(**{**SAMPLE, **change})


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"directions": POINTS[:, :6]}, ValueError, r"directions must be \[2, 7, 3\] like origins, got \[2, 6, 3\]"),
        ({"decoder": tuple(DECODER)}, TypeError, "decoder must be a PlaneDecoder, got tuple"),
        (
            {"decoder": DECODER._replace(w1=torch.zeros(8, 5))},
            ValueError,
            r"decoder must be w1 \[h, 4\].*got w1 \[8, 5\]",
        ),
        ({"coarse": 3}, ValueError, "coarse must be from 4 to 4096 with a fine pass, got 3"),
        ({"coarse": 1, "fine": 0}, ValueError, "coarse must be from 2 to 4096, got 1"),
        ({"fine": -1}, ValueError, "fine must be from 0 to 4096, got -1"),
        ({"coarse": 4.0}, TypeError, "coarse must be an int, got float"),
        ({"near": 2.0}, ValueError, "near must be below far, got 2.0 and 2.0"),
        ({"near": "auto"}, ValueError, "near and far must both be 'auto', or neither, got 'auto' and 2.0"),
        ({"near": "auto", "far": "auto", "disparity": True}, ValueError, "disparity needs near and far as numbers"),
        ({"near": 0.0, "disparity": True}, ValueError, "near must be positive with disparity, got 0.0"),
        ({"near": torch.zeros(2)}, ValueError, r"near must be a number or \[2, 7\], got \[2\]"),
        ({"jitter": torch.zeros(2, 7, 47)}, ValueError, r"jitter must be \[2, 7, 48\], got \[2, 7, 47\]"),
        ({"u": torch.zeros(7, 48)}, ValueError, r"u must be \[2, 7, 48\], got \[7, 48\]"),
        ({"reduce": None}, ValueError, "reduce must be 'sum' or 'mean', got None"),
    ],
)
def test_bad_arguments_of_render_planes(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.render_planes(**{**RENDER, **change})


def test_outputs_have_the_dtype_of_the_planes_and_depths_are_float32() -> None:
    for dtype in DTYPES:
        case = inputs("render_planes", SMALL, dtype=dtype)
        features, depth, opacity = case.run()
        assert features.dtype == dtype and depth.dtype == opacity.dtype == torch.float32
        assert features.shape == (2, 37, 6) and depth.shape == opacity.shape == (2, 37)
        call = triplane.registry.build("render_planes", *case.arguments[0], **case.arguments[1])
        assert call.features.dtype == dtype
