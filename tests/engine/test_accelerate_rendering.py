"""A volume renderer of another package, fused: the numbers that it gave, for the random numbers that it drew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastface
from fastface.models.pir import ImportanceRenderer
from fastface.ops import _native
from tests.engine import foreign_models as foreign

pytestmark = pytest.mark.skipif(
    _native.reason_missing("cpu") is not None, reason=f"cpu backend: {_native.reason_missing('cpu')}"
)


def call(batch: int = 2, rays: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    origins = torch.tensor([0.1, -0.1, 2.7]).expand(batch, rays, 3)
    directions = torch.nn.functional.normalize(
        0.12 * torch.randn(batch, rays, 3) - torch.tensor([0.0, 0.0, 1.0]), dim=2
    )
    return torch.randn(batch, 6), origins, directions


def made(renderer: nn.Module | None = None, **options: object) -> foreign.HeadGenerator:
    torch.manual_seed(0)
    return foreign.HeadGenerator(renderer, **options).eval()


def seeded(module: Callable[..., dict[str, Tensor]], given: tuple, seed: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return module(*given)


def worst(expected: dict[str, Tensor], got: dict[str, Tensor]) -> float:
    return max(float((expected[key] - got[key]).abs().max() / expected[key].abs().max()) for key in expected)


class Fixed(foreign.Rays):
    """Reads its planes as they should have been."""

    second = (2, 1)


@pytest.mark.parametrize(
    ("renderer", "options", "axes"),
    [
        (foreign.Rays, {}, "eg3d"),
        (foreign.Rays, {"white_back": True, "box_warp": 1.6}, "eg3d"),
        (Fixed, {"depth_resolution": 7, "depth_resolution_importance": 20}, "xy_xz_zy"),
    ],
)
@torch.no_grad()
def test_a_seed_gives_what_it_gave(renderer: type[nn.Module], options: dict, axes: str) -> None:
    module, given = made(renderer(), **options), call()
    expected = [seeded(module, given, seed) for seed in (5, 6)]
    assert worst(*expected) > 1e-3, "its depths are random"
    state = torch.get_rng_state()
    report = fastface.accelerate(module, example=(given, {}), verbose=False)
    assert torch.equal(torch.get_rng_state(), state), "random numbers are not used up"
    (change,) = report.changes
    assert (change.where, change.kind) == ("renderer", "volume renderer")
    assert change.detail == f"render_planes, axes {axes}, depths drawn anew"
    for seed, one in zip((5, 6), expected, strict=True):
        assert worst(one, seeded(module, given, seed)) < 1e-4
    other = call(1, 40)
    fused = seeded(module, other)
    fastface.restore(module)
    assert type(module.renderer) is renderer
    assert worst(seeded(module, other), fused) < 1e-4


@torch.no_grad()
def test_weights_may_change_later() -> None:
    module, given = made(), call()
    fastface.accelerate(module, example=(given, {}), verbose=False)
    for parameter in module.decoder.parameters():
        parameter += 0.5 * torch.randn_like(parameter)
    fused = seeded(module, given)
    fastface.restore(module)
    assert worst(seeded(module, given), fused) < 1e-4


@torch.no_grad()
def test_other_calls_run_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Louder(foreign.PointDecoder):
        def forward(self, sampled: Tensor, directions: Tensor) -> dict[str, Tensor]:
            out = super().forward(sampled, directions)
            return {**out, "rgb": 2 * out["rgb"]}

    module, given = made(), call()
    fastface.accelerate(module, example=(given, {}), verbose=False)
    ran = []
    monkeypatch.setattr(foreign.Rays, "finer", lambda *args, own=foreign.Rays.finer: ran.append(1) or own(*args))
    module(*given)
    assert not ran
    proven = module.decoder
    module.decoder = Louder().eval()
    module(*given)
    assert len(ran) == 1, "a decoder of another class"
    module.decoder = proven
    handle = proven.net.register_forward_hook(lambda *_: None)
    module(*given)
    handle.remove()
    assert len(ran) == 2, "a decoder with hooks"
    with torch.enable_grad():
        module(*given)
    assert len(ran) == 3, "gradients are wanted"
    module.rendering_kwargs["density_noise"] = 0.5
    module(*given)
    assert len(ran) == 4, "an option that is not known"


class Brighter(foreign.Rays):
    def forward(self, planes, decoder, ray_origins, ray_directions, rendering_options):
        colour, depth, total = super().forward(planes, decoder, ray_origins, ray_directions, rendering_options)
        return 1.01 * colour, depth, total


class Three(foreign.Rays):
    def forward(self, planes, decoder, ray_origins, ray_directions, rendering_options):
        colour, depth, total = super().forward(planes, decoder, ray_origins, ray_directions, rendering_options)
        return colour, depth, total.squeeze(-1)


@pytest.mark.parametrize(
    ("module", "example", "reason"),
    [
        (lambda: made(), False, "it takes none of the inputs tried (pass example=)"),
        (lambda: made(Brighter()), True, "it computes something else: "),
        (lambda: made(Three()), True, "it computes something else: inf"),
        (lambda: made(density_noise=0.1), True, "density_noise is for training"),
    ],
)
def test_what_is_not_proven_stays(module: Callable[[], nn.Module], example: bool, reason: str) -> None:
    model, given = module(), call()
    with pytest.raises(ValueError, match="found nothing to accelerate") as error:
        fastface.accelerate(model, example=(given, {}) if example else None)
    assert f"renderer: looks like volume renderer, left as it is: {reason}" in str(error.value)
    assert isinstance(model.renderer, foreign.Rays) and "Fused" not in type(model.renderer).__name__


@torch.no_grad()
def test_depths_that_are_not_random_stay_so() -> None:
    module, given = made(ImportanceRenderer()), call()
    expected = module(*given)
    (change,) = fastface.accelerate(module, example=(given, {}), verbose=False).changes
    assert change.detail == "render_planes, axes eg3d, depths always the same"
    assert worst(expected, module(*given)) < 1e-6


def test_hooks_of_its_parts_stay() -> None:
    model = made()
    model.renderer.ray_marcher.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="its parts have hooks"):
        fastface.accelerate(model, example=(call(), {}))


def test_scripted_modules_are_no_renderers() -> None:
    model = nn.ModuleList([torch.jit.script(nn.ReLU()), nn.InstanceNorm2d(3)]).eval()
    assert fastface.accelerate(model, verbose=False).changes
