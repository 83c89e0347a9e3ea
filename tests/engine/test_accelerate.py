"""Accelerated modules of other packages compute what they did, keep their parameters, and come back as they were."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastface
from fastface import ops
from fastface.engine.accelerate import AccelerateReport
from fastface.ops import _native
from tests.engine import foreign_models as foreign

pytestmark = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)


def volume_call(batch: int, wrapped: bool = False) -> tuple:
    feature = torch.randn(batch, 6, 4, 20, 28)
    points = 0.5 * torch.randn(2, batch, 5, 3)
    return feature, *({"value": p} if wrapped else p for p in points)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple], dict[str, str]]] = {
    "warping": (
        lambda: foreign.Warper(foreign.PortraitMotion()),
        volume_call,
        {"dense_motion_network": "dense motion", "dense_motion_network.mask": "convolution"},
    ),
    "keypoints in dicts": (
        lambda: foreign.VideoMotion(),
        lambda batch: volume_call(batch, wrapped=True),
        {"": "dense motion", "mask": "convolution"},
    ),
    "decoder": (
        lambda: foreign.Decoder(),
        lambda batch: (torch.randn(batch, 16, 11, 13),),
        {
            **{f"{part}.norm_{i}": "SPADE" for part in ("middle", "up") for i in (0, 1)},
            **{f"{part}.conv_{i}": "computed weight" for part in ("middle", "up") for i in (0, 1)},
            **{"up.norm_s": "SPADE", "up.conv_s": "computed weight"},
        },
    ),
    "parametrized decoder": (
        lambda: foreign.Decoder(32, parametrized=True),
        lambda batch: (torch.randn(batch, 32, 11, 13),),
        {
            **{f"{part}.norm_{i}": "SPADE" for part in ("middle", "up") for i in (0, 1)},
            **{f"{part}.conv_{i}": "computed weight" for part in ("middle", "up") for i in (0, 1)},
            **{"up.norm_s": "SPADE", "up.conv_s": "computed weight"},
            "fc": "convolution",
        },
    ),
    "batch norm": (
        lambda: nn.ModuleList([foreign.Modulation(6, 3, norm="batch")])[0],
        lambda batch: (torch.randn(batch, 6, 12, 10), torch.randn(batch, 3, 6, 5)),
        {"": "SPADE"},
    ),
    "shift first": (
        lambda: foreign.ShiftFirst(6, 3),
        lambda batch: (torch.randn(batch, 6, 12, 9), torch.randn(batch, 3, 7, 11)),
        {"": "SPADE"},
    ),
    "adaptive": (
        lambda: foreign.AdaptiveBlock(),
        lambda batch: (torch.randn(batch, 8, 9, 7), torch.randn(batch, 5)),
        {"norm1": "AdaIN", "norm2": "AdaIN"},
    ),
    "affine": (
        lambda: foreign.encoder(),
        lambda batch: (torch.randn(batch, 3, 22, 18),),
        {"": "instance norm and activation", "11": "instance norm"},
    ),
    "not affine": (
        lambda: nn.Sequential(nn.Identity(), foreign.encoder(affine=False)),
        lambda batch: (torch.randn(batch, 3, 22, 18),),
        {"1": "instance norm and activation", "1.11": "instance norm"},
    ),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return foreign.settled(CASES[name][0]())


def accelerated(module: nn.Module, **options) -> AccelerateReport:
    return fastface.accelerate(module, verbose=False, **options)


def worst(expected, got) -> float:
    """The largest difference as a share of the largest value."""
    if isinstance(expected, dict):
        assert expected.keys() == got.keys()
        return max(worst(expected[key], got[key]) for key in expected)
    if isinstance(expected, tuple):
        assert len(expected) == len(got)
        return max(map(worst, expected, got))
    if expected is None:
        assert got is None
        return 0.0
    assert expected.shape == got.shape and expected.dtype == got.dtype
    return float((expected - got).abs().max() / expected.abs().max())


def snapshot(module: nn.Module) -> list:
    """Everything that a module consists of, by identity."""
    return [
        (name, id(part), type(part), {key: id(value) for key, value in vars(part).items() if not key.startswith("_")})
        + tuple(
            list((key, id(value)) for key, value in getattr(part, place).items())
            for place in ("_parameters", "_modules", "_forward_pre_hooks", "_forward_hooks", "_state_dict_hooks")
            + ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
        )
        + (sorted(key for key in vars(part) if key != "weight"),)
        for name, part in module.named_modules()
    ]


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_there_and_back(name: str, capsys) -> None:
    module, (_, inputs, changes) = made(name), CASES[name]
    torch.manual_seed(1)
    calls = [inputs(1), inputs(3)]
    expected = [module(*call) for call in calls]
    before, state = (
        snapshot(module),
        {key: (value, value.clone()) for key, value in module.state_dict(keep_vars=True).items()},
    )
    report = fastface.accelerate(module)
    assert {change.where: change.kind for change in report.changes} == changes
    assert capsys.readouterr().out.strip() == str(report)
    assert [worst(result, module(*call)) < 1e-4 for call, result in zip(calls, expected, strict=True)] == [True, True]
    after = module.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(after[key] is value and torch.equal(value, copied) for key, (value, copied) in state.items())
    fastface.restore(module)
    assert snapshot(module) == before
    assert [worst(result, module(*call)) for call, result in zip(calls, expected, strict=True)] == [0, 0]


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 20), st.integers(2, 20)),
    of_map=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    merge=st.booleans(),
    channels_last=st.booleans(),
)
def test_modulation_of_any_size(batch, size, of_map, merge, channels_last) -> None:
    torch.manual_seed(0)
    module = foreign.settled(foreign.Modulation(7, 5))
    x, segmap = torch.randn(batch, 7, *size), torch.randn(batch, 5, *of_map)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    expected = module(x, segmap)
    accelerated(module, merge=merge)
    assert worst(expected, module(x, segmap)) < 1e-4
    assert worst(expected, module(x=x, segmap=segmap)) < 1e-4 and worst(expected, module(x, segmap=segmap)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("merge", [False, True])
def test_weights_loaded_afterwards(name: str, merge: bool) -> None:
    module, other = made(name), made(name)
    for parameter in other.parameters():
        parameter *= 1 + 0.3 * torch.randn_like(parameter)
    call = CASES[name][1](2)
    expected = other(*call)
    accelerated(module, merge=merge)
    assert worst(expected, module(*call)) > 1e-2
    module.load_state_dict(other.state_dict())
    assert worst(expected, module(*call)) < 1e-4


@torch.no_grad()
def test_zero_weights_hide_nothing() -> None:
    """Gamma and beta are told apart although both are zero."""
    module = foreign.settled(foreign.ShiftFirst(4, 3))
    trained = copy.deepcopy(module)
    for part in (module.scale, module.shift):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    accelerated(module)
    module.load_state_dict(trained.state_dict())
    call = torch.randn(2, 4, 9, 8), torch.randn(2, 3, 9, 8)
    assert worst(trained(*call), module(*call)) < 1e-4


@torch.no_grad()
def test_what_differs_is_left() -> None:
    block = foreign.settled(nn.ModuleDict({"odd": foreign.Bilinear(6, 3), "fine": foreign.Modulation(6, 3)}))
    report = accelerated(block)
    assert [(change.where, change.kind) for change in report.changes] == [
        ("odd.param_free_norm", "instance norm"),
        ("fine", "SPADE"),
    ]
    (skip,) = report.skipped
    assert (skip.where, skip.kind) == ("odd", "SPADE") and "computes something else" in skip.reason
    assert "odd: looks like SPADE, left as it is" in str(report)
    assert type(block["odd"]) is foreign.Bilinear


@torch.no_grad()
def test_reasons_to_leave_a_module() -> None:
    class More(foreign.PortraitMotion):
        def forward(self, feature, kp_driving, kp_source):
            return {**super().forward(feature, kp_driving, kp_source), "sum": feature.sum()}

    class Random(foreign.Modulation):
        def forward(self, x, segmap):
            return super().forward(x + torch.randn_like(x), segmap)

    hooked, patched = foreign.Modulation(6, 3), foreign.Modulation(6, 3)
    hooked.param_free_norm.register_forward_hook(lambda *_: None)
    patched.forward = patched.forward
    parts = nn.ModuleDict({"more": More(), "hooked": hooked, "patched": patched, "random": Random(6, 3)})
    report = accelerated(foreign.settled(nn.ModuleList([parts, foreign.AdaptiveBlock()])))
    reasons = {skip.where: skip.reason for skip in report.skipped}
    assert "'sum' is not one of mask, deformation" in reasons["0.more"]
    assert "its norm has hooks" in reasons["0.hooked"]
    assert "its forward was replaced" in reasons["0.patched"]
    assert "computes something else" in reasons["0.random"]
    assert all(type(part) in (More, foreign.Modulation, Random) for part in parts.values())


def test_jacobians_take_the_old_way(monkeypatch) -> None:
    module = made("keypoints in dicts")
    accelerated(module, convolutions=False)
    call = volume_call(1, wrapped=True)
    monkeypatch.setattr(ops, "pack_motions", lambda *_, **__: pytest.fail("fused"))
    for keypoints in call[1:]:
        keypoints["jacobian"] = torch.eye(3).expand(1, 5, 3, 3)
    with torch.no_grad():
        result = module(*call)
        fastface.restore(module)
        assert worst(module(*call), result) == 0


@torch.no_grad()
def test_an_example_shows_what_shapes_do_not() -> None:
    class Picky(foreign.Modulation):
        def forward(self, x, segmap):
            if x.shape[2:] != (7, 9):
                raise RuntimeError("the size must be 7x9")
            return super().forward(x, segmap)

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.picky = Picky(6, 3)
            self.norm = nn.InstanceNorm2d(6)

        def forward(self, x, *, segmap):
            return self.norm(self.picky(x, segmap))

    model, call = foreign.settled(Around()), ((torch.randn(1, 6, 7, 9),), {"segmap": torch.randn(1, 3, 7, 9)})
    report = accelerated(model)
    assert "pass example=): RuntimeError: the size must be 7x9" in report.skipped[0].reason
    expected = model(*call[0], **call[1])
    report = accelerated(model, example=call)
    assert [change.where for change in report.changes] == ["picky", "norm"]
    assert worst(expected, model(*call[0], **call[1])) < 1e-4


@torch.no_grad()
def test_calls_of_another_form() -> None:
    """They take the module's own way, and prove nothing."""

    class Scaled(foreign.ShiftFirst):
        def forward(self, x, y, gain=1.0):
            return gain * super().forward(x, y)

    class OnlyScaled(Scaled):
        def forward(self, x, y, gain):
            return super().forward(x, y, gain)

    x, y = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 4, 4)
    module = foreign.settled(Scaled(4, 3))
    expected = [module(x, y, 2.0), module(x, y)]
    accelerated(module, example=((x, y), {"gain": 2.0}))
    assert worst(expected[0], module(x, y, 2.0)) == 0 and worst(expected[1], module(x, y)) < 1e-4
    other = foreign.settled(nn.ModuleList([OnlyScaled(4, 3), module]))
    assert "takes none of the inputs tried" in accelerated(other).skipped[0].reason
    report = accelerated(other[0], example=((x, y, 2.0), {}), convolutions=False)
    assert "it is called in another way than its fused form" in report.skipped[0].reason


def test_errors() -> None:
    for value in (None, [nn.ReLU()], foreign.Modulation):
        with pytest.raises(TypeError, match="module must be an nn.Module, got"):
            fastface.accelerate(value)
        with pytest.raises(TypeError, match="module must be an nn.Module, got"):
            fastface.restore(value)
    module = foreign.AdaptiveBlock()
    with pytest.raises(ValueError, match=r"evaluation mode, got it in training mode: call .eval\(\) first"):
        fastface.accelerate(module)
    module.eval().norm2.fc.train()
    with pytest.raises(ValueError, match="evaluation mode, got norm2.fc in training mode"):
        fastface.accelerate(module)
    for example in (torch.zeros(1), (torch.zeros(1),), (torch.zeros(1), {})):
        with pytest.raises(TypeError, match=r"example must be \(args, kwargs\), a tuple and a dict, got"):
            fastface.accelerate(module.eval(), example=example)
    with pytest.raises(
        ValueError, match="found nothing to accelerate in FirstOrder, looked for\n  dense motion: a 1x1x1"
    ):
        fastface.accelerate(foreign.FirstOrder().eval())


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    module, call = made(name), CASES[name][1](1)
    first = call[0].requires_grad_()

    def gradients() -> list[Tensor]:
        module.zero_grad()
        first.grad = None
        result = module(*call)
        values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]
        torch.stack([value.square().mean() for value in values if value is not None]).sum().backward()
        return [first.grad.clone(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]

    expected = gradients()
    accelerated(module)
    got = gradients()
    assert len(got) == len(expected)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert all(float((a - b).abs().max()) < 1e-4 * largest for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_compile(name: str) -> None:
    module, call = made(name), CASES[name][1](1)
    expected = module(*call)
    accelerated(module, merge=True)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert worst(expected, compiled(*call)) < 1e-4


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_copies_live_on_their_own(name: str) -> None:
    module, call = made(name), CASES[name][1](1)
    expected = module(*call)
    classes = [type(part) for part in module.modules()]
    accelerated(module, merge=True)
    twin = copy.deepcopy(module)
    for parameter in module.parameters():
        parameter.zero_()
    fastface.restore(module)
    assert worst(expected, twin(*call)) < 1e-4
    fastface.restore(twin)
    assert [type(part) for part in twin.modules()] == classes
    assert worst(expected, twin(*call)) < 1e-6


@torch.no_grad()
def test_pickles() -> None:
    module, call = made("decoder"), CASES["decoder"][1](1)
    expected = module(*call)
    accelerated(module)
    loaded = pickle.loads(pickle.dumps(module))
    assert worst(expected, loaded(*call)) < 1e-4
    for restored in (module, loaded):
        fastface.restore(restored)
        again = pickle.loads(pickle.dumps(restored))
        assert type(again.middle.norm_0) is foreign.Modulation and worst(expected, again(*call)) < 1e-6


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_other_dtypes_afterwards(name: str) -> None:
    module, call = made(name), CASES[name][1](1)
    accelerated(module, merge=True)
    module.double()
    wide = [{k: v.double() for k, v in x.items()} if isinstance(x, dict) else x.double() for x in call]
    got = module(*wide)
    fastface.restore(module)
    assert worst(module(*wide), got) < 1e-6
    module.bfloat16()
    assert accelerated(module).changes, "what is compared is compared in float32"


@torch.no_grad()
def test_autocast() -> None:
    module, call = made("parametrized decoder"), CASES["parametrized decoder"][1](1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(*call)
        accelerated(module)
        assert worst(expected.float(), module(*call).float()) < 5e-2


@torch.no_grad()
def test_twice_is_once() -> None:
    module = made("parametrized decoder")
    first = accelerated(module)
    classes = [type(part) for part in module.modules()]
    assert accelerated(module) == first and [type(part) for part in module.modules()] == classes
    fastface.restore(module)
    fastface.restore(module)
    assert not any(name.startswith("_fastface") for part in module.modules() for name in vars(part))


@torch.no_grad()
def test_changed_weights_need_another_call() -> None:
    module, call = made("decoder"), CASES["decoder"][1](1)
    accelerated(module)
    before = module(*call)
    module.up.conv_1.weight_orig += 0.3 * torch.randn_like(module.up.conv_1.weight_orig)
    assert worst(before, module(*call)) == 0
    report = accelerated(module)
    assert "call accelerate again" in str(report)
    got = module(*call)
    fastface.restore(module)
    assert worst(module(*call), got) < 1e-4 < worst(before, got)


@torch.no_grad()
def test_one_module_in_two_places() -> None:
    shared = foreign.Modulation(6, 3)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = shared, shared
            self.listed = [shared]

        def forward(self, x, m):
            return self.listed[0](self.b(self.a(x, m), m), m)

    model = foreign.settled(Twice())
    call = torch.randn(1, 6, 8, 8), torch.randn(1, 3, 4, 4)
    expected = model(*call)
    assert len(accelerated(model).changes) == 1
    assert model.a is model.b is shared and worst(expected, model(*call)) < 1e-4
    fastface.restore(model)
    assert type(shared) is foreign.Modulation


@torch.no_grad()
def test_training_is_as_before() -> None:
    modules = [made("decoder"), made("decoder")]
    accelerated(modules[0])
    results = []
    for module in modules:
        torch.manual_seed(3)
        module.train()
        results.append([module(torch.randn(2, 16, 8, 8)) for _ in range(2)])
        results[-1].append(module.eval()(torch.randn(2, 16, 8, 8)) if module is modules[1] else None)
    assert all(worst(a, b) < 1e-6 for a, b in zip(results[0][:2], results[1][:2], strict=True))
    fastface.restore(modules[0])
    torch.manual_seed(4)
    x = torch.randn(2, 16, 8, 8)
    assert worst(modules[1](x), modules[0].eval()(x)) < 1e-5, "the vectors of spectral norm moved alike"


@torch.no_grad()
def test_own_attributes_methods_and_hooks_stay() -> None:
    module = made("warping").get_submodule("dense_motion_network")
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    holder = nn.ModuleList([module]).eval()
    accelerated(holder)
    assert isinstance(module, foreign.PortraitMotion) and module.points == 5
    assert type(module).__name__ == "FusedPortraitMotion" and "FusedPortraitMotion" in repr(holder)
    feature, driving, source = volume_call(1)
    assert module.heat(feature, driving, source).shape == (1, 6, 1, 4, 20, 28)
    module(feature, driving, source)
    assert seen[-1:] == [1]


@torch.no_grad()
@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("weight_last", [False, True])
def test_convolutions_lay_out_as_before(x_last: bool, weight_last: bool) -> None:
    convs = nn.ModuleList([nn.Conv2d(32, 40, 3, padding=1), nn.Conv3d(32, 32, 3, padding=1)]).eval()
    inputs = [torch.randn(2, 32, 9, 7), torch.randn(1, 32, 8, 16, 16)]
    for conv, memory_format in zip(convs, (torch.channels_last, torch.channels_last_3d), strict=True):
        if weight_last:
            conv.to(memory_format=memory_format)
    if x_last:
        inputs = [inputs[0].to(memory_format=torch.channels_last), inputs[1].to(memory_format=torch.channels_last_3d)]
    expected = [conv(x) for conv, x in zip(convs, inputs, strict=True)]
    report = accelerated(convs)
    assert [change.detail for change in report.changes] == ["WinogradConv2d", "WinogradConv3d"]
    for conv, x, result in zip(convs, inputs, expected, strict=True):
        assert worst(result, conv(x)) < 1e-4
        # In three dimensions PyTorch decides by sizes, too; what was contiguous with contiguous input has to stay so.
        assert conv(x).stride() == result.stride() or x.dim() == 5 and (x_last or weight_last)
    with pytest.raises(ValueError, match="found nothing"):
        accelerated(convs, convolutions=False)


@torch.no_grad()
def test_random_numbers_are_not_used_up() -> None:
    module = made("decoder")
    state = torch.get_rng_state()
    accelerated(module)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_what_changes_later_counts() -> None:
    """Hooks, other children and slices of a sequence, after it was fused."""
    module, x = made("affine"), torch.randn(1, 3, 16, 16)
    first = module[:4](x)
    accelerated(module)
    assert worst(first, module[:4](x)) < 1e-4
    seen = []
    module[3].register_forward_hook(lambda _, args, out: seen.append(out))
    module[9] = nn.Sigmoid()
    got = module(x)
    fastface.restore(module)
    assert len(seen) == 2 and worst(module(x), got) < 1e-4


def test_no_kernel_no_change(monkeypatch) -> None:
    monkeypatch.setattr(_native, "reason_missing", lambda _: "not built here")
    with pytest.raises(ValueError, match="looks like SPADE, left as it is: not built here"):
        fastface.accelerate(foreign.settled(foreign.Modulation(6, 3)))
